"""jaxllm: the road from web pages to a reasoning assistant, as pure functions on arrays."""

__version__ = "0.1.0"
