"""One table per model: shape, logical axes and initializer of every parameter; all else is derived from it.

Parameters are nested dicts of arrays. The blocks are stacked on a leading "layer" axis, so that `lax.scan` can
run over them; `unstack_blocks` gives the per-layer form that decoding prefers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import PartitionSpec

from jaxllm.model.axes import MESH_AXES, partition_spec
from jaxllm.model.config import ModelConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter: its shape, a logical axis per dimension, and normal(std) or a constant to start from."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float | None = None
    constant: float = 0.0


def _norm(config: ModelConfig, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> dict[str, Leaf]:
    start = 0.0 if config.norm == "rms_plus_one" else 1.0
    leaves = {"scale": Leaf(shape, axes, constant=start)}
    if config.norm == "layer":
        leaves["bias"] = Leaf(shape, axes)
    return leaves


def parameter_table(config: ModelConfig) -> dict[str, Any]:
    """Returns the parameter tree of `config` with a `Leaf` in place of every array.

    Matrices start from normal(sqrt(2 / 5 D)), which is GPT-2's 0.02 at its size and right for small models too;
    those that write into the residual stream are divided by sqrt(2 L), as in GPT-2.

    References:
      Nguyen and Salazar, Transformers without Tears, 2019 (small initialisation). https://arxiv.org/abs/1910.05895
      Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.3.
    """
    L, D, N, K, H, F = (config.layers, config.dim, config.heads, config.kv_heads, config.head_dim,
                        config.mlp_dim)
    std = math.sqrt(2 / (5 * D))
    residual_std = std / math.sqrt(2 * L)
    attention: dict[str, Any] = {
        "query": Leaf((L, D, N, H), ("layer", "embed", "heads", None), std),
        "key": Leaf((L, D, K, H), ("layer", "embed", "kv_heads", None), std),
        "value": Leaf((L, D, K, H), ("layer", "embed", "kv_heads", None), std),
        "output": Leaf((L, N, H, D), ("layer", "heads", None, "embed"), residual_std),
    }
    mlp: dict[str, Any] = {
        "up": Leaf((L, D, F), ("layer", "embed", "mlp"), std),
        "down": Leaf((L, F, D), ("layer", "mlp", "embed"), residual_std),
    }
    if config.mlp != "gelu":
        mlp["gate"] = Leaf((L, D, F), ("layer", "embed", "mlp"), std)
    if config.bias != "none":
        attention["query_bias"] = Leaf((L, N, H), ("layer", "heads", None))
        attention["key_bias"] = Leaf((L, K, H), ("layer", "kv_heads", None))
        attention["value_bias"] = Leaf((L, K, H), ("layer", "kv_heads", None))
    if config.bias == "all":
        attention["output_bias"] = Leaf((L, D), ("layer", None))
        mlp["up_bias"] = Leaf((L, F), ("layer", "mlp"))
        mlp["down_bias"] = Leaf((L, D), ("layer", None))
    if config.qk_norm:
        attention["query_norm"] = _norm(config, (L, H), ("layer", None))
        attention["key_norm"] = _norm(config, (L, H), ("layer", None))
    for part in (attention, mlp):
        part["norm"] = _norm(config, (L, D), ("layer", None))
        if config.post_norms:
            part["post_norm"] = _norm(config, (L, D), ("layer", None))
    table: dict[str, Any] = {
        "embedding": {"tokens": Leaf((config.vocab_size, D), ("vocab", "embed"), 0.02)},
        "blocks": {"attention": attention, "mlp": mlp},
        "final_norm": _norm(config, (D,), (None,)),
    }
    if config.positions == "learned":
        table["embedding"]["positions"] = Leaf((config.max_positions, D), (None, "embed"), 0.02)
    if not config.tied_embedding:
        table["head"] = Leaf((D, config.vocab_size), ("embed", "vocab"), std)
    return table


def _map_table(function, config: ModelConfig) -> dict[str, Any]:
    return jax.tree.map(function, parameter_table(config), is_leaf=lambda node: isinstance(node, Leaf))


def init(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Draws the parameters of a new model.

    Args:
      config: the architecture.
      key: a PRNG key; each parameter draws from a key folded with its place in the sorted tree.
      dtype: of the weights.

    Returns:
      The nested dict of arrays that `forward` takes.

    >>> init(ModelConfig(16, 8, 2, 2, 2, 4, 16, 32), jax.random.key(0))["blocks"]["mlp"]["up"].shape
    (2, 8, 16)
    """
    leaves, treedef = jax.tree.flatten(parameter_table(config), is_leaf=lambda x: isinstance(x, Leaf))
    arrays = [
        jnp.full(leaf.shape, leaf.constant, dtype) if leaf.std is None
        else (leaf.std * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)).astype(dtype)
        for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, arrays)


