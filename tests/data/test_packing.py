"""Packing: every token in exactly one place or counted as lost; documents in a row kept apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data.packing import Batch, pack, segment_rows

SEQUENCES = st.lists(st.integers(0, 40), max_size=30)


def make(lengths):
    """Sequences of tokens 1, 2, 3, ..., all different, so that each can be found again."""
    ends = np.cumsum(lengths, dtype=int)
    return [np.arange(e - n, e) + 1 for n, e in zip(lengths, ends, strict=True)]


def segments(batch):
    """(tokens, targets, weights, positions) of every segment, row by row from left to right."""
    found = []
    for row in range(len(batch.tokens)):
        for i in range(1, batch.segment_ids[row].max() + 1):
            here = np.flatnonzero(batch.segment_ids[row] == i)
            assert np.array_equal(here, np.arange(here[0], here[-1] + 1)), "segments are contiguous"
            found.append(tuple(x[row, here] for x in (
                batch.tokens, batch.targets, batch.weights, batch.positions)))
    return found


def test_by_hand():
    packed = pack([[1, 2, 3], [4, 5, 6, 7], [8], [9, 10]], 5, weights=[
        [.5, .25, 1], [1, 0, 1, 1], [1], [0, .75]])
    np.testing.assert_array_equal(packed.batch.tokens, [[1, 2, 3, 9, 10], [4, 5, 6, 7, 8]])
    np.testing.assert_array_equal(packed.batch.targets, [[2, 3, 0, 10, 0], [5, 6, 7, 0, 0]])
    np.testing.assert_array_equal(packed.batch.weights, [[.25, 1, 0, .75, 0], [0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(packed.batch.segment_ids, [[1, 1, 1, 2, 2], [1, 1, 1, 1, 2]])
    np.testing.assert_array_equal(packed.batch.positions, [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]])
    assert packed.batch.weights.dtype == np.float32
    assert all(getattr(packed.batch, name).dtype == np.int32
               for name in ("tokens", "targets", "segment_ids", "positions"))


@settings(max_examples=150, deadline=None)
@given(lengths=SEQUENCES, row_length=st.integers(2, 25),
       too_long=st.sampled_from(["truncate", "drop", "split"]))
def test_every_token_is_in_one_place_or_counted(lengths, row_length, too_long):
    sequences = make(lengths)
    packed = pack(sequences, row_length, too_long=too_long)
    batch = packed.batch
    over = [s for s in sequences if len(s) > row_length]
    expected = []  # what each rule makes of each sequence
    for s in sequences:
        if len(s) > row_length and too_long == "drop":
            continue
        cut = [s[i:i + row_length] for i in range(0, len(s), row_length)]
        expected += cut[:1] if too_long == "truncate" else cut
    found = segments(batch)
    assert sorted(map(tuple, (f[0] for f in found))) == sorted(map(tuple, expected))
    for tokens, targets, weights, positions in found:
        np.testing.assert_array_equal(positions, np.arange(len(tokens)))
        np.testing.assert_array_equal(targets, [*tokens[1:], 0])
        np.testing.assert_array_equal(weights, [1] * (len(tokens) - 1) + [0])
    padding = batch.segment_ids == 0
    for array in (batch.tokens, batch.targets, batch.weights, batch.positions):
        assert not array[padding].any()
    assert (np.diff(padding.astype(int), axis=1) >= 0).all(), "padding stands at the right"
    assert packed.lost_tokens == sum(lengths) - sum(map(len, expected))
    empty = lengths.count(0)
    assert packed.dropped == empty + (len(over) if too_long == "drop" else 0)
    assert packed.truncated == (len(over) if too_long == "truncate" else 0)
    assert packed.split == (len(over) if too_long == "split" else 0)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_rows_are_those_of_a_naive_best_fit_decreasing(lengths):
    row_length, rooms, filled = 20, [], []
    for length in sorted(lengths, reverse=True):
        fitting = [r for r in range(len(rooms)) if rooms[r] >= length]
        if fitting:
            row = min(fitting, key=lambda r: rooms[r])
        else:
            rooms.append(row_length)
            filled.append([])
            row = len(rooms) - 1
        rooms[row] -= length
        filled[row].append(length)
    batch = pack(make(lengths), row_length).batch
    # Rows of equal room are interchangeable: their number and fill is what best fit decides.
    assert len(batch.tokens) == len(rooms)
    assert sorted((batch.segment_ids == 0).sum(axis=1)) == sorted(rooms)
    first = [row.min() for row in np.where(batch.tokens == 0, 10**6, batch.tokens)]
    assert first == sorted(first), "rows are in the order of their earliest sequence"


def test_ten_thousand_conversations_fill_their_rows():
    lengths = np.random.default_rng(0).geometric(1 / 300, 10_000).clip(max=2048)
    batch = pack([np.ones(n, int) for n in lengths], 2048).batch
    assert len(batch.tokens) <= 1.01 * np.ceil(lengths.sum() / 2048)


def test_nothing_to_pack_is_no_rows():
    assert pack([], 8).batch.tokens.shape == (0, 8)
    packed = pack([[], [1] * 9], 8, too_long="drop")
    assert (packed.batch.tokens.shape, packed.dropped, packed.lost_tokens) == ((0, 8), 2, 9)


@pytest.mark.parametrize("arguments, message", [
    (dict(sequences=[[1]], row_length=1), "row_length"),
    (dict(sequences=[[1]], row_length=4, too_long="explode"), "too_long"),
    (dict(sequences=[[1]], row_length=4, weights=[]), "1 sequences but 0 weight"),
    (dict(sequences=[[1], [1, 2]], row_length=4, weights=[[1], [1]]),
     "sequence 1 has 2 tokens but 1 weights")])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack(**arguments)


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 12), data=st.data())
def test_segments_of_rows_cut_from_a_stream(rows, columns, data):
    bits = st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)
    is_start = np.array(data.draw(bits)).reshape(rows, columns)
    segment_ids, positions = segment_rows(is_start)
    assert segment_ids.dtype == positions.dtype == np.int32
    for row in range(rows):
        segment, position = 1, 0
        for column in range(columns):
            if is_start[row, column] and column:
                segment, position = segment + 1, 0
            assert (segment_ids[row, column], positions[row, column]) == (segment, position)
            position += 1


def test_a_batch_is_a_pytree():
    import jax
    batch = pack([[1, 2, 3]], 4).batch
    assert len(jax.tree.leaves(batch)) == 5
    plain = Batch(batch.tokens, batch.targets, batch.weights)
    assert len(jax.tree.leaves(plain)) == 3
    assert jax.tree.map(lambda x: x + 1, plain).segment_ids is None
