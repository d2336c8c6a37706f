"""Do probabilities mean what they say: reliability, expected calibration error, Brier score, temperature.

Everything takes a probability for each event and whether it came true. For a model that compares two things the event
is "the one it prefers is the better one", whose probability is 1/2 at least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from jaxllm.evals.intervals import wilson

# A temperature at an end of this range says that the scores know nothing (the upper) or everything (the lower).
MOST_TEMPERATURE = 1e3


@dataclasses.dataclass(frozen=True)
class Bin:
    """Events of like probability.

    Attributes:
      count: events.
      said: mean probability.
      true: share that came true.
      low, high: 95% interval of that share, Wilson's.
    """

    count: int
    said: float
    true: float
    low: float
    high: float


def reliability(probability: np.ndarray, true: np.ndarray, bins: int = 10, *, equal: str = "count",
                low: float = 0.0) -> list[Bin]:
    """The reliability diagram as rows, by rising probability; bins without events are left out.

    Args:
      probability: float [N], in [low, 1].
      true: bool [N].
      bins: how many.
      equal: "count": as many events in each, which no empty corner can spoil; "width": intervals of like width, as the
        figures of most papers have it.
      low: where the first bin of equal width begins; 0.5 for confidences in a choice of two.

    Raises:
      ValueError: when an argument is out of range.

    >>> [(b.count, b.true) for b in reliability(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 1, 1, 1]), 2)]
    [(2, 0.5), (2, 1.0)]
    """
    probability, true = _checked(probability, true)
    if bins < 1 or equal not in ("count", "width") or not 0 <= low < 1:
        raise ValueError(f"bins={bins}, equal={equal!r}, low={low}: choose 1 bin or more, equal count or width, and a "
                         f"low end in [0, 1)")
    if equal == "count":
        parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    else:
        number = np.clip(((probability - low) / (1 - low) * bins).astype(int), 0, bins - 1)
        parts = [np.flatnonzero(number == i) for i in range(bins)]
    return [Bin(len(part), float(probability[part].mean()), float(true[part].mean()),
                *wilson(int(true[part].sum()), len(part))) for part in parts if len(part)]


def calibration_error(probability: np.ndarray, true: np.ndarray, bins: int = 10, *, equal: str = "count",
                      low: float = 0.0) -> float:
    """Expected calibration error: mean over events of |share that came true - mean probability| of their bin.

    Args: as `reliability`.

    It is above 0 for a perfectly calibrated model too, by the noise of the shares: about sqrt(bins / N) times 0.35 for
    shares around 3/4. Compare it with that of `true` drawn anew (`calibration_floor`), not with 0.

    References: Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, 2015. Guo et al., On
      calibration of modern neural networks, 2017. https://arxiv.org/abs/1706.04599
    """
    rows = reliability(probability, true, bins, equal=equal, low=low)
    return sum(row.count * abs(row.true - row.said) for row in rows) / sum(row.count for row in rows)


def calibration_floor(probability: np.ndarray, bins: int = 10, *, equal: str = "count", low: float = 0.0,
                      draws: int = 200, seed: int = 0) -> float:
    """The calibration error that these probabilities would show on average if they were right."""
    rng = np.random.default_rng(seed)
    return float(np.mean([calibration_error(probability, rng.random(len(probability)) < probability, bins, equal=equal,
                                            low=low) for _ in range(draws)]))


def brier(probability: np.ndarray, true: np.ndarray) -> float:
    """Mean squared difference of probability and outcome: 0.25 for coin flips, lower is better.

    References: Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    probability, true = _checked(probability, true)
    return float(np.mean((probability - true) ** 2))


def log_loss(lead: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log sigmoid(lead / temperature), nats: log 2 for coin flips.

    Args:
      lead: float [N], score of the better less score of the worse.
      temperature: above 0.
    """
    return float(np.mean(np.logaddexp(0.0, -np.asarray(lead, np.float64) / temperature)))


def fit_temperature(lead: np.ndarray) -> float:
    """The temperature of maximum likelihood: the T > 0 that minimises `log_loss(lead, T)`.

    Args:
      lead: float [N], score of the better less score of the worse, of pairs that the scores were not fitted to.

    Returns:
      T, in [1 / MOST_TEMPERATURE, MOST_TEMPERATURE]. The upper end where the scores are no better than none (on average
      the worse leads), the lower where no pair is wrong: there the likelihood has no maximum.

    The loss is convex in 1 / T, so there is one minimum.

    >>> round(fit_temperature(np.array([2.0, 2.0, 2.0, -2.0])), 3)  # right 3 times of 4: sigmoid(2 / T) = 3 / 4
    1.82
    """
    lead = np.asarray(lead, np.float64)
    if not lead.size or not np.isfinite(lead).all():
        raise ValueError(f"a temperature needs at least one pair and finite scores, not {lead.size} pairs")
    if lead.mean() <= 0:  # the slope of the likelihood at 1 / T = 0
        return MOST_TEMPERATURE
    size = np.abs(lead).max()
    found = minimize_scalar(lambda log_t: log_loss(lead, np.exp(log_t)), method="bounded", options={"xatol": 1e-7},
                            bounds=(np.log(max(size * 1e-3, 1 / MOST_TEMPERATURE)), np.log(MOST_TEMPERATURE)))
    temperature = float(np.exp(found.x))
    return 1 / MOST_TEMPERATURE if lead.min() > 0 else temperature


def choices(lead: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(confidence in the preferred of two, whether it is the better one) of each pair: float [N], bool [N].

    Args:
      lead: float [N], score of the better less score of the worse; 0 counts as wrong.
      temperature: above 0.
    """
    lead = np.asarray(lead, np.float64)
    return expit(np.abs(lead) / temperature), lead > 0


def _checked(probability: Sequence[float] | np.ndarray, true: Sequence[bool] | np.ndarray
             ) -> tuple[np.ndarray, np.ndarray]:
    probability, true = np.asarray(probability, np.float64), np.asarray(true).astype(np.float64)
    if probability.shape != true.shape or probability.ndim != 1 or not len(probability):
        raise ValueError(f"{probability.shape} probabilities and {true.shape} outcomes: give as many of each, at least "
                         f"one")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("a probability lies outside [0, 1]")
    return probability, true
