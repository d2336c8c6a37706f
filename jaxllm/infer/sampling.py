"""From logits to a token: filters over the next-token distribution, and the draw.

Every filter takes logits [B, V] and returns logits [B, V] in which a token that may not be drawn is
-inf. They equal Hugging Face's logits processors on the same logits, ties and edge values included,
and are applied in its order. A parameter is a Python number, compiled in and free when it is off,
or an array [] or [B], one value per row, so that a server can draw for requests with different
settings in one step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Number = float | jax.Array

# How many of the likeliest tokens top-p looks at before it sorts the whole vocabulary.
CANDIDATES = 512


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn; the defaults draw from the model's own distribution.

    Attributes:
      temperature: divides the logits, 0 or >= 1e-6; 0 is greedy (the likeliest token, the lowest
        id of equals).
      top_k: keep the k most likely tokens, and all that equal the k-th; 0 is off.
      top_p: keep the smallest set of likeliest tokens whose probability reaches p, in (0, 1]; 1 is
        off.
      min_p: keep tokens at least min_p times as likely as the likeliest, in [0, 1]; 0 is off.
      repetition_penalty: 1e-6 to 1e6; logits of tokens already in the row (prompt included) are divided by
        it where positive and multiplied where negative; 1 is off.

    Raises:
      ValueError: for a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        ranges = {
            # As float32, logits divided by less would overflow.
            "temperature": (self.temperature == 0 or 1e-6 <= self.temperature < np.inf,
                            "0 (greedy) or at least 1e-6"),
            "top_k": (isinstance(self.top_k, int) and 0 <= self.top_k < 2**31,
                      "an integer >= 0 (0 is off)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1 is off)"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1 (0 is off)"),
            "repetition_penalty": (1e-6 <= self.repetition_penalty <= 1e6,
                                   "1e-6 to 1e6 (1 is off)"),
        }
        for field, (valid, wanted) in ranges.items():
            if not valid:
                raise ValueError(f"sampling.{field} is {getattr(self, field)}; it must be {wanted}")


@struct.dataclass
class RowSettings:
    """`SamplingSettings` as arrays [B], one value per row: no new compile when a value changes."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array


@struct.dataclass
class Sample:
    """What `sample` drew.

    Attributes:
      tokens: int32 [B].
      logp: float32 [B], nats; the token's log-probability under the model: no temperature, no
        filter, normalised over all V.
      sampling_logp: float32 [B], nats; under the distribution that was drawn from. 0 when greedy.
    """

    tokens: jax.Array
    logp: jax.Array
    sampling_logp: jax.Array


def stack_settings(settings: Sequence[SamplingSettings]) -> RowSettings:
    """One row per element, for a batch whose rows differ.

    >>> stack_settings([SamplingSettings(top_k=5), SamplingSettings(top_p=0.5)]).top_k.tolist()
    [5, 0]
    """
    def column(field: str, dtype: Any) -> jax.Array:
        return jnp.asarray([getattr(one, field) for one in settings], dtype)

    return RowSettings(column("temperature", jnp.float32), column("top_k", jnp.int32),
                       column("top_p", jnp.float32), column("min_p", jnp.float32),
                       column("repetition_penalty", jnp.float32))


def _is(value: Number, off: float) -> bool:
    """True when a parameter is a Python number equal to `off`: decided before compiling."""
    return isinstance(value, (int, float)) and value == off


def _rows(value: Number) -> jax.Array:
    """A parameter as float32 [1, 1] or [B, 1], to stand beside logits [B, V]."""
    return jnp.asarray(value, jnp.float32).reshape(-1, 1)


def repetition_penalty(logits: jax.Array, seen: jax.Array, penalty: Number) -> jax.Array:
    """Makes tokens that a row already holds less likely (penalty > 1) or more (< 1).

    Args:
      logits: float32 [B, V].
      seen: bool [B, V], True for tokens that stand in the row, prompt included.
      penalty: > 0, number, [] or [B].

    References: Keskar et al., CTRL, 2019, section 4.1. https://arxiv.org/abs/1909.05858
    """
    penalty = _rows(penalty)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def temperature(logits: jax.Array, value: Number) -> jax.Array:
    """logits / temperature; at 0 the most likely token keeps its logit and the others get -inf.

    Args:
      logits: float32 [B, V].
      value: >= 0, number, [] or [B].
    """
    if isinstance(value, (int, float)) and value != 0:
        return logits / value
    best = jnp.argmax(logits, axis=-1)[:, None]
    greedy = jnp.where(jnp.arange(logits.shape[-1])[None] == best, logits, -jnp.inf)
    if isinstance(value, (int, float)):
        return greedy
    value = _rows(value)
    return jnp.where(value == 0, greedy, logits / jnp.where(value == 0, 1.0, value))


