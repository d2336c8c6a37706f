"""Weights in 8 and 4 bits, and weights laid out for decoding: overlays on the parameter tree.

A matrix of the tree becomes a small struct that knows how to multiply (`jaxllm.model.overlay`); `forward` and `decode`
take such trees unchanged. Norms, biases and learned positions stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import PartitionSpec

from jaxllm.model.axes import MESH_AXES, partition_spec
from jaxllm.model.config import ModelConfig
from jaxllm.model.overlay import GROUP, Int4, Int8, Int8Dynamic, Overlay, Panels, int4_rows, int8_rows
from jaxllm.model.params import Leaf, Params, parameter_table, unstack_blocks

SCHEMES = ("bfloat16", "int8", "int8_dynamic", "int4")
# Widest and narrowest panel of `prepare_for_decoding`, in outputs. For 768 x 3,072 and 32 rows on a CPU, panels of 192
# to 384 took half the time of the whole matrix.
PANEL = 384
NARROW_PANEL = 64


def quantize(params: Params, config: ModelConfig, scheme: str, *, group: int = GROUP) -> Params:
    """The same model with its matrices in fewer bits; `forward` and `decode` take the result as they take `params`.

    Every projection, the embedding table and the head are rounded to the nearest level; norms, biases and learned
    positions are left alone. Products sum in float32, or exactly in int32.

    Args:
      params: as `init` returns them, blocks stacked or a tuple of layers, in any float dtype.
      config: the architecture.
      scheme: "bfloat16" (every leaf cast), "int8" (a scale per output), "int8_dynamic" (the same, and products round
        the activations to 8 bits as well) or "int4" (a scale per output and `group` inputs; the
        embedding and the head, where 4 bits cost most, in int8).
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
        return _map_matrices(lambda leaf, array, name: int8_rows(_rows(leaf, array, name)), params, config)
    if scheme == "int8_dynamic":
        def dynamic(leaf: Leaf, array: jax.Array, name: str) -> Int8Dynamic:
            rows = int8_rows(_rows(leaf, array, name))
            return Int8Dynamic(rows.values, rows.scale)
        return _map_matrices(dynamic, params, config)
    if group < 2 or group % 2:
        raise ValueError(f"a group of {group} inputs cannot be packed; choose an even number")

    def pack(leaf: Leaf, array: jax.Array, name: str) -> Int4 | Int8:
        rows = _rows(leaf, array, name)
        if not name.startswith("blocks/"):
            return int8_rows(rows)
        if rows.shape[-1] % group:
            raise ValueError(f"{name} has {rows.shape[-1]} inputs, which groups of {group} do not divide; choose "
                             f"another group")
        return int4_rows(rows, group)
    return _map_matrices(pack, params, config)


def prepare_for_decoding(params: Params, config: ModelConfig, *, dtype: Any = None) -> Params:
    """The same function of the same weights, laid out as decoding runs fastest on the default device.

    Layers are unstacked. On a CPU the matrices of the blocks are cut into `Panels`; elsewhere they keep their layout.
    The result is a copy, for use and not for training. What is quantised already is only unstacked.

    Args:
      params: as `init` or `quantize` returns them.
      config: the architecture.
      dtype: of the activations that will meet them (`Execution.dtype`), to which every step would cast the matrices;
        None leaves them in their own.
    """
    if has_overlays(params):
        return unstack_blocks(params)
    panels = jax.default_backend() == "cpu"

    def prepare(leaf: Leaf, array: jax.Array, name: str) -> Any:
        array = array.astype(dtype or array.dtype)
        if not panels or not name.startswith("blocks/"):
            return array
        inputs = 2 if name.endswith("attention/output") else 1
        return _cut(array.reshape(math.prod(array.shape[:inputs]), -1), array.shape[inputs:])

    return jax.jit(lambda params: _map_matrices(prepare, unstack_blocks(params), config))(params)


def _cut(weight_IO: jax.Array, features: tuple[int, ...]) -> Panels:
    """The widest equal panels within PANEL; one panel where they would be narrow."""
    inputs, outputs = weight_IO.shape
    width = max(width for width in range(1, PANEL + 1) if outputs % width == 0)
    count = outputs // width if width >= NARROW_PANEL else 1
    return Panels(jnp.swapaxes(weight_IO.reshape(inputs, count, -1), 0, 1), features)


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


def _map_matrices(function: Callable[[Leaf, jax.Array, str], Any], params: Params, config: ModelConfig) -> Params:
    """`function(its entry in the table, array, name)` of every matrix, in place of it."""
    table = traverse_util.flatten_dict(parameter_table(config), sep="/")

    def mapped(tree: Params, prefix: str) -> Params:
        flat = traverse_util.flatten_dict(tree, sep="/")
        return traverse_util.unflatten_dict(
            {name: function(table[prefix + name], leaf, prefix + name) if is_matrix(table[prefix + name]) else leaf
             for name, leaf in flat.items()}, sep="/")

    rest = mapped({name: tree for name, tree in params.items() if name != "blocks"}, "")
    blocks = params["blocks"]
    if isinstance(blocks, tuple):
        return {**rest, "blocks": tuple(mapped(layer, "blocks/") for layer in blocks)}
    return {**rest, "blocks": mapped(blocks, "blocks/")}


def _rows(leaf: Leaf, array: jax.Array, name: str) -> jax.Array:
    """A matrix as [..., *out, in]; `array` may be one layer of it."""
    first, end = (axis - len(leaf.shape) + array.ndim for axis in _inputs(leaf, name))
    return jnp.moveaxis(array.reshape(*array.shape[:first], -1, *array.shape[end:]), first, -1)


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
        kind = {"int8": Int8, "int8_dynamic": Int8Dynamic}.get(scheme) or (None if name.startswith("blocks/") else Int8)
        specs[name] = (kind(spec(*out, leaf.axes[first]), spec(*out)) if kind else
                       Int4(spec(*out, leaf.axes[first], None), spec(*out, leaf.axes[first])))
    return traverse_util.unflatten_dict(specs, sep="/")


def tree_bytes(tree: Any) -> int:
    """Bytes that the arrays of a tree take, scales included.

    >>> tree_bytes(int4_rows(jnp.ones((2, 64))))
    80
    """
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
