"""An arena: strengths of players from votes on their battles, with what the votes allow to say about them.

The model is Bradley and Terry's with covariates: in a vote between i and j the odds that i is preferred are

    exp(s_i - s_j + b . x),

s the strengths in nats, x what differs between the two replies besides who wrote them (length, headers, which was shown
first) and b what the voters pay for it. With covariates the strengths are those at equal style ("style control").
Everything is fitted by Newton's method on distinct rows of votes with weights, for many weightings at once, so that a
bootstrap of thousands takes seconds. Votes on one prompt need not be independent: intervals are made of whole groups.

References: Bradley and Terry, Rank analysis of incomplete block designs, 1952; Chiang et al., Chatbot Arena, 2024,
https://arxiv.org/abs/2403.04132; Li, Angelopoulos, Chiang, Does style matter?, 2024,
https://lmsys.org/blog/2024-08-28-style-control/
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from scipy.stats import t as student

from jaxllm.evals.arena_newton import davidson, newton, rows_of, sandwich
from jaxllm.evals.elo import POINTS
from jaxllm.evals.votes import Votes

TIES = ("half", "davidson")
_CELLS = 2_000_000  # of an array [weightings, rows], which bounds the memory


@dataclasses.dataclass(frozen=True)
class Fit:
    """What maximum likelihood makes of votes.

    Attributes:
      players: N names.
      names: of C covariates.
      parameters: float64 [P]: N strengths (nats, mean 0), C coefficients (nats for one unit of the covariate), and with
        Davidson's ties the logarithm of nu.
      covariance: float64 [P, P], the sandwich H^-1 M H^-1: H the curvature, M the sum over groups of the outer product
        of their slopes. It holds for groups that depend on nothing but their own, and where the model is wrong, as it
        is for ties that count as half wins. nan with one group.
      groups: how many.
      ties: as given to `fit`.
    """

    players: tuple[str, ...]
    names: tuple[str, ...]
    parameters: np.ndarray
    covariance: np.ndarray
    groups: int
    ties: str

    @property
    def strengths(self) -> np.ndarray:
        """float64 [N], nats, of mean 0."""
        return self.parameters[:len(self.players)]

    @property
    def coefficients(self) -> np.ndarray:
        """float64 [C]"""
        return self.parameters[len(self.players):len(self.players) + len(self.names)]

    @property
    def tie(self) -> float:
        """Davidson's nu: equal players tie with probability nu / (2 + nu); nan where ties are half wins."""
        return float(np.exp(self.parameters[-1])) if self.ties == "davidson" else float("nan")

    def interval(self) -> np.ndarray:
        """95% intervals of all parameters, float64 [P, 2]: Student's t with as many degrees as groups, less one."""
        half = critical(self.groups) * np.sqrt(np.diag(self.covariance))
        return np.stack([self.parameters - half, self.parameters + half], axis=1)

    def draws(self, samples: int, seed: int = 0) -> np.ndarray:
        """Strengths as the sandwich has them spread, float64 [S, N]: what `bootstrap` gives, for next to no work."""
        count = len(self.players)
        return np.random.default_rng(seed).multivariate_normal(self.strengths, self.covariance[:count, :count], samples)

    def expected(self) -> np.ndarray:
        """Expected points of i against j at equal style, float64 [N, N]."""
        margin_NN = self.strengths[:, None] - self.strengths[None, :]
        if self.ties == "half":
            return expit(margin_NN)
        win, tie, lose = davidson(margin_NN, self.parameters[-1])
        return win + tie / 2


def critical(groups: int) -> float:
    """How many standard deviations a 95% interval from so many groups goes to either side, by Student's t."""
    return float(student.ppf(0.975, max(groups - 1, 1)))


