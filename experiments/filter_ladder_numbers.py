"""Numbers of the filter ladder: intervals, the extraction benchmark's metric, and how tables are written."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

_WORD = re.compile(r"\w+")
_Z = 1.959964


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, the header first; `note` stands below."""

    title: str
    rows: list[list[str]]
    note: str = ""


@dataclasses.dataclass
class Section:
    """What one part of the ladder found: tables, pictures (heading, SVG) and the numbers themselves."""

    title: str
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)


def wilson(hits: int, of: int) -> tuple[float, float]:
    """95% interval of a proportion.

    Args:
      hits, of: successes among trials; (0, 1) without trials.

    References: Wilson, Probable inference, 1927.

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not of:
        return 0.0, 1.0
    share, z2 = hits / of, _Z**2
    middle, half = share + z2 / (2 * of), _Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    # At 0 and 1 the ends are 0 and 1 but for rounding.
    low, high = (middle - half) / (1 + z2 / of), (middle + half) / (1 + z2 / of)
    return (0.0 if hits == 0 else low), (1.0 if hits == of else high)


def difference(hits: int, of: int, hits2: int, of2: int) -> tuple[float, float, float]:
    """First proportion less the second, with a 95% interval.

    References: Newcombe, Interval estimation for the difference between independent proportions, 1998, method 10.

    >>> [round(x, 4) for x in difference(56, 70, 48, 80)]
    [0.2, 0.0524, 0.3339]
    """
    if not of or not of2:
        return 0.0, -1.0, 1.0
    first, second = hits / of, hits2 / of2
    (low, high), (low2, high2) = wilson(hits, of), wilson(hits2, of2)
    return (first - second, first - second - math.hypot(first - low, high2 - second),
            first - second + math.hypot(high - first, second - low2))


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95% interval by Student's t; infinite for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def bootstrap(values: np.ndarray, statistic: Callable[[np.ndarray], float], samples: int,
              seed: int = 0) -> tuple[float, float, float]:
    """A statistic of the rows with its 95% interval by drawing rows anew.

    Args:
      values: [n, ...]
      statistic: of rows [n, ...].
      samples: draws.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    found = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(samples)]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(statistic(values)), float(low), float(high)


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


def share(hits: int, of: int) -> str:
    """A proportion with its interval and its counts, for a table."""
    if not of:
        return "none"
    low, high = wilson(hits, of)
    return f"{hits / of:.3f} [{low:.3f}, {high:.3f}] ({hits:,}/{of:,})"


def spread(values: tuple[float, float, float], digits: int = 3) -> str:
    """A number with its interval, for a table."""
    return f"{values[0]:.{digits}f} [{values[1]:.{digits}f}, {values[2]:.{digits}f}]"