def abstract_params(config: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """The tree of `jax.ShapeDtypeStruct` that `init` would return, without drawing anything."""
    return _map_table(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), config)


def partition_specs(config: ModelConfig, mesh_axes: tuple[str, ...] = MESH_AXES) -> Params:
    """The tree of `PartitionSpec` by which the parameters lie on a mesh with these axis names."""
    return _map_table(lambda leaf: partition_spec(leaf.axes, mesh_axes), config)


def check_mesh(config: ModelConfig, axis_sizes: dict[str, int]) -> None:
    """Raises ValueError naming the first parameter that the mesh cannot split evenly, and what to change."""
    for path, leaf in traverse_util.flatten_dict(parameter_table(config), sep="/").items():
        spec: PartitionSpec = partition_spec(leaf.axes)
        for size, axis, names in zip(leaf.shape, leaf.axes, spec, strict=True):
            names = (names,) if isinstance(names, str) else names or ()
            parts = math.prod(axis_sizes.get(name, 1) for name in names)
            if size % parts:
                raise ValueError(
                    f"parameter {path}: its {axis!r} dimension of {size} cannot be split over {parts} devices "
                    f"of mesh axis {'x'.join(names)}; change the mesh or the model (a vocabulary can be "
                    f"padded to a multiple)")


def count_params(config: ModelConfig) -> int:
    """Number of parameters.

    >>> from jaxllm.model.config import preset
    >>> count_params(preset("gpt2_124m"))
    124439808
    """
    leaves = jax.tree.leaves(parameter_table(config), is_leaf=lambda node: isinstance(node, Leaf))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def flops_per_token(config: ModelConfig, length: int, training: bool = True) -> float:
    """Floating-point operations per token of a row of `length` tokens.

    Forward:  2 (weights in matrix products) + 4 L N H T;  training takes three times that.

    The output head counts, embedding look-ups do not, recomputed activations do not. Attention counts every key
    of the row, causal or not (a sliding window at its size): the convention of PaLM and nanoGPT, so that model
    FLOPs utilisation (MFU) compares with theirs.

    References: Chowdhery et al., PaLM, 2022, appendix B. https://arxiv.org/abs/2204.02311
    """
    blocks = jax.tree.leaves(parameter_table(config)["blocks"], is_leaf=lambda x: isinstance(x, Leaf))
    products = sum(math.prod(leaf.shape) for leaf in blocks if leaf.std is not None)
    products += config.dim * config.vocab_size
    keys = sum(min(window or length, length) for window in config.windows) / len(config.windows)
    attention = 4 * config.layers * config.heads * config.head_dim * keys
    return (3 if training else 1) * (2 * products + attention)


def unstack_blocks(params: Params) -> Params:
    """The same parameters with `blocks` as a tuple of one tree per layer, the form that decoding prefers.

    A loop over tokens that sliced stacked weights would copy every one of them for every token.
    """
    blocks = params["blocks"]
    if isinstance(blocks, tuple):
        return params
    return {**params, "blocks": _split(blocks)}


def split_layers(blocks: Params) -> tuple[Params, ...]:
    """Stacked blocks [L, ...] -> a tuple of L trees; its gradient is one concatenation, not L padded sums."""
    layers = len(jax.tree.leaves(blocks)[0])
    split = jax.tree.map(lambda leaf: jax.lax.split(leaf, (1,) * layers), blocks)
    return tuple(
        jax.tree.map(lambda parts: parts[i].reshape(parts[i].shape[1:]), split,  # noqa: B023
                     is_leaf=lambda node: isinstance(node, (tuple, list)))
        for i in range(layers))


_split = jax.jit(split_layers)  # one program for a model, not two for every shape of its leaves
