"""The compiled programs of the engine: run a piece of a prompt, begin a row, advance all rows, copy a slot.

Shapes are those of the engine, never of a request, so each program compiles once. What a request asks for comes as
arrays with a row per slot, and what costs much (filters, noise, alternatives) stands behind a `lax.cond`: one program
serves every mix of requests, and a row's numbers cannot depend on which of several programs its neighbours called for.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxllm.infer.sampling import RowSettings, SamplingSettings, mask_vocab, process, temperature
from jaxllm.model.axes import constrain
from jaxllm.model.cache import KVCache, empty_cache
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.transformer import decode, logits

MAX_STOP_TOKENS = 16
MAX_ALTERNATIVES = 20
# Steps that one call may take: enough to hide what a call costs beside the step of a very small model.
MAX_STEPS = 16


@dataclasses.dataclass(frozen=True)
class Fixed:
    """What is compiled in."""

    config: ModelConfig
    execution: Execution
    slots: int
    capacity: int
    cache_dtype: Any
    valid_vocab: int | None


@struct.dataclass
class Rows:
    """What the requests ask for, a row per slot; a slot without one is greedy and inactive.

    Attributes:
      active: bool [B], True where a request draws tokens.
      settings: `RowSettings` of [B].
      seeds: uint32 [B, 3], the lower and upper half of the seed, and the number of the sample.
      stop_tokens: int32 [B, MAX_STOP_TOKENS], -1 where there are fewer.
      constrained: bool [B], True where the row's mask counts.
      alternatives: bool [B], True where the likeliest tokens are to be reported.
    """

    active: Any
    settings: RowSettings
    seeds: Any
    stop_tokens: Any
    constrained: Any
    alternatives: Any


@struct.dataclass
class State:
    """What stays on the device between calls.

    Attributes:
      cache: every token of a row but the one drawn last.
      hidden: [B, D], at the last prompt token of a slot: what its first token is drawn from.
      tokens: int32 [B], drawn last.
      left: int32 [B], tokens that a row may still draw; 0 when it has ended.
      seen: bool [B, V], tokens that stand in a row.
    """

    cache: KVCache
    hidden: jax.Array
    tokens: jax.Array
    left: jax.Array
    seen: jax.Array


@struct.dataclass
class Drawn:
    """What a draw tells the host; `ran` is False where a row had nothing to draw."""

    ran: jax.Array
    tokens: jax.Array
    logp: jax.Array
    sampling_logp: jax.Array
    alternative_ids: jax.Array
    alternative_logp: jax.Array


def empty_rows(slots: int) -> Rows:
    """Rows of an engine without requests, as numpy arrays to be written to."""
    def full(value: float, dtype: Any) -> np.ndarray:
        return np.full((slots,), value, dtype)

    settings = RowSettings(full(0, np.float32), full(0, np.int32), full(1, np.float32), full(0, np.float32),
                           full(1, np.float32))
    return Rows(full(0, bool), settings, np.zeros((slots, 3), np.uint32),
                np.full((slots, MAX_STOP_TOKENS), -1, np.int32), full(0, bool), full(0, bool))


def write_row(rows: Rows, slot: int, request: Any | None) -> None:
    """Sets a row of numpy arrays to what a `Request` asks for, or to nobody's."""
    rows.active[slot] = request is not None
    settings = SamplingSettings(temperature=0.0) if request is None else request.settings
    if settings.temperature == 0:  # the likeliest token stands whatever is filtered
        settings = SamplingSettings(temperature=0.0, repetition_penalty=settings.repetition_penalty)
    for field in dataclasses.fields(settings):
        getattr(rows.settings, field.name)[slot] = getattr(settings, field.name)
    rows.stop_tokens[slot] = -1
    if request is not None:
        rows.stop_tokens[slot, :len(request.stop_tokens)] = request.stop_tokens
        rows.seeds[slot] = request.seed & 0xFFFFFFFF, request.seed >> 32 & 0xFFFFFFFF, request.sample
    rows.constrained[slot] = request is not None and request.constraint is not None
    rows.alternatives[slot] = request is not None and request.alternatives > 0


