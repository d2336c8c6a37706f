"""Log-likelihoods of continuations, many at once: what every multiple-choice score is made of.

    model = LanguageModel(params, config, tokenizer)
    scored = loglikelihoods(model, [(context_ids, continuation_ids), ...])
    scored[0].logp, scored[0].greedy

The continuations of one context share it: the context is run once into a cache, and each continuation is read against
a copy of that cache. Contexts that begin alike (the same shots before each question) share that beginning in the same
way. No logits are computed on contexts, a continuation of one token needs no second run, and the
logits of longer ones stand a few positions at a time. Batches have few shapes (rows, width of contexts, continuations a
context, width of those), so that few programs compile; over a mesh the contexts of a batch are split by its data axes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from jaxllm.data.tokenizer import Tokenizer
from jaxllm.evals import loglikelihood_steps as steps
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params, unstack_blocks
from jaxllm.train.sharding import batch_sharding

Pair = tuple[Sequence[int], Sequence[int]]
Progress = Callable[[int, int], None]  # called with (pairs done, pairs in all) after each batch

BATCH_TOKENS = 8192  # of a batch, padding included, on each device
_CONTEXT_WIDTHS = (1, 16, 32, 48, 64, 96)
_CHOICE_WIDTHS = (0, 4, 8, 16, 32, 64)
_MOST_ROWS = 256  # contexts of a batch, on each device
_FAMILY = 4  # contexts with the same first chunk, from which on their common beginning is run by itself


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """What is evaluated.

    Attributes:
      params, config, tokenizer: the model. Over a mesh the params lie on it already.
      execution: dtype and attention.
      mesh: None is one device.
      begin: whether `begin_of_text` stands before every prompt, as it stood before documents in training. lm-eval's
        transformers backend puts none where the tokenizer's authors did not.
      chat: whether generations are asked as a user's message, in the tokenizer's chat format.
      max_length: positions that may be used; None is the model's.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    execution: Execution = Execution()
    mesh: Mesh | None = None
    begin: bool = True
    chat: bool = False
    max_length: int | None = None

    @property
    def positions(self) -> int:
        """Positions that may be used."""
        return min(self.max_length or self.config.max_positions, self.config.max_positions)

    @property
    def before(self) -> list[int]:
        """The ids that stand before every prompt."""
        return [self.tokenizer.begin_of_text] if self.begin else []

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """Where its programs are called."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    @property
    def parts(self) -> int:
        """Devices over which the rows of a batch are split."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]


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


def encode_pair(model: LanguageModel, context: str, continuation: str) -> Pair:
    """Token ids of a context and of the continuation as it is cut behind that context.

    Blanks at the end of the context go to the continuation, where a tokenizer joins them to the next word; the pair is
    then encoded as one text, and the continuation is what follows as many tokens as the context has alone. An empty
    context is the token that begins a text.

    Raises:
      ValueError: for an empty continuation.

    References: lm-evaluation-harness, `TemplateLM._encode_pair`. https://github.com/EleutherAI/lm-evaluation-harness
    """
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    if not continuation:
        raise ValueError(f"the continuation of {context[-40:]!r} is empty; it must have a text to score")
    own, whole = _encoded(model.tokenizer, context), model.tokenizer.encode(context + continuation)
    if len(whole) <= len(own):  # cut inside a word whose token is longer: the continuation takes that token
        own = [id for id, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(own, whole, strict=False))]
    return [*model.before, *own] or [model.tokenizer.begin_of_text], whole[len(own):]


def encode_context(model: LanguageModel, context: str) -> list[int]:
    """Token ids of a prompt, with what the model wants before it."""
    return [*model.before, *_encoded(model.tokenizer, context)]


