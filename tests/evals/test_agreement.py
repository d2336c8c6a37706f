"""Agreement of annotators against scikit-learn and against Fleiss' own example."""

import itertools
import math
import random

import numpy as np
import pytest

from jaxllm.data.preferences import Ranking, read_preferences
from jaxllm.evals.agreement import agreement, cohen_kappa, fleiss_kappa, verdicts

ASKED = ({"role": "user", "content": "?"},)
# Fleiss 1971, table 1: 30 subjects, 6 raters, 5 diagnoses; kappa is .430.
FLEISS = """0 0 0 6 0  0 3 0 0 3  0 1 4 0 1  0 0 0 0 6  0 3 0 3 0  2 0 4 0 0  0 0 4 0 2  2 0 3 1 0  2 0 0 4 0  0 0 0 0 6
1 0 0 5 0  1 1 0 4 0  0 3 3 0 0  1 0 0 5 0  0 2 0 3 1  0 0 5 0 1  3 0 0 1 2  5 1 0 0 0  0 2 0 4 0  1 0 2 0 3
0 0 0 0 6  0 1 0 5 0  0 2 0 1 3  2 0 0 4 0  1 0 0 4 1  0 5 0 1 0  4 0 0 0 2  0 2 0 4 0  1 0 5 0 0  0 0 0 0 6"""


def test_cohen_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 1.0):
        first = rng.integers(0, 3, 200)
        second = np.where(rng.random(200) < share, first, rng.integers(0, 3, 200))
        table = np.zeros((3, 3), np.int64)
        np.add.at(table, (first, second), 1)
        assert cohen_kappa(table) == pytest.approx(sklearn.cohen_kappa_score(first, second), abs=1e-12)
    assert math.isnan(cohen_kappa(np.diag([5, 0, 0]))) and math.isnan(cohen_kappa(np.zeros((3, 3))))


def test_fleiss_is_his_own_example():
    counts = np.array(FLEISS.split(), int).reshape(30, 5)
    assert counts.sum(1).tolist() == [6] * 30
    assert fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)
    with pytest.raises(ValueError, match="by the same annotators, 2 or more"):
        fleiss_kappa(np.array([[2, 0], [1, 0]]))


def ranked(rng, annotator, noise, sets):
    """Rankings of the same sets of four, each person with noise of its own, shown in an order of its own."""
    for number in range(sets):
        shown = rng.sample(range(4), 4)
        felt = {i: i + rng.gauss(0, noise) for i in shown}
        order = sorted(range(4), key=lambda k: -felt[shown[k]])
        tiers = ((order[0],), tuple(order[1:3]), (order[3],)) if number % 5 == 0 else tuple((k,) for k in order)
        yield Ranking(ASKED, tuple(f"{number} {i}" for i in shown), tiers, annotator)


def test_rankings_shown_in_other_orders_are_compared_pair_by_pair():
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = random.Random(0)
    rankings = [r for name, noise in (("a", 0.5), ("b", 1.0), ("c", 9.0)) for r in ranked(rng, name, noise, 40)]
    found = agreement(rankings, samples=200)
    assert found.annotators == ("a", "b", "c") and found.pairs == 40 * 6
    said = list(verdicts(rankings).values())
    for pair, (first, second) in zip(found.two, itertools.combinations("abc", 2), strict=True):
        both = np.array([(by_name[first], by_name[second]) for by_name in said])
        assert pair.annotators == (first, second) and (pair.sets, pair.pairs) == (40, 240)
        assert pair.agreed[0] == pytest.approx(np.mean(both[:, 0] == both[:, 1]))
        strict = both[(both != 1).all(1)]
        assert (pair.decided, pair.decided_pairs) == (pytest.approx(np.mean(strict[:, 0] == strict[:, 1])), len(strict))
        assert pair.kappa[0] == pytest.approx(sklearn.cohen_kappa_score(*both.T))
        assert pair.kappa[1] < pair.kappa[0] < pair.kappa[2]
    counts = np.array([np.bincount(list(by_name.values()), minlength=3) for by_name in said])
    assert found.fleiss[0] == pytest.approx(fleiss_kappa(counts))
    assert found.two[0].kappa[1] > 0.3 > 0.15 > found.two[1].kappa[0]  # who orders by chance agrees by chance


def test_what_is_not_shared_is_not_compared():
    first = Ranking(ASKED, ("x", "y"), ((0,), (1,)), "a")
    assert agreement([]).two == () and agreement([first]).fleiss is None
    other = Ranking(ASKED, ("x", "z"), ((0,), (1,)), "b")
    assert agreement([first, other]).two == ()
    turned = Ranking(ASKED, ("y", "x"), ((1,), (0,)), "b")
    (pair,) = agreement([first, other, turned]).two
    assert (pair.sets, pair.pairs, pair.agreed[0]) == (1, 1, 1.0) and math.isnan(pair.kappa[0])
    # Ranked twice by both: the second is held against the second. Equal texts are no pair.
    again = agreement([first, first, turned, Ranking(ASKED, ("x", "y"), ((0, 1),), "b")])
    assert (again.two[0].sets, again.two[0].agreed[0]) == (2, 0.5)
    assert not verdicts([Ranking(ASKED, ("x", "x"), ((0,), (1,)), "a")])


def test_pandalms_annotators(real_data):
    """As published with the votes: Cohen's kappa about .85, .86 and .88."""
    found = agreement(read_preferences(real_data("pref/pandalm_testset_999x3_votes.json.xz")).rankings, samples=20)
    assert [(pair.pairs, round(pair.agreed[0], 3)) for pair in found.two] == [(999, 0.913), (999, 0.929), (999, 0.918)]
    assert [round(pair.kappa[0], 2) for pair in found.two] == [0.85, 0.88, 0.86]
    assert found.pairs == 999 and found.fleiss[0] == pytest.approx(0.864, abs=1e-3)
