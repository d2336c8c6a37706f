"""Which documents hold pieces of an evaluation set: overlap of word n-grams, as for GPT-3.

    index = build_index([("gsm8k/0", "Natalia sold clips to 48 of her friends ..."), ...])
    for match in scan(document, index):
        print(index.items[match.item], match.share, [document[a:b] for a, b in match.spans])

Words are compared without regard to case, punctuation and the numbers of lists. What is translated or said in other
words has other n-grams and is not found (docs/quality.md measures it).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from jaxllm.data.curate.array_folder import read_arrays, write_arrays

KIND = "n-gram index"
# A list's number at the start of a line ("3.", "(12)") is layout; a word is a run of letters, digits and the
# accents that stand as characters of their own. An underscore separates words: code is cut at it.
_WORD = re.compile(r"(?m:^[ \t]*[(\[]?[0-9]{1,3}[.)\]](?=[ \t]))|([^\W_]+(?:[\u0300-\u036f]+[^\W_]*)*)")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that one differing word always changes the hash


@dataclasses.dataclass(frozen=True)
class NgramIndex:
    """The n-grams of evaluation items. Get one from `build_index` or `load_index`.

    Attributes:
      n: words per gram.
      min_words: the fewest words of an item that can be looked for; an item of fewer than `n` is one gram.
      items: names, in the order given.
      lengths: the lengths of gram that occur, rising.
      bounds: int64 [len(lengths) + 1]; grams bounds[k] .. bounds[k+1] have length lengths[k].
      keys: uint64 [G], the grams' hashes, rising within each length.
      owner_starts: int64 [G + 1]; gram g stands in the items owners[owner_starts[g] : owner_starts[g+1]].
      owners: int32.
      item_grams: int32 [items], different grams of each item; 0 where it cannot be looked for.
    """

    n: int
    min_words: int
    items: tuple[str, ...]
    lengths: tuple[int, ...]
    bounds: np.ndarray
    keys: np.ndarray
    owner_starts: np.ndarray
    owners: np.ndarray
    item_grams: np.ndarray


@dataclasses.dataclass(frozen=True)
class Match:
    """What a document shares with one item.

    Attributes:
      item: its place in `index.items`.
      spans: (start, end) of the shared passages in the document, in characters; they do not overlap.
      grams: int64, the item's grams that were found, rising.
      share: of the item's grams, above 0 and at most 1.
    """

    item: int
    spans: tuple[tuple[int, int], ...]
    grams: np.ndarray = dataclasses.field(compare=False, repr=False)
    share: float


def normalised_words(text: str) -> list[tuple[str, int, int]]:
    """Returns the words that are compared, each with its place (start, end) in the text.

    >>> normalised_words("2. Don't  PANIC, x_1!")
    [('don', 3, 6), ('t', 7, 8), ('panic', 10, 15), ('x', 17, 18), ('1', 19, 20)]
    """
    return [(_normalised(match[1]), match.start(1), match.end(1)) for match in _WORD.finditer(text) if match[1]]


def _normalised(word: str) -> str:
    return word.lower() if word.isascii() else unicodedata.normalize("NFKC", word).lower()


@functools.lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    """64 bits of BLAKE2b: the same on every machine and in every process."""
    digest = hashlib.blake2b(_normalised(word).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _hashed_words(text: str) -> tuple[np.ndarray, list[re.Match]]:
    found = [match for match in _WORD.finditer(text) if match[1]]
    return np.array([_word_hash(match[1]) for match in found], np.uint64), found


def gram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all runs of `n` words: sum over i of words[i] * BASE^(n-1-i), modulo 2^64.

    Args:
      words: uint64 [W].
      n: at least 1.

    Returns:
      uint64 [max(W - n + 1, 0)].
    """
    count = max(len(words) - n + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for i in range(n):
        hashes = hashes * _BASE + words[i:i + count]
    return hashes


def build_index(items: Iterable[tuple[str, str]], n: int = 13, min_words: int = 8, common: int = 0) -> NgramIndex:
    """Indexes the n-grams of evaluation items.

    Args:
      items: (name, text); names need not be different.
      n: words per gram. GPT-3 took 8 to 13, by set.
      min_words: an item of at least so many words, but fewer than `n`, is one gram of all its words; a shorter one
        is not looked for.
      common: a gram in more items than this is a phrase of the set's layout and is left out; 0 leaves none out.

    Raises:
      ValueError: when a number is out of range, or no item has a gram.

    References: Brown et al., Language Models are Few-Shot Learners, appendix C. https://arxiv.org/abs/2005.14165

    Note: GPT-3 split at white space only and dropped grams by how often training documents had them.

    >>> index = build_index([("a", "One two three, four five."), ("b", "six")], n=3, min_words=2)
    >>> [(index.items[m.item], m.spans) for m in scan("so ONE TWO three x", index)]
    [('a', ((3, 16),))]
    """
    if n < 1 or not 1 <= min_words or common < 0:
        raise ValueError(f"n={n}, min_words={min_words}, common={common}: choose n and min_words of 1 or more, common "
                         f"of 0 or more")
    names: list[str] = []
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # length -> (hashes, owner) of each item
    for number, (name, text) in enumerate(items):
        names.append(str(name))
        words, _ = _hashed_words(text)
        length = min(n, len(words))
        if length == n or length >= min_words:
            hashes = np.unique(gram_hashes(words, length))
            found.setdefault(length, []).append((hashes, np.full(len(hashes), number, np.int32)))
    parts = [_grams_of_length(found[length], common) for length in sorted(found)]
    if not sum(len(keys) for keys, _, _ in parts):
        raise ValueError(f"none of the {len(names)} evaluation items can be looked for: none has {min(n, min_words)} "
                         f"words that are its own; lower min_words or n, or raise common")
    keys, counts, owners = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return NgramIndex(
        n, min_words, tuple(names), tuple(sorted(found)),
        bounds=np.concatenate([[0], np.cumsum([len(part[0]) for part in parts])]).astype(np.int64),
        keys=keys, owner_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), owners=owners,
        item_grams=np.bincount(owners, minlength=len(names)).astype(np.int32))


