"""pass@k and maj@k against enumeration over all subsets, in exact fractions."""

import collections
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.evals.pass_at_k import majority_at_k, over_problems, pass_at_k


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k([c], n, k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-14)


def test_pass_at_k_keeps_its_digits():
    n = 100_000
    assert pass_at_k([1], n, 7)[0] == pytest.approx(7 / n, rel=1e-13)
    exact = 1 - Fraction(math.comb(n - 20, 50), math.comb(n, 50))
    assert pass_at_k([20], n, 50)[0] == pytest.approx(float(exact), rel=1e-12)
    assert pass_at_k([0, n - 49, n - 50], n, 50).tolist() == [0.0, 1.0, 1.0]
    assert pass_at_k([3, 3], [10, 20], 1) == pytest.approx([0.3, 0.15])


@given(st.integers(2, 60), st.data())
def test_pass_at_k_rises_with_k_and_with_what_is_right(n, data):
    c, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n - 1))
    here = pass_at_k([c], n, k)[0]
    assert 0 <= here <= pass_at_k([c + 1], n, k)[0] <= 1 and here <= pass_at_k([c], n, k + 1)[0] <= 1


def test_it_is_unbiased_where_the_plain_estimate_is_not():
    rng, p, n, k = np.random.default_rng(0), 0.1, 10, 8
    right = rng.binomial(n, p, 20_000)
    assert abs(pass_at_k(right, n, k).mean() - (1 - (1 - p)**k)) < 0.01
    assert abs((1 - (1 - right / n)**k).mean() - (1 - (1 - p)**k)) > 0.05


def by_enumeration(answers, right, k):
    total = Fraction(0)
    for subset in itertools.combinations(answers, k):
        votes = collections.Counter(answer for answer in subset if answer is not None)
        top = [answer for answer, count in votes.items() if count == max(votes.values())]
        total += Fraction(sum(answer in right for answer in top), max(len(top), 1))
    return float(total / math.comb(len(answers), k))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(("a", "a", "b", "b", "c", "d", None)), min_size=1, max_size=9), st.data())
def test_majority_is_that_of_all_subsets(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    right = data.draw(st.sets(st.sampled_from("abcd")))
    assert majority_at_k(answers, right, k) == pytest.approx(by_enumeration(answers, right, k), abs=1e-13)


def test_majority_at_1_is_the_share_right_and_at_n_the_vote():
    answers = ["7"] * 40 + ["8"] * 35 + [None] * 25
    assert majority_at_k(answers, {"7"}, 1) == pytest.approx(0.4)
    assert majority_at_k(answers, {"7"}, 100) == 1.0 and majority_at_k(answers, {"8"}, 100) == 0.0
    assert majority_at_k([None] * 3, {"7"}, 2) == 0.0
    values = [majority_at_k(answers, {"7"}, k) for k in range(1, 100, 14)]
    assert all(math.isfinite(value) for value in values)
    rng = np.random.default_rng(0)  # a large case, by drawing
    many = ["7"] * 90 + ["8"] * 80 + list(map(str, range(100, 186)))
    drawn = []
    for _ in range(500):
        votes = collections.Counter(many[i] for i in rng.permutation(256)[:32])
        top = [answer for answer, count in votes.items() if count == max(votes.values())]
        drawn.append(("7" in top) / len(top))
    assert abs(majority_at_k(many, {"7"}, 32) - np.mean(drawn)) < 4 * np.std(drawn) / math.sqrt(500)
    assert 0 < majority_at_k([str(i // 2) for i in range(1_000)], {"0"}, 60) < 0.01  # within float64


def test_intervals_are_over_problems():
    values = pass_at_k([0, 3, 7, 10] * 25, 10, 1)
    mean, low, high = over_problems(values)
    assert mean == 0.5 and 0.4 < low < 0.45 and 0.55 < high < 0.6
    assert over_problems(values) == over_problems(values) != over_problems(values, seed=1)
    assert str(pass_at_k([0], 5, 1)) == "[0.]"  # and not -0


def test_counts_out_of_range_are_refused():
    for right, samples, k, message in (([1], 4, 5, "k is 5"), ([1], 4, 0, "k is 0"), ([5], 4, 1, "must be counts"),
                                       ([-1], 4, 1, "must be counts"), ([], 4, 1, "must be counts")):
        with pytest.raises(ValueError, match=message):
            pass_at_k(right, samples, k)
    for answers, k in (([], 1), (["a"], 2), (["a"] * 1_001, 3)):
        with pytest.raises(ValueError, match="k must lie"):
            majority_at_k(answers, {"a"}, k)