@functools.partial(jax.jit, static_argnames="fixed")
def empty_state(*, fixed: Fixed) -> State:
    """A state in which no slot holds anything."""
    config, B = fixed.config, fixed.slots
    return _laid_out(State(empty_cache(config, B, fixed.capacity, fixed.cache_dtype),
                           jnp.zeros((B, config.dim), jnp.dtype(fixed.execution.dtype)), jnp.zeros((B,), jnp.int32),
                           jnp.zeros((B,), jnp.int32), jnp.zeros((B, config.vocab_size), bool)))


@functools.partial(jax.jit, static_argnames="fixed", donate_argnums=1)
def prefill(params: Params, state: State, slots: jax.Array, tokens: jax.Array, starts: jax.Array, counts: jax.Array,
            *, fixed: Fixed) -> State:
    """Runs a piece of the prompt of some slots.

    Args:
      slots: int32 [P]; one that does not exist stands for a row of padding.
      tokens: int32 [P, C], padded on the right.
      starts: int32 [P], positions that stand before the piece.
      counts: int32 [P], how many of the C tokens are real.
    """
    here = jnp.minimum(slots, fixed.slots - 1)
    part = jax.tree.map(lambda leaf: jnp.take(leaf, here, axis=0, mode="clip"), state.cache).replace(lengths=starts)
    hidden, part = decode(params, fixed.config, tokens, part, counts=counts, execution=fixed.execution)
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    cache = jax.tree.map(lambda leaf, new: leaf.at[slots].set(new, mode="drop", unique_indices=True),
                         state.cache, part)
    return _laid_out(state.replace(cache=cache, hidden=state.hidden.at[slots].set(last, mode="drop")))


@functools.partial(jax.jit, donate_argnums=0)
def copy_slot(state: State, source: jax.Array, target: jax.Array) -> State:
    """Gives slot `target` what slot `source` remembers of its prompt."""
    def copy(leaf: jax.Array) -> jax.Array:
        return leaf.at[target].set(leaf[source])

    return _laid_out(state.replace(cache=jax.tree.map(copy, state.cache), hidden=copy(state.hidden)))


@functools.partial(jax.jit, static_argnames="fixed", donate_argnums=1)
def begin(params: Params, state: State, rows: Rows, masks: jax.Array, slot: jax.Array, prompt: jax.Array,
          count: jax.Array, max_tokens: jax.Array, *, fixed: Fixed) -> tuple[State, Drawn]:
    """Draws the first token of the request in `slot`, whose prompt has been run.

    Args:
      masks: bool [1, V], tokens that it may draw, if its row is constrained.
      prompt: int32 [capacity], padded on the right; `count` of them are real.
      max_tokens: int32 [], tokens that the row may draw.
    """
    V = fixed.config.vocab_size
    real = jnp.where(jnp.arange(fixed.capacity) < count, prompt, V)
    seen = jnp.zeros((1, V), bool).at[0, real].set(True, mode="drop")
    row = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, slot, 1), rows)
    hidden = jax.lax.dynamic_slice_in_dim(state.hidden, slot, 1)
    drawn = _draw(logits(params, fixed.config, hidden), row, seen, masks, count[None], jnp.ones((1,), bool), fixed)
    left = _left(drawn.tokens, max_tokens[None], row)
    seen = seen.at[0, drawn.tokens[0]].set(True)
    return _laid_out(State(
        state.cache.replace(lengths=state.cache.lengths.at[slot].set(count)), state.hidden,
        state.tokens.at[slot].set(drawn.tokens[0]), state.left.at[slot].set(left[0]),
        state.seen.at[slot].set(seen[0]))), drawn


