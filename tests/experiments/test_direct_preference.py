"""Direct preference optimisation: the command end to end on a small model, its controls, files of pairs, its tables."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from random_weights import random_weights

from configs import direct_preference as config_file
from experiments import direct_preference as experiment
from experiments.direct_preference_report import findings, gains, verdict
from experiments.taste import Start
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.model.config import ModelConfig


@pytest.fixture(scope="module")
def tokenizer():
    return dataclasses.replace(train_tokenizer(["Tell me a joke about a kettle."], 280), chat_template="im_sep")


def small_config(**changes):
    config = config_file.get_config()
    config.data.update({"rankings": 3, "held_out_rankings": 2, "completions": 3})
    config.update({"seeds": (0,), "arms": ("dpo", "dpo_shuffled"), "steps": 2, "batch_size": 2, "looks": 2, "judged": 2,
                   "judged_samples": 2, "max_tokens": 16, "row_length": 128, **changes})
    return config


@pytest.mark.slow
def test_the_command_end_to_end(tmp_path, monkeypatch, tokenizer, draw_no_more):
    model = ModelConfig(tokenizer.vocab_size, 16, 1, 2, 2, 8, 16, 128)
    made = []  # a model that has learned nothing, each seed's own
    monkeypatch.setattr(experiment.taste, "start", lambda settings, seed, cache: made.append(seed) or Start(
        jax.device_put(random_weights(model, seed)), model, tokenizer))
    config = small_config(cache=str(tmp_path / "cache"))
    experiment.main(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    (start,), (straight,), (shuffled,) = (found["runs"][arm] for arm in ("start", "dpo", "dpo_shuffled"))
    assert abs(start[0]["kl"]) < 1e-3 and start[0]["margin"] == 0.0 and start[0]["wins"] == 0.5
    assert [look["step"] for look in straight] == [1, 2] and made == [0]
    assert straight[-1]["margin"] != shuffled[-1]["margin"] != 0.0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "DPO, shuffled" in report and "less start" in report
    draw_no_more()
    experiment.main(config, str(tmp_path / "run"))  # all is kept: nothing is trained again
    assert made == [0]


def test_files_of_pairs_give_prompts_that_leave_room(real_data, tokenizer):
    config = small_config(row_length=600, max_tokens=100)
    config.data.sources = (str(real_data("pref/dpo_en_demo_300.json.xz")),)
    start = Start(None, None, tokenizer)
    train, held_out, prompts = experiment.from_files(config, start, seed=0)
    assert 40 <= len(held_out) <= 80 and len(train) + len(held_out) == 300 and len(prompts) == 2
    assert not {str(ranking.prompt) for ranking in train} & {str(ranking.prompt) for ranking in held_out}
    config.row_length = 101
    with pytest.raises(ValueError, match="0 held-out prompts of at most 1 tokens"):
        experiment.from_files(config, start, seed=0)


def looks(gold):
    return [{"step": 5, "gold": gold, "wins": 0.6, "kl": 1.0, "margin": 0.2, "accuracy": 0.7, "tokens": 20.0,
             "distinct": 1.0}]


def test_tables_pair_by_seed_and_say_who_is_ahead():
    runs = {"start": [looks(0.0), looks(1.0)], "dpo": [looks(0.5), looks(1.6)], "sft": [looks(0.9), looks(0.9)],
            "dpo_shuffled": [looks(0.0), looks(1.2)]}
    last = {arm: {"gold": [seed[-1]["gold"] for seed in seeds]} for arm, seeds in runs.items()}
    gain = gains(last)
    mean, low, high = gain["dpo"]["start"]
    assert mean == pytest.approx(0.55) and high - low == pytest.approx(2 * 12.7062 * 0.05)
    wide = {"dpo": {"start": (0.5, 0.1, 0.9), "sft": (0.1, -0.3, 0.5), "dpo_shuffled": (-0.6, -0.9, -0.3)}}
    assert verdict(wide) == "DPO: ahead of start; behind DPO, shuffled; not told apart from SFT on the chosen."
    found = findings(small_config(arms=("dpo", "sft", "dpo_shuffled")), runs)
    assert len(found.tables) == 2 and len(found.pictures) == 2
    without = {arm: [[{key: value for key, value in look.items() if key not in ("gold", "wins")} for look in seed]
                     for seed in seeds] for arm, seeds in runs.items()}
    assert len(findings(small_config(), without).tables) == 1


@pytest.mark.parametrize("changes, message", [
    ({"arms": ("orpo",)}, "config.arms"), ({"seeds": ()}, "at least one seed"), ({"part": "train"}, "config.part"),
    ({"steps": 0}, "config.steps=0"), ({"looks": 3}, "must not exceed config.steps=2"),
    ({"beta": 0.0}, "config.beta=0"), ({"microbatches": 4}, "must divide config.batch_size")])
def test_what_cannot_be_measured_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        experiment.check(small_config(**changes))


def test_sweep_changes_known_keys():
    for changes in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict({key: value for key, value in changes.items() if not isinstance(value, dict)})
        experiment.check(config)
        assert all(np.isfinite(rate) for rate in changes["learning_rate"].values())
