"""Text from a model: ragged prompts in, sampled continuations out, in one compiled loop.

Prompts are padded on the right to one of few widths, so that few shapes compile, and run once; then
a `lax.while_loop` draws a token per row, puts its keys and values into the cache in place, and ends
when every row has stopped. `stream` does the same one step at a time, for a terminal.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental.multihost_utils import process_allgather

from jaxllm.infer.prompts import CHUNK, check_prompts, pad_prompts, prompt_width
from jaxllm.infer.sampling import Sample, SamplingSettings, sample
from jaxllm.model.cache import KVCache, empty_cache
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params, unstack_blocks
from jaxllm.model.transformer import decode, logits


@struct.dataclass
class Generation:
    """What `generate` returns; row p * samples_per_prompt + s is sample s of prompt p.

    Attributes:
      tokens: int32 [R, max_tokens], the new tokens of each row, its stop token included; 0 from
        `lengths` on.
      lengths: int32 [R], how many of them there are, at least 1.
      logp: float32 [R, max_tokens], nats; log-probability of each token under the model: the
        log-softmax of `forward`, with no temperature and no filter. 0 from `lengths` on.
      sampling_logp: float32 [R, max_tokens], nats; the same under the distribution that was drawn
        from.
      stopped: bool [R], True when the last token is a stop token, False when max_tokens ended the
        row.
    """

    tokens: jax.Array
    lengths: jax.Array
    logp: jax.Array
    sampling_logp: jax.Array
    stopped: jax.Array

    def rows(self) -> list[list[int]]:
        """The tokens of each row as a list of its own length; every process of a run must ask."""
        tokens, lengths = (np.asarray(x if x.is_fully_addressable else process_allgather(x, tiled=True))
                           for x in (self.tokens, self.lengths))
        return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What is compiled in."""

    config: ModelConfig
    execution: Execution
    settings: SamplingSettings
    stop_tokens: tuple[int, ...]
    valid_vocab: int | None
    max_tokens: int
    cache_dtype: str | None = None


@struct.dataclass
class _State:
    """Between two draws: the cache holds every token of a row but the one drawn last."""

    cache: KVCache
    drawn: Sample
    stopped: jax.Array
    seen: jax.Array | None
    keys: jax.Array


def generate(params: Params, config: ModelConfig, prompts: Sequence[Sequence[int]], *,
             key: jax.Array | int, max_tokens: int, settings: SamplingSettings = SamplingSettings(),
             stop_tokens: Sequence[int] = (), samples_per_prompt: int = 1,
             valid_vocab: int | None = None, execution: Execution = Execution(),
             batch: int | None = None, row_ids: Sequence[int] | None = None,
             cache_dtype: str | None = None) -> Generation:
    """Continues every prompt by up to `max_tokens` sampled tokens.

    The draw of a token depends on (key, the prompt's row id, the sample's number, the token's
    position in its row) and on the row's logits: not on which rows share the batch, beyond
    rounding.

    Args:
      params: as `init` or `quantize` returns them. A caller of many short generations passes
        `prepare_for_decoding(params, config)`, which spares a copy of the weights at each call.
      config: the architecture.
      prompts: token ids of each prompt, of any lengths >= 1.
      key: a PRNG key, or an integer seed.
      max_tokens: new tokens a row at most, >= 1.
      settings: how tokens are drawn.
      stop_tokens: ids that end a row; the one drawn is kept as the row's last token.
      samples_per_prompt: continuations of each prompt, >= 1; the prompt itself is run once.
      valid_vocab: ids from here on are never drawn (an embedding padded beyond the tokenizer); None
        is V.
      execution: dtype of activations and cache, attention.
      batch: prompts run together, to bound memory; None runs all at once.
      row_ids: an integer >= 0 per prompt that stands for it in the randomness; None is 0, 1, 2, ...
      cache_dtype: of keys and values, "int8" among them; None is the dtype of the activations.

    Returns:
      A `Generation` with len(prompts) * samples_per_prompt rows.

    Raises:
      ValueError: before anything is compiled, for an empty prompt, one that leaves no room for
        max_tokens in the model's positions, an id outside the vocabulary, or a count below 1.
    """
    fixed = _Fixed(config, execution, settings, tuple(stop_tokens), valid_vocab, max_tokens,
                   cache_dtype)
    _check_counts(max_tokens=max_tokens, samples_per_prompt=samples_per_prompt,
                  batch=1 if batch is None else batch)
    _check(prompts, fixed, row_ids)
    params = unstack_blocks(params)
    ids = np.arange(len(prompts)) if row_ids is None else np.asarray(row_ids)
    key, size, width = _as_key(key), min(batch or len(prompts), len(prompts)), prompt_width(max(map(len, prompts)))
    parts = []
    for start in range(0, len(prompts), size):
        some = prompts[start:start + size]
        tokens, counts = pad_prompts(some, size, width)
        padded = ids[np.minimum(np.arange(start, start + len(counts)), len(prompts) - 1)]
        keys = _prompt_keys(key, padded.astype(np.uint32))
        parts.append(_generate(params, tokens, counts, keys, fixed=fixed, samples=samples_per_prompt))
    return parts[0] if size == len(prompts) else _joined(parts, len(prompts) * samples_per_prompt)


