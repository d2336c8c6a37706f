"""Chat in the terminal: lines in, replies out, on a small random model."""

import dataclasses
import io
import json

import jax
import pytest
from random_weights import random_weights

from configs import chat as config_file
from experiments import chat as experiment
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.model.config import preset

BASE = train_tokenizer(["the old cat sat upon the mat and the rat ran. " * 20], 256 + 12 + len(SPECIAL_TOKENS))
TOKENIZER = dataclasses.replace(BASE, chat_template="im_sep")
MODEL = preset("nano", layers=1, vocab_size=320, max_positions=128)
PARAMS = jax.device_put(random_weights(MODEL))


def run(monkeypatch, capsys, text, tokenizer=TOKENIZER, **changes):
    """What is printed in answer to these lines."""
    monkeypatch.setattr(experiment, "load_model", lambda folder: (PARAMS, MODEL, tokenizer))
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    config = config_file.get_config()
    config.update({"max_tokens": 8, "temperature": 1.0, "top_p": 1.0, **changes})
    experiment.main(config, "unused")
    return capsys.readouterr().out


def saved(path):
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def test_a_conversation(monkeypatch, capsys, tmp_path):
    file = tmp_path / "talk.jsonl"
    printed = run(monkeypatch, capsys, "the cat\n\nand a rat\n/quit\nnever\n", system="Be kind.", save=str(file))
    (messages,) = saved(file)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [messages[i]["content"] for i in (0, 1, 3)] == ["Be kind.", "the cat", "and a rat"]
    assert printed.startswith("".join(messages[i]["content"] + "\n\n" for i in (2, 4)))
    assert run(monkeypatch, capsys, "the cat\nand a rat\n", system="Be kind.") == printed.rpartition("saved to")[0]
    assert run(monkeypatch, capsys, "the cat\nand a rat\n") != printed


def test_commands(monkeypatch, capsys, tmp_path):
    first, second, end = tmp_path / "first.jsonl", tmp_path / "second.jsonl", tmp_path / "end.jsonl"
    printed = run(monkeypatch, capsys, (
        f"/retry\n/undo\n/system Short.\nthe cat\n/save {first}\n/retry\n/save {first}\n//quit\n/undo\n/save {second}\n"
        f"/save {tmp_path}/none/x.jsonl\n/what\n/new\n/system\na mat\n"), save=str(end))
    assert printed.count("nothing was said yet") == 2 and "there is no folder" in printed and "/undo " in printed
    before, retried = saved(first)
    asked = [{"role": "system", "content": "Short."}, {"role": "user", "content": "the cat"}]
    assert before[:2] == retried[:2] == asked
    assert before[2]["content"] != retried[2]["content"]
    assert saved(second) == [retried]
    assert [message["content"] for message in saved(end)[0] if message["role"] != "assistant"] == ["a mat"]


def test_every_setting_changes_the_reply(monkeypatch, capsys):
    changes = {"system": "Short.", "template": "chatml", "max_tokens": 3, "temperature": 0.0, "top_k": 1, "top_p": 0.01,
               "min_p": 0.99, "repetition_penalty": 0.01, "seed": 5}
    others = {"model", "save", "capacity", "dtype"}
    assert set(changes) | others == set(config_file.get_config())
    line = "the cat sat upon the mat\n"
    base = run(monkeypatch, capsys, line, max_tokens=24)
    for key, value in changes.items():
        assert run(monkeypatch, capsys, line, **{"max_tokens": 24, key: value}) != base, key
    assert run(monkeypatch, capsys, line, max_tokens=24) == base
    made = []
    monkeypatch.setattr(experiment, "Engine", lambda params, model, **settings: made.append(settings))
    run(monkeypatch, capsys, "", capacity=32, dtype="bfloat16")
    assert made[0]["capacity"] == 32 and made[0]["execution"].dtype == "bfloat16"


def test_ctrl_c_ends_a_reply_and_no_more(monkeypatch, capsys, tmp_path):
    whole, file = tmp_path / "whole.jsonl", tmp_path / "talk.jsonl"
    run(monkeypatch, capsys, "the cat\n", save=str(whole))
    push, pushed = experiment.TextStream.push, []

    def interrupted(self, token):
        pushed.append(token)
        if len(pushed) == 4:
            raise KeyboardInterrupt
        return push(self, token)

    monkeypatch.setattr(experiment.TextStream, "push", interrupted)
    run(monkeypatch, capsys, "the cat\nand a rat\n", save=str(file))
    messages = saved(file)[0]
    assert len(messages) == 4 and len(messages[1]["content"]) < len(saved(whole)[0][1]["content"])
    assert saved(whole)[0][1]["content"].startswith(messages[1]["content"]) and len(pushed) > 4


def test_too_long_is_said_and_undone(monkeypatch, capsys, tmp_path):
    file = tmp_path / "talk.jsonl"
    printed = run(monkeypatch, capsys, "the cat " * 100 + "\nthe cat\n", save=str(file))
    assert "there is room for 128: /undo some of it" in printed
    assert [message["content"] for message in saved(file)[0]][0] == "the cat" and len(saved(file)[0]) == 2


@pytest.mark.parametrize("changes, message", [
    ({"tokenizer": BASE}, "has no chat template: its model is one that continues text"),
    ({"template": "llama3"}, r"the chat format llama3 needs the special tokens <\|begin_of_text\|>"),
    ({"max_tokens": 0}, "config.max_tokens is 0"), ({"temperature": -1.0}, "temperature"),
    ({"save": "/nowhere/talk.jsonl"}, "there is no folder /nowhere"),
])
def test_bad_settings(monkeypatch, capsys, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(monkeypatch, capsys, "the cat\n", **changes)
