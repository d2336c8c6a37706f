"""Intervals: those of the library against SciPy's, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxllm.evals import intervals


@pytest.mark.parametrize(("hits", "of"), [(0, 7), (3, 7), (7, 7), (41, 1000)])
def test_wilson_is_scipys(hits, of):
    theirs = stats.binomtest(hits, of).proportion_ci(0.95, method="wilson")
    assert intervals.wilson(hits, of) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_t_interval_is_scipys_and_a_share_stays_one():
    values = [0.2, 0.9, 0.95]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert intervals.t_interval(values) == pytest.approx((np.mean(values), low, high))
    assert low < 0 and high > 1 and intervals.share_interval(values) == (np.mean(values), 0.0, 1.0)
    assert intervals.t_interval([0.5])[1:] == (-math.inf, math.inf)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 2.0, (2000, 4))
    held = [low <= 1.0 <= high for _, low, high in map(intervals.t_interval, draws.tolist())]
    assert abs(np.mean(held) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)
    hits = rng.binomial(40, 0.3, 2000).tolist(), rng.binomial(60, 0.5, 2000).tolist()
    found = [intervals.difference(a, 40, b, 60) for a, b in zip(*hits, strict=True)]
    held = [low <= -0.2 <= high for _, low, high in found]
    # Proportions of so few trials take few values, so the share moves by a point or two around 95%.
    assert 0.93 < np.mean(held) < 0.98


def test_draws_without_the_statistic_do_not_count():
    rows = np.array([[1.0, 1.0], [0.0, 1.0]])  # a quarter of the draws has the first twice, and a quarter the second

    def ratio(rows):
        return rows[:, 0].sum() / rows[:, 1].sum() if rows[:, 0].sum() else float("nan")

    assert intervals.bootstrap(rows, ratio, 200) == (0.5, 0.5, 1.0)
    assert np.isnan(intervals.bootstrap(rows[1:], ratio, 20)).all()
