"""The policy-gradient benchmark: what it refuses, and what it says of numbers; docs/policy_gradient.md has a run."""

import pytest

from configs import benchmark_policy as config_file
from experiments import benchmark_policy as experiment


def test_the_quickest_stands_first_and_shares_are_those_of_our_side(monkeypatch):
    monkeypatch.setattr(experiment, "has_trl", lambda: False)
    ours = {"logp": -6.0, "tokens": 3000.0, "sampled_per_second": 500.0, "engine_per_second": 1000.0,
            "shares": {"sampling": 0.5, "rewarding": 0.0, "scoring": 0.2, "updating": 0.3}}
    about = {"TRL: grpo": {"logp": -6.0, "tokens": 2990.0}, "ours: grpo, generate": ours}
    found = experiment.findings(config_file.get_config(), {"TRL: grpo": [2.0, 4.0, 3.0],
                                                           "ours: grpo, generate": [0.5, 0.25, 1.0]}, about)
    speed, parts = (table.rows for table in found.tables)
    assert [row[:3] for row in speed[1:]] == [["ours: grpo, generate", "2.00", "1.00 - 4.00"],
                                              ["TRL: grpo", "0.33", "0.25 - 0.50"]]
    assert parts[1:] == [["ours: grpo, generate", "50%", "0%", "20%", "30%", "500", "1,000", "0.50"]]
    assert "not installed" in found.tables[0].note


def test_rivals_are_given_the_same_work(tmp_path):
    config = config_file.get_config()
    rivals = experiment.list_rivals(config, tmp_path)
    assert [name for name in rivals if name.startswith("ours")] == [f"ours: {name}" for name in config.ours]
    for _, spec, _ in rivals.values():
        assert (spec["prompts"], spec["samples"], spec["max_tokens"]) == (8, 8, 48)


@pytest.mark.parametrize("change, message", [
    ({"ours": ("grpo",)}, "config.ours holds grpo"), ({"peers": ("ppo",)}, "config.peers holds ppo"),
    ({"rounds": 0}, "config.rounds=0"), ({"samples": 1}, "config.samples=1"), ({"heads": 3}, "divide")])
def test_bad_settings_leave_nothing_behind(tmp_path, change, message):
    config = config_file.get_config()
    config.update(change)
    with pytest.raises(ValueError, match=message):
        experiment.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sweep_passes_the_checks():
    for overrides in config_file.sweep():
        config = config_file.get_config()
        config.update(overrides)
        experiment.check(config)