@functools.lru_cache(maxsize=64)  # the candidates of an item have one context
def _encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text))


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
                   progress: Progress | None = None) -> list[Scored]:
    """Scores continuations under their contexts, in the order asked.

    Args:
      model: see `LanguageModel`.
      asked: (context ids, continuation ids); contexts are cut from the left to fit.
      batch_tokens: of a batch, padding included, on each device; bounds memory.
      progress: called after each batch.

    Raises:
      ValueError: for an empty part, an id outside the vocabulary, or a continuation longer than the model.
    """
    groups = _grouped(model, asked)
    params = unstack_blocks(model.params)
    found: list[Scored | None] = [None] * len(asked)
    done = 0
    for shared, batch, shape in _batches(groups, batch_tokens, model.parts):
        beginning = np.zeros((_width(len(shared), (0, *_CONTEXT_WIDTHS)),), np.int32)
        beginning[:len(shared)] = shared
        with model.on_mesh():
            logp, greedy = steps.score(params, beginning, np.int32(len(shared)), *_placed(model, _arrays(batch, shape)),
                                       model.config, model.execution)
        logp, greedy = (np.asarray(x if x.is_fully_addressable else process_allgather(x, tiled=True))
                        for x in (logp, greedy))
        for row, group in enumerate(batch):
            for column, place in enumerate(group.places):
                found[place] = Scored(float(logp[row, column]), bool(greedy[row, column]),
                                      len(group.continuations[column]))
            done += len(group.places)
        if progress:
            progress(done, len(asked))
    return found


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
    """Yields (common beginning, groups cut by it), the groups of the longest contexts first.

    Groups whose contexts have the same first chunk are a family where there are enough of them; all others have none.
    """
    by_start: dict[tuple[int, ...], list[_Group]] = {}
    for group in groups:
        start = group.context[:steps.CHUNK] if len(group.context) > steps.CHUNK else ()
        by_start.setdefault(start, []).append(group)
    alone = [group for start, family in by_start.items() if not start or len(family) < _FAMILY for group in family]
    families = [((), alone)] if alone else []
    for start, family in by_start.items():
        if start and len(family) >= _FAMILY:
            shortest = min(len(group.context) for group in family)
            shared = os.path.commonprefix([group.context[:shortest - 1] for group in family])
            families.append((shared, [dataclasses.replace(group, context=group.context[len(shared):])
                                      for group in family]))
    for shared, family in families:
        yield shared, sorted(family, key=lambda group: (len(group.context), max(map(len, group.continuations))),
                             reverse=True)


def _width(length: int, widths: Sequence[int]) -> int:
    """The first of the widths that holds so many, then whole chunks."""
    return next((width for width in widths if length <= width), -(-length // steps.CHUNK) * steps.CHUNK)


def _batches(groups: Sequence[_Group], batch_tokens: int, parts: int
             ) -> Iterator[tuple[tuple[int, ...], Sequence[_Group], tuple[int, int, int, int]]]:
    """Yields (common beginning, groups of a batch, its shape) until all groups are through."""
    for shared, family in _families(groups):
        at = 0
        while at < len(family):
            rows = parts
            while (rows < len(family) - at and 2 * rows <= parts * _MOST_ROWS
                   and 2 * rows * _tokens(_widths(family[at:at + 2 * rows])) <= parts * batch_tokens):
                rows *= 2
            batch = family[at:at + rows]
            yield shared, batch, (rows, *_widths(batch))
            at += rows


def _widths(batch: Sequence[_Group]) -> tuple[int, int, int]:
    """(width of contexts, continuations a context, width of continuations) that hold these groups."""
    most = max(len(group.places) for group in batch)
    longest = max(len(continuation) for group in batch for continuation in group.continuations)
    return (_width(len(batch[0].context), _CONTEXT_WIDTHS), 1 << (most - 1).bit_length(),
            1 + _width(longest - 1, _CHOICE_WIDTHS))


def _tokens(widths: tuple[int, int, int]) -> int:
    """Padded positions that a row takes: of its context, and of each continuation but for its last token."""
    T, K, U = widths
    return T + K * (U - 1)


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
