"""A round robin of all players of one seed, and their Elo."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.self_play_learn import Models
from jaxllm.evals.elo import elo
from jaxllm.rl.game_judges import JudgePlayer, Search, Solver
from jaxllm.rl.game_play import play
from jaxllm.rl.game_players import Chance, Expert, Player, TextPlayer
from jaxllm.rl.games import Game, openings

EXPERT, CHANCE, BEST = "expert", "random", "judge"


def players_of(config: ConfigDict, game: Game, made: Models, temperature: float, seed: int
               ) -> tuple[dict[str, Player], dict[str, Player]]:
    """(who plays everybody, models on their way, who play the former): by name, "league@50" for one on its way."""
    def text(params: Any) -> TextPlayer:
        return TextPlayer(params, made.config, game, temperature)

    final: dict[str, Player] = {EXPERT: Expert(game, **config.expert.to_dict()), CHANCE: Chance(game)}
    if game.name == "tic_tac_toe":
        final[BEST] = JudgePlayer(Solver(game), seed)
    elif config.search_plays:
        final[BEST] = JudgePlayer(Search(game, config.player_simulations, seed, config.rollouts), seed)
    final |= {"imitation": text(made.imitation), "longer": text(made.longer)}
    final |= {arm: text(made.last(arm)) for arm in config.arms}
    way = {f"{arm}@{iteration}": text(params) for arm, kept in made.kept.items()
           for iteration, params in sorted(kept.items())[1:-1]}
    return final, way


def rate(config: ConfigDict, game: Game, made: Models, temperature: float, seed: int, *, way: bool
         ) -> dict[str, Any]:
    """Everybody against everybody, as either side, and with `way` models on their way against all who are not.

    Returns:
      "temperature"; "players": names; "elo": of each, above the expert's, with the ends of its interval over games;
      "score": of each against the expert; "illegal": share of each one's games that it lost by an illegal move;
      "results": won, drawn and lost by the row's player in games that it began against the column's.
    """
    final, others = players_of(config, game, made, temperature, seed)
    everybody = {**final, **others} if way else final
    names = list(everybody)
    results_NN3 = np.zeros((len(names), len(names), 3), int)
    illegal_N, games_N = np.zeros(len(names)), np.zeros(len(names))
    root = jax.random.fold_in(jax.random.key(seed), 1000)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            if i == j or not {first, second} & set(final):
                continue
            for number in range(config.rounds if {first, second} <= set(final) else 1):
                # Both orders of a pair have the same openings' lengths.
                key = jax.random.fold_in(jax.random.fold_in(root, min(i, j) * len(names) + max(i, j)), number)
                opening_B = openings(game, key, config.games, config.openings)
                played = play(game, (everybody[first], everybody[second]), opening_B, jax.random.fold_in(key, i))
                result_B = played.rewards[:, 0]
                results_NN3[i, j] += [(result_B == 1).sum(), (result_B == 0).sum(), (result_B == -1).sum()]
                for place, side in ((i, 0), (j, 1)):
                    illegal_N[place] += played.illegal[:, side].sum()
                    games_N[place] += len(result_B)
    ratings_N3 = elo(results_NN3, names.index(EXPERT), config.bootstrap, seed)
    return {"temperature": temperature, "players": names, "elo": ratings_N3.tolist(),
            "score": [score(results_NN3, i, names.index(EXPERT)) for i in range(len(names))],
            "illegal": (illegal_N / games_N).tolist(), "results": results_NN3.tolist()}


def score(results_NN3: np.ndarray, player: int, other: int) -> float:
    """Share of points of a player against another, as either side; half against itself."""
    points = results_NN3[player, other] @ [1, 0.5, 0] + results_NN3[other, player] @ [0, 0.5, 1]
    games = results_NN3[player, other].sum() + results_NN3[other, player].sum()
    return float(points / games) if games else 0.5
