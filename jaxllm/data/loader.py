"""Batches as a function of the step: stateless shuffle, weighted mixtures, each host its own rows.

A source numbers its examples 0, 1, 2, ... without end. Batch `step` holds examples
step * batch_size ... + batch_size - 1 of that global order, and each host takes its slice: four
hosts together read what one would, and to resume a run one needs nothing but the step.
"""

import dataclasses
import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxllm.data.packing import Batch, segment_rows
from jaxllm.data.permutation import shuffled
from jaxllm.data.shards import TokenShards

_FIELDS = tuple(field.name for field in dataclasses.fields(Batch))
_MIXTURE = 0x6D6978747572  # keeps a mixture's order apart from its sources' under one seed
_END = object()


class Source:
    """Examples numbered without end; subclasses say what `rows_at` reads."""

    sequential: bool = False
    length: int  # tokens per row
    segmented: bool  # whether its batches have segment ids and positions

    def rows_at(self, examples: np.ndarray) -> Batch:
        """Returns the examples with these numbers, in this order. int64 [B] -> Batch of numpy"""
        raise NotImplementedError

    def batch_at(self, step: int, *, batch_size: int, host: int = 0, hosts: int = 1) -> Batch:
        """Returns this host's rows of one batch; depends on nothing but the arguments.

        Args:
          step: which batch, >= 0.
          batch_size: rows of the whole batch, over all hosts; `hosts` must divide it.
          host: which host asks, in [0, hosts).
          hosts: how many read together.
        Returns:
          Batch of numpy arrays [batch_size / hosts, length].
        Raises:
          ValueError: if an argument is out of range, or a sequential source is used up.
        """
        if batch_size < 1 or hosts < 1 or batch_size % hosts:
            raise ValueError(f"a batch of {batch_size} rows cannot be divided by {hosts} hosts; "
                             "choose a batch size that is a multiple of the hosts")
        if not 0 <= host < hosts or step < 0:
            raise ValueError(f"host {host} must be in [0, {hosts}) and step {step} at least 0")
        if self.sequential and step >= self.steps(batch_size):
            raise ValueError(f"step {step} is past the end: read in order, this source has "
                             f"{self.steps(batch_size)} batches of {batch_size}")
        mine = batch_size // hosts
        first = int(step) * batch_size + host * mine
        return self.rows_at(np.arange(first, first + mine, dtype=np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class _Finite(Source):
    """A source with `count` examples: a new permutation of them in each epoch, or once in order."""

    seed: int = dataclasses.field(default=0, kw_only=True)
    sequential: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def count(self) -> int:
        """How many different examples there are."""
        raise NotImplementedError

    def gather(self, index: np.ndarray) -> Batch:
        """Returns the examples in [0, count) with these indices."""
        raise NotImplementedError

    def steps(self, batch_size: int) -> int:
        """How many batches hold every example once; the last may be filled up with padding."""
        return -(-self.count // batch_size)

    def rows_at(self, examples: np.ndarray) -> Batch:
        if not self.sequential:
            return self.gather(shuffled(examples, self.count, self.seed))
        rows = self.gather(examples % self.count)
        for name in _FIELDS:  # past the end: rows of padding
            if getattr(rows, name) is not None:
                getattr(rows, name)[examples >= self.count] = 0
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class Windows(_Finite):
    """Windows of `length` + 1 tokens of a corpus, `length` apart: no token is a target twice.

    The last tokens, too few for a window, are left out (at most `length`).

    Args:
      shards: the corpus.
      length: T, tokens per row.
      documents: "separate": attention stays inside a document. The end-of-text token is the last
        target of a document and the first input of the next, so that every token is a target and
        a model begins documents as a prompt does: from the end-of-text token. (Shards without one
        have nothing to predict a first token from; there it is not a target.) "concatenate": rows
        are plain text with documents end to end, every token is a target, and segment ids and
        positions are None.
      seed: of the shuffle.
      sequential: every window once, in order, the last batch filled up with rows of weight 0.
    Raises:
      ValueError: if the corpus is smaller than one window, or an argument is out of range.
    """

    shards: TokenShards
    length: int
    documents: str = "separate"

    def __post_init__(self):
        if self.documents not in ("separate", "concatenate"):
            raise ValueError(f"documents must be 'separate' or 'concatenate', not "
                             f"{self.documents!r}")
        if self.length < 1:
            raise ValueError(f"length must be at least 1 token, not {self.length}")
        if not self.count:
            raise ValueError(f"the corpus in {self.shards.folder} has {self.shards.tokens} tokens, "
                             f"fewer than one window of {self.length} + 1; give more text or a "
                             "smaller length")

    @functools.cached_property
    def count(self) -> int:
        return (self.shards.tokens - 1) // self.length

    @property
    def segmented(self) -> bool:
        return self.documents == "separate"

    def gather(self, index: np.ndarray) -> Batch:
        starts = index * self.length
        rows = self.shards.read_rows(starts, self.length + 1)
        tokens, targets = rows[:, :-1], rows[:, 1:]
        if self.documents == "concatenate":
            return Batch(tokens, targets, np.ones(tokens.shape, np.float32))
        if self.shards.end_of_text is not None:
            is_start = tokens == self.shards.end_of_text
            return Batch(tokens, targets, np.ones(tokens.shape, np.float32), *segment_rows(is_start))
        is_end = self.shards.ends_in_rows(starts, self.length)
        is_start = np.roll(is_end, 1, axis=1)
        return Batch(tokens, targets, (~is_end).astype(np.float32), *segment_rows(is_start))


@dataclasses.dataclass(frozen=True, eq=False)
class Rows(_Finite):
    """Rows that stand in memory, such as `pack(...).batch`, as a source.

    Args:
      batch: numpy arrays [rows, T]; at least one row.
      seed, sequential: as for `Windows`.
    """

    batch: Batch

    def __post_init__(self):
        if not self.count:
            raise ValueError("there are no rows to read; give at least one sequence")

    @property
    def count(self) -> int:
        return len(self.batch.tokens)

    @property
    def length(self) -> int:
        return self.batch.tokens.shape[1]

    @property
    def segmented(self) -> bool:
        return self.batch.segment_ids is not None

    def gather(self, index: np.ndarray) -> Batch:
        columns = (getattr(self.batch, name) for name in _FIELDS)
        return Batch(*(None if column is None else column[index] for column in columns))


class Mixture(Source):
    """Several sources in exact proportions: the same count of each in every block of examples.

    Counts per block are weight * block rounded by largest remainder; which example of which source
    comes n-th is a function of n, in an order permuted anew in each block.

    Args:
      parts: (source, weight) pairs; weights are positive and need not add up to 1.
      seed: of the order within blocks; each source has its own seed for its own order.
      block: examples per block.
    Raises:
      ValueError: if a weight is not positive or too small to appear in a block, or the sources
        differ in length or in having segment ids, or one is sequential.
    """

    def __init__(self, parts: Sequence[tuple[Source, float]], seed: int = 0, block: int = 1024):
        if not parts:
            raise ValueError("a mixture needs at least one source")
        self.sources = [source for source, _ in parts]
        if any(source.sequential for source in self.sources):
            raise ValueError("a mixture cannot hold a sequential source; read it by itself")
        if len({source.length for source in self.sources}) > 1:
            raise ValueError("the sources of a mixture must have rows of one length, not "
                             f"{[source.length for source in self.sources]}")
        if len({source.segmented for source in self.sources}) > 1:
            raise ValueError("a mixture cannot hold rows with segment ids and rows without; read "
                             "all its windows with documents='separate', or all with 'concatenate'")
        self.segmented = self.sources[0].segmented
        self.length, self.seed, self.block = self.sources[0].length, seed, block
        self.counts = block_counts([weight for _, weight in parts], block)
        self._stops = np.cumsum(self.counts)
        self._starts = self._stops - self.counts

    def rows_at(self, examples: np.ndarray) -> Batch:
        slot = shuffled(examples, self.block, self.seed ^ _MIXTURE)
        source = np.searchsorted(self._stops, slot, "right")
        index = examples // self.block * self.counts[source] + slot - self._starts[source]
        parts = [(mine, self.sources[i].rows_at(index[mine]))
                 for i in np.unique(source) for mine in [np.flatnonzero(source == i)]]
        rows = [np.zeros((len(examples), self.length), dtype) for dtype in
                (np.int32, np.int32, np.float32, np.int32, np.int32)[:5 if self.segmented else 3]]
        for mine, part in parts:
            for array, name in zip(rows, _FIELDS, strict=False):
                array[mine] = getattr(part, name)
        return Batch(*rows)


def block_counts(weights: Sequence[float], block: int) -> np.ndarray:
    """Shares out `block` examples by weight, by largest remainder (ties: the earlier). int64 [n]

    Example:
      >>> block_counts([3, 1, 1], 8).tolist()
      [5, 2, 1]
    """
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError(f"weights of a mixture must be positive, not {weights.tolist()}; leave "
                         "out a source that should not appear")
    shares = weights / weights.sum() * block
    counts = np.floor(shares).astype(np.int64)
    order = np.argsort(-(shares - counts), kind="stable")
    counts[order[:block - counts.sum()]] += 1
    if not counts.all():
        raise ValueError(f"weights {weights.tolist()} give a source no example in a block of "
                         f"{block}; raise `block` or that weight")
    return counts


def prefetch(batch_at: Callable[[int], Any], start_step: int, depth: int = 2,
             stop_step: int | None = None) -> Iterator[Any]:
    """Yields batch_at(start_step), batch_at(start_step + 1), ..., made ahead in a thread.

    Args:
      batch_at: makes the batch of a step; what it raises is raised here, in its place in the order.
      start_step: the first step, as after a resume.
      depth: how many batches wait ready, at least 1.
      stop_step: the step to end before; None goes on until the caller closes the generator.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        step = start_step
        try:
            while not stopped.is_set() and (stop_step is None or step < stop_step):
                put((batch_at(step), None))
                step += 1
            put((None, _END))
        except BaseException as error:  # handed over, whatever it is
            put((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is _END:
                return
            if error is not None:
                raise error
            yield batch
    finally:
        stopped.set()
        thread.join()
