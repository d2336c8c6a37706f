"""Numbers of the filter ladder: the extraction benchmark's metric, and the overlap of words."""

from __future__ import annotations

import collections
import re
from collections.abc import Hashable

import numpy as np

_WORD = re.compile(r"\w+")


def shingle_counts(true: str, found: str, n: int = 4) -> tuple[float, float, float]:
    """n-grams of words in both texts, in `found` alone and in `true` alone, as shares of all.

    A text of fewer than n words is one n-gram. Letters keep their case, as in the benchmark.

    References: https://github.com/scrapinghub/article-extraction-benchmark

    >>> shingle_counts("a b c d e", "a b c d f")
    (0.3333333333333333, 0.3333333333333333, 0.3333333333333333)
    """
    one, two = (collections.Counter(_shingles(text, n)) for text in (true, found))
    both, extra, missing = (one & two).total(), (two - one).total(), (one - two).total()
    total = both + extra + missing
    return (both / total, extra / total, missing / total) if total else (0.0, 0.0, 0.0)


def _shingles(text: str, n: int) -> list[Hashable]:
    words = _WORD.findall(text)
    return [tuple(words[i:i + n]) for i in range(max(1, len(words) - n + 1))] if words else []


def benchmark_scores(counts: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 of the benchmark: means over pages, and the harmonic mean of the two means.

    Args:
      counts: [pages, 3], as `shingle_counts` gives them.
    """
    both, extra, missing = counts.T
    said, true = both + extra > 0, both + missing > 0
    precision = float(np.mean(both[said] / (both + extra)[said])) if said.any() else 0.0
    recall = float(np.mean(both[true] / (both + missing)[true])) if true.any() else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def word_f1(true: str, found: str) -> float:
    """F1 of the words as a bag, in lower case; two empty texts agree.

    >>> round(word_f1("The cat sat", "the dog sat"), 3)
    0.667
    """
    one, two = (collections.Counter(_WORD.findall(text.lower())) for text in (true, found))
    if not one and not two:
        return 1.0
    return 2 * (one & two).total() / (one.total() + two.total())
