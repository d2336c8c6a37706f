"""The models of experiments.self_play: the imitator, the one that imitates for longer, and the arms of self-play."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import lab, report
from jaxllm.data.loader import Rows
from jaxllm.data.packing import Batch
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params, init
from jaxllm.rl.game_play import Played, play
from jaxllm.rl.game_players import Expert, Player, TextPlayer
from jaxllm.rl.games import Game, load, openings
from jaxllm.rl.policy_settings import PolicySettings
from jaxllm.rl.policy_step import PolicyModel
from jaxllm.rl.self_play import make_batch, make_improve, policy_params
from jaxllm.train.checkpoint import load_weights, save_model
from jaxllm.train.optimizer import make_optimizer
from jaxllm.train.step import init_state

# Each arm of self-play: whether half of its moves are made against the pool, and whether games have random openings.
ARMS = {"league": (True, True), "alone": (False, False), "alone_openings": (False, True)}


@dataclasses.dataclass(frozen=True)
class Models:
    """The models of one seed.

    Attributes:
      config: of all of them.
      imitation, longer: the imitator, and the control that imitated for longer.
      kept: arm -> iteration -> the model then; the highest is the last.
      rows: arm -> what every iteration said of itself.
    """

    config: ModelConfig
    imitation: Params
    longer: Params
    kept: dict[str, dict[int, Params]]
    rows: dict[str, list[dict[str, float]]]

    def last(self, arm: str) -> Params:
        """The model at the end of an arm."""
        return self.kept[arm][max(self.kept[arm])]


def model_config(config: ConfigDict, game: Game) -> ModelConfig:
    """The model of a game."""
    return ModelConfig(vocab_size=game.vocab_size, max_positions=game.max_plies + 1, **config.shape.to_dict())


def models(config: ConfigDict, seed: int) -> Models:
    """All models of a seed, trained now or found."""
    game = load(config.game)
    model = model_config(config, game)
    imitation, longer = (imitate(config, game, model, seed, times) for times in (1, config.longer))
    arms = {arm: improve(config, game, model, imitation, seed, arm) for arm in config.arms}
    return Models(model, imitation, longer, {arm: found for arm, (found, _) in arms.items()},
                  {arm: rows for arm, (_, rows) in arms.items()})


def _cache(config: ConfigDict) -> pathlib.Path:
    return pathlib.Path(config.cache).expanduser()


def _settings(config: ConfigDict, seed: int, *keys: str) -> dict[str, Any]:
    every = config.to_dict()
    return {"seed": seed} | {key: every[key] for key in ("game", "shape", "expert", "openings", "games", "imitation",
                                                         *keys)}


def imitate(config: ConfigDict, game: Game, model: ModelConfig, seed: int, times: int) -> Params:
    """A model of the expert's games; the moves of random openings are read and not learnt."""
    settings = config.imitation

    def make(folder: pathlib.Path) -> None:
        expert, calls = Expert(game, **config.expert.to_dict()), math.ceil(times * settings.games / config.games)
        played = _games(game, [(expert, expert)] * calls, config, config.openings, jax.random.key(seed))
        recipe = lab.Recipe(times * settings.steps, settings.batch_size, settings.learning_rate,
                            warmup_steps=min(20, settings.steps // 2))
        params = lab.train(init(model, jax.random.key(seed)), model, Rows(imitation_rows(played), seed=seed), recipe,
                           f"{game.name}, seed {seed}: imitation of {len(played) * config.games:,} games")
        save_model(folder / "model", params, model, None)

    path = lab.stage(_cache(config), "imitation", {**_settings(config, seed), "times": times}, make)
    return load_weights(path / "model")[0]


def imitation_rows(played: list[Played]) -> Batch:
    """Games as rows [games, P] for the next-token loss, which counts the moves that were chosen."""
    tokens = np.concatenate([games.tokens for games in played])
    chosen = np.concatenate([games.chosen(0) | games.chosen(1) for games in played])
    return Batch(tokens[:, :-1], tokens[:, 1:], chosen[:, 1:].astype(np.float32))


Kept = tuple[dict[int, Params], list[dict[str, float]]]


def improve(config: ConfigDict, game: Game, model: ModelConfig, start: Params, seed: int, arm: str) -> Kept:
    """Self-play from the imitator on: the models that were kept, and a row of numbers for each iteration."""
    def make(folder: pathlib.Path) -> None:
        kept, rows = _learn(config, game, model, start, seed, arm)
        for iteration, params in kept.items():
            save_model(folder / f"{iteration:05d}", params, model, None)
        report.write_text(folder / "rows.json", json.dumps(rows) + "\n")

    path = lab.stage(_cache(config), f"self-play-{arm}", {**_settings(config, seed, "self_play"), "arm": arm}, make)
    kept = {int(each.name): load_weights(each)[0] for each in sorted(path.iterdir()) if each.name.isdigit()}
    return kept, json.loads((path / "rows.json").read_text(encoding="utf-8"))


def _learn(config: ConfigDict, game: Game, model: ModelConfig, start: Params, seed: int, arm: str) -> Kept:
    settings, begun = config.self_play, time.perf_counter()
    league, random_openings = ARMS[arm]
    optimizer = make_optimizer("adamw", optax.linear_schedule(0.0, settings.learning_rate, 10 * settings.epochs),
                               weight_decay=0.0)
    policy = PolicySettings(baseline=settings.baseline, kl_in="none", average="token", epochs=settings.epochs,
                            clip_low=settings.clip, clip_high=settings.clip, entropy_coefficient=settings.entropy)
    update = make_improve(PolicyModel(model, lab.EXECUTION, valid_vocab=len(game.moves)), policy, optimizer)
    state = init_state(policy_params(start), optimizer)
    rng, root = np.random.default_rng([seed, len(arm)]), jax.random.fold_in(jax.random.key(seed), 1 + len(arm))
    kept: dict[int, Params] = {0: start}
    rows = []
    for iteration in range(1, settings.iterations + 1):
        learner = TextPlayer(state.params["model"], model, game)
        pool = [0, *sorted(kept)[1:][-settings.pool:]]
        other = TextPlayer(kept[rng.choice(pool)], model, game) if league else learner
        sides = [(learner, learner), (learner, other), (other, learner)]
        played = _games(game, sides, config, config.openings if random_openings else 0.0,
                        jax.random.fold_in(root, iteration))
        batch = make_batch(played, [(0, 1), (0,), (1,)] if league else [(0, 1)] * 3, settings.baseline)
        state, metrics = update(state, batch)
        rows.append({"iteration": iteration, **_describe(played, league), "entropy": float(metrics["entropy"])})
        if iteration % settings.keep == 0:
            kept[iteration] = jax.tree.map(np.asarray, state.params["model"])
    if int(state.skipped):
        raise ValueError(f"{int(state.skipped)} updates of {arm} were not finite; lower config.self_play.learning_rate")
    last = rows[-1]
    print(f"{game.name}, seed {seed}: {arm}, {settings.iterations} iterations, draws {last['draws']:.2f}, illegal "
          f"{last['illegal']:.3f}, {time.perf_counter() - begun:.0f} s", flush=True)
    return kept, rows


def _games(game: Game, sides: list[tuple[Player, Player]], config: ConfigDict, share: float, key: jax.Array
           ) -> list[Played]:
    """As many games of each pair of players."""
    return [play(game, players, openings(game, jax.random.fold_in(key, 2 * i), config.games, share),
                 jax.random.fold_in(key, 2 * i + 1)) for i, players in enumerate(sides)]


def _describe(played: list[Played], league: bool) -> dict[str, float]:
    """Of games against itself: shares of draws, of games that end by an illegal move, of different games; of a league
    also its score against the pool."""
    own = played[0]
    found = {"draws": float((own.rewards[:, 0] == 0).mean()), "illegal": float(own.illegal.any(axis=1).mean()),
             "different": len({tuple(game) for game in own.games()}) / len(own.tokens)}
    if league:
        found["pool_score"] = float((np.concatenate([played[1].rewards[:, 0], played[2].rewards[:, 1]]).mean() + 1) / 2)
    return found
