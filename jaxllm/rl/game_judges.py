"""Judges of moves that are not ours: OpenSpiel's exact solver of tic-tac-toe and its Monte-Carlo tree search.

They are asked about a position as a row of moves, and know nothing of the model. OpenSpiel has its own rules of
tic-tac-toe and connect four. It has no Othello on 6x6, so there its search walks through the rules of `games`.

References: Lanctot et al., OpenSpiel: a framework for reinforcement learning in games, 2019.
  https://arxiv.org/abs/1908.09453
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pyspiel
from open_spiel.python.algorithms import mcts, minimax_solver

from jaxllm.rl.game_players import Position, random_moves
from jaxllm.rl.games import Game, State, begin, legal_moves, step

EXPLORATION = 2.0  # c of UCT, OpenSpiel's default


class Judge(Protocol):
    """Says what moves are worth in a position, given as the moves that led there."""

    def values(self, moves: Sequence[int]) -> np.ndarray:
        """float64 [M]: what each move is worth to who makes it, in [-1, 1]; nan for an illegal one."""

    def best(self, moves: Sequence[int]) -> list[int]:
        """The best moves, or some of them."""


class Solver:
    """Tic-tac-toe, solved: 1 is a win, 0 a draw and -1 a loss against perfect play."""

    def __init__(self, game: Game) -> None:
        """Solves the game, in about a fifth of a second.

        Raises:
          ValueError: for another game; there are too many positions.
        """
        if game.name != "tic_tac_toe":
            raise ValueError(f"{game.name} is too large to be solved; ask a Search")
        self._solver = minimax_solver.MinimaxSolver(game.name)
        self._solver.solve()
        self._rules = pyspiel.load_game(game.name)

    def values(self, moves: Sequence[int]) -> np.ndarray:
        state = self._rules.new_initial_state()
        for move in moves:
            state.apply_action(move)
        found = self._solver.action_values_from_state(state)
        legal = np.isin(np.arange(len(found)), state.legal_actions())
        return np.where(legal, found, np.nan)

    def best(self, moves: Sequence[int]) -> list[int]:
        values = self.values(moves)
        return np.flatnonzero(values == np.nanmax(values)).tolist()


class Search:
    """Monte-Carlo tree search (UCT) with random games at its leaves; what it proves it knows for certain."""

    def __init__(self, game: Game, simulations: int, seed: int, rollouts: int = 1) -> None:
        """Makes a search.

        Args:
          simulations: leaves that it looks at in a search.
          seed: of its random games.
          rollouts: random games at a leaf.
        """
        self._game = game
        if game.name == "othello":
            self._rules = None
            self._bot = mcts.MCTSBot(pyspiel.load_game("othello"), EXPLORATION, simulations,
                                     _Rollouts(game, rollouts, seed), random_state=np.random.RandomState(seed))
        else:
            self._rules = pyspiel.load_game(game.name)
            self._bot = pyspiel.MCTSBot(self._rules, pyspiel.RandomRolloutEvaluator(rollouts, seed), EXPLORATION,
                                        simulations, 1000, True, seed, False)

    def values(self, moves: Sequence[int]) -> np.ndarray:
        """As `Judge.values`, by a search after each legal move: a search before them would hardly look at poor ones."""
        state = self._state(moves)
        found = np.full(len(self._game.moves), np.nan)
        for move in state.legal_actions():
            after = state.clone()
            after.apply_action(move)
            if after.is_terminal():
                found[move] = after.returns()[state.current_player()]
            else:
                reply = self._bot.mcts_search(after).best_child()
                sign = 1.0 if reply.player == state.current_player() else -1.0
                found[move] = sign * (reply.outcome[reply.player] if reply.outcome
                                      else reply.total_reward / reply.explore_count)
        return found

    def best(self, moves: Sequence[int]) -> list[int]:
        """The one move that a search before it prefers."""
        return [self._bot.mcts_search(self._state(moves)).best_child().action]

    def _state(self, moves: Sequence[int]) -> Any:
        state: Any = _Walk(self._game) if self._rules is None else self._rules.new_initial_state()
        for move in moves:
            state.apply_action(move)
        return state


class JudgePlayer:
    """A player that asks a judge and makes one of the moves that it says are best."""

    def __init__(self, judge: Judge, seed: int) -> None:
        self._judge, self._rng = judge, np.random.default_rng(seed)

    def begin(self, count: int) -> None:
        return None

    def choose(self, memory: None, position: Position, key: jax.Array) -> tuple[jax.Array, None]:
        """As `Player.choose`; draws from its own generator and not from `key`."""
        ply, ended_B = int(position.ply), np.asarray(position.state.terminated)
        rows = np.asarray(position.tokens)[:, 1:ply + 1]
        return jnp.asarray([0 if ended else self._rng.choice(self._judge.best(row.tolist()))
                            for row, ended in zip(rows, ended_B, strict=True)], jnp.int32), None


class _Walk:
    """One game of `games` behind the methods that OpenSpiel's search asks a state for."""

    def __init__(self, game: Game, state: State | None = None) -> None:
        self._game, self.state = game, begin(game, 1) if state is None else state

    def clone(self) -> _Walk:
        return _Walk(self._game, self.state)

    def apply_action(self, move: int) -> None:
        self.state = _step(self._game, self.state, jnp.asarray([move], jnp.int32))

    def legal_actions(self) -> list[int]:
        return np.flatnonzero(np.asarray(legal_moves(self._game, self.state))[0]).tolist()

    def current_player(self) -> int:
        return int(self.state.current_player[0])

    def is_terminal(self) -> bool:
        return bool(self.state.terminated[0])

    def is_chance_node(self) -> bool:
        return False

    def returns(self) -> list[float]:
        return np.asarray(self.state.rewards)[0].tolist()


_step = jax.jit(step, static_argnums=0)


class _Rollouts(mcts.Evaluator):
    """The mean result of random games from a leaf, all played at once."""

    def __init__(self, game: Game, rollouts: int, seed: int) -> None:
        self._game, self._rollouts, self._key, self._calls = game, rollouts, jax.random.key(seed), 0

    def evaluate(self, state: _Walk) -> np.ndarray:
        self._calls += 1
        return np.asarray(_random_results(self._game, self._rollouts, state.state,
                                          jax.random.fold_in(self._key, self._calls)))

    def prior(self, state: _Walk) -> list[tuple[int, float]]:
        legal = state.legal_actions()
        return [(move, 1.0 / len(legal)) for move in legal]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _random_results(game: Game, rollouts: int, state: State, key: jax.Array) -> jax.Array:
    """float32 [2]: mean rewards of random games from one position."""
    state = jax.tree.map(lambda x: jnp.repeat(x, rollouts, axis=0), state)

    def running(carry: tuple[State, jax.Array, jax.Array]) -> jax.Array:
        return ~carry[0].terminated.all()

    def advance(carry: tuple[State, jax.Array, jax.Array]) -> tuple[State, jax.Array, jax.Array]:
        state, rewards, ply = carry
        state = step(game, state, random_moves(game, state, jax.random.fold_in(key, ply)))
        return state, rewards + state.rewards, ply + 1
    return jax.lax.while_loop(running, advance, (state, jnp.zeros((rollouts, 2)), jnp.int32(0)))[1].mean(axis=0)
