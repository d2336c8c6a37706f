"""Pieces of text against the whole text, for any cut into tokens."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.infer.text_stream import TextStream

# Few letters, so that stop strings and their beginnings occur; two bytes in one of them, and bytes of no letter.
LETTERS = ["a", "b", "\u00e9"]
RAW = st.lists(st.sampled_from([*(letter.encode() for letter in LETTERS), b"\xc3", b"\xa9", b"\xf0\x9f"]),
               min_size=3, max_size=20).map(b"".join)
STOPS = st.lists(st.lists(st.sampled_from([*LETTERS, "\ufffd"]), min_size=1, max_size=4).map("".join), max_size=3)
# Tokens of so many bytes, again and again.
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def up_to_the_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[:min(starts)], True
    return text, False


@settings(max_examples=150, deadline=None)
@given(RAW, STOPS, SIZES)
def test_pieces_join_to_the_text_up_to_the_first_stop_string(raw, stops, sizes):
    ends = [0, *itertools.accumulate(sizes * len(raw))]
    tokens = [raw[a:b] for a, b in itertools.pairwise(ends) if a < len(raw)]
    stream = TextStream(lambda ids: b"".join(tokens[i] for i in ids), stops)
    expected, stopped = up_to_the_first_stop(raw.decode(errors="replace"), stops)
    said = ""
    for i in range(len(tokens)):
        said += stream.push(i)
        assert expected.startswith(said)  # what was said is never taken back
    assert said + stream.finish() == expected and stream.stopped == stopped
    assert stream.finish() == "" or not stopped


def test_text_is_said_as_soon_as_it_is_certain():
    stream = TextStream(bytes, ["\n\nUser:"])
    pieces = [stream.push(byte) for byte in "a\u00e9\n\nUs!".encode()]
    assert pieces == ["a", "", "\u00e9", "", "", "", "", "\n\nUs!"]
    assert not stream.stopped and stream.finish() == ""


@pytest.mark.parametrize("stop", [[""], "END", [3]])
def test_senseless_stop_strings_are_refused(stop):
    with pytest.raises(ValueError, match="stop strings must be a list of strings"):
        TextStream(bytes, stop)
