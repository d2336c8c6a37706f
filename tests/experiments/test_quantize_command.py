"""The command that measures quantised weights: its control, its intervals, its files, what it refuses."""

import json

import jax
import numpy as np
import pytest
from random_weights import random_weights

from configs import quantize as config_file
from experiments import quantize as experiment
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.model.config import preset

TOKENIZER = train_tokenizer(["the old cat sat upon the mat and the rat ran. " * 20], 256 + 12 + len(SPECIAL_TOKENS))
MODEL = preset("nano", layers=1, vocab_size=320)
PARAMS = jax.device_put(jax.tree.map(lambda leaf: 4 * leaf, random_weights(MODEL)))


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setattr(experiment, "load_model", lambda folder: (PARAMS, MODEL, TOKENIZER))


def config_of(**changes):
    config = config_file.get_config("model")
    config.update({"tokens": 192, "length": 32, "batch": 4, "speed_batches": (2,), "speed_prompt": 4, "speed_new": 4,
                   "rounds": 1, "bootstrap_samples": 200, "variants": ("bfloat16", "int8", "int4/int8")})
    config.update(changes)
    return config


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    experiment.main(config_of(), str(tmp_path))
    rows = {row["name"]: row for row in json.loads((tmp_path / "quantize.json").read_text())["rows"]}
    assert list(rows) == ["float32 / float32", "float32 / none: whole rows (control)", "bfloat16 / float32",
                          "int8 / float32", "int4 / int8"]
    same, control = rows["float32 / float32"], rows["float32 / none: whole rows (control)"]
    assert same["change"] == same["low"] == same["high"] == same["largest_gap"] == 0 and same["agreement"] == 1
    assert abs(control["change"]) < 1e-5 and control["largest_gap"] < 1e-4 and not control["speed"]
    assert 1e-4 < rows["int8 / float32"]["mean_gap"] < rows["int4 / int8"]["mean_gap"] / 4
    for row in rows.values():
        assert row["low"] <= row["change"] <= row["high"] and row["perplexity"] > 1
    sizes = [row["bytes"] for row in rows.values() if row is not control]
    assert sizes == sorted(sizes, reverse=True) and sizes[1] == sizes[0] / 2
    assert rows["int4 / int8"]["cache_bytes"] == 2 * 2 * (8 + 4) and same["cache_bytes"] == 2 * 2 * 8 * 4
    assert all(row["speed"]["2"] > 0 for row in rows.values() if row is not control)
    text = (tmp_path / "quantize.md").read_text()
    assert text.count("\n|") == 7 and "2 rows" in text
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and "int4 / int8" in page


def test_an_interval_holds_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        low, high = experiment.interval(generator.normal(1.0, 2.0, size=40), 300, seed)
        held += low <= 1.0 <= high
    assert 178 <= held <= 198


@pytest.mark.parametrize("change, message", [
    ({"variants": ("int3",)}, "write WEIGHTS or WEIGHTS/CACHE"), ({"variants": ("int8/int4",)}, "a cache of float32"),
    ({"tokens": 40}, "two blocks"), ({"length": 128, "tokens": 256}, "exceed the model's 64 positions"),
    ({"speed_new": 80}, "config.speed_new"), ({"speed_batches": (0,)}, "rows >= 1"), ({"rounds": 0}, "at least 1")])
def test_what_cannot_be_measured_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        experiment.main(config_of(**change), str(tmp_path))


def test_a_text_that_is_too_short_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("the cat")
    with pytest.raises(ValueError, match="two blocks of config.length=32"):
        experiment.main(config_of(text=str(tmp_path / "a.txt")), str(tmp_path))
