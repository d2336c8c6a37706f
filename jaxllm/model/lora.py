"""LoRA: low-rank corrections of frozen weights, as overlays on the parameter tree.

W' = W + (alpha / rank) A B,   A [in, rank] drawn from a normal distribution,  B [rank, out] = 0

A weight of the tree becomes a `Lora`, which `forward` and `decode` take as they take the weight; B = 0 leaves the
function as it was. Training changes the factors alone: `factors` takes them out as a small tree of their own (what the
optimizer and a checkpoint hold), `with_factors` puts them back, `merge` adds them into a plain tree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from jaxllm.model.axes import MESH_AXES, partition_spec
from jaxllm.model.config import ModelConfig
from jaxllm.model.overlay import Overlay
from jaxllm.model.params import Leaf, Params, parameter_table

EMBEDDING = "embedding/tokens"


@struct.dataclass
class Lora(Overlay):
    """A frozen weight and two factors: weight + scale * left @ right.

    No gradient reaches the weight: it would be as large as the weight and is never used.

    Attributes:
      weight: float [..., *in, *out]; an embedding table is [V, D].
      left: float [..., rows, rank], `rows` being all dimensions of `in` as one (V of an embedding).
      right: float [..., rank, columns], `columns` all of `out` as one (D of an embedding); zero at the start.
      scale: alpha / rank.
      inputs: how many dimensions of the weight a product contracts from the left; 0 for an embedding table, whose
        product is the one of a tied head: over its last dimension.
    """

    weight: jax.Array
    left: jax.Array
    right: jax.Array
    scale: float = struct.field(pytree_node=False)
    inputs: int = struct.field(pytree_node=False)

    @property
    def out(self) -> tuple[int, ...]:
        """Of a single layer's weight."""
        return self.weight.shape[self.inputs:] if self.inputs else self.weight.shape[:1]

    def product(self, x_RI: jax.Array) -> jax.Array:
        weight, left, right = (array.astype(x_RI.dtype) for array in (self._frozen(), self.left, self.right))
        if not self.inputs:
            weight, left, right = weight.T, right.T, left.T
        low_RK = jnp.matmul(x_RI, left)
        return _matmul(x_RI, weight) + self.scale * _matmul(low_RK, right)

    def rows(self, index: jax.Array | slice) -> jax.Array:
        weight, left, right = self._frozen(), self.left, self.right
        if self.inputs:
            weight, left, right = weight.T, right.T, left.T
        change = self.scale * _matmul(left[index], right)
        return (weight[index].astype(jnp.float32) + change).astype(weight.dtype)

    def merged(self) -> jax.Array:
        """The weight with the correction added, in the weight's shape and dtype."""
        change = self.scale * _matmul(self.left, self.right, jax.lax.Precision.HIGHEST)
        return (self.weight.astype(jnp.float32) + change.reshape(self.weight.shape)).astype(self.weight.dtype)

    def _frozen(self) -> jax.Array:
        """The weight as a matrix, rows by columns."""
        rows = math.prod(self.weight.shape[:max(self.inputs, 1)])
        return jax.lax.stop_gradient(self.weight).reshape(rows, -1)


def _matmul(x: jax.Array, y: jax.Array, precision: Any = None) -> jax.Array:
    return jnp.matmul(x, y, precision=precision, preferred_element_type=jnp.float32)


def lora(params: Params, config: ModelConfig, *, rank: int, alpha: float, key: jax.Array,
         targets: Sequence[str] | None = None, dtype: Any = jnp.float32) -> Params:
    """The same model with low-rank corrections on some of its matrices; at the start they change nothing.

    Args:
      params: as `init` returns them, blocks stacked (`unstack_blocks` takes the result).
      config: the architecture.
      rank: columns of A, at least 1.
      alpha: the correction counts alpha / rank.
      key: a PRNG key; each A is normal(1 / sqrt(in)).
      targets: names of matrices ("query", "key", "value", "output", "up", "gate", "down", "head",
        "embedding/tokens"); None is all matrices of the blocks.
      dtype: of the factors.

    Raises:
      ValueError: for a target that the model lacks, a rank or alpha out of range, or weights that are overlays already.

    References: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021. https://arxiv.org/abs/2106.09685
      Dettmers et al., QLoRA, 2023 (all matrices of the blocks, not the query and value alone).
      https://arxiv.org/abs/2305.14314
    """
    if rank < 1 or not alpha > 0:
        raise ValueError(f"a LoRA needs a rank of at least 1 and an alpha above 0, not {rank} and {alpha}")
    if isinstance(params["blocks"], tuple):
        raise ValueError("LoRA is laid over stacked blocks; give the parameters as `init` or `load_model` returns them")
    chosen = _chosen(config, targets)
    flat = traverse_util.flatten_dict(params, sep="/")
    for number, (name, leaf) in enumerate(sorted(chosen.items())):
        if isinstance(flat[name], Overlay):
            raise ValueError(f"{name} is an overlay already (quantised, prepared for decoding or a LoRA); start from "
                             f"plain weights")
        layers, rows, columns = _sizes(leaf, name)
        draw = jax.random.normal(jax.random.fold_in(key, number), (*layers, rows, rank)) / math.sqrt(rows)
        flat[name] = Lora(flat[name], draw.astype(dtype), jnp.zeros((*layers, rank, columns), dtype), alpha / rank,
                          _inputs(name))
    return traverse_util.unflatten_dict(flat, sep="/")


