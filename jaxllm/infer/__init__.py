"""Sampling from a model: logits processors and the compiled generation loop."""
