"""The quality classifier's command: what it writes, its controls, what each key changes, what it refuses."""

import json

import numpy as np
import pytest
from random_weights import random_weights

from configs import quality_classifier as config_file
from experiments import quality_classifier as experiment
from jaxllm.data.curate.quality import load_classifier
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.model.config import preset
from jaxllm.train.checkpoint import save_model

SMALL = {"folds": 2, "seeds": (0,), "permutations": 2, "bootstrap_samples": 20, "timing_passes": 1, "max_steps": 20,
         "bits": 12}
TIMINGS = ("cpu_microseconds_per_document", "million_characters_per_cpu_second")
ECHOES = ("labels", "features", "loss", "l2", "folds", "seeds")  # the config's own words


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """60 documents; what is good is told by one word, and by nothing else."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("labels") / "labels.jsonl"
    rows = []
    for i in range(60):
        text = " ".join(rng.choice([f"w{k}" for k in range(30)], 20))
        rows.append({"text": f"{text} {'clear' if i % 2 else 'murky'}", "label": i % 2, "other": f"{i} {text}",
                     "score": str(i % 3)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(source, workdir, draw=False, **changes):
    config = config_file.get_config(str(source))
    config.update({**SMALL, **changes})
    with pytest.MonkeyPatch.context() as patch:
        if not draw:  # half of a run of this size
            patch.setattr(experiment.report, "curves", lambda *args, **kwargs: "")
        experiment.main(config, str(workdir))
    measured = json.loads((workdir / "report.json").read_text())
    return {key: value for key, value in measured.items() if key not in TIMINGS}


def test_report_classifier_and_controls(labels, tmp_path, capsys):
    measured = run(labels, tmp_path / "run", draw=True, permutations=4)
    assert measured["documents"] == 60 and measured["good"] == 30
    assert measured["auc"] > 0.9 and measured["auc_low"] <= measured["auc"] <= measured["auc_high"]
    assert measured["length_auc"] < 0.8 and 0.25 < measured["permuted_auc"] < 0.75
    classifier = load_classifier(tmp_path / "run" / "classifier")
    clear, murky = classifier(["w1 w2 w3 clear", "w1 w2 w3 murky"])
    assert clear > 0.5 > murky
    rows = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [0, 1] * 30 and all(len(row["scores"]) == 1 for row in rows)
    assert f"{measured['auc']:.3f}" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture(scope="module")
def base(labels, tmp_path_factory):
    return results(labels, tmp_path_factory.mktemp("base") / "run")


def results(source, workdir, **changes):
    """What was found, without the settings that the report repeats."""
    measured = run(source, workdir, **changes)
    scores = (workdir / "scores.jsonl").read_text()
    return {key: value for key, value in measured.items() if key not in ECHOES}, scores


@pytest.mark.slow
@pytest.mark.parametrize("change", [
    {"labels": "world:1:tiny"}, {"text_key": "other"}, {"label_key": "score"},
    {"positive_from": 1.5, "label_key": "score"},
    {"bits": 8}, {"max_characters": 30}, {"loss": "ridge"}, {"l2": 0.1}, {"max_steps": 1}, {"tolerance": 0.1},
    {"folds": 3}, {"seeds": (1,)}, {"permutations": 1}, {"bootstrap_samples": 30},
])
def test_every_key_changes_something(labels, tmp_path, base, change):
    assert results(labels, tmp_path / "run", **change) != base


def test_styles_of_the_world():
    config = config_file.get_config()
    for styles, good in ((("story",), 20), (("story", "list"), 40)):
        config.good_styles = styles
        assert sum(document.label for document in experiment.read(config)) == good


def test_hidden_states_of_a_model(labels, tmp_path, monkeypatch):
    config = preset("nano", vocab_size=512)
    texts = [json.loads(line)["text"] for line in labels.read_text().splitlines()]
    tokenizer = train_tokenizer(texts, vocab_size=290)
    save_model(tmp_path / "model", random_weights(config), config, tokenizer)
    sizes = set()
    made = experiment.make_featurizer

    def watched(config):
        features = made(config)
        sizes.add((features.max_tokens, features.batch_size))
        return features
    monkeypatch.setattr(experiment, "make_featurizer", watched)
    settings = {"model": str(tmp_path / "model"), "max_tokens": 48, "batch_size": 32, "l2": 0.01}
    measured = run(labels, tmp_path / "run", **settings)
    assert measured["features"] == str(tmp_path / "model") and sizes == {(48, 32)}
    loaded = load_classifier(tmp_path / "run" / "classifier", experiment.open_model)
    assert loaded(texts).shape == (60,)
    with pytest.raises(ValueError, match="config.max_tokens=100000"):
        run(labels, tmp_path / "long", **settings | {"max_tokens": 100_000})


def test_timing_passes_reach_the_clock(labels, monkeypatch):
    calls = []
    measured = experiment.cost(lambda texts: calls.append(len(texts)) or sum(range(10**5)), ["ab"], 4)
    assert calls == [1] * 5 and measured["characters_per_document"] == 2


def test_the_tests_of_keys_name_every_key():
    cases = test_every_key_changes_something.pytestmark[0].args[1]
    elsewhere = {"good_styles", "model", "max_tokens", "batch_size", "timing_passes"}
    assert {key for change in cases for key in change} | elsewhere == set(config_file.get_config())


def test_sweep_changes_keys_of_the_config():
    config = config_file.get_config()
    for overrides in config_file.sweep():
        config.update_from_flattened_dict(overrides)
    assert len({str(o) for o in config_file.sweep()}) == len(config_file.sweep()) >= 2


@pytest.mark.parametrize("change, message", [
    ({"loss": "hinge"}, "config.loss='hinge'"), ({"folds": 1}, "config.folds=1: choose 2 or more"),
    ({"seeds": ()}, "config.seeds"), ({"bootstrap_samples": 0}, "config.bootstrap_samples=0"),
    ({"timing_passes": 0}, "config.timing_passes=0"), ({"positive_from": 7.0}, "0 documents with a label"),
    ({"label_key": "grade"}, r"labels\.jsonl, line 1: .*'grade'"), ({"labels": "nowhere.jsonl"}, "check the path"),
    ({"model": "nowhere"}, "is not a model"), ({"bits": 40}, "bits=40"),
])
def test_bad_settings_leave_nothing_behind(labels, tmp_path, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(labels, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()