def lora_specs(config: ModelConfig, *, rank: int, alpha: float, targets: Sequence[str] | None = None,
               mesh_axes: tuple[str, ...] = MESH_AXES) -> Params:
    """The tree of `PartitionSpec` of `lora(params, config, ...)`: factors are split as their weight's rows and columns.

    `factors(lora_specs(...))` are the specs of the factors alone.
    """
    table = traverse_util.flatten_dict(parameter_table(config), sep="/")
    specs: dict[str, Any] = {name: partition_spec(leaf.axes, mesh_axes) for name, leaf in table.items()}
    for name, leaf in _chosen(config, targets).items():
        first = int(leaf.axes[0] == "layer")
        layer = leaf.axes[:first]
        rows, columns = leaf.axes[first], leaf.axes[first + max(_inputs(name), 1)]
        specs[name] = Lora(specs[name], partition_spec((*layer, rows, None), mesh_axes),
                           partition_spec((*layer, None, columns), mesh_axes), alpha / rank, _inputs(name))
    return traverse_util.unflatten_dict(specs, sep="/")


def factors(params: Params) -> dict[str, Any]:
    """The factors alone, as nested dicts: {"blocks": {"attention": {"query": {"left", "right"}, ...}}}.

    Raises:
      ValueError: when the tree has none.
    """
    flat = traverse_util.flatten_dict(params, sep="/") if isinstance(params["blocks"], dict) else {}
    found = {name: {"left": leaf.left, "right": leaf.right} for name, leaf in flat.items() if isinstance(leaf, Lora)}
    if not found:
        raise ValueError("these parameters have no LoRA factors over stacked blocks; lay them over with `lora` first")
    return traverse_util.unflatten_dict(found, sep="/")


def with_factors(params: Params, trained: dict[str, Any]) -> Params:
    """The tree with other factors in place of its own; `params` has the nesting of `lora`, blocks stacked.

    A training step that differentiates `loss(with_factors(params, trained), batch)` with respect to `trained` keeps
    gradients and optimizer state for the factors alone.

    Raises:
      ValueError: when the factors are those of other weights.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    new = traverse_util.flatten_dict(trained, sep="/")
    names = {f"{name}/{side}" for name, leaf in flat.items() if isinstance(leaf, Lora) for side in ("left", "right")}
    if names != set(new):
        raise ValueError(f"these factors do not belong to these weights: {', '.join(sorted(names ^ set(new))[:4])} "
                         f"stand on one side alone; use the targets that they were trained with")
    for name, leaf in flat.items():
        if isinstance(leaf, Lora):
            left, right = new[f"{name}/left"], new[f"{name}/right"]
            if (left.shape, right.shape) != (leaf.left.shape, leaf.right.shape):
                raise ValueError(f"the factors of {name} are {left.shape} and {right.shape}, not {leaf.left.shape} and "
                                 f"{leaf.right.shape}; use the model and rank that they were trained with")
            flat[name] = leaf.replace(left=left, right=right)
    return traverse_util.unflatten_dict(flat, sep="/")


def trainable_mask(params: Params) -> Params:
    """True for the factors and False for all other arrays, in the tree of `params`: for `optax.masked` and the like."""
    return _map_overlays(lambda leaf: leaf.replace(weight=False, left=True, right=True), params, lambda _: False)


def merge(params: Params) -> Params:
    """A plain tree with the corrections added: for export, or to run without their cost.

    The product of the factors is computed and added in float32; shapes and dtypes are those of the weights.
    """
    return _map_overlays(Lora.merged, params)


def _map_overlays(function: Callable[[Lora], Any], params: Params,
                  otherwise: Callable[[Any], Any] = lambda leaf: leaf) -> Params:
    return jax.tree.map(lambda leaf: function(leaf) if isinstance(leaf, Lora) else otherwise(leaf), params,
                        is_leaf=lambda node: isinstance(node, Lora))


def _inputs(name: str) -> int:
    """`Lora.inputs` of a parameter."""
    return 0 if name == EMBEDDING else 2 if name.endswith("attention/output") else 1


def _sizes(leaf: Leaf, name: str) -> tuple[tuple[int, ...], int, int]:
    """(layers or nothing, rows, columns) of a parameter read as a matrix."""
    first = int(leaf.axes[0] == "layer")
    middle = first + max(_inputs(name), 1)
    return leaf.shape[:first], math.prod(leaf.shape[first:middle]), math.prod(leaf.shape[middle:])


def _chosen(config: ModelConfig, targets: Sequence[str] | None) -> dict[str, Leaf]:
    """The entries of the parameter table that get factors, by their paths."""
    table = {name: leaf for name, leaf in traverse_util.flatten_dict(parameter_table(config), sep="/").items()
             if leaf.std is not None and leaf.axes != (None, "embed")}
    if targets is None:
        return {name: leaf for name, leaf in table.items() if name.startswith("blocks/")}
    short = {name if name == EMBEDDING else name.rsplit("/", 1)[-1]: name for name in table}
    unknown = [target for target in targets if target not in short]
    if unknown or not targets or isinstance(targets, str):
        raise ValueError(f"LoRA targets {targets!r}: this model has no matrix {', '.join(unknown) or 'of that name'}; "
                         f"name some of {', '.join(short)}")
    return {short[target]: table[short[target]] for target in targets}
