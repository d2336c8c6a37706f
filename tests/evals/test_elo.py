"""Elo beside choix and OpenSpiel's own."""

import math

import choix
import numpy as np
import pytest

from jaxllm.evals.elo import POINTS, bradley_terry, elo


def season(players: int = 5, games: int = 40) -> np.ndarray:
    """Games between players whose strengths are 0.6 nats apart, a tenth of them drawn: [N, N, 3]."""
    rng, strengths = np.random.default_rng(0), 0.6 * np.arange(players)
    results = np.zeros((players, players, 3), int)
    for i in range(players):
        for j in range(players):
            if i != j:
                win = 0.9 / (1 + math.exp(strengths[j] - strengths[i]))
                results[i, j] = rng.multinomial(games, [win, 0.1, 0.9 - win])
    return results


def test_strengths_are_those_of_choix():
    results = season()
    data = [(i, j) for i in range(5) for j in range(5) for _ in range(results[i, j, 0])]
    data += [(j, i) for i in range(5) for j in range(5) for _ in range(results[i, j, 2])]
    won = results[..., 0] + results[..., 2].T
    for penalty in (0.0, 0.5):
        # choix's penalty is alpha s^2, ours half of that.
        np.testing.assert_allclose(bradley_terry(won.astype(float), penalty),
                                   choix.opt_pairwise(5, data, alpha=penalty / 2, method="Newton-CG"), atol=1e-4)


def test_draws_count_as_open_spiel_counts_them():
    pyspiel = pytest.importorskip("pyspiel", reason="needs the extra `games`")
    results = season()
    won, drawn = results[..., 0] + results[..., 2].T, results[..., 1] + results[..., 1].T
    options = pyspiel.elo.default_elo_options()
    options.smoothing_factor, options.max_iterations, options.convergence_delta = 0.0, 100_000, 1e-12
    theirs = np.array(pyspiel.elo.compute_ratings_from_matrices(won.tolist(), drawn.tolist(), options))
    np.testing.assert_allclose(elo(results, 2, penalty=0.0)[:, 0], theirs - theirs[2], atol=0.01)


def test_intervals_hold_the_truth_and_narrow_with_games():
    few, many = (elo(season(games=games), 0, samples=100) for games in (20, 320))
    truth = 0.6 * np.arange(5) * POINTS
    assert few[0].tolist() == [0, 0, 0]  # the anchor itself
    assert ((many[:, 1] - 25 < truth) & (truth < many[:, 2] + 40)).all()  # draws pull strengths together a little
    ratio = (few[1:, 2] - few[1:, 1]) / (many[1:, 2] - many[1:, 1])
    assert 2.5 < ratio.mean() < 6  # 4 by the square root


def test_who_lost_every_game_has_a_number():
    results = np.array([[[0, 0, 0], [10, 0, 0]], [[0, 0, 10], [0, 0, 0]]])
    found = elo(results, 0)[:, 0]
    assert -2500 < found[1] < -500
