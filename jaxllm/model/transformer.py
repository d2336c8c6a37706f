"""The model as functions: `forward` for whole rows, `decode` for new tokens against a cache."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.model import cache as kv
from jaxllm.model.attention import attend, attend_cached
from jaxllm.model.axes import constrain
from jaxllm.model.cache import KVCache
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.layers import dense, mlp, norm, query_key_value, rotary_tables
from jaxllm.model.overlay import Overlay
from jaxllm.model.params import Params, split_layers

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def forward(params: Params, config: ModelConfig, tokens: jax.Array, *, segment_ids: jax.Array | None = None,
            positions: jax.Array | None = None, execution: Execution = Execution()) -> jax.Array:
    """Logits of the next token at every position.

    Args:
      params: as `init` returns them, in any float dtype; blocks stacked or a tuple of layers.
      config: the architecture.
      tokens: int32 [B, T].
      segment_ids: int32 [B, T], 0 for padding; attention stays inside a segment. None: one document a row.
      positions: int32 [B, T] or [1, T], restarting with every segment. None: 0 .. T-1.
      execution: dtype, scan, remat, attention.

    Returns:
      float32 [B, T, V].

    Raises:
      ValueError: when T exceeds config.max_positions.

    References: Vaswani et al., Attention Is All You Need, 2017. https://arxiv.org/abs/1706.03762
    """
    hidden = hidden_states(params, config, tokens, segment_ids=segment_ids, positions=positions,
                           execution=execution)
    return logits(params, config, hidden)


def hidden_states(params: Params, config: ModelConfig, tokens: jax.Array, *,
                  segment_ids: jax.Array | None = None, positions: jax.Array | None = None,
                  execution: Execution = Execution()) -> jax.Array:
    """What `forward` computes short of the output head: [B, T, D] in execution.dtype, after the last norm."""
    length = tokens.shape[1]
    if length > config.max_positions:
        raise ValueError(f"rows of {length} tokens exceed the model's max_positions "
                         f"({config.max_positions}); shorten the rows or raise model.max_positions")
    if positions is None:
        positions = jnp.arange(length, dtype=jnp.int32)[None]
    x = embed(params, config, tokens, positions, execution)
    rotary = rotary_tables(config, positions) if config.positions == "rotary" else None

    def run(x: jax.Array, layer: Params, window: int) -> jax.Array:
        def mix(q, k, v):
            return attend(q, k, v, scale=query_scale(config), segment_ids=segment_ids, window=window,
                          softcap=config.attention_softcap, implementation=execution.attention)
        return block(x, layer, config, rotary, mix)

    x = _run_layers(run, x, params["blocks"], config, execution)
    return norm(x, params["final_norm"], config)


def _run_layers(run, x, blocks, config: ModelConfig, execution: Execution):
    """Applies all layers, `len(config.windows)` of them (usually one) per step of the scan."""
    period = len(config.windows)

    def step(x, group):
        for window, layer in zip(config.windows, group, strict=True):
            x = run(x, layer, window)
        return x, None

    if execution.remat != "none":
        step = jax.checkpoint(step, policy=REMAT_POLICIES[execution.remat],
                              prevent_cse=not execution.scan or isinstance(blocks, tuple))
    if isinstance(blocks, tuple) or not execution.scan:
        layers = blocks if isinstance(blocks, tuple) else split_layers(blocks)
        for i in range(0, config.layers, period):
            x, _ = step(x, layers[i:i + period])
        return x
    groups = tuple(jax.tree.map(lambda leaf: leaf[i::period], blocks) for i in range(period))  # noqa: B023
    return jax.lax.scan(step, x, groups if period > 1 else (blocks,))[0]


def block(x_BTD: jax.Array, params: Params, config: ModelConfig, rotary, mix) -> jax.Array:
    """One pre-norm block: attention, then MLP, each added to the residual stream.

    Args:
      x_BTD: the residual stream.
      params: one layer's parameters.
      config: the architecture.
      rotary: `rotary_tables`, or None.
      mix: function (q, k, v) -> [B, T, N, H]: how these positions attend.
    """
    attention = params["attention"]
    q, k, v = query_key_value(norm(x_BTD, attention["norm"], config), attention, config, rotary)
    y = dense("btnh,nhd->btd", mix(q, k, v), attention["output"], attention.get("output_bias"))
    x_BTD = constrain(x_BTD + _post(y, attention, config), ("batch", None, None))
    y = mlp(norm(x_BTD, params["mlp"]["norm"], config), params["mlp"], config)
    return constrain(x_BTD + _post(y, params["mlp"], config), ("batch", None, None))


def _post(y: jax.Array, params: Params, config: ModelConfig) -> jax.Array:
    return norm(y, params["post_norm"], config) if config.post_norms else y


def embed(params: Params, config: ModelConfig, tokens: jax.Array, positions: jax.Array,
          execution: Execution) -> jax.Array:
    """Token (and learned position) embeddings: [B, T, D] in execution.dtype."""
    dtype = jnp.dtype(execution.dtype)
    # The table is gathered over "fsdp" first, as any weight before its use; a look-up in a table split by columns
    # would come back split the same way, and moving it to rows costs more than the table.
    table = params["embedding"]["tokens"]
    x = table.rows(tokens) if isinstance(table, Overlay) else constrain(table, ("vocab", None))[tokens]
    x = x.astype(dtype)
    if config.scale_embedding:
        x = x * jnp.asarray(config.dim ** 0.5, dtype)
    if config.positions == "learned":
        x = x + constrain(params["embedding"]["positions"], (None, None))[positions].astype(dtype)
    return constrain(x, ("batch", None, None))


def head_matrix(params: Params, config: ModelConfig) -> jax.Array:
    """The output head as an array [V, D]: the token embedding itself when the two are tied."""
    head = params["embedding"]["tokens"] if config.tied_embedding else params["head"]
    if isinstance(head, Overlay):
        return head.rows(slice(None))
    return head if config.tied_embedding else head.T


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Output head: [..., D] -> float32 [..., V], soft-capped where the model says so."""
    head = params["embedding"]["tokens"] if config.tied_embedding else params["head"]
    if isinstance(head, Overlay):
        out = head.product(hidden.reshape(-1, config.dim)).reshape(*hidden.shape[:-1], -1)
    else:
        out = jnp.einsum("...d,vd->...v", hidden, head_matrix(params, config).astype(hidden.dtype),
                         preferred_element_type=jnp.float32)
    if config.logit_softcap:
        out = config.logit_softcap * jnp.tanh(out / config.logit_softcap)
    return out


