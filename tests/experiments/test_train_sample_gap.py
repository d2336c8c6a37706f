"""Train = sample: what a name means, the wrong sampler against the forward pass, and the study on runs made up."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from random_weights import random_weights
from scipy.special import log_softmax

from configs import train_sample_gap as config_file
from experiments import practice
from experiments import train_sample_gap as experiment
from experiments.improve import Improved, make_plan
from experiments.train_sample_gap import Mismatch, WrongSampler, mismatch_of
from jaxllm.model.config import preset
from jaxllm.model.transformer import forward

CONFIG = config_file.get_config()
TOKENIZER = dataclasses.replace(practice.learn_tokenizer(CONFIG.start), chat_template="im_sep")
MODEL = preset("nano", layers=1, vocab_size=TOKENIZER.vocab_size)
START = practice.Start(jax.device_put(random_weights(MODEL)), MODEL, TOKENIZER)


@pytest.mark.parametrize("name, found", [
    ("none", Mismatch()), ("weights=int4", Mismatch(weights="int4")), ("temperature=0.7", Mismatch(temperature=0.7)),
    ("top_p=0.5", Mismatch(top_p=0.5)), ("stale=3", Mismatch(stale=3))])
def test_names(name, found):
    assert mismatch_of(name) == found


@pytest.mark.parametrize("name", ["", "weights", "weights=int3", "temperature=0", "top_p=1.2", "stale=-1", "stale=x",
                                  "colour=red"])
def test_what_is_no_mismatch(name):
    with pytest.raises(ValueError, match="is no mismatch"):
        mismatch_of(name)


def test_stale_weights_and_another_temperature_are_what_is_drawn_from():
    config = config_file.get_config().rl
    config.sampler.max_tokens = 5
    sampler = WrongSampler(START, make_plan(config, START).sampler, Mismatch(temperature=0.5, stale=1), 40)
    scaled = [jax.tree.map(lambda x, by=by: by * x, START.params) for by in (4.0, 2.0, 3.0)]
    asked = [[{"role": "user", "content": "dial:1"}]]
    rows = [sampler(params, asked, 2, 0, step) for step, params in enumerate(scaled)]
    logits = jax.jit(forward, static_argnums=1)
    for drawn, params in zip(rows, (scaled[0], scaled[0], scaled[1]), strict=True):  # at first there are no older ones
        for row in drawn:
            ids = np.array([row.ids + [0] * (40 - len(row.ids))])
            logp = log_softmax(np.asarray(logits(params, MODEL, ids)[0], np.float64) / 0.5, axis=-1)
            expected = [logp[t - 1, row.ids[t]] if own else 0.0 for t, own in enumerate(row.mask)]
            np.testing.assert_allclose(row.sampling_logp, expected, atol=1e-4)
    assert rows[0][0].ids != rows[1][0].ids


OUTCOME = {("none", "none"): 0.8, ("weights=int8", "none"): 0.8, ("stale=2", "none"): 0.5, ("stale=2", "token"): 0.7,
           ("top_p=0.7", "none"): 0.3, ("top_p=0.7", "token"): 0.3}


def small(**changes):
    config = config_file.get_config()
    config.update_from_flattened_dict({
        "mismatches": ("weights=int8", "stale=2", "top_p=0.7"), "repaired": ("stale=2", "top_p=0.7"),
        "start.documents": (8, 8, 8), "start.train": 3, "start.test": 2, "start.validation": 2,
        "part": "validation", **changes})
    return config


def test_the_study_finds_what_was_made_up_and_resumes(tmp_path, monkeypatch, draw_no_more):
    calls = []

    def improve(rl, made, reward, seed, *, prompts, converse, title):
        name, importance = title.split(",")[0], rl.policy.importance
        assert f"importance {importance}, seed {seed}" in title and converse.max_length <= 128
        calls.append(title)
        gap = 1e-6 if name == "none" else 0.1
        rows = [{"reward": 0.5, "sampler_gap": gap, "sampler_kl": gap / 10, "entropy": 1.0} for _ in range(3)]
        return Improved(rows, {"level": OUTCOME[name, importance] + 0.01 * seed}, "")

    monkeypatch.setattr(experiment, "improve", improve)
    monkeypatch.setattr(practice, "start", lambda settings, seed, cache: START)
    monkeypatch.setattr(practice, "measure", lambda made, *_, **__: {"accuracy": made.params.get("level", 0.2)})
    experiment.main(small(), str(tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    one = found["mismatches"]
    assert len(calls) == 3 * 6 and one["stale=2"]["price"] == pytest.approx([-0.3] * 3)
    assert one["stale=2"]["repair"] == pytest.approx([0.2] * 3) and one["weights=int8"]["repair"] is None
    assert found["verdict"] == ("Below the control, beyond chance: stale=2, top_p=0.7. Of these the weights help: "
                                "stale=2.")
    assert "verdict" not in (report := (tmp_path / "report.md").read_text()) and "-0.300 [-0.300, -0.300]" in report
    assert (tmp_path / "report.html").read_text().count("<svg") == 2
    draw_no_more()
    experiment.main(small(seeds=(0, 1, 2, 3)), str(tmp_path))
    assert len(calls) == 4 * 6 and all("seed 3" in title for title in calls[18:])


@pytest.mark.parametrize("change, message", [
    ({"mismatches": ("stale=2", "stale=2")}, "name each once"), ({"repaired": ("stale=5",)}, "among the mismatches"),
    ({"importance": "none"}, "choose token or sequence"), ({"seeds": ()}, "at least one seed"),
    ({"part": "train"}, "validation or test"),
    ({"mismatches": ("x=1",)}, "no mismatch"), ({"start.epochs": 0}, "start.epochs")])
def test_bad_settings_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        experiment.main(small(**change), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_every_sweep_passes_the_checks():
    for overrides in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict(overrides)
        experiment.check(config)