def fit(votes: Votes, *, ties: str = "half", prior: float = 0.0) -> Fit:
    """Strengths and coefficients that make the votes likeliest.

    Args:
      votes: any.
      ties: "half": a tie is half a win for each, log L = sum y log p + (1 - y) log(1 - p); or "davidson": win, tie and
        loss have odds exp(d / 2) : nu : exp(-d / 2), with nu fitted.
      prior: p >= 0 of the penalty p / 2 (|s|^2 + |b|^2), a normal prior of variance 1 / p. At 0, the default, every
        player must have won and lost, itself or through others; above, strengths are drawn towards each other.

    Raises:
      ValueError: players that never met or of whom some only won: their strength has no bound without a prior; a
        covariate that cannot be told apart from who plays; Davidson's ties where nothing is tied.

    References: Davidson, On extending the Bradley-Terry model to accommodate ties, 1970; Ford, Solution of a ranking
    problem from binary comparisons, 1957 (when there is a maximum); White, Maximum likelihood estimation of
    misspecified models, 1982 (the sandwich).

    >>> votes = Votes(("a", "b"), np.zeros(4, int), np.ones(4, int), np.array([1.0, 1.0, 1.0, 0.0]))
    >>> [round(float(s), 3) for s in fit(votes).strengths]  # log(3) apart
    [0.549, -0.549]
    """
    _check(votes, ties, prior)
    rows = rows_of(votes)
    size = len(votes.players) + len(votes.names) + (ties == "davidson")
    parameters_1P = newton(rows, ties, prior, np.ones((1, rows.counts_GR.shape[0])), np.zeros((1, size)))
    return Fit(votes.players, votes.names, parameters_1P[0], sandwich(rows, ties, prior, parameters_1P),
               rows.counts_GR.shape[0], ties)


