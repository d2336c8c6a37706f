"""Calibration against scikit-learn's curve and score, a logistic regression's slope, and truths that are known."""

import numpy as np
import pytest
from scipy.special import expit

from jaxllm.evals import calibration


def drawn(temperature, count=20_000, seed=0):
    """Leads of the better over the worse when P(first better) = sigmoid(z / temperature)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, count)
    return np.where(rng.random(count) < expit(z / temperature), z, -z)


@pytest.mark.parametrize("equal, strategy", [("width", "uniform"), ("count", "quantile")])
def test_reliability_is_scikit_learns_curve(equal, strategy):
    curve = pytest.importorskip("sklearn.calibration", reason="needs scikit-learn")
    rng = np.random.default_rng(1)
    probability = rng.random(1000)
    true = rng.random(1000) < probability**2
    rows = calibration.reliability(probability, true, 10, equal=equal)
    share, said = curve.calibration_curve(true, probability, n_bins=10, strategy=strategy)
    np.testing.assert_allclose([row.said for row in rows], said, atol=1e-9)
    np.testing.assert_allclose([row.true for row in rows], share, atol=1e-9)
    assert sum(row.count for row in rows) == 1000 and all(row.low < row.true < row.high for row in rows)


def test_brier_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = np.random.default_rng(2)
    probability, true = rng.random(200), rng.random(200) < 0.3
    assert calibration.brier(probability, true) == pytest.approx(metrics.brier_score_loss(true, probability))


def test_error_of_a_table_worked_by_hand():
    """Bins of ten at 0.6 with 4 right and thirty at 0.9 with 27 right: 10/40 * 0.2 + 30/40 * 0."""
    probability = np.repeat([0.6, 0.9], [10, 30])
    true = np.concatenate([np.arange(10) < 4, np.arange(30) < 27])
    assert calibration.calibration_error(probability, true, 5, equal="width", low=0.5) == pytest.approx(0.05)
    assert len(calibration.reliability(probability, true, 5, equal="width", low=0.5)) == 2  # empty bins are left out


def test_temperature_is_one_over_the_slope_of_a_logistic_regression():
    linear = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    lead = drawn(2.5, 500)
    both, label = np.concatenate([lead, -lead])[:, None], np.repeat([1, 0], len(lead))
    slope = linear.LogisticRegression(C=1e10, fit_intercept=False, tol=1e-10).fit(both, label).coef_[0, 0]
    assert calibration.fit_temperature(lead) == pytest.approx(1 / slope, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_temperature_is_found_and_mends_the_probabilities(temperature):
    lead = drawn(temperature)
    found = calibration.fit_temperature(lead)
    assert found == pytest.approx(temperature, rel=0.06)
    right, wrong = (calibration.choices(lead, t) for t in (found, found * 3))
    assert calibration.calibration_error(*right) < 3 * calibration.calibration_floor(right[0], draws=20)
    assert calibration.calibration_error(*wrong) > 5 * calibration.calibration_floor(wrong[0], draws=20)
    assert calibration.log_loss(lead, found) < min(calibration.log_loss(lead, t) for t in (found / 1.1, found * 1.1))


def test_temperature_at_its_ends():
    assert calibration.fit_temperature(np.array([1.0, -1.0, -0.5])) == calibration.MOST_TEMPERATURE
    assert calibration.fit_temperature(np.array([0.1, 3.0])) == 1 / calibration.MOST_TEMPERATURE
    for size in (1e-4, 1e4):  # whatever the unit of the scores
        lead = size * drawn(1.0, 2000)
        inside = 1 / calibration.MOST_TEMPERATURE <= size <= calibration.MOST_TEMPERATURE
        assert (calibration.fit_temperature(lead) == pytest.approx(size, rel=0.15)) == inside


def test_the_floor_is_what_right_probabilities_show():
    rng = np.random.default_rng(3)
    probability = rng.uniform(0.5, 1, 400)
    errors = [calibration.calibration_error(probability, rng.random(400) < probability) for _ in range(200)]
    assert calibration.calibration_floor(probability) == pytest.approx(np.mean(errors), rel=0.05)


@pytest.mark.parametrize("call, message", [
    (lambda: calibration.brier(np.array([0.5]), np.array([1, 0])), "as many of each"),
    (lambda: calibration.brier(np.array([]), np.array([])), "at least one"),
    (lambda: calibration.brier(np.array([1.5]), np.array([1])), "outside"),
    (lambda: calibration.reliability(np.array([0.5]), np.array([1]), 0), "1 bin or more"),
    (lambda: calibration.reliability(np.array([0.5]), np.array([1]), 2, equal="size"), "equal count or width"),
    (lambda: calibration.fit_temperature(np.array([])), "at least one pair"),
    (lambda: calibration.fit_temperature(np.array([np.nan, 1.0])), "finite"),
])
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