def _grams_of_length(found: list[tuple[np.ndarray, np.ndarray]], common: int
                     ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted keys, how many items have each, and these items."""
    hashes, owners = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.lexsort((owners, hashes))
    keys, counts = np.unique(hashes, return_counts=True)
    kept = np.repeat(counts <= (common or len(owners)), counts)
    return keys[counts <= (common or len(owners))], counts[counts <= (common or len(owners))], owners[order][kept]


def scan(text: str, index: NgramIndex, min_share: float = 0.0) -> list[Match]:
    """Finds the evaluation items that a document shares n-grams with.

    Args:
      text: the document.
      index: from `build_index`.
      min_share: items of which a smaller share of grams is found are left out; 0 reports a single gram.

    Returns:
      list of Match, in the order of the items.
    """
    words, places = _hashed_words(text)
    hits: dict[int, list[tuple[int, int, int]]] = {}  # item -> (first word, words, gram)
    for k, length in enumerate(index.lengths):
        keys = index.keys[index.bounds[k]:index.bounds[k + 1]]
        hashes = gram_hashes(words, length)
        if not len(keys) or not len(hashes):
            continue
        at = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
        for first in np.flatnonzero(keys[at] == hashes).tolist():
            gram = int(index.bounds[k] + at[first])
            for item in index.owners[index.owner_starts[gram]:index.owner_starts[gram + 1]].tolist():
                hits.setdefault(item, []).append((first, length, gram))
    matches = []
    for item, found in sorted(hits.items()):
        grams = np.unique([gram for _, _, gram in found])
        share = len(grams) / int(index.item_grams[item])
        if share >= min_share:
            matches.append(Match(item, _spans(found, places), grams, share))
    return matches


def _spans(found: list[tuple[int, int, int]], places: list[re.Match]) -> tuple[tuple[int, int], ...]:
    """Joins runs of words that overlap or touch, and gives them in characters."""
    runs: list[list[int]] = []
    for first, length, _ in sorted(found):
        if runs and first <= runs[-1][1]:
            runs[-1][1] = max(runs[-1][1], first + length)
        else:
            runs.append([first, first + length])
    return tuple((places[first].start(1), places[last - 1].end(1)) for first, last in runs)


def save_index(index: NgramIndex, folder: str | os.PathLike) -> None:
    """Writes the index as a folder, whole or not at all; see `array_folder.write_arrays`."""
    arrays = ("bounds", "keys", "owner_starts", "owners", "item_grams")
    record = {"n": index.n, "min_words": index.min_words, "lengths": index.lengths, "items": index.items}
    write_arrays(folder, KIND, record, {name: getattr(index, name) for name in arrays})


def load_index(folder: str | os.PathLike) -> NgramIndex:
    """Reads an index, memory-mapped: processes that filter on one machine share it.

    Raises:
      FileNotFoundError, ValueError: when it is not there, is something else, or is damaged.
    """
    record, arrays = read_arrays(folder, KIND)
    try:
        return NgramIndex(record["n"], record["min_words"], tuple(record["items"]), tuple(record["lengths"]), **arrays)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged ({error}); build the index again") from error