def query_scale(config: ModelConfig) -> float:
    """The factor on q k'."""
    return config.head_dim ** -0.5 if config.query_scale is None else config.query_scale


def decode(params: Params, config: ModelConfig, tokens: jax.Array, cache: KVCache, *,
           counts: jax.Array | None = None, execution: Execution = Execution()) -> tuple[jax.Array, KVCache]:
    """Hidden states of new tokens that follow what the cache holds: a prompt to begin with, then one by one.

    Args:
      params: with `blocks` as `unstack_blocks` makes them (stacked ones work, and are copied at every call).
      config: the architecture.
      tokens: int32 [B, T]; row b's tokens take positions cache.lengths[b] onward.
      cache: the past. Room must have been checked (`cache.check_room`): under jit nothing can be raised, and what
        does not fit is dropped.
      counts: int32 [B], how many of each row's T tokens are real; the rest is padding on the right. None: all.
      execution: dtype and attention; layers always run unrolled here.

    Returns:
      (hidden [B, T, D], the cache with the new positions).
    """
    B, T = tokens.shape
    positions = cache.lengths[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
    x = embed(params, config, tokens, positions, execution)
    rotary = rotary_tables(config, positions) if config.positions == "rotary" else None
    blocks: Any = params["blocks"]
    blocks = blocks if isinstance(blocks, tuple) else split_layers(blocks)
    keys, values = list(cache.keys), list(cache.values)
    for i, layer in enumerate(blocks):
        def mix(q, k, v, i=i):
            keys[i] = kv.write(keys[i], k, cache.lengths)
            values[i] = kv.write(values[i], v, cache.lengths)
            return attend_cached(q, keys[i], values[i], positions, scale=query_scale(config),
                                 window=config.windows[i % len(config.windows)],
                                 softcap=config.attention_softcap)
        x = block(x, layer, config, rotary, mix)
    counts = jnp.full((B,), T, jnp.int32) if counts is None else counts
    cache = KVCache(tuple(keys), tuple(values), cache.lengths + counts)
    return norm(x, params["final_norm"], config), cache
