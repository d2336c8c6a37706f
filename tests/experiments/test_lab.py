"""The laboratory's bench: stages are made once and survive a kill, short runs train what they say, models answer."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from random_weights import random_weights

from configs import lab as configs
from experiments import lab
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.conversations import conversation_rows, mix
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.model.config import preset

LAST = lab.Recipe(2, 4, 1e-2, warmup_steps=1, weight_decay=0.1, last_blocks=1)
QUESTION = [{"role": "user", "content": "Where does Ada live?"}]


@pytest.fixture(scope="module")
def base():
    """(params, model, tokenizer) that is ready to chat, and untrained."""
    tokenizer = train_tokenizer(["Where does Ada live? In Fernbridge.\n\nQ: What? A: That."] * 3, 290, "digits",
                                SPECIAL_TOKENS)
    model = dataclasses.replace(preset("nano"), vocab_size=tokenizer.vocab_size, max_positions=64)
    params, tokenizer = lab.chat_start(jax.device_put(random_weights(model)), model, tokenizer)
    return params, model, tokenizer


@pytest.fixture(scope="module")
def rows(base):
    talk = Conversation([*QUESTION, {"role": "assistant", "content": "In Fernbridge."}])
    return mix([conversation_rows([talk] * 8, base[2], 64)], epochs=[30])


def test_a_stage_is_made_once_and_again_after_a_kill(tmp_path):
    made = []

    def make(folder):
        made.append(sorted(path.name for path in folder.iterdir() if path.name != ".lock"))
        (folder / "part").write_text("1")
        if len(made) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.stage(tmp_path, "a", {"x": 1}, make)
    folder = lab.stage(tmp_path, "a", {"x": 1}, make)
    assert lab.stage(tmp_path, "a", {"x": 1}, make) == folder and made == [[], ["part"]]
    assert lab.stage(tmp_path, "a", {"x": 2}, make) != folder and len(made) == 3


def test_numbers_are_kept_by_their_settings(tmp_path):
    asked = []

    def number():
        asked.append(1)
        return {"accuracy": [0.1 + 0.2, len(asked)]}

    first = lab.kept(tmp_path, "n", {"seed": 0}, number)
    assert lab.kept(tmp_path, "n", {"seed": 0}, number) == first == {"accuracy": [0.1 + 0.2, 1]}
    assert lab.kept(tmp_path, "n", {"seed": 1}, number)["accuracy"][1] == 2


def test_a_base_model_is_trained_once_a_seed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(lab.pretrain, "main", lambda config, workdir: seen.append(config) or len(seen) != 2)
    config = configs.get_config()
    config.data.cache = str(tmp_path)
    first = lab.base_model(config, 0)
    with pytest.raises(SystemExit):  # asked to stop: not done
        lab.base_model(config, 1)
    assert not (lab.base_model(config, 1) == first) and lab.base_model(config, 0) == first
    assert [(c.seed, c.data.sources) for c in seen] == [
        (0, ("world:0:lab",)), (1, ("world:1:lab",)), (1, ("world:1:lab",))]
    assert config.data.sources == ("world:{seed}:lab",)
    assert json.loads((first / "done.json").read_text())["seed"] == 0


def test_a_short_run_learns_and_the_model_is_asked(base, rows):
    params, model, tokenizer = base
    before = jax.device_get(params)
    trained = lab.train(params, model, rows, lab.Recipe(60, 4, 1e-2), "learns")
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(jax.device_get(params))))
    found = lab.ask(trained, model, tokenizer, [QUESTION, QUESTION], samples=2, max_tokens=12)
    assert [[answer.text for answer in some] for some in found] == [["In Fernbridge."] * 2] * 2
    answer = found[0][0]
    assert answer.ended and len(answer.tokens) == len(answer.logp) and 0.5 < answer.confidence <= 1
    cut = lab.ask(trained, model, tokenizer, [QUESTION], max_tokens=1)[0][0]
    assert not cut.ended and "In Fernbridge.".startswith(cut.text)


def test_only_the_last_blocks_are_trained(base, rows):
    params, model, _ = base
    trained = lab.train(params, model, rows, LAST)
    for name, change in (("embedding", False), ("final_norm", True)):
        for old, new in zip(jax.tree.leaves(params[name]), jax.tree.leaves(trained[name]), strict=True):
            assert np.array_equal(old, new) != change, name
    for old, new in zip(jax.tree.leaves(params["blocks"]), jax.tree.leaves(trained["blocks"]), strict=True):
        assert np.array_equal(old[:-1], new[:-1]) and not np.array_equal(old[-1], new[-1])
    with pytest.raises(ValueError, match="the model has 2"):
        lab.train(params, model, rows, dataclasses.replace(LAST, last_blocks=3))


def test_a_run_that_breaks_says_so(base, rows):
    params, model, _ = base
    broken = jax.tree.map(lambda x: x * np.float32("nan"), params)
    with pytest.raises(ValueError, match="lower the learning rate"):
        lab.train(broken, model, rows, LAST)
