"""The calibration of the arena: the simulated votes follow their law, and the command from end to end, small."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.special import expit

from configs import arena_calibration as configs
from experiments import arena_calibration, arena_calibration_report, report
from experiments.arena_calibration_simulate import World, first_votes, simulate, without_style


def test_votes_follow_the_law_of_their_world():
    rng = np.random.default_rng(0)
    world = World((0.6, -0.6), tie=0.5, lengths=(1.0, 0.0), bias=0.8)
    votes = simulate(world, 60_000, rng)
    sign = np.where(votes.first == 0, 1, -1)
    x, points = votes.covariates[:, 0] * sign, np.where(sign > 0, votes.points, 1 - votes.points)
    assert x.mean() == pytest.approx(1 / np.sqrt(2), abs=0.02) and x.std() == pytest.approx(1.0, abs=0.02)
    near = np.abs(x - 0.5) < 0.1
    expected = expit(1.2 + 0.8 * 0.5)
    assert points[near].mean() == pytest.approx(expected, abs=0.02)
    assert (points[near] == 0.5).mean() == pytest.approx(expected * (1 - expected), abs=0.02)
    repeated = simulate(World((0.0, 0.0), voters=3, repeat=1.0), 300, rng)
    assert (repeated.points.reshape(-1, 3).std(1) == 0).all() and len(np.unique(repeated.groups)) == 100
    badly, seen = (simulate(World((0.0, 0.0), bias=2.0, reliability=share), 4000, np.random.default_rng(1))
                   for share in (0.5, 1.0))
    assert np.corrcoef(badly.covariates[:, 0], seen.covariates[:, 0])[0, 1] == pytest.approx(0.5, abs=0.05)
    assert without_style(votes).names == () and len(first_votes(votes, 7).points) == 7


def test_from_when_on_a_flag_stays():
    flags = np.array([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]])
    assert arena_calibration_report._stays(flags, [1, 2, 4, 8, 16]).tolist() == [8, 1, np.inf]


def test_the_command_small(tmp_path, monkeypatch):
    def sketch(draw, **settings):  # drawn and not rendered, which takes longer than all the rest
        draw(Figure().subplots())
        return "<figure><svg></svg></figure>"

    monkeypatch.setattr(report, "picture", sketch)
    config = configs.get_config()
    config.arenas, config.styled_arenas, config.samples, config.votes = 6, 4, 100, (20, 400)
    config.styled_votes, config.most_votes, config.longer, config.biases = 400, 200, (2.0,), (0.0, 0.9)
    arena_calibration.main(config, str(tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    few, many, *_ = found["coverage"]
    assert np.mean(many["bootstrap"]) > 0.7 and np.mean(many["width"]) < np.mean(few.get("width", [9.0]))
    assert len(few.get("tau", [])) + few["refused"] == 6
    alone, grouped = found["dependent"]
    assert np.mean(alone["width"]) < 0.8 * np.mean(grouped["width"])
    fair, biased = (np.mean(one["plain"], axis=0)[0] for one in found["verbosity"][:2])
    styled = np.mean(found["verbosity"][1]["styled"], axis=0)[0]
    assert abs(fair) < 0.3 < biased and abs(styled) < 0.3
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3 and "Control: equal players" in page
    monkeypatch.setattr(arena_calibration, "simulate", lambda *given: pytest.fail("simulated again"))
    monkeypatch.setattr(arena_calibration.findings, "write", lambda made, *given: again.update(made.numbers))
    again = {}
    arena_calibration.main(config, str(tmp_path))  # every part was kept
    assert again.items() <= found.items() and len(again) == 5


@pytest.mark.parametrize("changes, message", [
    ({"players": 3}, "config.players=3"), ({"votes": (300, 100)}, "the smallest first"), ({"step": 0.0}, "above 0"),
    ({"biases": (0.0,)}, "a bias above 0"), ({"reliability": 2.0}, "lie in 0 to 1"),
])
def test_bad_settings_are_refused(tmp_path, changes, message):
    config = configs.get_config()
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        arena_calibration.main(config, str(tmp_path))
