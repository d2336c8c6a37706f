"""Sampling from the command: prompts in, text and jsonl out; streamed text is the batched text."""

import json
import re

import jax
import numpy as np
import pytest
from random_weights import random_weights

from configs import sample as config_file
from experiments import sample as experiment
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.model.config import preset

TOKENIZER = train_tokenizer(["the old cat sat upon the mat and the rat ran. " * 20],
                            256 + 12 + len(SPECIAL_TOKENS))
# Wider than the tokenizer, as a padded vocabulary is.
MODEL = preset("nano", layers=1, vocab_size=320)
PARAMS = jax.device_put(random_weights(MODEL))


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setattr(experiment, "load_model", lambda folder: (PARAMS, MODEL, TOKENIZER))


def config_of(**changes):
    config = config_file.get_config()
    config.update({"prompt": "the cat", "max_tokens": 12, "temperature": 1.0, "top_p": 1.0})
    config.update(changes)
    return config


def run(capsys, **changes):
    """The texts after each heading."""
    experiment.main(config_of(**changes), "unused")
    return re.split(r"\n=== sample \d+ ===\n", capsys.readouterr().out.removesuffix("\n"))[1:]


def test_streamed_text_is_the_batched_text(capsys):
    streamed = run(capsys, samples=2)
    batched = run(capsys, samples=2, stream=False)
    assert [text.rstrip("\n") for text in streamed] == [text.rstrip("\n") for text in batched]
    assert all(text.startswith("the cat") and len(text) > 7 for text in batched)
    assert batched[0] != batched[1] and run(capsys, samples=2, stream=False, seed=1) != batched


def test_jsonl_holds_what_was_printed(capsys, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the cat"}\n\n{"prompt": "a\\nrat"}\n')
    printed = run(capsys, prompts_file=str(prompts), samples=2, stream=False,
                  output=str(tmp_path / "out.jsonl"))
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(record["prompt"], record["sample"]) for record in records] == [
        ("the cat", 0), ("the cat", 1), ("a\nrat", 0), ("a\nrat", 1)]
    for record, text in zip(records, printed, strict=True):
        assert text.removesuffix("\n") == (record["prompt"] + record["text"]).removesuffix("\n")
        assert len(record["tokens"]) == len(record["logp"]) <= 12 and max(record["logp"]) < 0
        assert max(record["tokens"]) < TOKENIZER.vocab_size
        assert record["stopped"] == (record["tokens"][-1] == TOKENIZER.end_of_text)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_few_shot_prompts_from_text(tmp_path):
    path = tmp_path / "shots.txt"
    path.write_text("Q: 1+1\nA: 2\n\nQ: 2+2\nA:\n---\nsecond \n--- \n\nthird\n")
    assert experiment.read_prompts(str(path)) == [
        "Q: 1+1\nA: 2\n\nQ: 2+2\nA:", "second ", "\nthird"]


@pytest.mark.parametrize("name, content, sentence", [
    ("a.jsonl", b'{"prompt": "x"}\n{"text": "y"}\n', "a.jsonl:2 must be an object with a text"),
    ("a.jsonl", b'{"prompt": "x"\n', r"a.jsonl:1 is not json"),
    ("a.txt", b"---\n---\n", "holds no prompt"),
    ("a.txt", b"caf\xe9", "is not UTF-8"),
])
def test_a_bad_prompts_file_is_refused_by_name_and_line(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        experiment.main(config_of(prompts_file=str(tmp_path / name)), "unused")


@pytest.mark.parametrize("changes, sentence", [
    (dict(samples=0), "config.samples is 0"), (dict(max_tokens=0), "config.max_tokens is 0"),
    (dict(batch=0), "config.batch is 0"), (dict(top_p=0.0), "sampling.top_p is 0"),
    (dict(stop=("<|nothing|>",)), "config.stop: '<|nothing|>' is no special token"),
    (dict(output="out.jsonl"), "config.output needs config.stream=False"),
    (dict(output="no/such/out.jsonl", stream=False), "there is no folder"),
    (dict(prompts_file="no_such_file.txt"), "no_such_file.txt"),
    (dict(max_tokens=64), "prompt 0 has .* exceeds the model's 64 positions"),
    (dict(dtype="float8"), "execution.dtype is 'float8'"),
])
def test_bad_settings_are_refused(changes, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence.replace("|", r"\|")):
        experiment.main(config_of(**changes), "unused")


def test_every_key_reaches_the_sampler(monkeypatch):
    seen = {}

    def record(params, model, ids, **arguments):
        seen.update(arguments, ids=ids)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "generate", record)
    with pytest.raises(KeyboardInterrupt):
        experiment.main(config_of(
            stream=False, samples=3, batch=5, seed=9, temperature=0.5, top_k=4, top_p=0.8,
            min_p=0.1, repetition_penalty=1.1, dtype="bfloat16", prompt="the", stop=()), "unused")
    settings = seen["settings"]
    assert (settings.temperature, settings.top_k, settings.top_p, settings.min_p,
            settings.repetition_penalty) == (0.5, 4, 0.8, 0.1, 1.1)
    counts = [seen[name] for name in ("key", "samples_per_prompt", "batch", "max_tokens")]
    assert counts == [9, 3, 5, 12]
    assert seen["execution"].dtype == "bfloat16" and seen["stop_tokens"] == ()
    assert seen["valid_vocab"] == TOKENIZER.vocab_size < MODEL.vocab_size
    assert seen["ids"] == [[TOKENIZER.end_of_text, *TOKENIZER.encode("the")]]


def test_an_id_without_a_token_prints_as_the_replacement_character(monkeypatch):
    assert experiment.token_bytes(TOKENIZER, [97]) == b"a"

    class Gap:
        def decode_bytes(self, ids):
            raise ValueError("no token")

        def decode(self, ids):
            return "\ufffd"

    assert experiment.token_bytes(Gap(), [5]) == "\ufffd".encode()


def test_the_sweep_holds_keys_of_the_config():
    for changes in config_file.sweep():
        config_of(**changes)
    assert np.isfinite([changes["temperature"] for changes in config_file.sweep()]).all()
