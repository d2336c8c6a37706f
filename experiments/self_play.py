"""Beyond the teacher: a language model imitates a middling expert's games, then improves by playing itself.

    python -m experiments.self_play --workdir=runs/self_play

A game is a text and a move a token; nothing tells the model which moves are legal, and an illegal one loses. All
players are rated on one scale: models on their way, the expert, chance, and a player that is not ours (OpenSpiel's
exact solver, or its search). Controls: imitation for longer; self-play without the league; random moves as rare as
the learner's.
"""

from __future__ import annotations

import functools
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from experiments import findings, lab, launch
from experiments.self_play_learn import ARMS, models
from experiments.self_play_moves import rare_moves
from experiments.self_play_rating import rate
from experiments.self_play_report import findings_of
from jaxllm.rl.games import GAMES, load


def main(config: ConfigDict, workdir: str) -> None:
    """Runs all arms at every seed, rates all players, judges rare moves, and writes what was found.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs = []
    for seed in config.seeds:
        settings = {**config.to_dict(), "seeds": seed, "cache": None}
        run = lab.kept(folder / "kept", f"{config.game}-{seed}", settings, functools.partial(measure, config, seed))
        runs.append(run)
        ratings = {name: run["ratings"][0]["elo"][run["ratings"][0]["players"].index(name)][0]
                   for name in ("imitation", "longer", *config.arms)}
        print(f"seed {seed}: Elo above the expert's {', '.join(f'{k} {v:.0f}' for k, v in ratings.items())}; "
              f"{time.perf_counter() - begun:.0f} s in all", flush=True)
    findings.write(findings_of(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after training."""
    if config.game not in GAMES:
        raise ValueError(f"config.game={config.game!r}: choose one of {', '.join(GAMES)}")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    if "league" not in config.arms or set(config.arms) - set(ARMS) or len(set(config.arms)) < len(config.arms):
        raise ValueError(f"config.arms={config.arms}: name league and any other of {', '.join(ARMS)}, each once")
    for key in ("games", "longer", "rounds", "bootstrap", "player_simulations", "judge_simulations", "rollouts"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    for part, keys in (("imitation", ("games", "steps", "batch_size", "learning_rate")),
                       ("self_play", ("iterations", "keep", "pool", "epochs", "learning_rate")),
                       ("rare", ("below", "temperature", "games", "margin", "judged"))):
        for key in keys:
            if not config[part][key] > 0:
                raise ValueError(f"config.{part}.{key}={config[part][key]} must be above 0")
    if config.self_play.iterations % config.self_play.keep:
        raise ValueError(f"config.self_play.keep ({config.self_play.keep}) must divide config.self_play.iterations "
                         f"({config.self_play.iterations}), so that the last model is kept")
    if not config.temperatures or min(config.temperatures) <= 0 or not 0 <= config.openings <= 1:
        raise ValueError("config.temperatures must be above 0, one or more, and config.openings from 0 to 1")


def measure(config: ConfigDict, seed: int) -> dict[str, Any]:
    """Everything about one seed: the models are made or found, rated at each temperature, and their moves judged.

    Returns:
      "ratings": of `rate`, for each temperature; "moves": of `rare_moves`; "rows": of each arm, what every iteration
      said of itself; "seconds".
    """
    begun = time.perf_counter()
    made = models(config, seed)
    game = load(config.game)
    ratings = [rate(config, game, made, temperature, seed, way=place == 0)
               for place, temperature in enumerate(config.temperatures)]
    return {"ratings": ratings, "moves": rare_moves(config, game, made, seed), "rows": made.rows,
            "seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    launch.run(main, default_config="configs/self_play.py")
