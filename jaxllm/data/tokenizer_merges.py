"""Byte-level BPE as Hugging Face and llama.cpp keep it (pieces in GPT-2's alphabet, a list of merges), and tiktoken's
ranks: where the two give the same ids, and how each is had from the other.

A list of merges joins the pair that stands first in it; ranks join the pair whose joined bytes have the lowest id.
Call the pair that is left when a token's bytes are merged by all lower ranks its canonical pair. While ranks encode a
word, any two neighbours that join to a token are its canonical pair (inside their span nothing else happened than when
the token is merged alone), so the two give the same ids when the list has the canonical pair of every token, in the
order of the ids; other pairs in the list never meet. That is what is checked here. A token without such a pair is only
had as a whole word, which tiktoken looks up first, and a list of merges only with `ignore_merges`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LONGEST_TOKEN = 1024  # bytes; merging a token alone takes time in the square of its length
MOST_WORK = 2**26  # squares of the bytes of all tokens, added up: under a minute; o200k_base has 13 million

# GPT-2's alphabet: a printable byte of Latin-1 stands for itself, the others for U+0100 and on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
CHARACTERS: tuple[str, ...] = tuple(
    chr(byte) if byte in _PRINTABLE else chr(0x100 + sum(b not in _PRINTABLE for b in range(byte)))
    for byte in range(256))
_BYTES: Mapping[str, int] = {character: byte for byte, character in enumerate(CHARACTERS)}


def to_characters(token: bytes) -> str:
    """A token's bytes in GPT-2's alphabet.

    >>> to_characters(b" the")
    'Ġthe'
    """
    return "".join(CHARACTERS[byte] for byte in token)


def to_bytes(piece: str) -> bytes:
    """The bytes that a piece in GPT-2's alphabet stands for.

    Raises:
      ValueError: for a character outside the alphabet.
    """
    try:
        return bytes(_BYTES[character] for character in piece)
    except KeyError as error:
        raise ValueError(f"the token {piece[:40]!r} has a character that is not of the byte-level alphabet") from error


def canonical_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that ranks join last to make `token`, or None when they never make it.

    >>> canonical_pair(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5})
    (b'ab', b'c')
    """
    own = ranks[token]
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, at = own, -1
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1])
            if rank is not None and rank < best:
                best, at = rank, i
        if at < 0:
            return None
        parts[at:at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that give what ranks give, in order; tokens that ranks never make have none.

    Raises:
      ValueError: when the tokens are too long together for this to end within a minute.
    """
    _refuse_long_work(ranks)
    tokens = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    return [pair for token in tokens if (pair := canonical_pair(token, ranks))]


def _refuse_long_work(ranks: Mapping[bytes, int]) -> None:
    work = sum(len(token) ** 2 for token in ranks)
    if work > MOST_WORK:
        raise ValueError(f"the tokens are too long: the squares of their bytes add up to {work}, and up to {MOST_WORK} "
                         f"are read")


def check_merges(ranks: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], *, whole_words: bool) -> None:
    """Refuses a list of merges that does not give the ids that ranks give.

    Args:
      ranks: the id of each token's bytes.
      merges: pairs in the order in which they are joined.
      whole_words: a word that is a token is not merged but taken as it is (`ignore_merges`).

    Raises:
      ValueError: saying which token would come out differently, or that the tokens are too long to find out.
    """
    _refuse_long_work(ranks)
    places = {pair: place for place, pair in enumerate(merges)}
    if len(places) != len(merges):
        raise ValueError("the list of merges has a pair twice")
    for left, right in merges:
        if left not in ranks or right not in ranks or left + right not in ranks:
            raise ValueError(f"the merge {to_characters(left)} {to_characters(right)} joins or makes what is no token")
    last = -1
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        if len(token) > LONGEST_TOKEN:
            raise ValueError(f"token {ranks[token]} has {len(token)} bytes; up to {LONGEST_TOKEN} are read")
        pair = canonical_pair(token, ranks)
        if pair is None and whole_words:
            continue
        place = places.get(pair, -1) if pair else -1
        if place <= last:
            raise ValueError(
                f"the merges of this tokenizer are not in the order of its ids (token {ranks[token]}, "
                f"{to_characters(token)!r}, {'has no merge of its own' if place < 0 else 'is merged too early'}), so "
                f"tiktoken's ranks would give other ids; convert the weights alone")
        last = place