@functools.partial(jax.jit, static_argnums=1)
def _joined(parts: list[Generation], rows: int) -> Generation:
    """One after the other, without the rows that fill up the last."""
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:rows], *parts)


def stream(params: Params, config: ModelConfig, prompt: Sequence[int], *, key: jax.Array | int,
           max_tokens: int, settings: SamplingSettings = SamplingSettings(),
           stop_tokens: Sequence[int] = (), valid_vocab: int | None = None,
           execution: Execution = Execution(), row_id: int = 0,
           sample_id: int = 0) -> Iterator[int]:
    """Yields the tokens of one continuation as they are drawn: those that `generate` would return.

    Args:
      row_id, sample_id: which row of a `generate` call with the same key this is.
      The others are those of `generate`.

    Raises:
      ValueError: as `generate`, at the call and not at the first token.
    """
    fixed = _Fixed(config, execution, settings, tuple(stop_tokens), valid_vocab, max_tokens)
    _check_counts(max_tokens=max_tokens)
    _check([prompt], fixed, [row_id])
    params = unstack_blocks(params)
    keys = _prompt_keys(_as_key(key), np.array([row_id], np.uint32))
    keys = _sample_keys(keys, sample_id + 1)[-1:]
    tokens, counts = pad_prompts([prompt], 1, prompt_width(len(prompt)))

    def run() -> Iterator[int]:
        state = _begin_step(params, tokens, counts, keys, fixed=fixed)
        for left in reversed(range(max_tokens)):
            yield int(state.drawn.tokens[0])
            if left == 0 or state.stopped[0]:
                return
            state = _advance_step(params, state, fixed=fixed)

    return run()


def stream_text(tokens: Iterable[int], decode_bytes: Callable[[list[int]], bytes]) -> Iterator[str]:
    """Turns a stream of tokens into pieces of text, none of which ends inside a character.

    Bytes of an unfinished character are held back until the next tokens complete it; what can never
    become UTF-8, or is unfinished at the end, is given as U+FFFD.

    Args:
      tokens: as `stream` yields them.
      decode_bytes: the bytes of some ids, as `Tokenizer.decode_bytes`.

    >>> list(stream_text([0xC3, 0xA9, 0x21], bytes))
    ['\u00e9', '!']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if piece := decoder.decode(decode_bytes([token])):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


def _check(prompts: Sequence[Sequence[int]], fixed: _Fixed, row_ids: Sequence[int] | None) -> None:
    """What would otherwise go wrong silently inside the compiled loop."""
    V = fixed.config.vocab_size
    check_prompts(prompts, fixed.config, fixed.max_tokens)
    if row_ids is not None and (len(row_ids) != len(prompts) or min(row_ids) < 0):
        raise ValueError(f"row_ids must be {len(prompts)} integers >= 0, one per prompt")
    if fixed.valid_vocab is not None and not 1 <= fixed.valid_vocab <= V:
        raise ValueError(f"valid_vocab is {fixed.valid_vocab}; it must be 1 to the model's {V}")
    for token in fixed.stop_tokens:
        if not 0 <= token < V:
            raise ValueError(f"stop token {token} is not an id of the model's vocabulary of {V}")


def _as_key(key: jax.Array | int) -> jax.Array:
    return jax.random.key(key) if isinstance(key, (int, np.integer)) else key


_fold = jax.vmap(jax.random.fold_in)
_prompt_keys = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))


@functools.partial(jax.jit, static_argnums=1)
def _sample_keys(prompt_keys: jax.Array, samples: int) -> jax.Array:
    """[P] keys -> [P * samples], a prompt's samples beside each other."""
    number = jnp.tile(jnp.arange(samples), prompt_keys.shape[0])
    return _fold(jnp.repeat(prompt_keys, samples), number)