@functools.partial(jax.jit, static_argnames="fixed", donate_argnums=1)
def advance(params: Params, state: State, rows: Rows, masks: jax.Array, steps: jax.Array, *, fixed: Fixed
            ) -> tuple[State, Drawn]:
    """Draws up to `steps` tokens for every active row; rows that end meanwhile stay as they are.

    Args:
      masks: bool [B, V], tokens that a constrained row may draw.
      steps: int32 [], at most MAX_STEPS.

    Returns:
      (state, `Drawn` whose arrays begin with an axis of MAX_STEPS).
    """
    def more(carry):
        step, state, _ = carry
        return (step < steps) & jnp.any(rows.active & (state.left > 0))

    def body(carry):
        step, state, out = carry
        state, drawn = _advance(params, state, rows, masks, fixed)
        out = jax.tree.map(lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, step, 0), out, drawn)
        return step + 1, state, out

    one = jax.eval_shape(lambda: _advance(params, state, rows, masks, fixed)[1])
    out = jax.tree.map(lambda x: jnp.zeros((MAX_STEPS, *x.shape), x.dtype), one)
    _, state, out = jax.lax.while_loop(more, body, (jnp.int32(0), state, out))
    return state, out


def _advance(params: Params, state: State, rows: Rows, masks: jax.Array, fixed: Fixed) -> tuple[State, Drawn]:
    running = rows.active & (state.left > 0)
    # A row at rest writes too, at its length: beyond what it holds, and never attended to.
    hidden, cache = decode(params, fixed.config, state.tokens[:, None], state.cache,
                           counts=running.astype(jnp.int32), execution=fixed.execution)
    drawn = _draw(logits(params, fixed.config, hidden[:, 0]), rows, state.seen, masks, cache.lengths, running, fixed)
    seen = state.seen.at[jnp.arange(fixed.slots), drawn.tokens].max(running)
    return _laid_out(State(
        cache, state.hidden, jnp.where(running, drawn.tokens, state.tokens),
        jnp.where(running, _left(drawn.tokens, state.left, rows), state.left), seen)), drawn


def _left(tokens: jax.Array, left: jax.Array, rows: Rows) -> jax.Array:
    stopped = jnp.any(rows.stop_tokens == tokens[:, None], axis=-1)
    return jnp.where(stopped, 0, left - 1)


def _draw(logits_BV: jax.Array, rows: Rows, seen: jax.Array, masks: jax.Array, positions: jax.Array,
          running: jax.Array, fixed: Fixed) -> Drawn:
    """A token per row: that of `sampling.sample` with the key of `generate` for row 0 and the same seed and sample."""
    settings = rows.settings
    B, V = logits_BV.shape
    normaliser = jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)

    def filtered(x):
        x = jnp.where(masks | ~rows.constrained[:, None], x, -jnp.inf)
        return process(x, settings, seen, fixed.valid_vocab)

    def plain(x):
        return temperature(mask_vocab(x, fixed.valid_vocab), settings.temperature)

    filters = (rows.constrained | (settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0)
               | (settings.repetition_penalty != 1))
    processed = jax.lax.cond(jnp.any(filters), filtered, plain, logits_BV)
    noise = jax.lax.cond(jnp.any(settings.temperature > 0), lambda: _noise(rows.seeds, positions, V),
                         lambda: jnp.zeros((B, V), jnp.float32))
    tokens = jnp.argmax(processed + noise, axis=-1).astype(jnp.int32)

    def pick(values):
        return jnp.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]

    count = min(MAX_ALTERNATIVES, V)
    best, ids = jax.lax.cond(
        jnp.any(rows.alternatives), lambda x: tuple(jax.lax.top_k(x, count)),
        lambda x: (jnp.zeros((B, count), jnp.float32), jnp.zeros((B, count), jnp.int32)), logits_BV)
    return Drawn(running, tokens, pick(logits_BV) - normaliser[:, 0],
                 pick(processed) - jax.nn.logsumexp(processed, axis=-1), ids, best - normaliser)


def _noise(seeds: jax.Array, positions: jax.Array, vocab: int) -> jax.Array:
    """Gumbel noise [B, V]: the number of (seed, sample, position) and of nothing else."""
    def one(seed, position):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed[0]), seed[1]), seed[2])
        return jax.random.gumbel(jax.random.fold_in(key, position), (vocab,), jnp.float32)

    return jax.vmap(one)(seeds, positions)


def _laid_out(state: State) -> State:
    """Slots over the mesh as a batch, the same after every program: another layout would compile it anew."""
    def lay(leaf: jax.Array) -> jax.Array:
        return constrain(leaf, ("batch", "kv_heads" if leaf.ndim > 2 else None, None, None)[:leaf.ndim])

    return jax.tree.map(lay, state)
