"""The KV cache: writes land where they should, and what does not fit is refused or dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.model.cache import check_room, empty_cache, write
from jaxllm.model.config import preset


def test_an_empty_cache():
    cache = empty_cache(preset("nano"), batch=3, capacity=10, dtype=jnp.bfloat16)
    assert cache.capacity == 10 and len(cache.keys) == len(cache.values) == 2
    assert {(leaf.shape, leaf.dtype.name) for leaf in cache.keys + cache.values} == {
        ((3, 2, 10, 8), "bfloat16")}
    np.testing.assert_array_equal(cache.lengths, [0, 0, 0])


def test_learned_positions_bound_the_cache():
    config = preset("nano", positions="learned")
    assert empty_cache(config, 1, 64).capacity == 64
    with pytest.raises(ValueError, match="a cache of 65 positions exceeds the 64"):
        empty_cache(config, 1, 65)
    assert empty_cache(preset("nano"), 1, 65).capacity == 65


def test_writes_by_row_and_overlong_ones_are_dropped():
    """Row 1 has room for two of three: its third is dropped, and nothing moves to the left."""
    slots = -jnp.ones((3, 1, 5, 1))
    new = jnp.array([[10., 11, 12], [20, 21, 22], [30, 31, 32]])[:, :, None, None]
    written = jax.jit(write)(slots, new, jnp.array([0, 3, 5]))
    np.testing.assert_array_equal(written[:, 0, :, 0], [
        [10, 11, 12, -1, -1], [-1, -1, -1, 20, 21], [-1, -1, -1, -1, -1]])


def test_writes_take_the_dtype_of_the_cache():
    written = write(jnp.zeros((1, 1, 2, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1)), jnp.array([1]))
    assert written.dtype == jnp.bfloat16
    np.testing.assert_array_equal(written[0, 0, :, 0].astype(jnp.float32), [0, 1])


def test_check_room_looks_at_the_longest_row():
    cache = empty_cache(preset("nano"), batch=2, capacity=10).replace(lengths=jnp.array([3, 8]))
    check_room(cache, 2)
    with pytest.raises(ValueError, match="holds 8 of 10 positions and 3 more do not fit"):
        check_room(cache, 3)
