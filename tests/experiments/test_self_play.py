"""The self-play command from end to end on a tiny model, what it refuses, and what its tables count."""

import json

import numpy as np
import pytest

pytest.importorskip("pgx", reason="needs the extra `games`")
pytest.importorskip("pyspiel", reason="needs the extra `games`")

from configs import self_play as config_file  # noqa: E402
from experiments import self_play as experiment  # noqa: E402
from experiments import self_play_learn as learn  # noqa: E402
from experiments import self_play_report as tables  # noqa: E402
from experiments.self_play_moves import best_of, better, by_chance  # noqa: E402
from experiments.self_play_rating import score  # noqa: E402
from jaxllm.rl.games import load  # noqa: E402


def small_config(tmp_path, **changes):
    config = config_file.get_config()
    # Shapes of tests/rl/test_games.py: the rules, the expert and the model are compiled once for both.
    config.shape.update({"dim": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp_dim": 32})
    config.update({"seeds": (0,), "games": 16, "arms": ("league", "alone"), "temperatures": (1.0,), "rounds": 1,
                   "bootstrap": 20, "longer": 1, "cache": str(tmp_path / "cache"), **changes})
    config.imitation.update({"games": 32, "steps": 4, "batch_size": 16})
    config.self_play.update({"iterations": 4, "keep": 2})
    config.rare.update({"games": 32, "below": 0.2, "temperature": 1.0})
    return config


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    config, calls = small_config(tmp_path), []
    learning = learn._learn

    def stopped(*args):
        calls.append(args[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return learning(*args)

    monkeypatch.setattr(learn, "_learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        experiment.main(config, str(tmp_path / "run"))
    experiment.main(config, str(tmp_path / "run"))
    assert calls == ["league", "alone", "alone"]  # the league was not made again
    found = json.loads((tmp_path / "run" / "results.json").read_text())["runs"]
    rated = found[0]["ratings"][0]
    assert rated["players"] == ["expert", "random", "judge", "imitation", "longer", "league", "alone", "league@2",
                                "alone@2"]
    results = np.array(rated["results"])
    assert (results.sum(-1) == 16 * (1 - np.eye(9)) - 16 * np.pad(1 - np.eye(2), (7, 0))).all()
    assert rated["elo"][0] == [0, 0, 0] and rated["illegal"][:3] == [0, 0, 0] and rated["illegal"][3] > 0.1
    assert rated["elo"][2][0] == max(elo for elo, _, _ in rated["elo"])  # perfect play
    rows = found[0]["rows"]
    assert [row["iteration"] for row in rows["league"]] == [1, 2, 3, 4] and "pool_score" not in rows["alone"][0]
    page, text = ((tmp_path / "run" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "Elo on the way" in page and "perfect play" in text and "control: a random legal move" in text
    moves = found[0]["moves"]
    assert moves["moves"] >= moves["rare"] >= len(moves["judged"]) > 0
    for one in moves["judged"]:
        assert one["probability"] < 0.2 and one["own_probability"] >= one["probability"]
        assert one["value"] in one["as_rare"]


def test_rare_moves_are_counted_against_chance():
    one = {"value": 1.0, "own_value": 0.0, "as_rare": [1.0, -1.0, 0.0, -1.0], "probability": 1e-4}
    poor = {"value": -1.0, "own_value": -1.0, "as_rare": [-1.0], "probability": 1e-5}
    assert better(one, 0.5) and not better(poor, 0.5)
    assert by_chance(one, 0.5) == 0.25 and by_chance(poor, 0.5) == 0
    assert best_of([poor, one], 0.5) is one and best_of([poor], 0.5) is None


def test_scores_count_both_sides():
    results = np.zeros((2, 2, 3), int)
    results[0, 1], results[1, 0] = (2, 1, 1), (1, 0, 3)  # 2.5 of 4 as the first, 3 of 4 as the second
    assert score(results, 0, 1) == 5.5 / 8 and score(results, 1, 0) == 2.5 / 8 and score(results, 0, 0) == 0.5


def test_a_move_is_shown_where_its_piece_comes_to_lie():
    four, othello = load("connect_four"), load("othello")
    assert tables._place(four, ["." * 7] * 5 + ["...x..."], 3) == (4, 3)
    assert tables._place(othello, [], 8) == (1, 2) and tables._place(othello, [], 36) is None


@pytest.mark.parametrize("key, value, says", [
    ("game", "chess", "choose one of tic_tac_toe"), ("arms", ("alone",), "name league"), ("seeds", (1, 1), "each once"),
    ("temperatures", (0.0,), "above 0"), ("rounds", 0, "choose 1 or more")])
def test_bad_settings_are_refused_at_once(tmp_path, key, value, says):
    with pytest.raises(ValueError, match=says):
        experiment.main(small_config(tmp_path, **{key: value}), str(tmp_path))


def test_snapshots_must_divide_the_run(tmp_path):
    config = small_config(tmp_path)
    config.self_play.keep = 3
    with pytest.raises(ValueError, match="must divide"):
        experiment.check(config)


def test_every_games_config_passes_its_check():
    for game in ("tic_tac_toe", "connect_four", "othello"):
        config = config_file.get_config(game)
        experiment.check(config)
        assert config.game == game and learn.model_config(config, load(game)).vocab_size == load(game).vocab_size
    for settings in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict(settings)
        experiment.check(config)
