"""Compiling is nearly all that these tests cost, and their programs run for milliseconds."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def quick_to_compile():
    """XLA leaves out its costly optimisations, which change no result beyond rounding."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
