"""A look inside: where each head attends, and what each layer would already say.

One layer is compiled and run L times, so that the first look does not take long; a sequence is padded to one of few
widths, so that few programs are made.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.infer.prompts import check_prompts, pad_prompts, prompt_width
from jaxllm.model.attention import attend
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.layers import norm, rotary_tables
from jaxllm.model.params import Params
from jaxllm.model.transformer import block, embed, logits, query_scale


@dataclasses.dataclass(frozen=True)
class Look:
    """What a model does at some positions of a sequence.

    Attributes:
      attention: float32 [L, N, Q, T], the weight that each head gives to each position; rows sum to 1.
      lens_tokens: int32 [L + 1, Q, k], the likeliest next tokens if the model ended here: row 0 before the first
        layer, row l after layer l.
      lens_logp: float32 [L + 1, Q, k], nats; the last row is the model's own prediction.
      next_logp: float32 [L + 1, Q], nats, of the token that does follow; NaN at the end of the sequence.
    """

    attention: np.ndarray
    lens_tokens: np.ndarray
    lens_logp: np.ndarray
    next_logp: np.ndarray


def look(params: Params, config: ModelConfig, tokens: Sequence[int], *, queries: Sequence[int] | None = None,
         top: int = 8, execution: Execution = Execution()) -> Look:
    """Runs a sequence and returns attention and the logit lens at the queries.

    The lens of a layer is log_softmax(head(final_norm(x))), x the residual stream after it.

    Args:
      params: as `init` returns them, unstacked or quantised.
      config: the architecture.
      tokens: ids of the sequence, T >= 1.
      queries: positions to look at, Q of them; None is every position (then attention is the full square).
      top: tokens to report per layer and position, k >= 1; at most V.
      execution: dtype.

    Raises:
      ValueError: for an empty or overlong sequence, an id or position out of range, or top out of range.

    References: nostalgebraist, interpreting GPT: the logit lens, 2020.
      https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
    """
    check_prompts([tokens], config, 0)
    length, width = len(tokens), min(prompt_width(len(tokens)), config.max_positions)
    if not 1 <= top <= config.vocab_size:
        raise ValueError(f"top is {top}; it must be 1 to the model's vocabulary of {config.vocab_size}")
    if queries is None:
        count, wanted = length, np.arange(width, dtype=np.int32)
    else:
        count, wanted = len(queries), np.asarray(queries, np.int32)
        if not count or wanted.min() < 0 or wanted.max() >= length:
            raise ValueError(f"queries must be positions from 0 to {length - 1}, at least one")
        wanted = np.pad(wanted, (0, (1 << (count - 1).bit_length()) - count))  # few shapes here too
    padded, _ = pad_prompts([tokens], 1, width)
    attention, ids, logp, next_logp = jax.device_get(_look(params, config, padded, wanted, top, execution))
    next_logp = np.where(wanted[None, :count] + 1 < length, next_logp[:, :count], np.nan)
    return Look(attention[:, :, :count, :length], ids[:, :count], logp[:, :count], next_logp)


def _look(params: Params, config: ModelConfig, tokens: np.ndarray, queries: np.ndarray, top: int,
          execution: Execution):
    """(attention [L, N, Q, T], ids and log-probabilities [L + 1, Q, k], of the next token [L + 1, Q])."""
    outer = {name: part for name, part in params.items() if name != "blocks"}
    blocks = params["blocks"]
    x = _embed(outer, tokens, config, execution)
    streams, attention = [x[0, queries]], []
    for i in range(config.layers):
        window = config.windows[i % len(config.windows)]
        layer, index = (blocks[i], None) if isinstance(blocks, tuple) else (blocks, np.int32(i))
        x, weights, stream = _layer(layer, x, queries, index, config, execution, window)
        streams.append(stream)
        attention.append(weights)
    following = tokens[0, np.minimum(queries + 1, tokens.shape[1] - 1)]
    return jnp.stack(attention), *_read(outer, jnp.stack(streams), following, config, top)


@functools.partial(jax.jit, static_argnames=("config", "execution"))
def _embed(outer: Params, tokens: jax.Array, config: ModelConfig, execution: Execution) -> jax.Array:
    return embed(outer, config, tokens, _positions(tokens), execution)


@functools.partial(jax.jit, static_argnames=("config", "execution", "window"))
def _layer(layer: Params, x: jax.Array, queries: jax.Array, index: jax.Array | None, config: ModelConfig,
           execution: Execution, window: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One layer, or number `index` of stacked ones: (x, attention [N, Q, T], x at the queries)."""
    if index is not None:
        layer = jax.tree.map(lambda leaf: leaf[index], layer)
    rotary = rotary_tables(config, _positions(x)) if config.positions == "rotary" else None
    weights = []

    def mix(q, k, v):
        weights.append(_weights(q[0, queries], k[0], queries, window, config))
        return attend(q, k, v, scale=query_scale(config), window=window, softcap=config.attention_softcap,
                      implementation=execution.attention)

    x = block(x, layer, config, rotary, mix)
    return x, weights[0], x[0, queries]


def _positions(x: jax.Array) -> jax.Array:
    return jnp.arange(x.shape[1], dtype=jnp.int32)[None]


@functools.partial(jax.jit, static_argnames=("config", "top"))
def _read(outer: Params, streams: jax.Array, following: jax.Array, config: ModelConfig, top: int):
    """The lens on residual streams [L + 1, Q, D]: likeliest ids and log-probabilities, and that of `following` [Q]."""
    def read(stream):
        logp = jax.nn.log_softmax(logits(outer, config, norm(stream, outer["final_norm"], config)), axis=-1)
        best, ids = jax.lax.top_k(logp, top)
        return ids, best, jnp.take_along_axis(logp, following[:, None], axis=-1)[:, 0]

    return jax.lax.map(read, streams, batch_size=max(1, 64 // streams.shape[1]))  # bounds the logits held at once


def _weights(q_QNH: jax.Array, k_SKH: jax.Array, queries: jax.Array, window: int, config: ModelConfig) -> jax.Array:
    """Attention weights float32 [N, Q, S] of the queries at these positions over all keys."""
    S, K, H = k_SKH.shape
    q_QKGH = q_QNH.reshape(len(queries), K, -1, H)
    scores = jnp.einsum("qkgh,skh->kgqs", q_QKGH, k_SKH, preferred_element_type=jnp.float32) * query_scale(config)
    if config.attention_softcap:
        scores = config.attention_softcap * jnp.tanh(scores / config.attention_softcap)
    keys = jnp.arange(S)[None, :]
    mask = keys <= queries[:, None]
    if window:
        mask &= keys > queries[:, None] - window
    weights = jax.nn.softmax(jnp.where(mask[None, None], scores, -jnp.inf), axis=-1)
    return weights.reshape(-1, len(queries), S)
