"""Entry points: a config in, a run folder out. Nothing in jaxllm/ imports from here."""
