"""Laws of over-optimisation: scipy's and scikit-learn's fits, known laws recovered, best-of-n by brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import curve_fit, minimize_scalar

from jaxllm.rl import overoptimization as law

KINDS = pytest.mark.parametrize("kind", law.KINDS)


def written_out(kind, d, alpha, beta):
    """The equations as in the paper."""
    d = np.asarray(d, float)
    return d * (alpha - beta * d) if kind == "best_of_n" else d * (alpha - beta * np.log(np.maximum(d, 1e-300)))


@KINDS
def test_gain_and_peak_are_those_of_the_equations(kind):
    d = np.linspace(0.01, 6, 50)
    for alpha, beta in ((1.0, 0.4), (0.3, 0.9), (-0.2, 0.5)):
        found = law.Law(kind, alpha, beta)
        np.testing.assert_allclose(found.gain(d), written_out(kind, d, alpha, beta), rtol=1e-12)
        best = minimize_scalar(lambda x, a=alpha, b=beta: -float(written_out(kind, x, a, b)), bounds=(1e-9, 9),
                               method="bounded", options={"xatol": 1e-9})
        at, height = found.peak()
        assert abs(at - (best.x if best.x > 1e-6 else 0)) < 1e-5 and abs(height + best.fun) < 1e-6
    assert law.Law(kind, 1.0, 0.0).peak() == (math.inf, math.inf) and law.Law(kind, -1.0, 0.0).peak() == (0.0, 0.0)
    assert law.Law(kind, 1.0, 0.5).gain(0.0) == 0


@KINDS
def test_fit_equals_scipy_and_r2_equals_scikit_learn(kind):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    runs = [(d := np.sort(rng.uniform(0, 4, n)), written_out(kind, d, 1.1, 0.5) + rng.normal(0, 0.3, n))
            for n in (7, 12, 9)]
    d, gain = (np.concatenate(x) for x in zip(*runs, strict=True))
    theirs, _ = curve_fit(lambda x, a, b: written_out(kind, x, a, b), d, gain, p0=(1, 1))
    found = law.fit_law(kind, runs)
    np.testing.assert_allclose((found.law.alpha, found.law.beta), theirs, rtol=1e-6)
    assert found.r2 == pytest.approx(metrics.r2_score(gain, written_out(kind, d, *theirs)), abs=1e-9)
    for (d, gain), own in zip(runs, found.r2_of_runs, strict=True):
        theirs, _ = curve_fit(lambda x, a, b: written_out(kind, x, a, b), d, gain, p0=(1, 1))
        assert own == pytest.approx(metrics.r2_score(gain, written_out(kind, d, *theirs)), abs=1e-6)


@KINDS
def test_intervals_are_those_of_runs_drawn_anew(kind):
    """Where runs differ and points hardly do, an interval must be as wide as the runs' spread, not the points'."""
    rng, d = np.random.default_rng(1), np.linspace(0, 3, 200)
    alphas = rng.normal(1.0, 0.3, 12)
    found = law.fit_law(kind, [(d, written_out(kind, d, a, 0.5) + rng.normal(0, 0.01, 200)) for a in alphas])
    middle, low, high = found.alpha
    assert middle == pytest.approx(alphas.mean(), abs=0.02)
    standard_error = alphas.std(ddof=1) / math.sqrt(12)
    assert 3 * standard_error < high - low < 5 * standard_error
    assert found.beta[2] - found.beta[1] < 0.02 < found.r2_of_runs[0] - found.r2
    assert law.fit_law(kind, [(d, written_out(kind, d, 1.0, 0.5))]).alpha[1:] == (-math.inf, math.inf)


def test_the_wrong_law_fits_worse():
    d = np.linspace(0, 6, 40)
    for right, wrong in (("rl", "best_of_n"), ("best_of_n", "rl")):
        runs = [(d, written_out(right, d, 1.0, 0.5))]
        assert law.fit_law(right, runs).r2 == pytest.approx(1) and law.fit_law(wrong, runs).r2 < 0.99


@KINDS
def test_choices_tell_the_law(kind):
    """Fitted with plenty of choices, the law that made them; with few, an honest standard error."""
    rng = np.random.default_rng(2)
    d, other = rng.uniform(0, 4, (2, 300))
    truth = law.Law(kind, 0.9, 0.45)
    chance = 1 / (1 + np.exp(-(truth.gain(d) - truth.gain(other))))
    many = law.fit_choices(kind, d, other, rng.binomial(2000, chance), [2000] * 300)
    assert (many.law.alpha, many.law.beta) == pytest.approx((0.9, 0.45), abs=0.03)
    inside = []
    for _ in range(200):
        few = law.fit_choices(kind, d[:40], other[:40], rng.binomial(8, chance[:40]), [8] * 40)
        lead, error = few.lead(3.5, 1.0)
        inside.append(abs(lead - (truth.gain(3.5) - truth.gain(1.0))) < 1.96 * error)
    assert 0.9 <= np.mean(inside) <= 0.99


def test_choices_equal_scikit_learns_logistic_regression():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(3)
    d, other = rng.uniform(0, 4, (2, 400))
    won = rng.random(400) < 0.6
    x = law.law_features("rl", d) - law.law_features("rl", other)
    theirs = linear.LogisticRegression(fit_intercept=False, C=1.5**2, tol=1e-10).fit(x, won)
    ours = law.fit_choices("rl", d, other, won.astype(float), np.ones(400), prior_sd=1.5)
    np.testing.assert_allclose((ours.law.alpha, ours.law.beta), theirs.coef_[0], atol=1e-5)


def test_all_choices_to_one_side_stay_finite_and_ties_say_nothing():
    sure = law.fit_choices("rl", [1.0, 2.0], [0.0, 0.0], [50, 50], [50, 50])
    assert np.isfinite([sure.law.alpha, sure.law.beta]).all() and sure.law.gain(1.0) > 3
    ties = law.fit_choices("rl", [1.0, 2.0], [0.0, 0.0], [25, 25], [50, 50])
    assert (ties.law.alpha, ties.law.beta) == pytest.approx((0, 0), abs=1e-9)
    assert ties.falling(2.0) == pytest.approx(0.5)


def test_falling_is_the_sign_of_the_slope():
    """A law known exactly: rising before its peak, falling behind it."""
    for kind in law.KINDS:
        known = law.Law(kind, 1.0, 0.5)
        fit, (peak, _) = law.ChoiceFit(known, 1e-12 * np.eye(2)), known.peak()
        assert fit.falling(0.99 * peak) < 1e-6 and fit.falling(1.01 * peak) > 1 - 1e-6


def test_best_of_n_curve_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(4)
    proxy, gold = rng.normal(size=(2, 3, 6))
    d, found = law.best_of_n_curve(proxy, gold, (1, 2, 4, 6))
    for n, value in zip((1, 2, 4, 6), found, strict=True):
        subsets = [list(s) for s in itertools.combinations(range(6), n)]
        brute = np.mean([gold[q, max(s, key=lambda i: proxy[q, i])] for q in range(3) for s in subsets])
        assert value == pytest.approx(brute)
    assert d == pytest.approx([math.sqrt(math.log(n) - (n - 1) / n) for n in (1, 2, 4, 6)])


@pytest.mark.parametrize("call, message", [
    (lambda: law.law_features("dpo", [1.0]), "best_of_n, rl"), (lambda: law.law_features("rl", [-1.0]), "square root"),
    (lambda: law.fit_law("rl", [([0.0, 1.0], [0.0, 1.0])]), "three points"),
    (lambda: law.fit_law("rl", [([0.0, 2.0, 2.0], [0.0, 1.0, 1.0])]), "two distances"),
    (lambda: law.fit_choices("rl", [1.0], [0.0], [3], [2]), "between 0 and counts")])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
