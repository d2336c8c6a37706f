"""The choice of starts for control tokens, at a size of seconds: every cell is measured, kept, and asked fairly."""

import json

import jax
import pytest
from random_weights import random_weights

from configs import sft_start as config_file
from experiments import sft_start
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.data.world import documents, make_world
from jaxllm.model.config import preset
from jaxllm.train.checkpoint import save_model


@pytest.fixture
def config():
    config = config_file.get_config("tiny")
    config.seeds, config.starts, config.steps, config.asked_people = (0, 1), ("like", "untouched"), (8,), 1
    config.learning_rate, config.row_length, config.batch_size = 1e-2, 64, 2
    return config


@pytest.mark.slow
def test_every_start_is_measured_once_and_tabled(config, tmp_path, monkeypatch):
    tokenizer = train_tokenizer([page.text for page in documents(make_world(0, "tiny"))], 400, "digits",
                                SPECIAL_TOKENS)
    model = preset("nano", layers=1, vocab_size=400, max_positions=128)
    save_model(tmp_path / "base", jax.device_put(random_weights(model)), model, tokenizer)
    asked = []
    monkeypatch.setattr(sft_start.lab, "base_model", lambda base, seed: asked.append(seed) or tmp_path / "base")
    sft_start.main(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(found) == {"like/8", "untouched/8"} and asked == [0, 1]
    for runs in found.values():
        assert len(runs) == 2 and all(run["loss"] < run["before"] - 0.5 and 0 <= run["right_told"] <= 1 for run in runs)
    assert found["like/8"][0]["before"] != found["untouched/8"][0]["before"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 2 and "like - untouched" in page
    monkeypatch.setattr(sft_start, "measure", pytest.fail)  # a second run finds what the first kept
    monkeypatch.setattr(sft_start, "write", lambda found, *rest: asked.append(found.numbers))
    sft_start.main(config, str(tmp_path / "run"))
    assert asked[-1] == found


def test_nobody_stands_in_two_parts(config):
    parts = {}
    for part in sft_start.PARTS:
        config.part = part
        train, asked = sft_start.facts_of(config, 0)
        parts[part] = {fact.entity.name for fact in asked}
        parts["train"] = {fact.entity.name for fact in train}
        assert len(parts[part]) == 1
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 4
    assert {name for part in parts.values() for name in part} == {
        entity.name for entity in make_world(0, "tiny").people if entity.band == "often"}


@pytest.mark.parametrize("changes, message", [
    ({"starts": ("random",)}, "name some of like, mean, untouched"), ({"starts": ()}, "name some of"),
    ({"seeds": ()}, "at least one seed"), ({"steps": (5,)}, "lengths above config.warmup_steps=5"),
    ({"part": "train"}, "ask validation or test"), ({"size": "small"}, "lacks 'world:{seed}:small'"),
    ({"asked_people": 0}, "choose 1 or more"), ({"asked_people": 2}, "leave nobody")])
def test_bad_settings_are_refused(config, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(sft_start.lab, "base_model", lambda base, seed: tmp_path)
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        sft_start.main(config, str(tmp_path))
