"""Fits of loss laws: a floor and one power term for each size, L = E + sum over k of A_k / x_k^alpha_k.

With x = (N, D) it is the law of Hoffmann et al., Training Compute-Optimal Large Language Models, 2022, approach 3
(https://arxiv.org/abs/2203.15556): the Huber loss of log L, the best of several starts. With x = (C,) it is a power law
of compute. Besiroglu et al., Chinchilla Scaling: A replication attempt, 2024 (https://arxiv.org/abs/2404.10102) show
what went wrong in the first: L-BFGS stopped early, because the mean of Huber losses of 1e-3 is tiny beside its
tolerance, and exponents were rounded. Here sizes are centred, residuals are in units of the Huber threshold, and
nothing is rounded. Where the law fits badly, most residuals are far beyond the threshold and the objective has edges,
on which Gauss-Newton crawls; SLSQP ends in one optimum from all starts.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
      floor: E, nats.
      log_scales: log A_k [K].
      exponents: alpha_k [K].
      loss: the objective at the fit, in squares of the Huber threshold.
    """

    floor: float
    log_scales: np.ndarray
    exponents: np.ndarray
    loss: float

    def __call__(self, sizes_PK: np.ndarray) -> np.ndarray:
        """Losses at sizes [P, K]: [P], nats."""
        return self.floor + np.exp(self.log_scales - self.exponents * np.log(sizes_PK)).sum(-1)


def fit(sizes_PK: np.ndarray, losses_P: np.ndarray, huber: float = 1e-3, starts: Sequence[np.ndarray] | None = None
        ) -> Law:
    """The law that minimises the summed Huber loss of log L, the best of several starts.

    Args:
      sizes_PK: [P, K], above 0.
      losses_P: nats, above 0.
      huber: residual of log L from which the loss grows linearly.
      starts: parameters (log E, log A_k at the mean size, alpha_k) to start from; None is a grid.

    Returns:
      The law; exponents lie in [0, 3].

    Raises:
      ValueError: fewer points than parameters.
    """
    points, terms = sizes_PK.shape
    if points < 2 * terms + 1:
        raise ValueError(f"{points} losses cannot fix the {2 * terms + 1} parameters of a law; fit on more sizes")
    x_PK = np.log(sizes_PK)
    centre = x_PK.mean(0)
    x_PK, y_P = x_PK - centre, np.log(losses_P)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The summed loss, in squares of the threshold, and its gradient."""
        logs = np.concatenate([np.full((points, 1), theta[0]), theta[1:terms + 1] - theta[terms + 1:] * x_PK], 1)
        r_P = (logsumexp(logs, axis=1) - y_P) / huber
        slope_P, size_P = np.clip(r_P, -1.0, 1.0), np.abs(r_P)
        share = softmax(logs, axis=1)  # of each term in the prediction: the derivative of its logarithm
        gradient = np.concatenate([slope_P @ share, -(slope_P @ (share[:, 1:] * x_PK))]) / huber
        return np.where(size_P <= 1.0, 0.5 * r_P**2, size_P - 0.5).sum(), gradient

    smallest = y_P.min()
    bounds = [(smallest - 6.0, smallest), *[(smallest - 12.0, y_P.max() + 3.0)] * terms, *[(0.0, 3.0)] * terms]
    found = [minimize(objective, start, jac=True, method="SLSQP", bounds=bounds,
                      options={"maxiter": 1000, "ftol": 1e-12})
             for start in (starts if starts is not None else _grid(y_P, terms))]
    best = min(found, key=lambda result: result.fun)
    scales, exponents = best.x[1:terms + 1], best.x[terms + 1:]
    return Law(float(np.exp(best.x[0])), scales + exponents * centre, exponents, float(best.fun))


def _grid(y_P: np.ndarray, terms: int) -> list[np.ndarray]:
    """Starts whose terms add up to the median loss at the mean size."""
    median, grid = np.exp(np.median(y_P)), []
    for share, *exponents in itertools.product((0.3, 0.8), *[(0.2, 0.8)] * terms):
        floor = share * np.exp(y_P.min())
        grid.append(np.array([np.log(floor), *[np.log((median - floor) / terms)] * terms, *exponents]))
    return grid


def start_of(law: Law, sizes_PK: np.ndarray) -> np.ndarray:
    """The parameters from which `fit` on these sizes begins at a law already found."""
    centre = np.log(sizes_PK).mean(0)
    return np.array([np.log(law.floor), *(law.log_scales - law.exponents * centre), *law.exponents])


def nearest(sizes_PK: np.ndarray, losses_P: np.ndarray, asked_QK: np.ndarray) -> np.ndarray:
    """The control that knows no law: the loss of the nearest fitted size, in logarithms."""
    distance = np.linalg.norm(np.log(asked_QK)[:, None] - np.log(sizes_PK)[None], axis=-1)
    return losses_P[distance.argmin(1)]
