"""What may stand in the parameter tree in place of a weight: a struct that multiplies as the weight would.

`layers.dense`, the look-up of tokens and the output head are the only places where weights meet activations; they ask
an `Overlay` for the product and treat everything else as an array.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


class Overlay:
    """A stand-in for a weight that maps inputs to outputs; a pytree whose leaves have any layer axis first."""

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the outputs, e.g. (N, H) for the query projection of one layer."""
        raise NotImplementedError

    def product(self, x_RI: jax.Array) -> jax.Array:
        """x W for rows x [R, in]: float32 [R, out], the outputs as one dimension."""
        raise NotImplementedError

    def rows(self, index: jax.Array | slice) -> jax.Array:
        """The weights of some outputs, [*index.shape, in]: a look-up in an embedding table."""
        raise NotImplementedError


def contract(x_RI: jax.Array, weight: jax.Array) -> jax.Array:
    """x [R, in] times weight [*out, in], over the last dimension of both: float32 [R, out]."""
    weight_OI = weight.reshape(math.prod(weight.shape[:-1]), weight.shape[-1]).astype(x_RI.dtype)
    return jax.lax.dot_general(x_RI, weight_OI, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
