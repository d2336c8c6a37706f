"""The compiled part of `loglikelihood`: contexts into a cache, continuations against copies of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxllm.model.cache import KVCache, empty_cache
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.transformer import decode, logits

CHUNK = 128  # positions run at once: bounds what attention holds, and one compiled chunk serves any width
POSITIONS = 512  # whose logits stand in memory together, on each device


@functools.partial(jax.jit, static_argnames=("config", "execution"))
def score(params: Params, shared_P: jax.Array, shared_count: jax.Array, contexts_GT: jax.Array, counts_G: jax.Array,
          continuations_GKU: jax.Array, sizes_GK: jax.Array, config: ModelConfig, execution: Execution
          ) -> tuple[jax.Array, jax.Array]:
    """Scores the continuations of a batch of contexts that may begin alike.

    Args:
      params: with `blocks` as `unstack_blocks` makes them.
      shared_P: int32 [P], tokens that every context begins with, padded on the right; P may be 0.
      shared_count: int32 [], how many of them are real.
      contexts_GT: int32 [G, T], what follows in each context, padded on the right.
      counts_G: int32 [G], at least 1.
      continuations_GKU: int32 [G, K, U], padded on the right.
      sizes_GK: int32 [G, K], 0 where there is no continuation.
      config, execution: as `decode` takes them.

    Returns:
      (logp float32 [G, K] in nats, greedy bool [G, K]); places of no tokens have 0 and True.
    """
    G, K, U = continuations_GKU.shape
    P = shared_P.shape[0]
    capacity = P + contexts_GT.shape[1] + U - 1
    if config.positions == "learned":
        capacity = min(capacity, config.max_positions)  # padding alone lies beyond
    cache = empty_cache(config, 1 if P else G, capacity, jnp.dtype(execution.dtype))
    if P:
        _, cache = _run_contexts(params, shared_P[None], shared_count[None], cache, config, execution)
        cache = _repeated(cache, G)
    last_GD, cache = _run_contexts(params, contexts_GT, counts_G, cache, config, execution)
    scores_GV = jax.nn.log_softmax(logits(params, config, last_GD))
    first_GK = continuations_GKU[:, :, 0]
    present_GK = sizes_GK > 0
    logp_GK = jnp.where(present_GK, jnp.take_along_axis(scores_GV, first_GK, axis=1), 0.0)
    greedy_GK = ~present_GK | (jnp.argmax(scores_GV, axis=1)[:, None] == first_GK)
    if U == 1:
        return logp_GK, greedy_GK
    tokens_RU, sizes_R = continuations_GKU.reshape(G * K, U), sizes_GK.reshape(G * K)
    logp_R, greedy_R = _run_continuations(params, tokens_RU, sizes_R, _repeated(cache, K), config, execution)
    return logp_GK + logp_R.reshape(G, K), greedy_GK & greedy_R.reshape(G, K)


def _run_contexts(params: Params, tokens_GT: jax.Array, counts_G: jax.Array, cache: KVCache, config: ModelConfig,
                  execution: Execution) -> tuple[jax.Array, KVCache]:
    """(hidden state [G, D] of each context's last token, the cache that holds the context)."""
    G, T = tokens_GT.shape
    chunk = min(T, CHUNK)

    def step(carry, tokens_GC):
        cache, last_GD, start = carry
        hidden_GCD, cache = decode(params, config, tokens_GC, cache, counts=jnp.clip(counts_G - start, 0, chunk),
                                   execution=execution)
        end_G = counts_G - 1 - start  # column of the last token, if it stands in this chunk
        at_end_GD = jnp.take_along_axis(hidden_GCD, jnp.clip(end_G, 0, chunk - 1)[:, None, None], axis=1)[:, 0]
        last_GD = jnp.where(((end_G >= 0) & (end_G < chunk))[:, None], at_end_GD, last_GD)
        return (cache, last_GD, start + chunk), None

    carry = (cache, jnp.zeros((G, config.dim), jnp.dtype(execution.dtype)), jnp.int32(0))
    (cache, last_GD, _), _ = _over_chunks(step, carry, tokens_GT, chunk)
    return last_GD, cache


def _run_continuations(params: Params, tokens_RU: jax.Array, sizes_R: jax.Array, cache: KVCache, config: ModelConfig,
                       execution: Execution) -> tuple[jax.Array, jax.Array]:
    """(summed logp [R], greedy [R]) of all tokens but the first, read against caches that hold the contexts."""
    R, U = tokens_RU.shape
    chunk = min(U - 1, CHUNK)

    def step(carry, pair_R2C):
        cache, logp_R, greedy_R, start = carry
        inputs_RC, targets_RC = pair_R2C[:, 0], pair_R2C[:, 1]
        hidden_RCD, cache = decode(params, config, inputs_RC, cache, execution=execution)
        counted_RC = start + 1 + jnp.arange(chunk)[None] < sizes_R[:, None]
        token_logp_RC, likeliest_RC = _of_targets(params, config, hidden_RCD, targets_RC)
        logp_R = logp_R + jnp.sum(jnp.where(counted_RC, token_logp_RC, 0.0), axis=1)
        greedy_R = greedy_R & jnp.all(~counted_RC | (likeliest_RC == targets_RC), axis=1)
        return (cache, logp_R, greedy_R, start + chunk), None

    carry = (cache, jnp.zeros((R,), jnp.float32), jnp.ones((R,), bool), jnp.int32(0))
    pairs_R2W = jnp.stack([tokens_RU[:, :-1], tokens_RU[:, 1:]], axis=1)
    (_, logp_R, greedy_R, _), _ = _over_chunks(step, carry, pairs_R2W, chunk)
    return logp_R, greedy_R


def _repeated(cache: KVCache, count: int) -> KVCache:
    """Each row of the cache so many times, beside each other: rows that lie together on a mesh stay together."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), cache)


def _over_chunks(step, carry, columns: jax.Array, chunk: int):
    """Scans over the last axis, `chunk` columns at a time; a single chunk needs no loop."""
    count = columns.shape[-1] // chunk
    if count == 1:
        return step(carry, columns)
    pieces = jnp.moveaxis(columns.reshape(*columns.shape[:-1], count, chunk), -2, 0)
    return jax.lax.scan(step, carry, pieces)


def _of_targets(params: Params, config: ModelConfig, hidden_RCD: jax.Array, targets_RC: jax.Array
                ) -> tuple[jax.Array, jax.Array]:
    """(logp [R, C] of the targets, likeliest token [R, C]), the logits of a few columns at a time."""
    R, C, D = hidden_RCD.shape
    columns = next(c for c in range(min(C, max(POSITIONS // R, 1)), 0, -1) if C % c == 0)

    def piece(pair):
        hidden_RcD, targets_Rc = pair
        scores_RcV = logits(params, config, hidden_RcD)
        target_Rc = jnp.take_along_axis(scores_RcV, targets_Rc[..., None], axis=-1)[..., 0]
        return target_Rc - jax.nn.logsumexp(scores_RcV, axis=-1), jnp.argmax(scores_RcV, axis=-1)

    pieces = (jnp.moveaxis(hidden_RCD.reshape(R, C // columns, columns, D), 1, 0),
              jnp.moveaxis(targets_RC.reshape(R, C // columns, columns), 1, 0))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(R, C) for x in jax.lax.map(piece, pieces))
