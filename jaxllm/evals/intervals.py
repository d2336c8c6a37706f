"""Intervals: what a number from so many trials or seeds allows to say. All at 95%, two-sided."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student

_Z = 1.959964


def wilson(hits: float, of: int) -> tuple[float, float]:
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


def difference(hits: float, of: int, hits2: float, of2: int) -> tuple[float, float, float]:
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
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def share_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """`t_interval` of shares, such as one accuracy per seed, cut to [0, 1].

    >>> [round(x, 3) for x in share_interval([1.0, 0.9, 1.0])]
    [0.967, 0.823, 1.0]
    """
    mean, low, high = t_interval(values)
    return mean, max(low, 0.0), min(high, 1.0)


def bootstrap(values: np.ndarray, statistic: Callable[[np.ndarray], float], samples: int,
              seed: int = 0) -> tuple[float, float, float]:
    """A statistic of the rows with its 95% interval by drawing rows anew.

    Draws for which the statistic is not defined (nan) do not count; without any other the interval is nan.

    Args:
      values: [n, ...]
      statistic: of rows [n, ...].
      samples: draws.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    found = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(samples)]
    defined = [value for value in found if not math.isnan(value)]
    low, high = np.quantile(defined, (0.025, 0.975)) if defined else (math.nan, math.nan)
    return float(statistic(values)), float(low), float(high)


def share(hits: int, of: int) -> str:
    """A proportion with its interval and its counts, for a table."""
    if not of:
        return "none"
    low, high = wilson(hits, of)
    return f"{hits / of:.3f} [{low:.3f}, {high:.3f}] ({hits:,}/{of:,})"


def spread(values: tuple[float, float, float], digits: int = 3) -> str:
    """A number with its interval, for a table; alone where it has none, as that of one seed.

    >>> spread((0.5, 0.25, 0.75), 2), spread((0.5, -math.inf, math.inf), 2)
    ('0.50 [0.25, 0.75]', '0.50')
    """
    if math.isinf(values[1]) and math.isinf(values[2]):
        return f"{values[0]:.{digits}f}"
    return f"{values[0]:.{digits}f} [{values[1]:.{digits}f}, {values[2]:.{digits}f}]"
