"""Games played between two players, as arrays that a trainer can score."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxllm.rl.game_players import Player, Position, random_moves
from jaxllm.rl.games import Game, State, begin, legal_moves, step


@dataclasses.dataclass(frozen=True)
class Played:
    """B games, each by the same two players. Arrays of the host; P is the most plies of a game.

    Attributes:
      tokens: int32 [B, 1 + P]: the start token, then the moves; 0 after the end.
      moved: bool [B, 1 + P]: True for a move that was made, be it an illegal one.
      openings: int32 [B]: how many of the first moves were drawn by chance.
      rewards: float32 [B, 2]: 1, 0 or -1, of the side that began and of the other.
      illegal: bool [B, 2]: which side lost by a move that the rules do not allow.
    """

    tokens: np.ndarray
    moved: np.ndarray
    openings: np.ndarray
    rewards: np.ndarray
    illegal: np.ndarray

    def chosen(self, side: int) -> np.ndarray:
        """bool [B, 1 + P]: the moves that the player of a side (0 began) chose: those of the opening are not."""
        ply = np.arange(self.tokens.shape[1])[None] - 1
        return self.moved & (ply >= self.openings[:, None]) & (ply % 2 == side)

    def games(self) -> list[list[int]]:
        """The moves of each game."""
        return [row[own].tolist() for row, own in zip(self.tokens, self.moved, strict=True)]


@struct.dataclass
class _Record:
    state: State
    tokens: jax.Array
    moved: jax.Array
    rewards: jax.Array
    illegal: jax.Array


def play(game: Game, players: Sequence[Player], openings_B: jax.Array, key: jax.Array) -> Played:
    """Plays a game for each entry of `openings_B`.

    Args:
      players: who begins, and who answers.
      openings_B: int32: how many moves are drawn from the legal ones before the players choose (`games.openings`). Too
        few for a game to end.
      key: of all draws; the same key and players give the same games.
    """
    record = _start(game, len(openings_B))
    memories = [player.begin(len(openings_B)) for player in players]
    for ply in range(game.max_plies):
        side, at = ply % 2, jnp.int32(ply)
        choice, chance = jax.random.split(jax.random.fold_in(key, ply))
        position = Position(record.state, record.tokens, at)
        moves_B, memories[side] = players[side].choose(memories[side], position, choice)
        record = _advance(game, record, moves_B, at, openings_B, chance)
        if ply % 4 == 3 and bool(record.state.terminated.all()):
            break
    return Played(*(np.asarray(x) for x in (record.tokens, record.moved, openings_B, record.rewards, record.illegal)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(game: Game, count: int) -> _Record:
    tokens = jnp.zeros((count, game.max_plies + 1), jnp.int32).at[:, 0].set(game.start_token)
    return _Record(begin(game, count), tokens, jnp.zeros(tokens.shape, bool), jnp.zeros((count, 2)),
                   jnp.zeros((count, 2), bool))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advance(game: Game, record: _Record, moves_B: jax.Array, ply: jax.Array, openings_B: jax.Array, key: jax.Array
             ) -> _Record:
    running_B = ~record.state.terminated
    moves_B = jnp.where(ply < openings_B, random_moves(game, record.state, key), moves_B)
    legal_B = jnp.take_along_axis(legal_moves(game, record.state), moves_B[:, None], axis=1)[:, 0]
    lost_B2 = (running_B & ~legal_B)[:, None] & (jnp.arange(2)[None] == ply % 2)
    state = step(game, record.state, moves_B)
    return _Record(state, record.tokens.at[:, ply + 1].set(jnp.where(running_B, moves_B, 0)),
                   record.moved.at[:, ply + 1].set(running_B),
                   record.rewards + jnp.where(running_B[:, None], state.rewards, 0.0), record.illegal | lost_B2)