def bootstrap(votes: Votes, fitted: Fit, samples: int = 1000, seed: int = 0, prior: float = 0.0) -> np.ndarray:
    """The parameters of votes whose groups are weighed anew, float64 [S, P].

    Weights are exponential draws of mean 1 (the Bayesian bootstrap). Unlike counts of groups drawn with replacement
    they are never zero: a player who lost once does not become unbeaten in some of the draws, and every draw has a
    maximum where the votes have one.

    Args:
      votes: those of the fit.
      fitted: where Newton's method begins; ties are as there.
      samples: S, draws.
      seed: of the draws.
      prior: as in `fit`.

    References: Rubin, The Bayesian bootstrap, 1981.
    """
    rows, rng = rows_of(votes), np.random.default_rng(seed)
    groups, count = rows.counts_GR.shape
    found, together = [], max(1, _CELLS // count)
    for begin in range(0, samples, together):
        size = min(together, samples - begin)
        weights_SG = rng.standard_exponential((size, groups))
        weights_SG *= groups / weights_SG.sum(1, keepdims=True)
        found.append(newton(rows, fitted.ties, prior, weights_SG, np.tile(fitted.parameters, (size, 1))))
    return np.concatenate(found)


def quantiles(draws: np.ndarray) -> np.ndarray:
    """The ends of 95% intervals from draws [S, ...]: [..., 2]."""
    return np.moveaxis(np.quantile(draws, (0.025, 0.975), axis=0), 0, -1)


def to_elo(strengths: np.ndarray, anchor: int | None = None, base: float = 1000.0) -> np.ndarray:
    """Strengths [..., N] in nats as Elo points, 400 for odds of ten to one: `base` is the mean, or the anchor's.

    >>> to_elo(np.array([0.5, -0.5]) * np.log(10)).tolist()
    [1200.0, 800.0]
    """
    strengths = np.asarray(strengths)
    middle = strengths.mean(-1, keepdims=True) if anchor is None else strengths[..., anchor:anchor + 1]
    return base + POINTS * (strengths - middle)


def separated(strengths_N: np.ndarray, draws_SN: np.ndarray, joint: bool = True) -> np.ndarray:
    """Which players the votes place above which: bool [N, N], True where i is above j.

    A difference counts when it is more than c of its standard deviations over the draws.

    Args:
      strengths_N: of the fit.
      draws_SN: of the bootstrap, or `Fit.draws`.
      joint: c is such that with 95% no difference at all is exceeded by chance, whatever the number of players (the
        quantile of the largest |difference - its estimate| / sd among the draws); False: 1.96, for one pair alone.

    References: Mogstad, Romano, Shaikh, Wilhelm, Inference for ranks, 2024, https://doi.org/10.1093/restud/rdad006
    """
    count = len(strengths_N)
    ratio_NN, largest_S = np.zeros((count, count)), np.zeros(len(draws_SN))
    for i in range(count):
        lead_N, leads_SN = strengths_N[i] - strengths_N, draws_SN[:, i:i + 1] - draws_SN
        sd_N = leads_SN.std(0)
        sd_N[sd_N == 0] = np.inf  # itself; and what no draw moves, of which one group of votes says nothing
        ratio_NN[i] = lead_N / sd_N
        largest_S = np.maximum(largest_S, np.abs((leads_SN - lead_N) / sd_N).max(1))
    return ratio_NN > (np.quantile(largest_S, 0.95) if joint else 1.959964)


def rank_intervals(better_NN: np.ndarray) -> np.ndarray:
    """Ranks that each player may have, int [N, 2]: behind all who are above it, before all who are below.

    >>> rank_intervals(np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]], bool)).tolist()  # two that nobody tells apart
    [[1, 2], [1, 2], [3, 3]]
    """
    better_NN = np.asarray(better_NN)
    return np.stack([1 + better_NN.sum(0), len(better_NN) - better_NN.sum(1)], axis=1)


def win_matrix(votes: Votes) -> tuple[np.ndarray, np.ndarray]:
    """(points of i against j, ties as halves; votes between i and j): float64 and int [N, N]."""
    count = len(votes.players)
    points_NN, votes_NN = np.zeros((count, count)), np.zeros((count, count), int)
    np.add.at(points_NN, (votes.first, votes.second), votes.points)
    np.add.at(points_NN, (votes.second, votes.first), 1 - votes.points)
    np.add.at(votes_NN, (votes.first, votes.second), 1)
    return points_NN, votes_NN + votes_NN.T


def check_compared(votes: Votes) -> None:
    """Refuses players that no vote compares with the others, not even through third ones.

    A prior makes their strengths finite, and is then all that says who is above whom.

    Raises:
      ValueError: names them.
    """
    parts, part_N = connected_components(win_matrix(votes)[1], directed=False)
    if parts > 1:
        raise ValueError(f"nothing compares {_listed(votes.players, part_N == part_N[0])} with "
                         f"{_listed(votes.players, part_N != part_N[0])}: let them meet, or rank them apart")


def _check(votes: Votes, ties: str, prior: float) -> None:
    if ties not in TIES or prior < 0:
        raise ValueError(f"ties {ties!r} and prior {prior}: choose one of {', '.join(TIES)}, and 0 or more")
    tied = np.equal(votes.points, 0.5)
    if ties == "davidson" and (tied.all() or not tied.any()):
        raise ValueError(f"{'every' if tied.any() else 'no'} vote is a tie, so their frequency cannot be fitted; take "
                         f"ties='half'")
    if prior > 0:
        return
    check_compared(votes)
    points_NN, _ = win_matrix(votes)
    parts, part_N = connected_components(points_NN > 0, connection="strong")
    if parts > 1:
        inside = part_N[:, None] == part_N[None, :]
        beaten_N = (np.where(inside, 0, points_NN.T) > 0).any(1)  # by somebody of another part
        top = next(part for part in range(parts) if not beaten_N[part_N == part].any())
        raise ValueError(f"{_listed(votes.players, part_N == top)} lost no point to the others, so there is no bound "
                         f"to the lead; collect more votes, or set a prior above 0 (0.1 is mild)")
    design = rows_of(votes).design_RQ
    wanted = design.shape[1] - 1
    if np.linalg.matrix_rank((design.T @ design).toarray(), tol=1e-9 * len(votes.points)) < wanted:
        raise ValueError(f"the covariates {', '.join(votes.names)} cannot be told apart from who plays or from each "
                         f"other: leave one out, or set a prior above 0")


def _listed(players: Sequence[str], chosen: np.ndarray) -> str:
    names = [name for name, some in zip(players, chosen, strict=True) if some]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
