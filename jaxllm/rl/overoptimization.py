"""Laws of over-optimisation: what a judge says of a policy, as a function of how far the policy has moved.

A policy is pushed towards the score of a reward model (the proxy) by drawing n replies and keeping the best, or by RL.
Let d be the square root of its KL from the start, in nats per reply, and R(d) the gain of the true (gold) score over
the start. Gao et al. found

    best of n:  R(d) = d (alpha - beta d)          RL:  R(d) = d (alpha - beta log d)

with the gain per unit of d at first (alpha) and what is lost as the proxy is gamed (beta); the peak follows from both.
The laws are linear in alpha and beta, so they can be fitted to scores by least squares, and to people's choices between
replies, which is all that a user has, by logistic regression.

References: Gao, Schulman, Hilton, Scaling laws for reward model overoptimization, 2022, https://arxiv.org/abs/2210.10760,
equations 1 and 2; Bradley, Terry, Rank analysis of incomplete block designs, 1952.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import expit, ndtr, xlogy

from jaxllm.rl.kl import best_of_n_kl, best_of_n_mean

KINDS = ("best_of_n", "rl")


@dataclasses.dataclass(frozen=True)
class Law:
    """R(d) with its two numbers.

    Attributes:
      kind: "best_of_n" or "rl".
      alpha, beta: in the score's unit per unit of d.

    >>> Law("best_of_n", 2.0, 0.5).peak()
    (2.0, 2.0)
    """

    kind: str
    alpha: float
    beta: float

    def gain(self, d: np.ndarray | float) -> np.ndarray:
        """R(d), the shape of d."""
        return law_features(self.kind, d) @ np.array([self.alpha, self.beta])

    def peak(self) -> tuple[float, float]:
        """(d, R) where R is highest; both 0 if it only falls, both infinite if it never stops rising."""
        if self.beta <= 0:
            return (math.inf, math.inf) if self.alpha > 0 or self.beta < 0 else (0.0, 0.0)
        if self.kind == "rl":  # alpha - beta (1 + log d) = 0; the slope is infinite at 0, so there is always a peak
            d = math.exp(min(self.alpha / self.beta - 1, 700.0))
        else:
            d = max(self.alpha / (2 * self.beta), 0.0)
        return d, float(self.gain(d))


def law_features(kind: str, d: np.ndarray | float) -> np.ndarray:
    """What alpha and beta multiply in R(d).

    Args:
      kind: "best_of_n" or "rl".
      d: [...], square root of nats; at least 0.

    Returns:
      [..., 2]: (d, -d^2), or (d, -d log d) with its limit 0 at d = 0.

    Raises:
      ValueError: an unknown kind, or a negative d.
    """
    d = np.asarray(d, np.float64)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(KINDS)}")
    if not (d >= 0).all():
        raise ValueError("d is the square root of a KL: give numbers of 0 or more")
    return np.stack([d, -d * d if kind == "best_of_n" else -xlogy(d, d)], axis=-1)


@dataclasses.dataclass(frozen=True)
class LawFit:
    """A law fitted to the scores of several runs.

    Attributes:
      law: fitted to all points of all runs.
      alpha, beta, peak: (estimate, low, high), 95%, by drawing whole runs anew; peak is the d of the highest R. One run
        says nothing of others: its ends are infinite.
      r2: share of the points' variance about their own mean that the law explains; it may be negative, since the law
        has no intercept to fall back on.
      r2_of_runs: the same for each run by a law of its own; what the first lacks and these have is that runs differ.
    """

    law: Law
    alpha: tuple[float, float, float]
    beta: tuple[float, float, float]
    peak: tuple[float, float, float]
    r2: float
    r2_of_runs: list[float]


def fit_law(kind: str, runs: Sequence[tuple[Sequence[float], Sequence[float]]], *, draws: int = 2000, seed: int = 0
            ) -> LawFit:
    """Least squares of a law on the gains of runs.

    Args:
      kind: "best_of_n" or "rl".
      runs: of each (d [P], gain over the start [P]); runs may differ in length.
      draws: of runs, with replacement, for the intervals: points of a run are not independent, runs are.
      seed: of the draws.

    Raises:
      ValueError: fewer than three points in all, or points that do not tell alpha from beta.
    """
    xs = [law_features(kind, d) for d, _ in runs]
    ys = [np.asarray(gain, np.float64) for _, gain in runs]
    if sum(map(len, ys)) < 3 or np.linalg.matrix_rank(np.concatenate(xs)) < 2:
        raise ValueError("a law has two numbers: give three points or more, at two distances above 0 or more")
    gram = np.stack([x.T @ x for x in xs])
    moment = np.stack([x.T @ y for x, y in zip(xs, ys, strict=True)])
    theta = np.linalg.solve(gram.sum(0), moment.sum(0))
    law = Law(kind, *map(float, theta))

    def interval(estimate: float, drawn: np.ndarray) -> tuple[float, float, float]:
        if len(runs) < 2:
            return estimate, -math.inf, math.inf
        # By order, not by interpolation: a peak may be infinite.
        low, high = np.quantile(drawn, (0.025, 0.975), method="closest_observation")
        return estimate, float(low), float(high)

    counts = np.random.default_rng(seed).multinomial(len(runs), [1 / len(runs)] * len(runs), size=draws)
    drawn = np.einsum("nij,nj->ni", np.linalg.pinv(np.tensordot(counts, gram, 1), hermitian=True), counts @ moment)
    peaks = np.array([Law(kind, *row).peak()[0] for row in drawn])
    own = [np.linalg.lstsq(x, y, rcond=None)[0] for x, y in zip(xs, ys, strict=True)]
    return LawFit(law, interval(law.alpha, drawn[:, 0]), interval(law.beta, drawn[:, 1]),
                  interval(law.peak()[0], peaks), r_squared(np.concatenate(ys), np.concatenate(xs) @ theta),
                  [r_squared(y, x @ t) for x, y, t in zip(xs, ys, own, strict=True)])


def r_squared(observed: np.ndarray, predicted: np.ndarray) -> float:
    """1 - residual sum of squares / sum of squares about the mean; 0 where nothing varies."""
    total = float(np.square(observed - observed.mean()).sum())
    return 1 - float(np.square(observed - predicted).sum()) / total if total else 0.0


@dataclasses.dataclass(frozen=True)
class ChoiceFit:
    """A law fitted to choices, with what the choices leave open.

    Attributes:
      law: R in logits: the odds of being preferred to the start are exp(R).
      covariance: [2, 2] of (alpha, beta): the inverse curvature at the estimate, a normal posterior.
    """

    law: Law
    covariance: np.ndarray

    def falling(self, d: float) -> float:
        """Probability that R falls at d, which must be above 0: that the peak is behind."""
        slope = np.array([1.0, -2 * d if self.law.kind == "best_of_n" else -(1 + math.log(d))])
        mean = float(slope @ [self.law.alpha, self.law.beta])
        return float(ndtr(-mean / math.sqrt(slope @ self.covariance @ slope)))

    def lead(self, d: float, other: float) -> tuple[float, float]:
        """R(d) - R(other): (estimate, standard error)."""
        x = law_features(self.law.kind, d) - law_features(self.law.kind, other)
        return float(x @ [self.law.alpha, self.law.beta]), math.sqrt(max(float(x @ self.covariance @ x), 0.0))


def fit_choices(kind: str, d: Sequence[float], other: Sequence[float], wins: Sequence[float],
                counts: Sequence[float], *, prior_sd: float = 3.0) -> ChoiceFit:
    """Logistic regression of people's choices on a law: P(d's reply preferred to other's) = sigmoid(R(d) - R(other)).

    Every comparison tells something of the same two numbers, wherever on the road the two policies stood, so that a few
    dozen choices at each of many looks add up; shares of each look alone do not.

    Args:
      kind: "best_of_n" or "rl".
      d, other: [C], distances of the two policies compared; the start is 0.
      wins: [C], how often the first was preferred, a tie counting one half.
      counts: [C], comparisons.
      prior_sd: of the normal prior about 0 of alpha and beta, logits per unit of d. It keeps the fit finite while all
        choices fall to one side.

    Raises:
      ValueError: more wins than comparisons, or a prior_sd that is not positive.
    """
    x_CF = law_features(kind, d) - law_features(kind, other)
    wins_C, counts_C = np.asarray(wins, np.float64), np.asarray(counts, np.float64)
    if not ((wins_C >= 0) & (wins_C <= counts_C)).all() or prior_sd <= 0:
        raise ValueError("wins must lie between 0 and counts, and prior_sd above 0")
    theta, precision = np.zeros(2), np.eye(2) / prior_sd**2
    value = _log_posterior(theta, x_CF, wins_C, counts_C, precision)
    for _ in range(100):  # Newton's method on a concave function, with halved steps where it overshoots
        share_C = expit(x_CF @ theta)
        slope = x_CF.T @ (wins_C - counts_C * share_C) - precision @ theta
        curvature = (x_CF * (counts_C * share_C * (1 - share_C))[:, None]).T @ x_CF + precision
        step = np.linalg.solve(curvature, slope)
        while (new := _log_posterior(theta + step, x_CF, wins_C, counts_C, precision)) < value - 1e-12:
            step = step / 2
        theta, value = theta + step, new
        if np.abs(step).max() < 1e-10:
            break
    return ChoiceFit(Law(kind, *map(float, theta)), np.linalg.inv(curvature))


def _log_posterior(theta: np.ndarray, x_CF: np.ndarray, wins_C: np.ndarray, counts_C: np.ndarray,
                   precision: np.ndarray) -> float:
    logit_C = x_CF @ theta
    return float(wins_C @ logit_C - counts_C @ np.logaddexp(0, logit_C) - theta @ precision @ theta / 2)


def best_of_n_curve(proxy_QN: np.ndarray, judged_QN: np.ndarray, counts: Sequence[int]
                    ) -> tuple[list[float], list[float]]:
    """What a judge says of the best of n by the proxy, for several n from one pool of replies.

    Args:
      proxy_QN: scores of N replies to each of Q prompts.
      judged_QN: what is wanted of the reply with the highest proxy: its gold score, or its proxy itself.
      counts: values of n from 1 to N.

    Returns:
      (d of each n, the expected judgement of each n, mean over prompts): exact over the pool's subsets of size n.
    """
    return ([math.sqrt(best_of_n_kl(n)) for n in counts],
            [float(best_of_n_mean(proxy_QN, n, judged_QN).mean()) for n in counts])
