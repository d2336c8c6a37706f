"""Weights in 8 and 4 bits, and weights laid out for decoding: overlays on the parameter tree.

A matrix of the tree becomes a small struct that knows how to multiply (`jaxllm.model.overlay`); `forward` and `decode`
take such trees unchanged. Norms, biases and learned positions stay as they are.

All of them hold a weight as [out, in] rows, the contracted dimension last: one scale belongs to one output, a row of
the embedding table is both what is looked up and an output of the tied head, and a GGUF file lies the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct, traverse_util
from jax.sharding import PartitionSpec

from jaxllm.model.axes import MESH_AXES, partition_spec
from jaxllm.model.config import ModelConfig
from jaxllm.model.overlay import Overlay, contract
from jaxllm.model.params import Leaf, Params, parameter_table, unstack_blocks

SCHEMES = ("bfloat16", "int8", "int4")
# Inputs that share one int4 scale: 0.5 bytes of every 16 or 18 go to scales; as in GGUF's Q4_0.
GROUP = 32


@struct.dataclass
class OutputMajor(Overlay):
    """A weight in its own dtype, stored [..., *out, in].

    Attributes:
      values: float [..., *out, in].
    """

    values: jax.Array

    @property
    def out(self) -> tuple[int, ...]:
        return self.values.shape[:-1]

    def rows(self, index: jax.Array) -> jax.Array:
        return self.values[index]

    def product(self, x_RI: jax.Array) -> jax.Array:
        return contract(x_RI, self.values)


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
        return contract(x_RI, self.values) * self.scale.reshape(1, -1)


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


def quantize(params: Params, config: ModelConfig, scheme: str, *, group: int = GROUP) -> Params:
    """The same model with its matrices in fewer bits; `forward` and `decode` take the result as they take `params`.

    Every projection, the embedding table and the head are rounded to the nearest level; norms, biases and learned
    positions are left alone. Products sum in float32 and the activations keep their dtype.

    Args:
      params: as `init` returns them, blocks stacked or a tuple of layers, in any float dtype.
      config: the architecture.
      scheme: "bfloat16" (every leaf cast), "int8" (a scale per output) or "int4" (a scale per output and `group`
        inputs).
      group: inputs that share an int4 scale, even; must divide D, N H and F.

    Returns:
      A tree of the same nesting; apply it under `jax.jit` to keep no float copy of a large leaf.

    Raises:
      ValueError: for an unknown scheme, a tree that is already quantised, or a group that does not divide.

    References: Dettmers et al., LLM.int8(), 2022 (a scale per output). https://arxiv.org/abs/2208.07339
      Frantar et al., GPTQ, 2022 (scales in groups; here plain rounding). https://arxiv.org/abs/2210.17323
    """
    if scheme not in SCHEMES:
        raise ValueError(f"weights cannot be stored as {scheme!r}; choose one of {', '.join(SCHEMES)}")
    _refuse_overlays(params)
    if scheme == "bfloat16":
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    if scheme == "int8":
        return _map_matrices(lambda rows, _: int8_rows(rows), params, config)
    if group < 2 or group % 2:
        raise ValueError(f"a group of {group} inputs cannot be packed; choose an even number")

    def pack(rows: jax.Array, name: str) -> Int4:
        if rows.shape[-1] % group:
            raise ValueError(f"{name} has {rows.shape[-1]} inputs, which groups of {group} do not divide; choose "
                             f"another group")
        return int4_rows(rows, group)
    return _map_matrices(pack, params, config)


def prepare_for_decoding(params: Params, config: ModelConfig, *, dtype: Any = None) -> Params:
    """The same function of the same weights, laid out as decoding runs fastest; a copy, for use and not for training.

    Layers are unstacked and matrices stored output-major. What is quantised already is only unstacked.

    Args:
      params: as `init` or `quantize` returns them.
      config: the architecture.
      dtype: of the activations that will meet them (`Execution.dtype`), to which every step would cast the matrices;
        None leaves them in their own.
    """
    if has_overlays(params):
        return unstack_blocks(params)

    @jax.jit
    def prepare(params: Params) -> Params:
        return _map_matrices(lambda rows, _: OutputMajor(rows.astype(dtype or rows.dtype)),
                             unstack_blocks(params), config)
    return prepare(params)


def _refuse_overlays(params: Params) -> None:
    if has_overlays(params):
        raise ValueError("these weights are quantised or prepared already; start from those that were loaded")


def has_overlays(params: Params) -> bool:
    """Whether some weight of the tree is quantised, or laid out for decoding."""
    leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Overlay))
    return any(isinstance(leaf, Overlay) for leaf in leaves)


def is_matrix(leaf: Leaf) -> bool:
    """Whether a parameter of the table enters products: has a random start and is no table of positions."""
    return leaf.std is not None and leaf.axes != (None, "embed")


def _inputs(leaf: Leaf, name: str) -> tuple[int, int]:
    """(first, end): which dimensions of a matrix, a leading layer axis included, a product contracts."""
    first = int(leaf.axes[0] == "layer")
    if name == "embedding/tokens":
        return 1, 2
    return first, first + (2 if name.endswith("attention/output") else 1)


def _map_matrices(function: Callable[[jax.Array, str], Any], params: Params, config: ModelConfig) -> Params:
    """`function(rows [..., *out, in], name)` of every matrix, in place of it."""
    table = traverse_util.flatten_dict(parameter_table(config), sep="/")

    def rows(array: jax.Array, name: str, stacked: bool) -> jax.Array:
        first, end = (axis - (name.startswith("blocks/") and not stacked) for axis in _inputs(table[name], name))
        moved = array.reshape(*array.shape[:first], -1, *array.shape[end:])
        return jnp.moveaxis(moved, first, -1)

    def mapped(tree: Params, prefix: str, stacked: bool) -> Params:
        flat = traverse_util.flatten_dict(tree, sep="/")
        return traverse_util.unflatten_dict(
            {name: function(rows(leaf, prefix + name, stacked), prefix + name) if is_matrix(table[prefix + name])
             else leaf for name, leaf in flat.items()}, sep="/")

    rest = mapped({name: tree for name, tree in params.items() if name != "blocks"}, "", True)
    blocks = params["blocks"]
    if isinstance(blocks, tuple):
        return {**rest, "blocks": tuple(mapped(layer, "blocks/", False) for layer in blocks)}
    return {**rest, "blocks": mapped(blocks, "blocks/", True)}


def quantized_specs(config: ModelConfig, scheme: str, mesh_axes: tuple[str, ...] = MESH_AXES) -> Params:
    """The tree of `PartitionSpec` of `quantize(params, config, scheme)` with stacked blocks.

    Outputs lie as those of the matrix itself; its inputs are split as its first input dimension was, int4 by whole
    groups, so a mesh must divide in / group too.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"weights cannot be stored as {scheme!r}; choose one of {', '.join(SCHEMES)}")
    specs = {}
    for name, leaf in traverse_util.flatten_dict(parameter_table(config), sep="/").items():
        if scheme == "bfloat16" or not is_matrix(leaf):
            specs[name] = partition_spec(leaf.axes, mesh_axes)
            continue
        first, end = _inputs(leaf, name)
        out = leaf.axes[:first] + leaf.axes[end:]

        def spec(*axes: str | None) -> PartitionSpec:
            return partition_spec(axes, mesh_axes)
        specs[name] = (Int8(spec(*out, leaf.axes[first]), spec(*out)) if scheme == "int8" else
                       Int4(spec(*out, leaf.axes[first], None), spec(*out, leaf.axes[first])))
    return traverse_util.unflatten_dict(specs, sep="/")


def tree_bytes(tree: Any) -> int:
    """Bytes that the arrays of a tree take, scales included.

    >>> tree_bytes(int4_rows(jnp.ones((2, 64))))
    80
    """
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
