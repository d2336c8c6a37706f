"""What may stand in the parameter tree in place of a weight: a struct that multiplies as the weight would.

`layers.dense`, the look-up of tokens and the output head are the only places where weights meet activations; they ask
an `Overlay` for the product and treat everything else as an array.

Quantised weights are held as [out, in] rows, the contracted dimension last: one scale belongs to one output, a row of
the embedding table is both what is looked up and an output of the tied head, and a GGUF file lies the same way.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

# Inputs that share one int4 scale: with a float32 scale, 20 bytes for 32 weights.
GROUP = 32
# Up to so many rows XLA on a CPU multiplies twice as many of integers faster than it casts a matrix to float32.
FEW_ROWS = 32


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


@struct.dataclass
class Panels(Overlay):
    """A weight in its own dtype as panels of some outputs each: the layout that a CPU multiplies fastest.

    Attributes:
      values: float [panels, in, width]; panel p holds outputs p * width and on.
      features: shape of the outputs, of panels * width in all.
    """

    values: jax.Array
    features: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def out(self) -> tuple[int, ...]:
        return self.features

    def product(self, x_RI: jax.Array) -> jax.Array:
        x_PRI = jnp.broadcast_to(x_RI, (self.values.shape[0], *x_RI.shape))
        y_PRW = jax.lax.dot_general(x_PRI, self.values.astype(x_RI.dtype), (((2,), (1,)), ((0,), (0,))),
                                    preferred_element_type=jnp.float32)
        return jnp.moveaxis(y_PRW, 0, 1).reshape(x_RI.shape[0], -1)


@struct.dataclass
class Int8(Overlay):
    """weight = values * scale, with one scale per output: |scale| = largest of the row / 127.

    Attributes:
      values: int8 [..., *out, in], in -127 .. 127.
      scale: float32 [..., *out].
    """

    values: jax.Array
    scale: jax.Array

    @property
    def out(self) -> tuple[int, ...]:
        return self.scale.shape

    def rows(self, index: jax.Array) -> jax.Array:
        return self.values[index].astype(jnp.float32) * self.scale[index][..., None]

    def product(self, x_RI: jax.Array) -> jax.Array:
        if jax.default_backend() == "cpu" and x_RI.shape[0] <= FEW_ROWS:
            return self.product_of_digits(x_RI)
        return contract(x_RI, self.values) * self.scale.reshape(1, -1)

    def product_of_digits(self, x_RI: jax.Array) -> jax.Array:
        """The product by integers alone, with x in two digits of 8 bits: off by at most 1 / 64,500 of a row's largest.

        x = s (high + low / 254),  s = max |x| / 127;  both digits are rows of one product: the weights are read once.
        """
        high = int8_rows(x_RI)
        rest = x_RI.astype(jnp.float32) / _not_zero(high.scale)[:, None] - high.values.astype(jnp.float32)
        low = jnp.round(254 * rest).astype(jnp.int8)
        sums_RO, low_sums_RO = jnp.split(self._integers(jnp.concatenate([high.values, low])), 2)
        return (sums_RO + low_sums_RO / 254) * high.scale[:, None] * self.scale.reshape(1, -1)

    def _integers(self, levels_RI: jax.Array) -> jax.Array:
        """Exact sums of products of levels, as float32 [R, out]."""
        weight_OI = self.values.reshape(-1, self.values.shape[-1])
        sums = jax.lax.dot_general(levels_RI, weight_OI, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
        return sums.astype(jnp.float32)


@struct.dataclass
class Int8Dynamic(Int8):
    """`Int8` whose product rounds the activations to 255 levels a row: quicker for many rows, and less exact."""

    def product(self, x_RI: jax.Array) -> jax.Array:
        x = int8_rows(x_RI)
        # A single row would take XLA's matrix-vector routine, which for integers on a CPU is four times slower.
        levels = jnp.pad(x.values, ((0, max(0, 2 - x_RI.shape[0])), (0, 0)))
        return self._integers(levels)[:x_RI.shape[0]] * x.scale[:, None] * self.scale.reshape(1, -1)


@struct.dataclass
class Int4(Overlay):
    """weight = values * scale, with one scale per output and group of inputs; two values in a byte.

    Attributes:
      packed: uint8 [..., *out, groups, size / 2]. Byte j of a group holds input j in its low half and input
        j + size / 2 in its high half, each plus 8.
      scale: float32 [..., *out, groups].
    """

    packed: jax.Array
    scale: jax.Array

    @property
    def out(self) -> tuple[int, ...]:
        return self.scale.shape[:-1]

    def rows(self, index: jax.Array) -> jax.Array:
        return _unpack(self.packed[index], self.scale[index])

    def product(self, x_RI: jax.Array) -> jax.Array:
        return contract(x_RI, _unpack(self.packed, self.scale, x_RI.dtype))


def _unpack(packed: jax.Array, scale: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """[..., groups, size / 2] -> [..., groups * size], times the scales."""
    halves = jnp.concatenate([packed & 15, packed >> 4], axis=-1).astype(jnp.int8) - jnp.int8(8)
    values = halves.astype(dtype) * scale[..., None].astype(dtype)
    return values.reshape(*values.shape[:-2], -1)


def int8_rows(rows: jax.Array) -> Int8:
    """Symmetric rounding to the nearest of 255 levels, one scale for the last dimension.

    scale = max |row| / 127,  values = round(row / scale);  |row - values scale| <= scale / 2

    Args:
      rows: float [..., in].

    >>> found = int8_rows(jnp.array([[127.0, -63.4, 0.0]]))
    >>> found.values.tolist(), found.scale.tolist()
    ([[127, -63, 0]], [1.0])
    """
    rows = rows.astype(jnp.float32)
    scale = jnp.max(jnp.abs(rows), axis=-1) / 127
    return Int8(jnp.round(rows / _not_zero(scale)[..., None]).astype(jnp.int8), scale)


def int4_rows(rows: jax.Array, group: int = GROUP) -> Int4:
    """Symmetric rounding of every group of `group` inputs to the 16 levels -8 .. 7.

    scale = (the value of the largest magnitude) / -8,  values = round(row / scale) clipped to -8 .. 7

    The value of the largest magnitude is met exactly, whatever its sign, and the error of the others is at most
    scale / 2, or |scale| for one near the other end: the rule of GGUF's Q4_0, with a float32 scale.

    Args:
      rows: float [..., in]; `group`, an even number, divides `in`.

    >>> found = int4_rows(jnp.array([[8.0, -4.0, 3.3, 1.2]]), group=4)
    >>> found.scale.tolist(), found.rows(0).tolist()
    ([[-1.0]], [8.0, -4.0, 3.0, 1.0])
    """
    groups = rows.astype(jnp.float32).reshape(*rows.shape[:-1], -1, group)
    largest = jnp.argmax(jnp.abs(groups), axis=-1, keepdims=True)
    scale = jnp.take_along_axis(groups, largest, axis=-1)[..., 0] / -8
    levels = jnp.clip(jnp.round(groups / _not_zero(scale)[..., None]), -8, 7).astype(jnp.int32) + 8
    low, high = jnp.split(levels.astype(jnp.uint8), 2, axis=-1)
    return Int4(low | (high << 4), scale)


def _not_zero(scale: jax.Array) -> jax.Array:
    """A row of zeros has scale 0 and values 0."""
    return jnp.where(scale == 0, 1.0, scale)