def _prefill(params: Params, fixed: _Fixed, tokens: jax.Array, counts: jax.Array
             ) -> tuple[jax.Array, KVCache]:
    """Runs the prompts: (hidden [P, D] at each one's last token, the cache)."""
    P, width = tokens.shape
    config, chunk = fixed.config, min(width, CHUNK)
    dtype = jnp.dtype(fixed.execution.dtype)
    capacity = min(width + fixed.max_tokens, config.max_positions)

    def step(carry, chunk_tokens):
        cache, last, start = carry
        here = jnp.clip(counts - start, 0, chunk)
        hidden, cache = decode(params, config, chunk_tokens, cache, counts=here,
                               execution=fixed.execution)
        end = counts - 1 - start  # column of the prompt's last token, if it stands in this chunk
        column = jnp.clip(end, 0, chunk - 1)[:, None, None]
        at_end = jnp.take_along_axis(hidden, column, axis=1)[:, 0]
        last = jnp.where(((end >= 0) & (end < chunk))[:, None], at_end, last)
        return (cache, last, start + chunk), None

    carry = (empty_cache(config, P, capacity, fixed.cache_dtype or dtype),
             jnp.zeros((P, config.dim), dtype), jnp.int32(0))
    if chunk == width:
        cache, last, _ = step(carry, tokens)[0]
    else:
        chunks = tokens.reshape(P, width // chunk, chunk).swapaxes(0, 1)
        (cache, last, _), _ = jax.lax.scan(step, carry, chunks)
    return last, cache


def _begin(params: Params, tokens: jax.Array, counts: jax.Array, keys: jax.Array, fixed: _Fixed,
           samples: int = 1) -> _State:
    """Runs the prompts and draws the first token of each of their samples. `keys` [P * samples]."""
    hidden, cache = _prefill(params, fixed, tokens, counts)
    first = logits(params, fixed.config, hidden)
    penalised = fixed.settings.repetition_penalty != 1
    seen = _seen(tokens, counts, fixed.config.vocab_size) if penalised else None
    first, cache, seen, counts = jax.tree.map(
        lambda x: jnp.repeat(x, samples, axis=0), (first, cache, seen, counts))
    return _draw(first, cache, counts == 0, seen, keys, fixed)


def _seen(tokens: jax.Array, counts: jax.Array, vocab: int) -> jax.Array:
    """bool [P, V]: the tokens that stand in each prompt; its padding does not count."""
    P, width = tokens.shape
    real = jnp.where(jnp.arange(width)[None] < counts[:, None], tokens, vocab)
    return jnp.zeros((P, vocab), bool).at[jnp.arange(P)[:, None], real].set(True, mode="drop")


def _advance(params: Params, state: _State, fixed: _Fixed) -> _State:
    """Takes the tokens drawn last into the cache and draws the next."""
    hidden, cache = decode(params, fixed.config, state.drawn.tokens[:, None], state.cache,
                           execution=fixed.execution)
    # A stopped row's length stays, so its slot is overwritten until the others are done.
    cache = cache.replace(lengths=jnp.where(state.stopped, state.cache.lengths, cache.lengths))
    logits_RV = logits(params, fixed.config, hidden[:, 0])
    return _draw(logits_RV, cache, state.stopped, state.seen, state.keys, fixed)


def _draw(logits_RV: jax.Array, cache: KVCache, stopped: jax.Array, seen: jax.Array | None,
          keys: jax.Array, fixed: _Fixed) -> _State:
    drawn = sample(_fold(keys, cache.lengths), logits_RV, fixed.settings, seen, fixed.valid_vocab)
    for token in fixed.stop_tokens:
        stopped = stopped | (drawn.tokens == token)
    if seen is not None:
        seen = seen.at[jnp.arange(seen.shape[0]), drawn.tokens].set(True)
    return _State(cache, drawn, stopped, seen, keys)


_begin_step = jax.jit(_begin, static_argnames="fixed")
_advance_step = jax.jit(_advance, static_argnames="fixed", donate_argnums=1)


@functools.partial(jax.jit, static_argnames=("fixed", "samples"))
def _generate(params: Params, tokens: jax.Array, counts: jax.Array, prompt_keys: jax.Array, *,
              fixed: _Fixed, samples: int) -> Generation:
    """A batch: its prompts, then the loop. Rows of count 0 are padding, stopped from the start."""
    state = _begin(params, tokens, counts, _sample_keys(prompt_keys, samples), fixed, samples)
    R = state.stopped.shape[0]
    running = jnp.repeat(counts, samples) > 0
    shape = (R, fixed.max_tokens)
    out = Generation(jnp.zeros(shape, jnp.int32), jnp.zeros((R,), jnp.int32), jnp.zeros(shape),
                     jnp.zeros(shape), state.stopped)
    out = _record(out, state, running, 0)

    def more(carry):
        step, state, _ = carry
        return (step < fixed.max_tokens) & ~jnp.all(state.stopped)

    def body(carry):
        step, state, out = carry
        running = ~state.stopped
        state = _advance(params, state, fixed)
        return step + 1, state, _record(out, state, running, step)

    return jax.lax.while_loop(more, body, (jnp.int32(1), state, out))[2]


def _record(out: Generation, state: _State, running: jax.Array,
            step: jax.Array | int) -> Generation:
    """Writes the draws of the rows that were `running` before them as column `step`."""
    def column(buffer, values):
        values = jnp.where(running, values, jnp.zeros_like(values))
        return jax.lax.dynamic_update_slice(buffer, values[:, None], (0, step))

    lengths = out.lengths + running.astype(jnp.int32)
    return Generation(column(out.tokens, state.drawn.tokens), lengths,
                      column(out.logp, state.drawn.logp),
                      column(out.sampling_logp, state.drawn.sampling_logp), state.stopped)
