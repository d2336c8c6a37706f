"""Games: the rules beside OpenSpiel's, the players, the judges, and what self-play learns.

Rules are compared on random games, move by move; 6x6 Othello with OpenSpiel's 8x8 board, on which the same squares are
played until a pass on the small board has no like on the large one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("pgx", reason="needs the extra `games`")
pyspiel = pytest.importorskip("pyspiel", reason="needs the extra `games`")

from random_weights import random_weights  # noqa: E402

from jaxllm.model.config import Execution, ModelConfig  # noqa: E402
from jaxllm.model.transformer import forward  # noqa: E402
from jaxllm.rl.game_judges import JudgePlayer, Search, Solver  # noqa: E402
from jaxllm.rl.game_play import Played, play  # noqa: E402
from jaxllm.rl.game_players import Chance, Expert, Position, TextPlayer  # noqa: E402
from jaxllm.rl.games import draw, legal_moves, load, openings, replay  # noqa: E402
from jaxllm.rl.policy_settings import PolicySettings  # noqa: E402
from jaxllm.rl.policy_step import PolicyModel  # noqa: E402
from jaxllm.rl.self_play import make_batch, make_improve, policy_params  # noqa: E402
from jaxllm.train.optimizer import make_optimizer  # noqa: E402
from jaxllm.train.step import init_state  # noqa: E402

B = 16
TICTACTOE = load("tic_tac_toe")
MODEL = ModelConfig(vocab_size=10, dim=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_dim=32, max_positions=10)
NONE = jnp.zeros(B, jnp.int32)


def random_games(game, seed=0) -> Played:
    return play(game, (Chance(game), Chance(game)), NONE, jax.random.key(seed))


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize("name", ["tic_tac_toe", "connect_four"])
def test_rules_are_open_spiels(name):
    game, rules = load(name), pyspiel.load_game(name)
    played = random_games(game)
    for moves, rewards in zip(played.games(), played.rewards, strict=True):
        state = rules.new_initial_state()
        for move in moves:
            assert move in state.legal_actions()
            state.apply_action(move)
        assert state.is_terminal() and state.returns() == rewards.tolist()
    # Also what may be moved, in the middle of every game.
    middle = min(len(moves) for moves in played.games()) - 1
    legal = np.asarray(legal_moves(game, replay(game, jnp.asarray(played.tokens[:, 1:middle + 1]))))
    for moves, own in zip(played.games(), legal, strict=True):
        state = rules.new_initial_state()
        for move in moves[:middle]:
            state.apply_action(move)
        assert np.flatnonzero(own).tolist() == state.legal_actions()


def test_othello_flips_as_on_the_large_board():
    game, rules = load("othello"), pyspiel.load_game("othello")
    played, full = random_games(game), 0
    looked = 20
    own = np.asarray(legal_moves(game, replay(game, jnp.asarray(played.tokens[:, 1:looked + 1]))))
    for i, moves in enumerate(played.games()):
        state = rules.new_initial_state()
        for ply, move in enumerate(moves):
            inner = [token for token in range(36) if game.actions[token] in state.legal_actions()]
            if ply == looked:
                assert np.flatnonzero(own[i]).tolist() == (inner or [36])
            if move == 36:
                assert not inner
                break  # the large board has no such pass
            assert move in inner
            state.apply_action(game.actions[move])
        if ply == 32:  # the board is full
            board, full = "".join(str(state).splitlines()[2:10]), full + 1
            assert played.rewards[i, 0] == np.sign(board.count("x") - board.count("o"))
        assert moves[-2:] == [36, 36] or len(moves) < 32  # nobody can move, or one side is wiped out
    assert full > 2 and (played.rewards.sum(1) == 0).all()


def test_moves_have_names():
    assert TICTACTOE.tokens("b2 a1 c3") == [4, 0, 8]
    assert draw(TICTACTOE, [4, 0, 8]) == ["o..", ".x.", "..x"]
    with pytest.raises(ValueError, match="b9: no move of tic_tac_toe"):
        TICTACTOE.tokens("b2 b9")
    with pytest.raises(ValueError, match="choose one of tic_tac_toe"):
        load("chess")


class Scripted:
    """Plays the same moves in every game."""

    def __init__(self, text):
        self.moves = TICTACTOE.tokens(text)

    def begin(self, count):
        return 0

    def choose(self, memory, position, key):
        return jnp.full(len(position.tokens), self.moves[memory]), memory + 1


def test_illegal_moves_lose_and_openings_are_nobodys():
    played = play(TICTACTOE, (Scripted("b2 a3 c3"), Scripted("b2 b1 c1")), NONE, jax.random.key(0))
    assert played.games()[0] == TICTACTOE.tokens("b2 b2") and played.rewards.tolist() == [[1, -1]] * B
    assert played.illegal.tolist() == [[False, True]] * B
    opening_B = openings(TICTACTOE, jax.random.key(1), B, 0.7)
    assert set(np.asarray(opening_B).tolist()) == {0, 1, 2, 3}
    played = play(TICTACTOE, (Chance(TICTACTOE),) * 2, opening_B, jax.random.key(0))
    chosen = [played.chosen(side) for side in (0, 1)]
    assert not (chosen[0] & chosen[1]).any() and not chosen[0][:, 2::2].any() and not chosen[1][:, 1::2].any()
    assert ((chosen[0] | chosen[1]).sum(1) == played.moved.sum(1) - np.asarray(opening_B)).all()


# ---------------------------------------------------------------- players and judges


def moves_of(player, text) -> set[str]:
    """What a player does in a position, over B tries."""
    tokens = TICTACTOE.tokens(text)
    rows = jnp.tile(jnp.asarray([[TICTACTOE.start_token, *tokens]], jnp.int32), (B, 1))
    position = Position(replay(TICTACTOE, rows[:, 1:]), rows, jnp.int32(len(tokens)))
    found, _ = player.choose(player.begin(B), position, jax.random.key(3))
    return {TICTACTOE.moves[move] for move in np.asarray(found)}


def test_the_expert_wins_blocks_and_has_habits():
    sees, blind = Expert(TICTACTOE, looks=1.0, careless=0.0), Expert(TICTACTOE, looks=0.0, careless=0.0)
    assert moves_of(sees, "a1 a2 b1 b2") == {"c1"} == moves_of(blind, "a1 a2 b1 b2")  # wins, rather than blocks
    assert moves_of(sees, "a1 b2 b1 a3") == {"c1"}  # a win again: its own comes before the other's
    assert moves_of(sees, "a1 b2 c3 b1") == {"b3"}  # blocks, though b3 is not customary
    assert len(moves_of(blind, "a1 b2 c3 b1")) > 1
    corners = {"a1", "c1", "a3", "c3", "b2"}
    assert moves_of(sees, "a1 b2 c3 b1") & corners == set() and moves_of(sees, "b1 a3 b3 c3") == {"b2"}
    assert moves_of(blind, "b2 a1 c3 a3") <= corners | {"a2"}


def test_a_model_plays_what_its_forward_pass_says():
    """At a low temperature the cache, two moves at a time, must give the likeliest move of a whole forward pass."""
    params = jax.device_put(random_weights(MODEL, 1))
    params["embedding"]["tokens"] = params["embedding"]["tokens"] * 50  # logits far apart
    player = TextPlayer(params, MODEL, TICTACTOE, 1e-4)
    played = play(TICTACTOE, (player, player), jnp.asarray([0, 1, 2, 3] * 4, jnp.int32), jax.random.key(0))
    scores = jax.jit(forward, static_argnums=1)(params, MODEL, jnp.asarray(played.tokens))[..., :-1]
    best = np.asarray(scores.argmax(-1))
    for side in (0, 1):
        rows, columns = np.nonzero(played.chosen(side))
        assert len(rows) and (played.tokens[rows, columns] == best[rows, columns - 1]).all()
    with pytest.raises(ValueError, match="needs a model of 8 tokens and 43"):
        TextPlayer(params, MODEL, load("connect_four"))


def test_the_solver_knows_and_never_loses():
    solver = Solver(TICTACTOE)
    assert solver.values([]).tolist() == [0] * 9
    fork = solver.values(TICTACTOE.tokens("a1 b2 c3"))  # two corners: only an edge holds
    assert [TICTACTOE.moves[move] for move in np.flatnonzero(fork == 0)] == ["b1", "a2", "c2", "b3"]
    assert np.isnan(fork[[0, 4, 8]]).all() and fork[2] == -1
    judge = JudgePlayer(solver, 0)
    for side in (0, 1):
        sides = (judge, Chance(TICTACTOE)) if side == 0 else (Chance(TICTACTOE), judge)
        assert (play(TICTACTOE, sides, NONE, jax.random.key(4)).rewards[:, side] >= 0).all()
    with pytest.raises(ValueError, match="too large"):
        Solver(load("connect_four"))


def test_searches_find_a_win():
    four, moves = Search(load("connect_four"), 200, 0), load("connect_four").tokens("d a d a d a")
    values = four.values(moves)
    assert values[3] == 1 and (values[[1, 2, 4, 5, 6]] == -1).all()  # win at once; whoever lets the other win, loses
    assert four.best(moves) == [3] and np.isnan(four.values(moves[::2] + [3, 3, 3])[3])
    game = load("othello")
    # Neither can be said to be right by itself; that it tells legal moves and keeps within its range can.
    found = Search(game, 6, 0, 2).values([])
    assert sorted(game.moves[i] for i in np.flatnonzero(~np.isnan(found))) == ["b3", "c2", "d5", "e4"]
    assert np.nanmax(np.abs(found)) <= 1


# ---------------------------------------------------------------- learning


def test_self_play_learns_its_own_moves_against_its_sides_mean():
    played = random_games(TICTACTOE)
    batch = make_batch([played, played], [(0, 1), (1,)], "dr_grpo")
    assert batch.tokens.shape == (2 * B, 10)
    assert (batch.mask == np.concatenate([played.moved & (np.arange(10) > 0), played.chosen(1)])).all()
    first = played.rewards[:, 0]
    np.testing.assert_allclose(batch.advantages[:B, 1], first - first.mean(), atol=1e-6)
    np.testing.assert_allclose(batch.advantages[:B, 2], first.mean() - first, atol=1e-6)
    assert (batch.advantages[B:, 1] == 0).all() and (batch.advantages[B:, 2] == batch.advantages[:B, 2]).all()
    assert (batch.advantages[~batch.mask] == 0).all()
    with pytest.raises(ValueError, match="from one side or more"):
        make_batch([played], [()])


def test_an_update_makes_winning_moves_likelier():
    played = random_games(TICTACTOE)
    batch = make_batch([played], [(0, 1)], "dr_grpo")
    model = PolicyModel(MODEL, Execution(scan=False), valid_vocab=9)
    settings = PolicySettings(baseline="dr_grpo", kl_in="none", average="token", epochs=4)
    optimizer = make_optimizer("adamw", 3e-3, weight_decay=0.0)
    state = init_state(policy_params(jax.device_put(random_weights(MODEL))), optimizer)
    logp = jax.jit(lambda params: model.outputs(params, batch.tokens)[0])
    before = np.asarray(logp(state.params))
    state, metrics = make_improve(model, settings, optimizer)(state, batch)
    after = np.asarray(logp(state.params))
    assert ((after - before) * batch.advantages).sum() > 0.1 and int(state.step) == 4
    assert metrics["moves"] == batch.mask.sum() and 2.1 < metrics["entropy"] < np.log(9) + 1e-4
    with pytest.raises(ValueError, match="kl_in='none'"):
        make_improve(model, PolicySettings(), optimizer)
