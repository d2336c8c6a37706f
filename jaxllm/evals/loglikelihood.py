"""Log-likelihoods of continuations, many at once: what every multiple-choice score is made of.

    model = LanguageModel(params, config, tokenizer)
    scored = loglikelihoods(model, [(context_ids, continuation_ids), ...])
    scored[0].logp, scored[0].greedy

The continuations of one context share it: the context is run once into a cache, and each continuation is read against
a copy of that cache. No logits are computed on contexts, a continuation of one token needs no second run, and the
logits of longer ones stand a few positions at a time. Batches have few shapes (rows, width of contexts, continuations a
context, width of those), so that few programs compile; over a mesh the contexts of a batch are split by its data axes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from jaxllm.data.tokenizer import Tokenizer
from jaxllm.model.cache import KVCache, empty_cache
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params, unstack_blocks
from jaxllm.model.transformer import decode, logits
from jaxllm.train.sharding import batch_sharding

Pair = tuple[Sequence[int], Sequence[int]]
Progress = Callable[[int, int], None]  # called with (pairs done, pairs in all) after each batch

CHUNK = 128  # positions run at once: bounds what attention holds, and one compiled chunk serves any width
POSITIONS = 512  # whose logits stand in memory together, on each device
BATCH_TOKENS = 8192  # of a batch, padding included, on each device
_CONTEXT_WIDTHS = (1, 16, 32, 48, 64, 96)
_CHOICE_WIDTHS = (0, 4, 8, 16, 32, 64)
_MOST_ROWS = 256  # contexts of a batch, on each device


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
    """A context and some of its continuations, with their places in the list asked."""

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
    for batch, shape in _batches(groups, batch_tokens, model.parts):
        arrays = _arrays(batch, shape)
        with model.on_mesh():
            logp, greedy = _score(params, *_placed(model, arrays), model.config, model.execution)
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
    """Continuations by context, the longest contexts first: what does not fit fails at once."""
    by_context: dict[tuple[int, ...], _Group] = {}
    for place, pair in enumerate(asked):
        context, continuation = fitted(pair, model.positions)
        if min(*context, *continuation) < 0 or max(*context, *continuation) >= model.config.vocab_size:
            raise ValueError(f"pair {place} holds an id outside the model's vocabulary of {model.config.vocab_size}; "
                             f"was it made by another tokenizer?")
        group = by_context.setdefault(context, _Group(context, [], []))
        group.continuations.append(continuation)
        group.places.append(place)
    pieces = [_Group(group.context, group.continuations[i:i + 16], group.places[i:i + 16])
              for group in by_context.values() for i in range(0, len(group.places), 16)]
    return sorted(pieces, key=lambda group: (len(group.context), max(map(len, group.continuations))), reverse=True)


def _width(length: int, widths: Sequence[int]) -> int:
    """The first of the widths that holds so many, then whole chunks."""
    return next((width for width in widths if length <= width), -(-length // CHUNK) * CHUNK)


def _batches(groups: Sequence[_Group], batch_tokens: int, parts: int):
    """Yields (groups of a batch, (rows, width of contexts, continuations, width of continuations))."""
    at = 0
    while at < len(groups):
        width = _width(len(groups[at].context), _CONTEXT_WIDTHS)
        some, shape = groups[at:at + 1], None
        while True:  # rows and widths depend on each other: a few rounds settle it
            most = max(len(group.places) for group in some)
            K = 1 << (most - 1).bit_length()
            U = 1 + _width(max(len(c) for group in some for c in group.continuations) - 1, _CHOICE_WIDTHS)
            rows = min(max(batch_tokens // (width + K * (U - 1)), 1), _MOST_ROWS)
            rows = parts * (1 << (rows.bit_length() - 1))
            if shape is not None and rows >= len(some):
                break
            shape, some = (rows, width, K, U), groups[at:at + rows]
        yield some, (rows, width, K, U)
        at += len(some)


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


@functools.partial(jax.jit, static_argnames=("config", "execution"))
def _score(params: Params, contexts_GT: jax.Array, counts_G: jax.Array, continuations_GKU: jax.Array,
           sizes_GK: jax.Array, config: ModelConfig, execution: Execution) -> tuple[jax.Array, jax.Array]:
    """(logp float32 [G, K], greedy bool [G, K]) of continuations; places of no tokens have 0 and True."""
    G, K, U = continuations_GKU.shape
    capacity = contexts_GT.shape[1] + U - 1
    if config.positions == "learned":
        capacity = min(capacity, config.max_positions)  # padding alone lies beyond
    cache = empty_cache(config, G, capacity, jnp.dtype(execution.dtype))
    last_GD, cache = _run_contexts(params, contexts_GT, counts_G, cache, config, execution)
    scores_GV = jax.nn.log_softmax(logits(params, config, last_GD))
    first_GK = continuations_GKU[:, :, 0]
    present_GK = sizes_GK > 0
    logp_GK = jnp.where(present_GK, jnp.take_along_axis(scores_GV, first_GK, axis=1), 0.0)
    greedy_GK = ~present_GK | (jnp.argmax(scores_GV, axis=1)[:, None] == first_GK)
    if U == 1:
        return logp_GK, greedy_GK
    tokens_RU, sizes_R = continuations_GKU.reshape(G * K, U), sizes_GK.reshape(G * K)
    logp_R, greedy_R = _run_continuations(params, tokens_RU, sizes_R, jax.tree.map(lambda x: jnp.repeat(x, K, axis=0),
                                                                                  cache), config, execution)
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
