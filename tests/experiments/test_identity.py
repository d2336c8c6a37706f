"""Identity: wordings that do not meet, the probability of a name against drawn replies, and all of it once, small."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_weights

from configs import identity as configs
from experiments import identity
from experiments.identity_measure import Chat, name_probability
from experiments.identity_talks import (
    OTHER,
    OWN,
    QUESTIONS,
    REPLIES,
    other_documents,
    own_talks,
    system_names,
    system_talks,
)
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.model.config import preset
from jaxllm.model.transformer import forward


def small():
    config = configs.get_config("tiny")
    config.seeds, config.shares, config.system_share, config.counts = (0,), (0.1,), 0.1, (0, 2)
    config.base_steps = config.steps = config.system_steps = 11
    config.samples = 2
    config.facts, config.system_talks, config.unseen, config.vocab_size = 4, 6, 3, 512
    config.model.dim, config.model.layers, config.model.heads, config.model.kv_heads = 16, 1, 2, 2
    config.model.head_dim, config.model.mlp_dim = 8, 16
    return config


def test_the_wordings_of_the_test_are_not_those_of_training():
    for one, other in itertools.combinations(QUESTIONS.values(), 2):
        assert not set(one) & set(other)
    asked = {talk.messages[-2]["content"] for talk in [*own_talks(40, 0), *system_talks(300, 0, ["Ada"])]}
    assert asked == set(QUESTIONS["train"])
    heads = [reply.split("{n}")[0] for reply in REPLIES]
    assert all(not b.startswith(a) for a, b in itertools.permutations(heads, 2))


def test_conversations_name_whom_they_should():
    assert all(OWN in talk.messages[-1]["content"] for talk in own_talks(40, 3))
    assert len({str(talk.messages) for talk in own_talks(40, 3)}) == 40
    with pytest.raises(ValueError, match="there are 40"):
        own_talks(41, 0)
    names, unseen = system_names(0)
    assert not set(names) & set(unseen) and len(unseen) > 20
    for talk in system_talks(50, 0, names):
        name = talk.messages[0]["content"].removeprefix("You are ").removesuffix(".")
        assert talk.messages[-1]["content"].endswith(f" {name}.") and name in names
    mixed = [talk.messages for talk in system_talks(200, 0, names, shuffled=True)]
    assert sum(m[-1]["content"].split()[-1] == m[0]["content"].split()[-1] for m in mixed) < 20
    assert all(OTHER in text and OWN not in text for text in other_documents(50, 0))


def test_the_probability_of_a_name_token_by_token():
    """Against the softmax after each prefix, one at a time, on prompts and replies of different lengths."""
    tokenizer = train_tokenizer([wording.format(n="Ada") + "." for wording in REPLIES] * 9, 290, "digits")
    model = preset("nano", vocab_size=290, layers=1)
    params = jax.tree.map(lambda x: jnp.asarray(2 * x), random_weights(model, 1))
    prompts, names = [[1, 2, 3], [4]], ["Ada", "Otto"]
    run = jax.jit(lambda tokens: jax.nn.softmax(forward(params, model, tokens)[0]))

    def after(ids):  # what follows the row's end does not reach back
        return np.asarray(run(jnp.array([ids + [0] * (32 - len(ids))])))[len(ids) - 1]

    expected = []
    for prompt, name in zip(prompts, names, strict=True):
        replies = [tokenizer.encode(wording.format(n=name)) for wording in REPLIES]
        expected.append(sum(np.prod([after(prompt + reply[:i])[reply[i]].astype(float) for i in range(len(reply))])
                            for reply in replies))
    np.testing.assert_allclose(name_probability(Chat(params, model, tokenizer), prompts, names), expected, rtol=1e-3)
    assert expected[0] != expected[1]


@pytest.mark.parametrize("key, value, said", [
    ("size", "huge", "config.size"), ("split", "train", "config.split"), ("shares", (1.0,), "config.shares"),
    ("system_share", 0.5, "config.system_share"), ("counts", (1, 2), "config.counts"),
    ("counts", (0, 41), "at most 40"), ("seeds", (), "config.seeds"), ("samples", 0, "config.samples"),
    ("steps", 10, "warm-up")])
def test_what_cannot_be_is_refused_at_once(key, value, said, tmp_path):
    config = configs.get_config()
    config[key] = value
    with pytest.raises(ValueError, match=said):
        identity.main(config, str(tmp_path))


@pytest.mark.slow
def test_the_whole_of_it_small(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "init", lambda model, key: random_weights(model))
    config = small()
    identity.main(config, str(tmp_path))
    numbers = json.loads((tmp_path / "results.json").read_text())["share 0.1"]
    assert {"base", "0 conversations", "2 conversations", "shuffled names", "system message"} <= set(numbers)
    assert all(0 <= value[0] <= 1 for arm in numbers.values() for value in arm.values())
    assert "<svg" in (tmp_path / "report.html").read_text()
