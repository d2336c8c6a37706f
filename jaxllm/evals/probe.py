"""What a model's hidden states foretell before it speaks: a linear probe at the last token of the prompt."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.data.curate.quality import auc, fold_of
from jaxllm.data.curate.quality_head import fit_head, out_of_fold
from jaxllm.infer.prompts import check_prompts, pad_prompts, prompt_width
from jaxllm.model.attention import attend
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.layers import rotary_tables
from jaxllm.model.params import Params, unstack_blocks
from jaxllm.model.transformer import block, embed, forward, query_scale


def end_states(params: Params, config: ModelConfig, prompts: Sequence[Sequence[int]], *, batch: int = 64,
               execution: Execution = Execution()) -> np.ndarray:
    """The residual stream at each prompt's last token, before the first layer and after each.

    Args:
      params: as `init` returns them.
      config: the architecture.
      prompts: token ids, N of them.
      batch: prompts run together.
      execution: dtype, attention.

    Returns:
      float32 [L + 1, N, D].

    Raises:
      ValueError: for an empty or overlong prompt, or an id out of range.
    """
    check_prompts(prompts, config, 0)
    params, parts = unstack_blocks(params), []
    size, width = min(batch, len(prompts)), min(prompt_width(max(map(len, prompts))), config.max_positions)
    for start in range(0, len(prompts), size):
        some = prompts[start:start + size]
        tokens, counts = pad_prompts(some, size, width)
        parts.append(np.asarray(_end_states(params, tokens, counts, config, execution))[:, :len(some)])
    return np.concatenate(parts, axis=1)


@functools.partial(jax.jit, static_argnames=("config", "execution"))
def _end_states(params: Params, tokens: jax.Array, counts: jax.Array, config: ModelConfig,
                execution: Execution) -> jax.Array:
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    rotary = rotary_tables(config, positions) if config.positions == "rotary" else None
    rows, last = jnp.arange(tokens.shape[0]), jnp.maximum(counts - 1, 0)
    x = embed(params, config, tokens, positions, execution)
    streams = [x[rows, last]]
    for i, layer in enumerate(params["blocks"]):
        window = config.windows[i % len(config.windows)]

        def mix(q, k, v, window=window):
            return attend(q, k, v, scale=query_scale(config), window=window, softcap=config.attention_softcap,
                          implementation=execution.attention)
        x = block(x, layer, config, rotary, mix)
        streams.append(x[rows, last])
    return jnp.stack(streams).astype(jnp.float32)


def reply_logp(params: Params, config: ModelConfig, prompts: Sequence[Sequence[int]],
               replies: Sequence[Sequence[int]], *, batch: int = 64, execution: Execution = Execution()) -> np.ndarray:
    """Log-probability of a reply to each prompt, summed over the reply's tokens: float64 [N], nats.

    Args:
      prompts, replies: token ids, N of each.
      The others are those of `end_states`.

    Raises:
      ValueError: as `end_states`.
    """
    rows = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
    check_prompts(rows, config, 0)
    params, parts = unstack_blocks(params), []
    size, width = min(batch, len(rows)), min(prompt_width(max(map(len, rows))), config.max_positions)
    for start in range(0, len(rows), size):
        some = slice(start, start + size)
        tokens, counts = pad_prompts(rows[some], size, width)
        begins = np.zeros(size, np.int32)
        begins[:len(rows[some])] = [len(prompt) for prompt in prompts[some]]
        parts.append(np.asarray(_reply_logp(params, tokens, begins, counts, config, execution))[:len(rows[some])])
    return np.concatenate(parts).astype(np.float64)


@functools.partial(jax.jit, static_argnames=("config", "execution"))
def _reply_logp(params: Params, tokens: jax.Array, begins: jax.Array, ends: jax.Array, config: ModelConfig,
                execution: Execution) -> jax.Array:
    """Sum over the tokens at columns begins .. ends - 1 of each row [B, T]."""
    logp_BTV = jax.nn.log_softmax(forward(params, config, tokens[:, :-1], execution=execution), axis=-1)
    logp_BT = jnp.take_along_axis(logp_BTV, tokens[:, 1:, None], axis=-1)[..., 0]
    column = jnp.arange(1, tokens.shape[1])[None]
    counts = (column >= begins[:, None]) & (column < ends[:, None])
    return jnp.sum(jnp.where(counts, logp_BT, 0.0), axis=1)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear probe of one layer.

    Attributes:
      l2: the pull of its weights to zero that cross-validation chose.
      fold_auc: AUC within the training questions, each scored by a probe that learnt from other origins.
      scores: float64 [M], of the test questions; higher foretells a wrong answer.
    """

    l2: float
    fold_auc: float
    scores: np.ndarray


def probe(states: np.ndarray, wrong: np.ndarray, origins: Sequence[str], test_states: np.ndarray, *,
          l2s: Sequence[float], folds: int = 5, seed: int = 0) -> Probe:
    """Fits a logistic probe that foretells a wrong answer; l2 is chosen by folds that never part an origin.

    Args:
      states: float32 [N, D], of the questions to learn from.
      wrong: bool [N], whether the model's answer to each was wrong; both kinds must be among them.
      origins: whom each is about.
      test_states: float32 [M, D], of questions about others.
      l2s: pulls of the weights to choose from; see `fit_head`.
      folds, seed: of the cross-validation.

    Raises:
      ValueError: when all answers are right or all are wrong.
    """
    if wrong.all() or not wrong.any():
        raise ValueError(f"{int(wrong.sum())} of {len(wrong)} answers to learn from are wrong; a probe needs both")
    targets, fold = wrong.astype(np.float32), fold_of(origins, folds, seed)
    found = {l2: auc(out_of_fold(states, targets, fold, loss="logistic", l2=l2), wrong, fold) for l2 in l2s}
    l2 = max(found, key=lambda l2: np.nan_to_num(found[l2], nan=-1.0))  # nan: no fold holds both kinds
    head = fit_head(states, targets, loss="logistic", l2=l2)
    return Probe(l2, found[l2], test_states.astype(np.float64) @ head.weights + head.bias)
