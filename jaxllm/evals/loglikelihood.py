"""Log-likelihoods of continuations, many at once: what every multiple-choice score is made of.

    model = LanguageModel(params, config, tokenizer)
    scored = loglikelihoods(model, [(context_ids, continuation_ids), ...])
    scored[0].logp, scored[0].greedy

The continuations of one context share it: the context is run once into a cache, and each continuation is read against
a copy of that cache. Contexts that begin alike (the same shots before each question) share that beginning in the same
way. No logits are computed on contexts, a continuation of one token needs no second run, and the logits of longer ones
stand a few positions at a time. Batches have few shapes (rows, width of contexts, continuations a context, width of
those), so that few programs compile; over a mesh the contexts of a batch are split by its data axes.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jaxllm.evals import loglikelihood_steps as steps
from jaxllm.evals.language_model import LanguageModel, Pair
from jaxllm.model.params import unstack_blocks
from jaxllm.train.sharding import batch_sharding

Widths = tuple[int, int, int]  # of contexts, continuations a context, width of continuations
Progress = Callable[[int, int], None]  # called with (pairs done, pairs in all) after each batch

BATCH_TOKENS = 8192  # of a batch, padding included, on each device
PROGRAM_TOKENS = 4096  # of padding that one more compiled program must save
_CONTEXT_WIDTHS = (1, 16, 24, 32, 48, 64, 96)
_CHOICE_WIDTHS = (0, 4, 8, 12, 16, 24, 32, 48, 64)
_MOST_ROWS = 256  # contexts of a batch, on each device
_FAMILY = 4  # contexts with the same first chunk, from which on their common beginning is run by itself


@dataclasses.dataclass(frozen=True)
class Scored:
    """A continuation under its context.

    Attributes:
      logp: nats, summed over its tokens.
      greedy: whether each of its tokens is the likeliest at its place.
      tokens: how many there are.
    """

    logp: float
    greedy: bool
    tokens: int


def fitted(pair: Pair, positions: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The pair with its context cut from the left to what fits; the last token is predicted and takes no position.

    Raises:
      ValueError: for an empty part, or a continuation that leaves no room for one token of context.

    >>> fitted(([1, 2, 3], [4, 5]), 3)
    ((2, 3), (4, 5))
    """
    context, continuation = pair
    if not len(context) or not len(continuation):
        raise ValueError("a context or a continuation has no tokens; begin a prompt with the tokenizer's begin_of_text")
    room = positions + 1 - len(continuation)
    if room < 1:
        raise ValueError(f"a continuation of {len(continuation)} tokens does not fit the model's {positions} "
                         f"positions; leave the item out, or cut the text into windows (jaxllm.evals.rolling)")
    return tuple(context[-room:]), tuple(continuation)


@dataclasses.dataclass
class _Group:
    """A context, or what follows a shared beginning, and some of its continuations with their places in the list."""

    context: tuple[int, ...]
    continuations: list[tuple[int, ...]]
    places: list[int]


def loglikelihoods(model: LanguageModel, asked: Sequence[Pair], *, batch_tokens: int = BATCH_TOKENS,
                   program_tokens: int = PROGRAM_TOKENS, progress: Progress | None = None) -> list[Scored]:
    """Scores continuations under their contexts, in the order asked.

    Args:
      model: see `LanguageModel`.
      asked: (context ids, continuation ids); contexts are cut from the left to fit.
      batch_tokens: of a batch, padding included, on each device; bounds memory.
      program_tokens: of padding that one more compiled program must save: few for a large model on a CPU, many on an
        accelerator.
      progress: called after each batch.

    Raises:
      ValueError: for an empty part, an id outside the vocabulary, or a continuation longer than the model.
    """
    groups = _grouped(model, asked)
    params = unstack_blocks(model.params)
    found: dict[int, Scored] = {}
    flights: collections.deque[tuple[Sequence[_Group], jax.Array, jax.Array]] = collections.deque()
    for shared, batch, shape in _batches(groups, batch_tokens, program_tokens, model.parts):
        beginning = np.zeros((_width(len(shared), (0, *_CONTEXT_WIDTHS)),), np.int32)
        beginning[:len(shared)] = shared
        with model.on_mesh():
            flights.append((batch, *steps.score(params, beginning, np.int32(len(shared)),
                                                *_placed(model, _arrays(batch, shape)), model.config, model.execution)))
        if len(flights) > 1:  # the next batch is on its way before the last is read
            found |= _fetched(*flights.popleft())
            if progress:
                progress(len(found), len(asked))
    for flight in flights:
        found |= _fetched(*flight)
        if progress:
            progress(len(found), len(asked))
    return [found[place] for place in range(len(asked))]


def _fetched(batch: Sequence[_Group], logp: jax.Array, greedy: jax.Array) -> dict[int, Scored]:
    """The scores of a batch by their places in the list asked."""
    logp, greedy = (np.asarray(x if x.is_fully_addressable else process_allgather(x, tiled=True))
                    for x in (logp, greedy))
    return {place: Scored(float(logp[row, column]), bool(greedy[row, column]), len(group.continuations[column]))
            for row, group in enumerate(batch) for column, place in enumerate(group.places)}