def top_k(logits: jax.Array, k: int | jax.Array) -> jax.Array:
    """Keeps the k largest logits of a row, and every logit equal to the k-th; 0 keeps all.

    Args:
      logits: float32 [B, V].
      k: >= 0 and clipped to V, number, [] or [B]. A number takes a selection, an array a sort.

    References: Fan et al., Hierarchical Neural Story Generation, 2018.
    https://arxiv.org/abs/1805.04833
    """
    V = logits.shape[-1]
    if isinstance(k, int):
        return logits if k == 0 else _keep(logits, jax.lax.top_k(logits, min(k, V))[0][:, -1:])

    def cut(logits):
        place = jnp.broadcast_to(V - jnp.clip(k, 1, V).reshape(-1, 1), (logits.shape[0], 1))
        smallest = jnp.take_along_axis(jnp.sort(logits, axis=-1), place, axis=-1)
        return _keep(logits, jnp.where(k.reshape(-1, 1) == 0, -jnp.inf, smallest))

    return jax.lax.cond(jnp.any(k > 0), cut, lambda logits: logits, logits)


def _keep(logits: jax.Array, smallest: jax.Array) -> jax.Array:
    return jnp.where(logits < smallest, -jnp.inf, logits)


def top_p(logits: jax.Array, p: Number) -> jax.Array:
    """Keeps the most likely tokens until their probability reaches p: the nucleus; 1 keeps all.

    A token goes when the tokens up to it, from the least likely, hold at most 1 - p together. Of
    equal logits the lower id counts as the less likely; the last in that order always stays.

    Args:
      logits: float32 [B, V].
      p: in (0, 1], number, [] or [B].

    References: Holtzman et al., The Curious Case of Neural Text Degeneration, 2020.
    https://arxiv.org/abs/1904.09751

    Note: Hugging Face leaves the order of equal logits to torch.sort, which promises none; with a
    stable sort it is this one. It drops tokens of probability 0 even at p = 1, which here is off.
    """
    if _is(p, 1.0):
        return logits
    tail = _rows(1.0 - p if isinstance(p, (int, float)) else jnp.where(p >= 1.0, -1.0, 1.0 - p))

    return jax.lax.cond(jnp.any(tail >= 0), lambda x: _nucleus(x, tail), lambda x: x, logits)


