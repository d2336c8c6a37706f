"""The tokenizer experiment: what it writes, what each key changes, what it refuses."""

import json

import pytest
import requests

from configs import train_tokenizer as config_file
from experiments import train_tokenizer as experiment
from jaxllm.data.tokenizer import SPECIAL_TOKENS, load_tokenizer


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network and no tokenizer cache, whatever the machine has."""
    def no_network(*args, **kwargs):
        raise requests.exceptions.ConnectionError("Name or service not known")

    monkeypatch.setattr("requests.get", no_network)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))


@pytest.fixture
def corpus(tmp_path):
    """A source of 60 documents as jsonl with the text under two names."""
    path = tmp_path / "corpus.jsonl"
    lines = [{"id": f"d{i}",
              "text": f"In {1900 + i} cat {i * 37} sat upon their yellow mat {i}, which was old. " * 9,
              "body": f"Page {i} says nothing of cats, only of dogs and {i} bones. " * 9}
             for i in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(corpus, workdir, **changes):
    """Runs the experiment and returns (its report without timings, the tokenizer)."""
    config = config_file.get_config(str(corpus))
    config.update({"vocab_size": 285, "heldout_percent": 20.0, "references": (), **changes})
    experiment.main(config, str(workdir))
    report = json.loads((workdir / "compression.json").read_text())
    for row in report["tokenizers"]:
        row.pop("encode_mb_per_second", None)
    return report, load_tokenizer(workdir / "tokenizer")


def test_report_counts_the_heldout_text_alone(corpus, tmp_path, capsys):
    report, tokenizer = run(corpus, tmp_path / "run")
    documents = [json.loads(line) for line in corpus.read_text().splitlines()]
    texts = [d["text"] for d in documents]
    split = list(experiment.texts(experiment.open_source(str(corpus)), 20.0, heldout=True))
    rest = list(experiment.texts(experiment.open_source(str(corpus)), 20.0, heldout=False))
    assert sorted(split + rest) == sorted(texts) and 4 <= len(split) <= 24
    assert report["heldout_documents"] == len(split)
    assert report["heldout_bytes"] == sum(len(text) for text in split)
    row = report["tokenizers"][0]
    assert row["tokens"] == sum(len(tokenizer.encode(text)) for text in split)
    assert row["bytes_per_token"] == pytest.approx(report["heldout_bytes"] / row["tokens"])
    assert report["fingerprint"] == tokenizer.fingerprint
    table = (tmp_path / "run" / "compression.md").read_text()
    assert table in capsys.readouterr().out and f"{row['bytes_per_token']:.3f}" in table


def test_reference_by_folder_and_one_that_cannot_be_loaded(corpus, tmp_path):
    small, _ = run(corpus, tmp_path / "small", vocab_size=270)
    folder = str(tmp_path / "small" / "tokenizer")
    report, _ = run(corpus, tmp_path / "run", references=(folder, "gpt2"))
    ours, reference, missing = report["tokenizers"]
    assert reference == small["tokenizers"][0] and reference["tokens"] > ours["tokens"]
    assert missing["tokenizer"] == "gpt2" and "TIKTOKEN_CACHE_DIR" in missing["not_measured"]
    table = (tmp_path / "run" / "compression.md").read_text()
    assert "| gpt2 | not measured |" in table and "set TIKTOKEN_CACHE_DIR" in table


@pytest.mark.parametrize("change", [
    {"text_key": "body"}, {"vocab_size": 280}, {"pattern": "digits"},
    {"special_tokens": SPECIAL_TOKENS[:3]}, {"max_characters": 2_000}, {"heldout_percent": 50.0},
    {"max_heldout_characters": 500}, {"references": ("gpt2",)}, {"source": "world:0:tiny"},
])
def test_every_key_changes_something(corpus, tmp_path, change):
    base, _ = run(corpus, tmp_path / "base")
    changed, _ = run(corpus, tmp_path / "changed", **change)
    assert base != changed


def test_threads_reach_the_encoder(corpus, tmp_path, monkeypatch):
    seen = []
    encode_batch = experiment.Tokenizer.encode_batch
    monkeypatch.setattr(experiment.Tokenizer, "encode_batch",
                        lambda self, texts, threads: seen.append(threads) or
                        encode_batch(self, texts, threads))
    run(corpus, tmp_path / "run", threads=3)
    assert seen == [3]


def test_the_test_of_keys_names_every_key():
    cases = test_every_key_changes_something.pytestmark[0].args[1]
    flipped = {key for change in cases for key in change} | {"threads"}
    assert flipped == set(config_file.get_config())


def test_sweep_changes_keys_of_the_config():
    config = config_file.get_config()
    for overrides in config_file.sweep():
        config.update_from_flattened_dict(overrides)
    assert len({str(o) for o in config_file.sweep()}) == len(config_file.sweep()) >= 2


@pytest.mark.parametrize("change, message", [
    ({"heldout_percent": 0.0}, "config.heldout_percent=0.0: choose more than 0"),
    ({"heldout_percent": 100.0}, "config.heldout_percent=100.0"),
    ({"heldout_percent": 1e-6}, "no text is held out of"),
    ({"max_characters": 0}, "config.max_characters=0: choose 1 or more"),
    ({"threads": 0}, "config.threads=0: choose 1 or more"),
    ({"vocab_size": 100_000}, "give more text, or vocab_size="),
    ({"references": ("gpt9",)}, "no tokenizer 'gpt9'"),
    ({"pattern": "gpt5"}, "unknown split pattern 'gpt5'"),
])
def test_bad_settings_leave_nothing_behind(corpus, tmp_path, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(corpus, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_is_not_overwritten(corpus, tmp_path):
    _, before = run(corpus, tmp_path / "run")
    with pytest.raises(FileExistsError, match="choose another --workdir"):
        run(corpus, tmp_path / "run", vocab_size=280)
    assert load_tokenizer(tmp_path / "run" / "tokenizer") == before
