"""Speculative decoding: several tokens proposed cheaply, checked by the model in one pass, and none of it shows.

A proposal comes from a smaller model, or from the row itself: what followed the last time its ending occurred. The
rejection rule keeps the distribution that of the model with the same settings; greedy, the text is that of `generate`.

References: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, 2023, algorithm 1.
https://arxiv.org/abs/2211.17192 Chen et al., Accelerating Large Language Model Decoding with Speculative Sampling,
2023. https://arxiv.org/abs/2302.01318 Saxena, Prompt Lookup Decoding, 2023.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxllm.infer import generate as loop
from jaxllm.infer.generate import Generation
from jaxllm.infer.prompts import pad_prompts, prompt_width
from jaxllm.infer.sampling import SamplingSettings, process
from jaxllm.model.cache import KVCache
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params, unstack_blocks
from jaxllm.model.transformer import decode, logits


@dataclasses.dataclass(frozen=True)
class DraftModel:
    """Proposes what a smaller model of the same vocabulary draws: `tokens` of them, >= 1."""

    params: Params
    config: ModelConfig
    tokens: int = 4


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """Proposes the `tokens` that followed the latest earlier place where the row's last n tokens stand.

    n is tried from `longest` down to `shortest`; without such a place nothing is proposed.
    """

    tokens: int = 8
    longest: int = 3
    shortest: int = 1


@struct.dataclass
class Speculation:
    """What `speculate` returns.

    Attributes:
      generation: as `generate` returns it for one sample of each prompt.
      proposed, accepted: int32 [R], tokens proposed in a row, and those of them that the model accepted.
      rounds: int32 [], passes of the model after the prompts.
    """

    generation: Generation
    proposed: jax.Array
    accepted: jax.Array
    rounds: jax.Array

    @property
    def acceptance_rate(self) -> float:
        """Accepted / proposed over all rows; 0 when nothing was proposed."""
        return float(self.accepted.sum() / max(int(self.proposed.sum()), 1))


@dataclasses.dataclass(frozen=True)
class _Proposer:
    """What is compiled in of a proposer; `config` is None for a look-up."""

    tokens: int
    config: ModelConfig | None = None
    longest: int = 0
    shortest: int = 0


@struct.dataclass
class _State:
    """Between two rounds: the caches hold every token of a row but the last; `history` holds all of them."""

    cache: KVCache
    draft_cache: KVCache | None
    history: jax.Array
    seen: jax.Array | None
    stopped: jax.Array
    out: Generation
    proposed: jax.Array
    accepted: jax.Array
    rounds: jax.Array


def speculate(params: Params, config: ModelConfig, prompts: Sequence[Sequence[int]],
              proposer: DraftModel | PromptLookup, *, key: jax.Array | int, max_tokens: int,
              settings: SamplingSettings = SamplingSettings(), stop_tokens: Sequence[int] = (),
              valid_vocab: int | None = None, execution: Execution = Execution()) -> Speculation:
    """Continues every prompt as `generate` does, in fewer passes of the model.

    Args:
      proposer: where proposals come from.
      The others are those of `generate`.

    Raises:
      ValueError: as `generate`; for a draft model of another vocabulary or of fewer positions; for counts below 1.
    """
    fixed = loop._Fixed(config, execution, settings, tuple(stop_tokens), valid_vocab, max_tokens)
    loop._check_counts(max_tokens=max_tokens, tokens=proposer.tokens)
    loop._check(prompts, fixed, None)
    draft = None
    if isinstance(proposer, DraftModel):
        if proposer.config.vocab_size != config.vocab_size:
            raise ValueError(f"the draft model has a vocabulary of {proposer.config.vocab_size}, the model one of "
                             f"{config.vocab_size}; they must share a tokenizer")
        loop._check(prompts, dataclasses.replace(fixed, config=proposer.config), None)
        draft, kind = unstack_blocks(proposer.params), _Proposer(proposer.tokens, proposer.config)
    else:
        if not 1 <= proposer.shortest <= proposer.longest:
            raise ValueError(f"shortest is {proposer.shortest}, longest {proposer.longest}; 1 <= shortest <= longest")
        kind = _Proposer(proposer.tokens, None, proposer.longest, proposer.shortest)
    keys = loop._sample_keys(loop._prompt_keys(loop._as_key(key), np.arange(len(prompts), dtype=np.uint32)), 1)
    tokens, counts = pad_prompts(prompts, len(prompts), prompt_width(max(map(len, prompts))))
    return _speculate(unstack_blocks(params), draft, tokens, counts, keys, fixed=fixed, kind=kind)


@functools.partial(jax.jit, static_argnames=("fixed", "kind"))
def _speculate(params: Params, draft: Params | None, tokens: jax.Array, counts: jax.Array, keys: jax.Array, *,
               fixed: Any, kind: _Proposer) -> Speculation:
    R, width = tokens.shape
    begun = loop._begin(params, tokens, counts, keys, fixed)
    draft_cache = None
    if draft is not None:
        draft_cache = loop._prefill(draft, dataclasses.replace(fixed, config=kind.config), tokens, counts)[1]
    history = jnp.pad(tokens, ((0, 0), (0, fixed.max_tokens)))
    history = history.at[jnp.arange(R), counts].set(begun.drawn.tokens)
    shape, none = (R, fixed.max_tokens), jnp.zeros((R,), jnp.int32)
    out = Generation(jnp.zeros(shape, jnp.int32), none, jnp.zeros(shape), jnp.zeros(shape), begun.stopped)
    out = loop._record(out, begun, jnp.ones((R,), bool), 0)
    state = _State(begun.cache, draft_cache, history, begun.seen, begun.stopped | (fixed.max_tokens == 1), out, none,
                   none, jnp.int32(0))
    state = jax.lax.while_loop(lambda state: ~jnp.all(state.stopped),
                               lambda state: _round(params, draft, keys, state, fixed, kind), state)
    return Speculation(state.out, state.proposed, state.accepted, state.rounds)


def _round(params: Params, draft: Params | None, keys: jax.Array, state: _State, fixed: Any, kind: _Proposer
           ) -> _State:
    """Proposes, checks, and takes what is accepted and one token more."""
    R, k, held = state.stopped.shape[0], kind.tokens, state.cache.lengths
    round_keys = loop._fold(keys, held)
    if draft is not None:
        ids_RK, q_RKV, draft_cache = _draft(draft, round_keys, state, fixed, kind)
        valid_RK = jnp.ones((R, k), bool)
    else:
        ids_RK, valid_RK = look_up(state.history, held + 1, k, kind.longest, kind.shortest)
        q_RKV, draft_cache = jax.nn.one_hot(ids_RK, fixed.config.vocab_size), None
    last = jnp.take_along_axis(state.history, held[:, None], axis=1)
    hidden, cache = decode(params, fixed.config, jnp.concatenate([last, ids_RK], axis=1), state.cache,
                           execution=fixed.execution)
    logits_RTV = logits(params, fixed.config, hidden)
    processed = _processed(logits_RTV, state.seen, ids_RK, fixed)
    accepted, new_RT = reject(round_keys, jax.nn.softmax(processed, axis=-1), q_RKV, ids_RK, valid_RK)

    made = state.out.lengths
    place = jnp.arange(k + 1)[None]
    ends = jnp.any(new_RT[..., None] == jnp.asarray(fixed.stop_tokens, jnp.int32)[None, None], axis=-1)
    before = jnp.cumsum(ends, axis=1) - ends.astype(jnp.int32)  # stop tokens further left
    taken = (place <= accepted[:, None]) & (before == 0) & (made[:, None] + place < fixed.max_tokens)
    taken &= ~state.stopped[:, None]
    count = jnp.sum(taken, axis=1, dtype=jnp.int32)
    stop = jnp.any(taken & ends, axis=1)
    rows = jnp.arange(R)[:, None]

    def put(buffer, values, starts):
        return buffer.at[rows, jnp.where(taken, starts[:, None] + place, buffer.shape[1])].set(values, mode="drop")

    def pick(values):
        return jnp.take_along_axis(values, new_RT[..., None], axis=-1)[..., 0]

    out = Generation(put(state.out.tokens, new_RT, made), made + count,
                     put(state.out.logp, pick(jax.nn.log_softmax(logits_RTV, axis=-1)), made),
                     put(state.out.sampling_logp, pick(jax.nn.log_softmax(processed, axis=-1)), made),
                     state.out.stopped | stop)
    seen = state.seen
    if seen is not None:
        seen = seen.at[rows, jnp.where(taken, new_RT, seen.shape[1])].set(True, mode="drop")
    lengths = held + count  # back to what was taken
    running = ~state.stopped
    return _State(cache.replace(lengths=lengths), draft_cache and draft_cache.replace(lengths=lengths),
                  put(state.history, new_RT, held + 1), seen, state.stopped | stop | (made + count >= fixed.max_tokens),
                  out, state.proposed + jnp.where(running, jnp.sum(valid_RK, axis=1, dtype=jnp.int32), 0),
                  state.accepted + jnp.where(running, accepted, 0), state.rounds + 1)


def _draft(draft: Params, keys: jax.Array, state: _State, fixed: Any, kind: _Proposer
           ) -> tuple[jax.Array, jax.Array, KVCache]:
    """Tokens [R, k] that the draft model draws, with their distributions [R, k, V], and its cache with all of them."""
    rows = jnp.arange(state.stopped.shape[0])
    last = jnp.take_along_axis(state.history, state.cache.lengths[:, None], axis=1)[:, 0]

    def step(carry, number):
        token, cache, seen = carry
        hidden, cache = decode(draft, kind.config, token[:, None], cache, execution=fixed.execution)
        processed = process(logits(draft, kind.config, hidden[:, 0]), fixed.settings, seen, fixed.valid_vocab)
        token = _categorical(loop._fold(keys, jnp.full(rows.shape, number + 2)), processed)
        if seen is not None:
            seen = seen.at[rows, token].set(True)
        return (token, cache, seen), (token, jax.nn.softmax(processed, axis=-1))

    # One step more than there are tokens, for the keys and values of the last.
    carry = (last, state.draft_cache, state.seen)
    (_, cache, _), (ids_KR, q_KRV) = jax.lax.scan(step, carry, jnp.arange(kind.tokens + 1))
    return ids_KR[:-1].T, jnp.swapaxes(q_KRV[:-1], 0, 1), cache


def _processed(logits_RTV: jax.Array, seen: jax.Array | None, ids_RK: jax.Array, fixed: Any) -> jax.Array:
    """The logits drawn from after each proposed token, which a repetition penalty counts among the seen."""
    R, T, V = logits_RTV.shape
    if seen is not None:
        proposed = jnp.cumsum(jax.nn.one_hot(ids_RK, V, dtype=jnp.int32), axis=1) > 0
        seen = jnp.concatenate([seen[:, None], seen[:, None] | proposed], axis=1).reshape(R * T, V)
    flat = process(logits_RTV.reshape(R * T, V), fixed.settings, seen, fixed.valid_vocab)
    return flat.reshape(R, T, V)


def reject(keys: jax.Array, p_RTV: jax.Array, q_RKV: jax.Array, ids_RK: jax.Array, valid_RK: jax.Array
           ) -> tuple[jax.Array, jax.Array]:
    """Accepts token i with probability min(1, p_i / q_i); at the first rejection draws from max(p - q, 0), normalised.

    Args:
      keys: a key per row.
      p_RTV: the model's distributions after 0 .. k proposed tokens; T = k + 1.
      q_RKV: those that the proposals were drawn from.
      ids_RK: the proposals.
      valid_RK: False where there is none.

    Returns:
      (accepted int32 [R], the tokens int32 [R, T]: accepted ones, one drawn after them, and what is not to be used).

    References: Leviathan et al., 2023, algorithm 1 and appendix A.1.
    """
    R, k = ids_RK.shape
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (k,)))(keys)

    def of_ids(x):
        return jnp.take_along_axis(x, ids_RK[..., None], axis=-1)[..., 0]

    accept = valid_RK & (uniform * of_ids(q_RKV) < of_ids(p_RTV[:, :k]))
    accepted = jnp.sum(jnp.cumprod(accept.astype(jnp.int32), axis=1), axis=1)
    q_RTV = jnp.pad(jnp.where(valid_RK[..., None], q_RKV, 0.0), ((0, 0), (0, 1), (0, 0)))
    p, q = (jnp.take_along_axis(x, accepted[:, None, None], axis=1)[:, 0] for x in (p_RTV, q_RTV))
    rest = jnp.maximum(p - q, 0.0)
    rest = jnp.where(jnp.sum(rest, axis=-1, keepdims=True) > 0, rest, p)  # equal to rounding
    drawn = _categorical(loop._fold(keys, jnp.ones((R,), jnp.int32)), jnp.log(rest))
    return accepted, jnp.pad(ids_RK, ((0, 0), (0, 1))).at[jnp.arange(R), accepted].set(drawn)


def _categorical(keys: jax.Array, logits_RV: jax.Array) -> jax.Array:
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits_RV.shape[1:], jnp.float32))(keys)
    return jnp.argmax(logits_RV + noise, axis=-1).astype(jnp.int32)


def look_up(history: jax.Array, lengths: jax.Array, tokens: int, longest: int, shortest: int = 1
            ) -> tuple[jax.Array, jax.Array]:
    """What followed the latest earlier place at which a row's last n tokens stand, for the largest n that has one.

    Args:
      history: int32 [R, W], of which a row has `lengths` [R].

    Returns:
      (ids int32 [R, tokens], bool [R, tokens]: False from the row's end on, or everywhere when there is no place).

    >>> run = jax.jit(look_up, static_argnums=(2, 3))
    >>> ids, valid = run(jnp.array([[5, 6, 7, 5, 6, 0]]), jnp.array([5]), 4, 3)
    >>> ids[valid].tolist()
    [7, 5, 6]
    """
    W = history.shape[1]
    where = jnp.arange(W)[None]
    found = jnp.full(lengths.shape, -1)
    for n in range(shortest, longest + 1):
        same = (where < lengths[:, None] - 1) & (where >= n - 1)
        for back in range(n):
            wanted = jnp.take_along_axis(history, jnp.maximum(lengths - 1 - back, 0)[:, None], axis=1)
            same &= jnp.roll(history, back, axis=1) == wanted
        place = jnp.max(jnp.where(same, where, -1), axis=1)
        found = jnp.where((place >= 0) & (lengths > n), place, found)
    after = found[:, None] + 1 + jnp.arange(tokens)[None]
    valid = (found[:, None] >= 0) & (after < lengths[:, None])
    return jnp.take_along_axis(history, jnp.minimum(after, W - 1), axis=1), valid