def _nucleus(logits: jax.Array, tail: jax.Array) -> jax.Array:
    """Top-p where `tail` [1 or B, 1] is 1 - p."""
    V = logits.shape[-1]

    def among_all(logits):
        ascending = jnp.sort(logits, axis=-1)
        dropped = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= tail
        kept = jnp.maximum(V - jnp.sum(dropped, axis=-1, keepdims=True), 1)
        return kept, jnp.take_along_axis(ascending, V - kept, axis=-1)

    # A sort of a whole vocabulary costs far more than a step of a small model, and the nucleus is
    # nearly always within the likeliest few.
    likely = jax.lax.top_k(logits, min(CANDIDATES, V))[0]
    p = jnp.exp(likely - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
    above = jnp.cumsum(p, axis=-1) - p
    kept = jnp.maximum(jnp.sum(1.0 - above > tail, axis=-1, keepdims=True), 1)
    within = (kept < likely.shape[-1]) | (tail < 0)
    smallest = jnp.take_along_axis(likely, kept - 1, axis=-1)
    kept, smallest = jax.lax.cond(jnp.all(within) | (likely.shape[-1] == V),
                                  lambda _: (kept, smallest), among_all, logits)
    # Equal logits may lie on both sides of the cut: those of the lowest ids go.
    equal = logits == smallest
    going = jnp.sum(logits >= smallest, axis=-1, keepdims=True) - kept
    equal = jax.lax.cond(jnp.any(going > 0), lambda x: x & (jnp.cumsum(x, axis=-1) <= going),
                         jnp.zeros_like, equal)
    return jnp.where(((logits < smallest) | equal) & (tail >= 0), -jnp.inf, logits)


def min_p(logits: jax.Array, p: Number) -> jax.Array:
    """Keeps the tokens at least p times as likely as the likeliest; 0 keeps all.

    Args:
      logits: float32 [B, V].
      p: in [0, 1], number, [] or [B].

    References: Nguyen et al., Turning Up the Heat: Min-p Sampling, 2024.
    https://arxiv.org/abs/2407.01082
    """
    if _is(p, 0.0):
        return logits
    probabilities = jax.nn.softmax(logits, axis=-1)
    least = _rows(p) * probabilities.max(axis=-1, keepdims=True)
    return jnp.where(probabilities < least, -jnp.inf, logits)


def mask_vocab(logits: jax.Array, valid_vocab: int | None) -> jax.Array:
    """Bars ids from `valid_vocab` on, the padding of an embedding; None bars none.

    >>> mask_vocab(jnp.zeros((1, 3)), 2)
    Array([[  0.,   0., -inf]], dtype=float32)
    """
    V = logits.shape[-1]
    if valid_vocab is None or valid_vocab >= V:
        return logits
    return jnp.where(jnp.arange(V)[None] < valid_vocab, logits, -jnp.inf)


def process(logits: jax.Array, settings: SamplingSettings | RowSettings,
            seen: jax.Array | None = None, valid_vocab: int | None = None) -> jax.Array:
    """The logits of the distribution drawn from: every filter, in Hugging Face's order.

    Vocabulary mask, repetition penalty, temperature, top-k, top-p, min-p.

    Args:
      logits: float32 [B, V], the model's.
      settings: one for all rows, or a value per row.
      seen: bool [B, V], see `repetition_penalty`; may be None when the penalty is the number 1.
      valid_vocab: number of ids that may be drawn; None is V.

    Returns:
      float32 [B, V]; -inf where a token may not be drawn. At least one token of a row is left.

    Raises:
      ValueError: when `seen` is None and the repetition penalty is not the number 1.
    """
    logits = mask_vocab(logits.astype(jnp.float32), valid_vocab)
    if not _is(settings.repetition_penalty, 1.0):
        if seen is None:
            raise ValueError("a repetition penalty needs `seen`, the tokens that each row holds")
        logits = repetition_penalty(logits, seen, settings.repetition_penalty)
    if not _is(settings.temperature, 1.0):
        logits = temperature(logits, settings.temperature)
    if _is(settings.temperature, 0.0):
        return logits  # one token is left: nothing to filter
    return min_p(top_p(top_k(logits, settings.top_k), settings.top_p), settings.min_p)


def sample(key: jax.Array, logits: jax.Array,
           settings: SamplingSettings | RowSettings = SamplingSettings(),
           seen: jax.Array | None = None, valid_vocab: int | None = None) -> Sample:
    """Draws one token per row from softmax(process(logits)).

    Args:
      key: one PRNG key, or [B] of them: then a row's draw depends on its own key and logits alone.
      logits: [B, V], the model's, unprocessed.
      settings, seen, valid_vocab: as in `process`.

    Returns:
      The tokens, with their log-probability under the model and under the distribution drawn from.

    >>> greedy = SamplingSettings(temperature=0.0)
    >>> drawn = sample(jax.random.key(0), jnp.array([[0.0, 5.0, 1.0]]), greedy)
    >>> drawn.tokens.tolist(), drawn.sampling_logp.tolist(), round(float(drawn.logp[0]), 4)
    ([1], [0.0], -0.0247)
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    if _is(settings.temperature, 0.0):
        tokens = jnp.argmax(process(logits, settings, seen, valid_vocab), axis=-1).astype(jnp.int32)
        logp = _pick(logits, tokens) - normaliser
        return Sample(tokens, logp, jnp.zeros_like(logp))
    processed = process(logits, settings, seen, valid_vocab)
    keys = key if key.ndim else jax.random.split(key, logits.shape[0])
    noise = jax.vmap(lambda one: jax.random.gumbel(one, logits.shape[1:], jnp.float32))(keys)
    tokens = jnp.argmax(processed + noise, axis=-1).astype(jnp.int32)
    drawn = _pick(processed, tokens) - jax.nn.logsumexp(processed, axis=-1)
    return Sample(tokens, _pick(logits, tokens) - normaliser, drawn)


def _pick(values: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]
