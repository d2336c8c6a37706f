"""A look inside: where each head attends, and what each layer would already say.

One compiled function of arrays; a sequence is padded to one of few widths, so that few programs are made.
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
from jaxllm.model.params import Params, split_layers
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
    attention, ids, logp, next_logp = jax.device_get(_look(params, padded, wanted, config, execution, top))
    next_logp = np.where(wanted[None, :count] + 1 < length, next_logp[:, :count], np.nan)
    return Look(attention[:, :, :count, :length], ids[:, :count], logp[:, :count], next_logp)


@functools.partial(jax.jit, static_argnames=("config", "execution", "top"))
def _look(params: Params, tokens: jax.Array, queries: jax.Array, config: ModelConfig, execution: Execution, top: int):
    """(attention [L, N, Q, T], ids and log-probabilities [L + 1, Q, k], of the next token [L + 1, Q])."""
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    x = embed(params, config, tokens, positions, execution)
    rotary = rotary_tables(config, positions) if config.positions == "rotary" else None
    following = tokens[0, jnp.minimum(queries + 1, tokens.shape[1] - 1)]

    def read(x: jax.Array):
        """The lens on a residual stream, at the queries."""
        hidden = norm(x[0, queries], params["final_norm"], config)
        logp = jax.nn.log_softmax(logits(params, config, hidden), axis=-1)
        best, ids = jax.lax.top_k(logp, top)
        return ids, best, jnp.take_along_axis(logp, following[:, None], axis=-1)[:, 0]

    def run(x: jax.Array, layer: Params, window: int):
        weights = []

        def mix(q, k, v):
            weights.append(_weights(q[0, queries], k[0], queries, window, config))
            return attend(q, k, v, scale=query_scale(config), window=window, softcap=config.attention_softcap,
                          implementation=execution.attention)

        x = block(x, layer, config, rotary, mix)
        return x, (weights[0], *read(x))

    first = read(x)
    outputs = _over_layers(run, x, params["blocks"], config)
    attention, *lens = outputs
    return attention, *(jnp.concatenate([one[None], rest]) for one, rest in zip(first, lens, strict=True))


def _over_layers(run, x: jax.Array, blocks, config: ModelConfig):
    """The outputs of every layer, stacked; layers of one kind in one array are scanned."""
    if not isinstance(blocks, tuple) and len(config.windows) == 1:
        return jax.lax.scan(lambda x, layer: run(x, layer, config.windows[0]), x, blocks)[1]
    outputs = []
    for i, layer in enumerate(blocks if isinstance(blocks, tuple) else split_layers(blocks)):
        x, out = run(x, layer, config.windows[i % len(config.windows)])
        outputs.append(out)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


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
