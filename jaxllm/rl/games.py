"""Board games as text: a game is the names of its moves one after the other; the rules are pgx's.

A language model plays both sides of "b2 a1 c3 ..." by predicting the next move. Batches of games are stepped by pgx,
which is JAX throughout. The names, their tokens and 6x6 Othello are made here: the last is pgx's 8x8 board on which
only the inner squares may be played. It flips what the small board flips, since a rim that stays empty ends every line.

References: Koyamada et al., Pgx: hardware-accelerated parallel game simulators, 2023. https://arxiv.org/abs/2303.17503
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pgx.connect_four import ConnectFour
from pgx.core import Env
from pgx.othello import Othello
from pgx.tic_tac_toe import TicTacToe

GAMES = ("tic_tac_toe", "connect_four", "othello")
OPENINGS = 4  # a game may begin with 0 to 3 random moves, see `openings`

State = Any  # of pgx: a pytree whose leaves have the games first


@dataclasses.dataclass(frozen=True, eq=False)
class Game:
    """A game for two, its moves and their names. One object per name: `load`.

    Attributes:
      name: one of GAMES.
      env: the rules.
      rows, columns: of the board.
      moves: the name of every move; a move's place here is its token.
      actions: pgx's number of every move.
      max_plies: most moves that a game can have, a pass being one.
      customary: bool per move; the others are what the expert makes only with a reason (`Expert`).
      prizes: moves that are worth taking whenever they are legal: the corners of Othello.
    """

    name: str
    env: Env
    rows: int
    columns: int
    moves: tuple[str, ...]
    actions: tuple[int, ...]
    max_plies: int
    customary: tuple[bool, ...]
    prizes: tuple[int, ...] = ()

    @property
    def start_token(self) -> int:
        """The token that stands before the first move, and is never drawn."""
        return len(self.moves)

    @property
    def vocab_size(self) -> int:
        """V: the moves and the start token."""
        return len(self.moves) + 1

    def text(self, tokens: Iterable[int]) -> str:
        """A game as it is written: the names of its moves."""
        return " ".join(self.moves[token] for token in tokens)

    def tokens(self, text: str) -> list[int]:
        """The moves of a written game.

        Raises:
          ValueError: for a word that is no move.
        """
        numbers = {name: token for token, name in enumerate(self.moves)}
        unknown = sorted(set(text.split()) - set(numbers))
        if unknown:
            raise ValueError(f"{' '.join(unknown)}: no move of {self.name}; moves are {' '.join(self.moves)}")
        return [numbers[name] for name in text.split()]


@functools.cache
def load(name: str) -> Game:
    """The game of that name.

    Raises:
      ValueError: for a name that is not in GAMES.

    >>> load("tic_tac_toe").text([4, 0, 8])
    'b2 a1 c3'
    """
    if name == "tic_tac_toe":
        return Game(name, TicTacToe(), 3, 3, _squares(3), tuple(range(9)), 9, tuple(i % 2 == 0 for i in range(9)))
    if name == "connect_four":
        return Game(name, ConnectFour(), 6, 7, tuple("abcdefg"), tuple(range(7)), 42,
                    tuple(0 < column < 6 for column in range(7)))
    if name == "othello":
        inner = tuple(8 * row + column for row in range(1, 7) for column in range(1, 7))
        # Beside a corner one gives the corner away: those squares (C and X in the language of the game) are shunned.
        shunned = [row in (0, 1, 4, 5) and column in (0, 1, 4, 5) and (row, column) not in _CORNERS
                   for row in range(6) for column in range(6)]
        corners = tuple(6 * row + column for row, column in _CORNERS)
        # 32 squares are free, and passes are few: random games have 39 plies at most. What took more would be a draw.
        return Game(name, Othello(), 6, 6, (*_squares(6), "pass"), (*inner, 64), 48,
                    (*(not bad for bad in shunned), True), corners)
    raise ValueError(f"game {name!r} is unknown; choose one of {', '.join(GAMES)}")


_CORNERS = ((0, 0), (0, 5), (5, 0), (5, 5))


def _squares(size: int) -> tuple[str, ...]:
    """Names of squares as chess has them, row 1 on top as in Othello."""
    return tuple(f"{'abcdefgh'[column]}{row + 1}" for row in range(size) for column in range(size))


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(game: Game, count: int) -> State:
    """`count` games before their first move; player 0 is the one who begins."""
    state = jax.vmap(game.env.init)(jax.random.split(jax.random.key(0), count))
    state = state.replace(current_player=jnp.zeros_like(state.current_player))
    return _confine(game, state)


def step(game: Game, state: State, moves_B: jax.Array) -> State:
    """The games after a move each; an illegal one loses and ends the game, and one that has ended stays as it is.

    Args:
      state: of `begin` or `step`; `state.terminated` is bool [B] and `state.rewards` float32 [B, 2], of the players.
      moves_B: int32, tokens of moves.
    """
    return _confine(game, jax.vmap(game.env.step)(state, jnp.asarray(game.actions)[moves_B]))


def _confine(game: Game, state: State) -> State:
    """Takes squares that are not on the board from the legal moves; who has none left passes."""
    if game.name != "othello":
        return state
    inner = np.zeros(65, bool)
    inner[list(game.actions[:-1])] = True
    legal = state.legal_action_mask & inner[None]
    return state.replace(legal_action_mask=legal.at[:, 64].set(~legal.any(axis=1)))


def legal_moves(game: Game, state: State) -> jax.Array:
    """bool [B, M]: the moves that may be made; of a game that has ended, anything."""
    return state.legal_action_mask[:, jnp.asarray(game.actions)]


def boards(game: Game, state: State) -> jax.Array:
    """int8 [B, rows, columns]: 1 for a piece of the player to move, -1 for the other's, 0 for an empty square."""
    planes = state.observation.astype(jnp.int8)
    board = planes[..., 0] - planes[..., 1]
    return board[:, 1:-1, 1:-1] if game.name == "othello" else board


@functools.partial(jax.jit, static_argnums=(0, 2))
def openings(game: Game, key: jax.Array, count: int, share: float | jax.Array = 0.7) -> jax.Array:
    """int32 [count]: with how many random moves each game begins; 0 to 3 in `share` of them, none in the others."""
    drawn, which = jax.random.split(key)
    moves_B = jax.random.randint(drawn, (count,), 0, OPENINGS)
    return jnp.where(jax.random.uniform(which, (count,)) < share, moves_B, 0)


@functools.partial(jax.jit, static_argnums=0)
def replay(game: Game, tokens_BP: jax.Array) -> State:
    """The games after the moves of each row; rows of equal length, all moves legal."""
    def advance(state: State, moves_B: jax.Array) -> tuple[State, None]:
        return step(game, state, moves_B), None
    return jax.lax.scan(advance, begin(game, tokens_BP.shape[0]), tokens_BP.T)[0]


def draw(game: Game, tokens: Iterable[int]) -> list[str]:
    """The board after some moves, line by line: x began, o answers, . is empty."""
    tokens = list(tokens)
    state = replay(game, jnp.asarray([tokens], jnp.int32).reshape(1, -1))
    board = np.asarray(boards(game, state))[0] * (1 if len(tokens) % 2 == 0 else -1)
    return ["".join({1: "x", -1: "o", 0: "."}[int(square)] for square in row) for row in board]
