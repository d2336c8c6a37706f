"""The KV cache: writes land where they should, and what does not fit is refused or dropped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.model.attention import attend_cached
from jaxllm.model.cache import Int8Slots, check_room, empty_cache, write
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


def test_a_cache_in_8_bits_holds_every_vector_to_half_a_level():
    cache = empty_cache(preset("nano"), batch=3, capacity=10, dtype="int8")
    assert cache.capacity == 10
    assert {(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(cache.keys)} == {
        ((3, 2, 10, 8), "int8"), ((3, 2, 10), "float32")}
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(cache))
    new = np.random.default_rng(0).normal(size=(3, 2, 2, 8)).astype(np.float32) * [[[[1e-3]], [[50.0]]]]
    starts = jnp.array([0, 4, 9])  # the last row has room for one of its two
    written = jax.jit(write)(cache.keys[0], jnp.asarray(new, jnp.float32), starts)
    found = np.asarray(written.values, np.float32) * np.asarray(written.scale)[..., None]
    for row, start in enumerate(starts.tolist()):
        for t in range(min(2, 10 - start)):
            vector = new[row, t]
            assert np.all(np.abs(found[row, :, start + t] - vector) <= np.abs(vector).max(-1)[:, None] / 254 * 1.001)
    untouched = np.ones((3, 10), bool)
    untouched[0, :2] = untouched[1, 4:6] = untouched[2, 9:] = False
    assert not np.any(found.transpose(0, 2, 1, 3)[untouched])


def test_attention_to_a_cache_in_8_bits_is_attention_to_what_it_stands_for():
    generator = np.random.default_rng(1)
    q = jnp.asarray(generator.normal(size=(2, 3, 4, 8)), jnp.float32)
    empty = Int8Slots(jnp.zeros((2, 2, 6, 8), jnp.int8), jnp.zeros((2, 2, 6)))
    slots = [jax.jit(write)(empty, jnp.asarray(generator.normal(size=(2, 6, 2, 8)), jnp.float32), jnp.array([0, 0]))
             for _ in range(2)]
    floats = [one.values.astype(jnp.float32) * one.scale[..., None] for one in slots]
    positions = jnp.array([[3, 4, 5], [1, 2, 3]])
    attend = jax.jit(functools.partial(attend_cached, scale=0.5, window=3, softcap=2.0))
    np.testing.assert_allclose(attend(q, *slots, positions), attend(q, *floats, positions), rtol=1e-5, atol=1e-6)
