"""Elo: how strong players are on one scale, from games that they played, with intervals.

The Bradley-Terry model says that i beats j with probability 1 / (1 + exp(s_j - s_i)); a draw is half a win for each.
Elo is the same strength with 400 points for odds of ten to one.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit

from jaxllm.evals.votes import Votes

POINTS = 400 / math.log(10)  # Elo points of one nat of log-odds


def bradley_terry(points_NN: np.ndarray, penalty: float = 0.01) -> np.ndarray:
    """Strengths that make the points likeliest, by Newton's method.

    Args:
      points_NN: float; what i scored against j: wins and half the draws. Pairs that did not play have zeros.
      penalty: p >= 0 of p / 2 sum s^2, which keeps a player who lost every game finite; at 0 every player needs a win
        and a loss, directly or through others.

    Returns:
      float64 [N], nats, of mean 0.

    References: Bradley and Terry, Rank analysis of incomplete block designs, 1952.

    >>> [round(float(s), 3) for s in bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]), 0.0)]  # log(3) apart
    [0.549, -0.549]
    """
    games_NN, strengths_N = points_NN + points_NN.T, np.zeros(len(points_NN))
    # The mean is free: any curvature along it keeps the system solvable and leaves the rest as it is.
    mean_NN = np.full(games_NN.shape, 1.0 / len(points_NN))
    for _ in range(100):
        wins_NN = 1 / (1 + np.exp(strengths_N[None, :] - strengths_N[:, None]))
        slope_N = points_NN.sum(1) - (games_NN * wins_NN).sum(1) - penalty * strengths_N
        weight_NN = games_NN * wins_NN * (1 - wins_NN)
        curve_NN = np.diag(weight_NN.sum(1) + penalty) - weight_NN + mean_NN
        change_N = np.clip(np.linalg.solve(curve_NN, slope_N), -1.0, 1.0)
        strengths_N = strengths_N + change_N
        if np.abs(change_N).max() < 1e-10:
            break
    return strengths_N - strengths_N.mean()


def elo(results_NN3: np.ndarray, anchor: int, samples: int = 0, seed: int = 0, penalty: float = 0.01) -> np.ndarray:
    """Elo of players, that of the anchor being 0, with 95% intervals by drawing the games of every pair anew.

    Args:
      results_NN3: int; in games that i began against j, how many i won, drew and lost.
      anchor: which player has 0.
      samples: draws of the bootstrap; 0 makes no intervals.
      seed: of the draws.
      penalty: as in `bradley_terry`.

    Returns:
      float64 [N, 3]: Elo, and the ends of its interval, which are nan without samples. They are of the difference from
      the anchor, whose own has no width.
    """
    def of(results_NN3: np.ndarray) -> np.ndarray:
        won, drawn, lost = np.moveaxis(results_NN3, -1, 0)
        strengths_N = bradley_terry(won + drawn / 2 + (lost + drawn / 2).T, penalty)
        return (strengths_N - strengths_N[anchor]) * POINTS

    found_N3 = np.full((len(results_NN3), 3), np.nan)
    found_N3[:, 0] = of(results_NN3)
    if samples:
        rng, games_NN = np.random.default_rng(seed), results_NN3.sum(-1)
        shares_NN3 = np.where(games_NN[..., None] > 0, results_NN3 / np.maximum(games_NN, 1)[..., None], 1 / 3)
        drawn = [of(rng.multinomial(games_NN, shares_NN3)) for _ in range(samples)]
        found_N3[:, 1:] = np.quantile(drawn, (0.025, 0.975), axis=0).T
    return found_N3


def online_elo(votes: Votes, k: float = 16.0, base: float = 1000.0, orders: int = 1, seed: int = 0) -> np.ndarray:
    """Ratings that are updated vote by vote, float64 [orders, N]: r += k (points - expected), from `base` on.

    They depend on the order of the votes, by far more than their number suggests: the first row is for the order as it
    is, the others are for random ones. `arena.fit` has no order; this is here to show what that replaces.

    References: Elo, The rating of chessplayers, 1978.
    """
    rng, count = np.random.default_rng(seed), len(votes.points)
    order_OV = np.stack([np.arange(count), *(rng.permutation(count) for _ in range(orders - 1))])
    ratings_ON, row_O = np.full((orders, len(votes.players)), base), np.arange(orders)
    for vote_O in order_OV.T:
        first_O, second_O = votes.first[vote_O], votes.second[vote_O]
        expected_O = expit((ratings_ON[row_O, first_O] - ratings_ON[row_O, second_O]) / POINTS)
        change_O = k * (votes.points[vote_O] - expected_O)
        ratings_ON[row_O, first_O] += change_O
        ratings_ON[row_O, second_O] -= change_O
    return ratings_ON
