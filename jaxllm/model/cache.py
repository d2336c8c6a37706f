"""Keys and values of the positions already seen, one array per layer, updated in place inside a compiled loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxllm.model.axes import constrain
from jaxllm.model.config import ModelConfig


@struct.dataclass
class KVCache:
    """What decoding remembers.

    Attributes:
      keys, values: a tuple of L arrays [B, K, S, H]; slot s of a row holds its position s. Heads come first, so that
        a head's keys are one matrix, which a CPU multiplies several times faster.
      lengths: int32 [B], positions held by each row. Slots from there on hold nothing that is ever attended to.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    lengths: jax.Array

    @property
    def capacity(self) -> int:
        """S, the number of positions that fit."""
        return self.keys[0].shape[2]


def empty_cache(config: ModelConfig, batch: int, capacity: int, dtype: Any = jnp.float32) -> KVCache:
    """A cache for `batch` rows of up to `capacity` positions.

    Raises:
      ValueError: when a model with learned positions has fewer of them than `capacity`.
    """
    if config.positions == "learned" and capacity > config.max_positions:
        raise ValueError(f"a cache of {capacity} positions exceeds the {config.max_positions} that the model "
                         f"has learned; ask for fewer tokens or shorten the prompt")
    shape = (batch, config.kv_heads, capacity, config.head_dim)
    layers = range(config.layers)
    return KVCache(keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
                   values=tuple(jnp.zeros(shape, dtype) for _ in layers),
                   lengths=jnp.zeros((batch,), jnp.int32))


def write(slots_BKSH: jax.Array, new_BTKH: jax.Array, starts: jax.Array) -> jax.Array:
    """Writes row b of `new` at slots starts[b], starts[b] + 1, ...; what does not fit is dropped, never shifted.

    (`dynamic_update_slice` would move an overlong write to the left, over positions that are still needed.)
    """
    B, T, K = new_BTKH.shape[:3]
    rows, heads = jnp.arange(B)[:, None, None], jnp.arange(K)[None, :, None]
    slots = starts[:, None, None] + jnp.arange(T)[None, None, :]
    updated = slots_BKSH.at[rows, heads, slots].set(
        jnp.swapaxes(new_BTKH, 1, 2).astype(slots_BKSH.dtype), mode="drop", unique_indices=True)
    return constrain(updated, ("batch", "kv_heads", None, None))


def check_room(cache: KVCache, new: int) -> None:
    """Raises ValueError when some row has no room for `new` more positions. Not for use under `jax.jit`."""
    longest = int(cache.lengths.max())
    if longest + new > cache.capacity:
        raise ValueError(f"the cache holds {longest} of {cache.capacity} positions and {new} more do not fit; "
                         f"make it larger or ask for fewer tokens")
