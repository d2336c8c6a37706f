"""Pairs as rows and the direct losses of a model: masks, controls, and the numbers of another way to them."""

import dataclasses

import jax
import numpy as np
import pytest
from random_weights import random_weights

from jaxllm.data.preferences import Ranking
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.evals.probe import reply_logp
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.rl.direct_step import direct_objective, orders, ranking_pairs
from jaxllm.rl.policy_step import PolicyModel
from jaxllm.rl.preference_loss import dpo, ipo, kto, kto_baseline

TEXTS = ["a cat sat", "a dog ran far", "who goes there", "no", "a cat sat on a dog", "there"]


def asked(text, completions, ranking):
    return Ranking(({"role": "user", "content": text},), completions, ranking)


RANKINGS = [asked("a cat", ("no", "a dog ran", "there"), ((1,), (0, 2))),
            asked("who", ("a cat sat", "no"), ((1,), (0,))), asked("who", ("no", "no"), ((0,), (1,)))]


@pytest.fixture(scope="module")
def tokenizer():
    return dataclasses.replace(train_tokenizer(TEXTS * 5, 280), chat_template="im_sep")


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return ranking_pairs(RANKINGS, tokenizer, 48)


def test_pairs_of_rankings(tokenizer, pairs):
    spelled = [[tokenizer.decode([t for t in reply if t < tokenizer.end_of_text]) for reply in replies]
               for replies in pairs.replies]
    assert [row[:2] for row in spelled] == [["a dog ran", "no"], ["a dog ran", "there"], ["no", "a cat sat"]]
    for seed in range(6):  # the best reply to another prompt, in whatever order the others stand
        others = [replies[2] for replies in ranking_pairs(RANKINGS, tokenizer, 48, seed).replies]
        assert others == [pairs.replies[2][0]] * 2 + [pairs.replies[0][0]]
    assert pairs.left_out == 1  # replies of the same tokens
    with pytest.raises(ValueError, match="none of 4 pairs fits rows of 5"):
        ranking_pairs(RANKINGS, tokenizer, 5)
    batch = pairs.batch([2, 0], np.arange(9.0).reshape(3, 3), pairs.longest)
    for b, i in enumerate((2, 0)):
        for r in range(3):
            assert batch.tokens[b, r][batch.mask[b, r]].tolist() == pairs.replies[i][r]
            assert batch.tokens[b, r, :len(pairs.prompts[i])].tolist() == pairs.prompts[i]
    assert batch.reference_logp.tolist() == [[6, 7, 8], [0, 1, 2]]
    swapped = pairs.swapped([True, False, True])
    assert [row[:2] for row in swapped.replies] == [pairs.replies[0][1::-1], pairs.replies[1][:2],
                                                    pairs.replies[2][1::-1]]


def test_every_pair_once_an_epoch():
    index = np.concatenate(list(orders(5, 2, 5, seed=3)))
    assert sorted(index[:5]) == sorted(index[5:]) == list(range(5))
    assert index[:5].tolist() != index[5:].tolist()
    with pytest.raises(ValueError, match="batch of 6 pairs cannot be taken from 5"):
        next(orders(5, 6, 1, seed=0))


def test_losses_of_a_model_by_another_way(tokenizer, pairs):
    """Sums of log-probabilities by the probe of jaxllm.evals, and the losses of arrays on them."""
    config = ModelConfig(tokenizer.vocab_size, 16, 1, 2, 2, 8, 16, 48)
    params, start = (jax.device_put(random_weights(config, seed)) for seed in (0, 1))

    def logp(params):
        return reply_logp(params, config, [ids for ids in pairs.prompts for _ in range(3)],
                          [reply for replies in pairs.replies for reply in replies]).reshape(-1, 3).astype(np.float32)

    policy, reference = logp(params), logp(start)
    reference[:, 2] = policy[:, 2] - [1.0, 2.0, 6.0]  # a baseline of 3 nats
    batch = pairs.batch([0, 1, 2], reference, 48)
    empty = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:1])]), batch)  # a row that stands for no pair
    good = np.tile([True, False], (3, 1))
    expected = {
        "dpo": dpo(*policy[:, :2].T, *reference[:, :2].T, beta=0.3), "ipo": ipo(*policy[:, :2].T, *reference[:, :2].T,
                                                                               beta=0.3),
        "kto": kto(policy[:, :2], reference[:, :2], good, kto_baseline(policy[:, 2], reference[:, 2]), beta=0.3)}
    model = PolicyModel(config, Execution(scan=False))
    for name, (loss, metrics) in expected.items():
        found, told = jax.jit(direct_objective(model, name, beta=0.3))(params, empty)
        np.testing.assert_allclose([found.total, found.weight], [loss.total, loss.weight], rtol=1e-4)
        for key, mean in metrics.items():
            np.testing.assert_allclose(told[key].value, mean.value, rtol=1e-3, atol=1e-5)
    found, _ = jax.jit(direct_objective(model, "sft"))(params, empty)
    tokens = sum(len(replies[0]) for replies in pairs.replies)
    np.testing.assert_allclose([found.total, found.weight], [-policy[:, 0].sum(), tokens], rtol=1e-4)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="'orpo' is unknown"):
        direct_objective(PolicyModel(None), "orpo")
    with pytest.raises(ValueError, match="beta is 0"):
        direct_objective(PolicyModel(None), "dpo", beta=0.0)
