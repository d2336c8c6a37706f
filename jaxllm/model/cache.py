"""Keys and values of the positions already seen, one array per layer, updated in place inside a compiled loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxllm.model.axes import constrain
from jaxllm.model.config import ModelConfig


@struct.dataclass
class Int8Slots:
    """Keys (or values) of a layer in 8 bits, with a scale for every vector: slot = values * scale.

    Attributes:
      values: int8 [B, K, S, H].
      scale: float32 [B, K, S]: the vector's largest magnitude / 127.
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Slots = jax.Array | Int8Slots


@struct.dataclass
class KVCache:
    """What decoding remembers.

    Attributes:
      keys, values: a tuple of L arrays [B, K, S, H] (or `Int8Slots`); slot s of a row holds its position s. Heads come
        first, so that a head's keys are one matrix, which a CPU multiplies several times faster.
      lengths: int32 [B], positions held by each row. Slots from there on hold nothing that is ever attended to.
    """

    keys: tuple[Slots, ...]
    values: tuple[Slots, ...]
    lengths: jax.Array

    @property
    def capacity(self) -> int:
        """S, the number of positions that fit."""
        return self.keys[0].shape[2]


def empty_cache(config: ModelConfig, batch: int, capacity: int, dtype: Any = jnp.float32) -> KVCache:
    """A cache for `batch` rows of up to `capacity` positions; every leaf has the rows first.

    Args:
      dtype: of keys and values; "int8" keeps a scale per position, head and row beside them.

    Raises:
      ValueError: when a model with learned positions has fewer of them than `capacity`.
    """
    if config.positions == "learned" and capacity > config.max_positions:
        raise ValueError(f"a cache of {capacity} positions exceeds the {config.max_positions} that the model "
                         f"has learned; ask for fewer tokens or shorten the prompt")
    shape = (batch, config.kv_heads, capacity, config.head_dim)

    def slots() -> Slots:
        if jnp.dtype(dtype) == jnp.int8:
            return Int8Slots(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))
        return jnp.zeros(shape, dtype)

    return KVCache(keys=tuple(slots() for _ in range(config.layers)),
                   values=tuple(slots() for _ in range(config.layers)),
                   lengths=jnp.zeros((batch,), jnp.int32))


def write(slots: Slots, new_BTKH: jax.Array, starts: jax.Array) -> Slots:
    """Writes row b of `new` at slots starts[b], starts[b] + 1, ...; what does not fit is dropped, never shifted.

    (`dynamic_update_slice` would move an overlong write to the left, over positions that are still needed.)
    """
    new_BKTH = jnp.swapaxes(new_BTKH, 1, 2)
    if not isinstance(slots, Int8Slots):
        return _put(slots, new_BKTH, starts)
    new_BKTH = new_BKTH.astype(jnp.float32)
    scale = jnp.max(jnp.abs(new_BKTH), axis=-1) / 127
    levels = jnp.round(new_BKTH / jnp.where(scale == 0, 1.0, scale)[..., None])
    return Int8Slots(_put(slots.values, levels, starts), _put(slots.scale, scale, starts))


def _put(slots: jax.Array, new: jax.Array, starts: jax.Array) -> jax.Array:
    """[B, K, T, ...] into [B, K, S, ...]."""
    B, K, T = new.shape[:3]
    rows, heads = jnp.arange(B)[:, None, None], jnp.arange(K)[None, :, None]
    where = starts[:, None, None] + jnp.arange(T)[None, None, :]
    updated = slots.at[rows, heads, where].set(new.astype(slots.dtype), mode="drop", unique_indices=True)
    return constrain(updated, ("batch", "kv_heads") + (None,) * (slots.ndim - 2))


def check_room(cache: KVCache, new: int) -> None:
    """Raises ValueError when some row has no room for `new` more positions. Not for use under `jax.jit`."""
    longest = int(cache.lengths.max())
    if longest + new > cache.capacity:
        raise ValueError(f"the cache holds {longest} of {cache.capacity} positions and {new} more do not fit; "
                         f"make it larger or ask for fewer tokens")
