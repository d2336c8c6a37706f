"""Who plays: a middling expert, chance, a language model. All choose for a whole batch of games at once."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxllm.model.cache import KVCache, empty_cache
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params, unstack_blocks
from jaxllm.model.transformer import decode, logits
from jaxllm.rl.games import Game, State, legal_moves, step

_EXECUTION = Execution(scan=False)


@struct.dataclass
class Position:
    """B games in which the same side is to move.

    Attributes:
      state: of the rules.
      tokens: int32 [B, 1 + P]: the start token and the moves made so far, which are `ply`; what follows is not yet set.
      ply: int32, moves made so far. Passes are moves, so the side that began moves at even plies.
    """

    state: State
    tokens: jax.Array
    ply: jax.Array


class Player(Protocol):
    """One side of many games."""

    def begin(self, count: int) -> Any:
        """What it remembers of `count` new games."""

    def choose(self, memory: Any, position: Position, key: jax.Array) -> tuple[jax.Array, Any]:
        """(int32 [B] moves, what it remembers now). For games that have ended any move will do."""


@dataclasses.dataclass(frozen=True)
class Chance:
    """Any legal move, all equally likely."""

    game: Game

    def begin(self, count: int) -> None:
        return None

    def choose(self, memory: None, position: Position, key: jax.Array) -> tuple[jax.Array, None]:
        return random_moves(self.game, position.state, key), None


@functools.partial(jax.jit, static_argnums=0)
def random_moves(game: Game, state: State, key: jax.Array) -> jax.Array:
    """int32 [B]: a legal move of each game."""
    return _among(legal_moves(game, state), key)


@dataclasses.dataclass(frozen=True)
class Expert:
    """A middling player with habits.

    It takes a prize if it can: a move that wins at once, and in Othello a corner. Else it looks, with probability
    `looks`, for moves after which the other side has no prize, and keeps to them if there are any. Among the moves that
    are left it makes a customary one (`Game.customary`) if there is one. With probability `careless` it makes any
    customary legal move instead of all this.

    So moves that are not customary are made with a reason or when nothing else is left, as good players of real games
    do, and what is good about the others is never seen in its games.
    """

    game: Game
    looks: float = 0.5
    careless: float = 0.2

    def begin(self, count: int) -> None:
        return None

    def choose(self, memory: None, position: Position, key: jax.Array) -> tuple[jax.Array, None]:
        return _expert_moves(self.game, position.state, key, self.looks, self.careless), None


@functools.partial(jax.jit, static_argnums=0)
def _expert_moves(game: Game, state: State, key: jax.Array, looks: float, careless: float) -> jax.Array:
    legal_BM = legal_moves(game, state)
    habit_BM = _if_any(legal_BM & jnp.asarray(game.customary)[None], legal_BM)
    winning_BM, safe_BM = _prizes(game, state), legal_BM & ~_gives(game, state)
    keys = jax.random.split(key, 3)
    looks_B1, careless_B1 = (jax.random.uniform(k, (len(legal_BM), 1)) < p
                             for k, p in zip(keys[:2], (looks, careless), strict=True))
    sober_BM = jnp.where(looks_B1, _if_any(safe_BM, legal_BM), legal_BM)
    sober_BM = _if_any(winning_BM, _if_any(sober_BM & habit_BM, sober_BM))
    return _among(jnp.where(careless_B1, habit_BM, sober_BM), keys[2])


def _prizes(game: Game, state: State) -> jax.Array:
    """bool [B, M]: legal moves that win at once, or corners in Othello."""
    legal_BM = legal_moves(game, state)
    if game.prizes:
        return legal_BM & jnp.zeros(len(game.moves), bool).at[jnp.asarray(game.prizes)].set(True)[None]

    def wins(move: jax.Array) -> jax.Array:
        after = step(game, state, jnp.full(len(legal_BM), move))
        return jnp.take_along_axis(after.rewards, state.current_player[:, None], axis=1)[:, 0] > 0
    return legal_BM & jax.vmap(wins, out_axes=1)(jnp.arange(len(game.moves)))


def _gives(game: Game, state: State) -> jax.Array:
    """bool [B, M]: moves that leave the other side a prize."""
    def gives(move: jax.Array) -> jax.Array:
        after = step(game, state, jnp.full(state.terminated.shape, move))
        return _prizes(game, after).any(axis=1) & ~after.terminated
    return jax.vmap(gives, out_axes=1)(jnp.arange(len(game.moves)))


def _if_any(first_BM: jax.Array, second_BM: jax.Array) -> jax.Array:
    return jnp.where(first_BM.any(axis=1, keepdims=True), first_BM, second_BM)


def _among(moves_BM: jax.Array, key: jax.Array) -> jax.Array:
    """int32 [B]: one of the True moves of each row."""
    return jax.random.categorical(key, jnp.where(moves_BM, 0.0, -jnp.inf)).astype(jnp.int32)


class TextPlayer:
    """A language model that writes the next move; nothing tells it which moves are legal."""

    def __init__(self, params: Params, config: ModelConfig, game: Game, temperature: float = 1.0) -> None:
        """Takes the model.

        Args:
          params, config: the model; its vocabulary is the game's.
          temperature: > 0, of its draws.

        Raises:
          ValueError: when the vocabulary is another, or a game does not fit the model's positions.
        """
        if config.vocab_size != game.vocab_size or config.max_positions < game.max_plies + 1:
            raise ValueError(f"{game.name} needs a model of {game.vocab_size} tokens and {game.max_plies + 1} or more "
                             f"positions; this one has {config.vocab_size} and {config.max_positions}")
        self.params, self.config, self.game, self.temperature = unstack_blocks(params), config, game, temperature

    def begin(self, count: int) -> KVCache:
        return empty_cache(self.config, count, self.game.max_plies + 1)

    def choose(self, memory: KVCache, position: Position, key: jax.Array) -> tuple[jax.Array, KVCache]:
        return _model_moves(self.params, memory, position.tokens, position.ply, key, self.temperature,
                            config=self.config)


@functools.partial(jax.jit, static_argnames="config", donate_argnums=1)
def _model_moves(params: Params, cache: KVCache, tokens: jax.Array, ply: jax.Array, key: jax.Array,
                 temperature: jax.Array | float, *, config: ModelConfig) -> tuple[jax.Array, KVCache]:
    """Reads its own last move and the answer to it (at ply 0 the start token alone), and draws a move."""
    held_B = cache.lengths
    columns_B2 = held_B[:, None] + jnp.arange(2)[None]
    fresh_B2 = jnp.take_along_axis(tokens, jnp.minimum(columns_B2, tokens.shape[1] - 1), axis=1)
    counts_B = ply + 1 - held_B
    hidden_B2D, cache = decode(params, config, fresh_B2, cache, counts=counts_B, execution=_EXECUTION)
    last_BD = jnp.take_along_axis(hidden_B2D, (counts_B - 1)[:, None, None], axis=1)[:, 0]
    scores_BM = logits(params, config, last_BD)[:, :-1] / temperature  # without the start token, which stands last
    return jax.random.categorical(key, scores_BM).astype(jnp.int32), cache
