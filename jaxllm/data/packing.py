"""Rows for the model: `Batch`, packing of sequences into rows, and the documents inside a row."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np


@flax.struct.dataclass
class Batch:
    """One batch of next-token prediction.

    Attributes:
      tokens: what the model reads. int32 [B, T]
      targets: the token that follows each; 0 where there is none. int32 [B, T]
      weights: how much each prediction counts in the loss; 0 = not at all. float32 [B, T]
      segment_ids: attention stays inside one id; 0 = padding. int32 [B, T], or None: one per row.
      positions: position of each token in its segment. int32 [B, T], or None: 0 ... T-1.
    """

    tokens: Any
    targets: Any
    weights: Any
    segment_ids: Any = None
    positions: Any = None


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows made by `pack`, and an account of every sequence that did not go in as it was.

    Attributes:
      batch: numpy arrays; as many rows as needed.
      truncated: sequences cut to the length of a row.
      split: sequences that went in as several pieces.
      dropped: sequences left out, empty ones among them.
      lost_tokens: tokens left out by cutting and dropping; the others stand in exactly one row.
    """

    batch: Batch
    truncated: int
    split: int
    dropped: int
    lost_tokens: int


def pack(sequences: Sequence, row_length: int, weights: Sequence | None = None,
         too_long: str = "truncate") -> Packed:
    """Packs token sequences into rows by best fit, each its own segment.

    Longest first, a sequence goes to the fullest row that has room for it, else to a new row. Rows
    are in the order of their earliest sequence, and sequences keep their order in a row, so the
    result depends on nothing but the input. A sequence of n tokens takes n places; the last has
    weight 0, because what follows it is not in its segment.

    Args:
      sequences: token ids, each integers [n].
      row_length: T of the batch, at least 2.
      weights: per sequence, how much each token counts when it is the target, float [n]; None = 1.
      too_long: a sequence longer than a row is "truncate": cut to its first `row_length` tokens;
        "drop": left out; "split": cut into pieces, each a segment of its own (the first token of a
        later piece is then never a target).
    Raises:
      ValueError: if weights and tokens differ in length, or an argument is out of range.
    References:
      D. S. Johnson, Near-optimal bin packing algorithms, 1973 (best fit decreasing).
    Example:
      >>> pack([[5, 6, 7], [8, 9]], 5).batch.segment_ids.tolist()
      [[1, 1, 1, 2, 2]]
    """
    if row_length < 2:
        raise ValueError(f"row_length must be at least 2, not {row_length}")
    if too_long not in ("truncate", "drop", "split"):
        raise ValueError(f"too_long must be 'truncate', 'drop' or 'split', not {too_long!r}")
    tokens, loss, lengths = _flatten(sequences, weights)
    offsets = np.cumsum(lengths) - lengths
    kept, over = lengths > 0, lengths > row_length
    if too_long == "split":
        pieces = -(-lengths // row_length)
        nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = np.repeat(offsets, pieces) + nth * row_length
        sizes = np.minimum(np.repeat(offsets + lengths, pieces) - starts, row_length)
    else:
        kept &= ~over if too_long == "drop" else True
        starts, sizes = offsets[kept], np.minimum(lengths[kept], row_length)
    row, column = _place(sizes, row_length)
    return Packed(
        batch=_fill_rows(tokens, loss, starts, sizes, row, column, row_length),
        truncated=int(over.sum()) if too_long == "truncate" else 0,
        split=int(over.sum()) if too_long == "split" else 0,
        dropped=int((~kept).sum()), lost_tokens=int(lengths.sum() - sizes.sum()))


def _flatten(sequences, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lays sequences and their weights end to end; returns (tokens, weights, lengths)."""
    arrays = [np.asarray(s, np.int32) for s in sequences]
    lengths = np.array([len(a) for a in arrays], np.int64)
    tokens = np.concatenate([*arrays, np.zeros(0, np.int32)])
    if weights is None:
        return tokens, np.ones(len(tokens), np.float32), lengths
    if len(weights) != len(arrays):
        raise ValueError(f"{len(arrays)} sequences but {len(weights)} weight arrays")
    for i, (w, length) in enumerate(zip(weights, lengths, strict=True)):
        if len(w) != length:
            raise ValueError(f"sequence {i} has {length} tokens but {len(w)} weights")
    loss = [np.asarray(w, np.float32) for w in weights]
    return tokens, np.concatenate([*loss, np.zeros(0, np.float32)]), lengths


def _place(sizes: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Best fit decreasing; returns the row and first column of every piece."""
    row = np.zeros(len(sizes), np.int64)
    rows_with_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    rooms = 0  # bit r is set while some row has room for exactly r more tokens
    rows = 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen, rows = row_length, rows, rows + 1
        row[piece] = chosen
        if room > size:
            rows_with_room[room - size].append(chosen)
            rooms |= 1 << (room - size)
    # Rows in the order of their first piece: else batches would be sorted by length.
    _, first, row = np.unique(row, return_index=True, return_inverse=True)
    row = np.argsort(np.argsort(first))[row]
    order = np.argsort(row, kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    row_starts = np.concatenate([[0], np.cumsum(np.bincount(row, sizes, rows))]).astype(np.int64)
    column = np.empty(len(sizes), np.int64)
    column[order] = before - row_starts[row[order]]
    return row, column


def _fill_rows(tokens, loss, starts, sizes, row, column, row_length) -> Batch:
    """Copies the pieces to their places, all at once."""
    rows = int(row.max()) + 1 if len(row) else 0
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    source = np.repeat(starts, sizes) + within
    place = np.repeat(row * row_length + column, sizes) + within
    has_next = within + 1 < np.repeat(sizes, sizes)
    flat = {name: np.zeros(rows * row_length, dtype) for name, dtype in (
        ("tokens", np.int32), ("targets", np.int32), ("weights", np.float32),
        ("segment_ids", np.int32), ("positions", np.int32))}
    flat["tokens"][place] = tokens[source]
    flat["targets"][place[has_next]] = tokens[source[has_next] + 1]
    flat["weights"][place[has_next]] = loss[source[has_next] + 1]
    flat["positions"][place] = within
    starts_here = np.zeros(rows * row_length, np.int32)
    starts_here[row * row_length + column] = 1
    nth = np.cumsum(starts_here.reshape(rows, row_length), axis=1, dtype=np.int32)
    flat["segment_ids"][place] = nth.reshape(-1)[place]
    return Batch(**{name: array.reshape(rows, row_length) for name, array in flat.items()})


def segment_rows(is_start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns segment ids and positions of rows cut out of a stream of documents.

    A row may begin inside a document; that part counts as its own document from position 0.

    Args:
      is_start: True at the first token of a document; a row's first token counts as one anyway.
        bool [B, T]
    Returns:
      segment_ids: 1, 2, ... from left to right. int32 [B, T]
      positions: 0 at the first token of each segment. int32 [B, T]
    Example:
      >>> segment_rows(np.array([[False, False, True, False]]))[1].tolist()
      [[0, 1, 0, 1]]
    """
    if not is_start.size:
        return np.zeros(is_start.shape, np.int32), np.zeros(is_start.shape, np.int32)
    is_start = is_start.copy()
    is_start[:, 0] = True
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=is_start.size)
    rows, columns = is_start.shape
    before = np.searchsorted(starts, np.arange(rows) * columns)[starts // columns]
    segment_ids = np.repeat((np.arange(1, len(starts) + 1) - before).astype(np.int32), lengths)
    positions = np.arange(is_start.size, dtype=np.int32)
    positions -= np.repeat(starts.astype(np.int32), lengths)
    return segment_ids.reshape(is_start.shape), positions.reshape(is_start.shape)
