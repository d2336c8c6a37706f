"""The model that the experiments on taste share: made once, drawn from and judged; and the command, small."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import taste as configs
from experiments import lab, taste
from jaxllm.data.preferences import read_prompts
from jaxllm.data.world_taste import gold, thing_of, things
from jaxllm.train.checkpoint import save_model


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = configs.get_config()
    config.seeds, config.things, config.samples, config.rankings, config.people = (3,), 3, 2, 6, 2
    config.cache = str(tmp_path_factory.mktemp("cache"))
    start = config.start
    start.talks, start.epochs, start.max_tokens, start.learning_rate = 60, 1, 12, 1e-2
    start.shape.update(dim=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_dim=32)
    return config


@pytest.fixture(scope="module")
def made(config):
    return taste.start(config.start, 3, config.cache)


def same(one, other):
    return all(np.array_equal(np.asarray(a), np.asarray(b))
               for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_a_start_is_made_once_and_tells_something(config, made, monkeypatch, capsys):
    monkeypatch.setattr(lab, "train", lambda *arguments: pytest.fail("trained again"))
    again = taste.start(config.start, 3, config.cache)
    assert same(made.params, again.params)
    assert again.tokenizer.chat_template == "im_sep" and again.model == made.model
    asked = things("test")[:3]
    drawn = taste.draw(made.params, made.model, made.tokenizer, asked, samples=2, max_tokens=12, seed=1)
    assert [len(row) for row in drawn] == [2, 2, 2]
    texts = [[answer.text for answer in row] for row in drawn]
    judged = taste.judge(asked, texts)
    assert judged.shape == (3, 2) and judged[1, 0] == gold(asked[1], texts[1][0])
    one = taste.draw(made.params, made.model, made.tokenizer, asked, samples=2, max_tokens=12, seed=1)
    assert [[answer.text for answer in row] for row in one] == texts
    with pytest.raises(pytest.fail.Exception):  # another seed is another model
        taste.start(config.start, 4, config.cache)


def test_a_published_model_is_used_as_it_is(config, made, tmp_path):
    settings = configs.start_config(str(tmp_path / "chat"))
    assert settings.talks == 0
    save_model(tmp_path / "chat", made.params, made.model, made.tokenizer)
    found = taste.start(settings, 0, tmp_path / "cache")
    assert same(found.params, made.params) and not (tmp_path / "cache").exists()
    save_model(tmp_path / "base", made.params, made.model, dataclasses.replace(made.tokenizer, chat_template=None))
    settings.model = str(tmp_path / "base")
    with pytest.raises(ValueError, match="no chat template"):
        taste.start(settings, 0, tmp_path / "cache")


def test_the_command_writes_what_it_found(config, made, tmp_path, capsys):
    taste.main(config, str(tmp_path))
    printed = capsys.readouterr().out
    assert "seed 3: gold of people (the corpus)" in printed and "jokes, seed 3" not in printed
    (run,) = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert run["corpus"]["gold"] > run["other"]["gold"] and set(run) == {*taste.TELLERS, *taste.PEOPLE}
    assert run["exact"]["decided"] == 1.0 and run["exact"]["kappa"] == 1.0
    assert run["human"]["gold"] > 0.6 > abs(run["coin"]["kappa"]) + 0.1
    assert [thing_of(asked) for asked in read_prompts(tmp_path / "prompts.jsonl")] == list(things("train"))
    assert "| the model |" in (tmp_path / "report.md").read_text()
    taste.main(config, str(tmp_path))  # kept: nothing is measured again
    assert "0 s in all" in capsys.readouterr().out


@pytest.mark.parametrize("changes, sentence", [
    ({"start.talks": 0}, "start.talks=0: give 1 or more"), ({"start.epochs": 0}, "start.epochs=0 must be above 0"),
    ({"start.row_length": 256}, "exceeds start.shape.max_positions=128"), ({"seeds": ()}, "name at least one seed"),
    ({"things": 40}, "config.things=40: choose 1 to 39"), ({"people": 1}, "config.people=1: choose 2 or more"),
    ({"temperature": 0.0}, "config.temperature must be above 0"), ({"human.noise": -1.0}, "config.human.noise"),
])
def test_what_cannot_be_is_refused(changes, sentence, tmp_path):
    config = configs.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=sentence):
        taste.main(config, str(tmp_path))