def _grouped(model: LanguageModel, asked: Sequence[Pair]) -> list[_Group]:
    """Continuations by context, at most 16 of them together."""
    by_context: dict[tuple[int, ...], _Group] = {}
    for place, pair in enumerate(asked):
        context, continuation = fitted(pair, model.positions)
        if min(*context, *continuation) < 0 or max(*context, *continuation) >= model.config.vocab_size:
            raise ValueError(f"pair {place} holds an id outside the model's vocabulary of {model.config.vocab_size}; "
                             f"was it made by another tokenizer?")
        group = by_context.setdefault(context, _Group(context, [], []))
        group.continuations.append(continuation)
        group.places.append(place)
    return [_Group(group.context, group.continuations[i:i + 16], group.places[i:i + 16])
            for group in by_context.values() for i in range(0, len(group.places), 16)]


def _families(groups: Sequence[_Group]) -> Iterator[tuple[tuple[int, ...], list[_Group]]]:
    """Yields (common beginning, groups cut by it).

    Groups whose contexts have the same first chunk are a family where there are enough of them; all others have none.
    """
    by_start: dict[tuple[int, ...], list[_Group]] = {}
    for group in groups:
        start = group.context[:steps.CHUNK] if len(group.context) > steps.CHUNK else ()
        by_start.setdefault(start, []).append(group)
    alone = [group for start, family in by_start.items() if not start or len(family) < _FAMILY for group in family]
    if alone:
        yield (), alone
    for start, family in by_start.items():
        if start and len(family) >= _FAMILY:
            shortest = min(len(group.context) for group in family)
            shared = os.path.commonprefix([group.context[:shortest - 1] for group in family])
            yield shared, [dataclasses.replace(group, context=group.context[len(shared):]) for group in family]


def _width(length: int, widths: Sequence[int]) -> int:
    """The first of the widths within a chunk that holds so many, else whole chunks."""
    within = (width for width in widths if length <= width <= steps.CHUNK)
    return next(within, -(-length // steps.CHUNK) * steps.CHUNK)


def _batches(groups: Sequence[_Group], batch_tokens: int, program_tokens: int, parts: int
             ) -> Iterator[tuple[tuple[int, ...], Sequence[_Group], tuple[int, int, int, int]]]:
    """Yields (common beginning, groups of a batch, its shape) until all groups are through."""
    for shared, family in _families(groups):
        for widths, bucket in _buckets(family, program_tokens):
            rows = _rows(len(bucket), batch_tokens // _tokens(widths), parts)
            for at in range(0, len(bucket), rows):
                yield shared, bucket[at:at + rows], (rows, *widths)


def _buckets(groups: Sequence[_Group], program_tokens: int) -> list[tuple[Widths, list[_Group]]]:
    """Groups by the widths that hold them, the widest first.

    Each bucket is a program to compile: two become one while that costs at most `program_tokens` more of padding, the
    cheapest pair first.
    """
    buckets: dict[Widths, list[_Group]] = {}
    for group in groups:
        longest = max(map(len, group.continuations))
        widths = (_width(len(group.context), _CONTEXT_WIDTHS), len(group.places),
                  1 + _width(longest - 1, _CHOICE_WIDTHS))
        buckets.setdefault(widths, []).append(group)

    def cost(pair: tuple[Widths, Widths]) -> int:
        both = tuple(map(max, *pair))
        return sum(len(buckets[widths]) * (_tokens(both) - _tokens(widths)) for widths in pair)

    while len(buckets) > 1 and cost(pair := min(itertools.combinations(buckets, 2), key=cost)) <= program_tokens:
        joined = [group for widths in pair for group in buckets.pop(widths)]
        buckets.setdefault(tuple(map(max, *pair)), []).extend(joined)
    return sorted(buckets.items(), key=lambda item: _tokens(item[0]), reverse=True)


def _tokens(widths: Widths) -> int:
    """Padded positions that a row takes: of its context, and of each continuation but for its last token."""
    T, K, U = widths
    return T + K * (U - 1)


def _rows(count: int, most: int, parts: int) -> int:
    """Rows of a batch: the most, a power of two on each device, that leave no more than an eighth of all rows empty."""
    sizes = [parts << power for power in range(_MOST_ROWS.bit_length()) if 1 << power <= min(most, _MOST_ROWS)]
    return max((size for size in sizes if -(-count // size) * size * 8 <= count * 9), default=parts)


def _arrays(batch: Sequence[_Group], shape: tuple[int, int, int, int]) -> tuple[np.ndarray, ...]:
    """(contexts int32 [G, T], counts [G], continuations [G, K, U], sizes [G, K]); padding is on the right."""
    G, T, K, U = shape
    contexts, counts = np.zeros((G, T), np.int32), np.ones((G,), np.int32)
    continuations, sizes = np.zeros((G, K, U), np.int32), np.zeros((G, K), np.int32)
    for row, group in enumerate(batch):
        contexts[row, :len(group.context)], counts[row] = group.context, len(group.context)
        for column, continuation in enumerate(group.continuations):
            continuations[row, column, :len(continuation)], sizes[row, column] = continuation, len(continuation)
    return contexts, counts, continuations, sizes


def _placed(model: LanguageModel, arrays: Sequence[np.ndarray]) -> list[jax.Array]:
    """The rows of a batch over the mesh; every process has them all and gives its own devices their part."""
    if model.mesh is None:
        return [jnp.asarray(array) for array in arrays]
    rows = batch_sharding(model.mesh).spec[0]
    sharding = jax.sharding.NamedSharding(model.mesh, jax.sharding.PartitionSpec(rows))
    return [jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for array in arrays]
