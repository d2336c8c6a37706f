"""Move 37: moves of the learner that its teacher's imitator would hardly ever have made, and what a judge says of them.

References: Silver et al., Mastering the game of Go with deep neural networks and tree search, 2016; of move 37 of its
  second game against Lee Sedol AlphaGo's imitation of human play had said one in ten thousand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments.self_play_learn import Models
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.transformer import forward
from jaxllm.rl.game_judges import Judge, Search, Solver
from jaxllm.rl.game_play import play
from jaxllm.rl.game_players import TextPlayer
from jaxllm.rl.games import Game, openings


def rare_moves(config: ConfigDict, game: Game, made: Models, seed: int) -> dict[str, Any]:
    """Looks through games of the league's last model against the imitator, each different position and move once.

    Returns:
      "moves": how many different moves of the learner were looked at; "rare": how many of them the imitator gave less
      than config.rare.below; "judged": those that the judge was asked about, each with "history", "move", "own" (the
      imitator's likeliest legal move), "probability" and "own_probability" under the imitator, "value" and "own_value"
      by the judge, and "as_rare", the values of all legal moves that are as rare there: the control.
    """
    judge = judge_of(config, game, seed)
    moves = _moves(config, game, made, seed)
    rare = [one for one in moves if one["probabilities"][one["move"]] < config.rare.below]
    chosen = np.random.default_rng(seed).permutation(len(rare))[:config.rare.judged]
    judged = [_judge(judge, rare[i], config.rare.below) for i in sorted(chosen)]
    return {"moves": len(moves), "rare": len(rare), "judged": judged}


def judge_of(config: ConfigDict, game: Game, seed: int) -> Judge:
    """The exact solver where there is one, else a search."""
    return Solver(game) if game.name == "tic_tac_toe" else Search(game, config.judge_simulations, seed, config.rollouts)


def _moves(config: ConfigDict, game: Game, made: Models, seed: int) -> list[dict[str, Any]]:
    """The learner's legal moves with what stood before them and the imitator's probabilities of all moves there."""
    learner = TextPlayer(made.last("league"), made.config, game, config.rare.temperature)
    other = TextPlayer(made.imitation, made.config, game, 1.0)
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for number in range(math.ceil(config.rare.games / config.games)):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2000), number)
        side = number % 2
        played = play(game, (learner, other) if side == 0 else (other, learner),
                      openings(game, key, config.games, config.openings), jax.random.fold_in(key, 1))
        probabilities = imitator_probabilities(made, played.tokens)
        for row, column in zip(*np.nonzero(played.chosen(side)), strict=True):
            history, move = played.tokens[row, 1:column].tolist(), int(played.tokens[row, column])
            if not played.illegal[row, side] or column < played.moved[row].sum():
                found[*history, move] = {"history": history, "move": move,
                                         "probabilities": probabilities[row, column - 1]}
    return list(found.values())


def imitator_probabilities(made: Models, tokens: np.ndarray) -> np.ndarray:
    """[B, 1 + P, M]: at each place, the imitator's probabilities of the next move at temperature 1."""
    return np.asarray(_next_moves(made.imitation, made.config, tokens))


@functools.partial(jax.jit, static_argnums=1)
def _next_moves(params: Params, model: ModelConfig, tokens: jax.Array) -> jax.Array:
    scores = forward(params, model, tokens, execution=lab.EXECUTION)
    return jax.nn.softmax(scores[..., :-1])  # the start token, which stands last, is never drawn


def _judge(judge: Judge, one: dict[str, Any], below: float) -> dict[str, Any]:
    """What the judge says of the learner's move, of the imitator's own, and of every legal move that is as rare."""
    values, probabilities = judge.values(one["history"]), np.asarray(one["probabilities"])
    legal = ~np.isnan(values)
    own = int(np.argmax(np.where(legal, probabilities, -1.0)))
    return {"history": one["history"], "move": one["move"], "own": own,
            "probability": float(probabilities[one["move"]]), "own_probability": float(probabilities[own]),
            "value": float(values[one["move"]]), "own_value": float(values[own]),
            "as_rare": values[legal & (probabilities < below)].tolist()}


def better(judged: Mapping[str, Any], margin: float) -> bool:
    """Whether the judge values the learner's move above the imitator's own by the margin or more."""
    return judged["value"] >= judged["own_value"] + margin


def by_chance(judged: Mapping[str, Any], margin: float) -> float:
    """The control: the chance that a random one of the legal moves that are as rare there is so much better."""
    values = np.asarray(judged["as_rare"])
    return float((values >= judged["own_value"] + margin).mean()) if len(values) else 0.0


def best_of(judged: Sequence[Mapping[str, Any]], margin: float) -> Mapping[str, Any] | None:
    """The move that gains most over the imitator's own, the rarest of equals; None when none is better."""
    some = [one for one in judged if better(one, margin)]
    return max(some, key=lambda one: (one["value"] - one["own_value"], -one["probability"])) if some else None
