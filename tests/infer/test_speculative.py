"""Speculation against `generate` where greedy, and against the model's distribution, enumerated, where drawn."""

import itertools

import jax
import numpy as np
import pytest
from random_weights import random_weights
from scipy import stats

from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings, process
from jaxllm.infer.speculative import DraftModel, PromptLookup, look_up, speculate
from jaxllm.model.config import preset
from jaxllm.model.params import unstack_blocks
from jaxllm.model.transformer import forward

CONFIG = preset("nano", layers=1)
DRAFT = preset("nano", layers=1, dim=16, heads=2, kv_heads=1, mlp_dim=32)
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 256, length).tolist() for length in (3, 9, 14)]


def sharp_params(config, seed=0, factor=4.0):
    params = jax.tree.map(lambda x: factor * x if x.ndim > 1 else x, random_weights(config, seed))
    return jax.device_put(unstack_blocks(params))


PARAMS, DRAFT_PARAMS = sharp_params(CONFIG), sharp_params(DRAFT)
BLUNT = sharp_params(CONFIG, 0, 1.5)  # repeats itself
# A stranger, a model that is nearly right, the model itself, and the row itself.
NEARLY = jax.device_put(jax.tree.map(lambda x: x + RNG.normal(0, 0.02, x.shape).astype(np.float32),
                                    jax.device_get(PARAMS)))
PROPOSERS = {"stranger": DraftModel(DRAFT_PARAMS, DRAFT, 3), "nearly": DraftModel(NEARLY, CONFIG, 3),
             "itself": DraftModel(PARAMS, CONFIG, 3), "look-up": PromptLookup(4)}


@pytest.mark.parametrize("name", PROPOSERS)
def test_greedy_text_is_generates(name):
    settings = SamplingSettings(temperature=0.0, repetition_penalty=1.2 if name == "nearly" else 1.0)
    params = BLUNT if name == "look-up" else PARAMS
    free = generate(params, CONFIG, PROMPTS, key=0, max_tokens=30, settings=settings)
    stop = (free.rows()[1][17],) if name in ("stranger", "itself") else ()  # the others share a program without one
    expected = generate(params, CONFIG, PROMPTS, key=0, max_tokens=30, settings=settings, stop_tokens=stop)
    made = speculate(params, CONFIG, PROMPTS, PROPOSERS[name], key=0, max_tokens=30, settings=settings,
                     stop_tokens=stop)
    assert made.generation.rows() == expected.rows()
    np.testing.assert_array_equal(made.generation.stopped, expected.stopped)
    np.testing.assert_allclose(made.generation.logp, expected.logp, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.generation.sampling_logp, expected.sampling_logp, rtol=1e-4, atol=1e-5)
    assert made.generation.lengths.max() <= 30 and (made.accepted <= made.proposed).all()
    if name == "itself":
        assert made.acceptance_rate == 1.0 and made.rounds == 8  # 29 tokens, 4 a round
    elif name == "stranger":
        assert made.acceptance_rate < 0.2
    else:
        assert made.rounds < expected.lengths.max() - 1


SMALL = preset("nano", layers=1, vocab_size=6, dim=16, heads=2, kv_heads=1, mlp_dim=32)
LENGTH, ROWS = 3, 2000


def exact_distribution(params, prompt, settings):
    """The probability of every continuation of LENGTH tokens, by `forward` and `process`."""
    texts = np.array(list(itertools.product(range(SMALL.vocab_size), repeat=LENGTH)), np.int32)
    rows = np.concatenate([np.tile(np.array(prompt, np.int32), (len(texts), 1)), texts], axis=1)
    logits = jax.jit(forward, static_argnums=1)(params, SMALL, rows)[:, len(prompt) - 1:-1]
    logp = np.zeros(len(texts))
    for i in range(LENGTH):
        seen = np.zeros((len(texts), SMALL.vocab_size), bool)
        np.put_along_axis(seen, rows[:, :len(prompt) + i], True, axis=1)
        step = np.asarray(jax.nn.log_softmax(jax.jit(process, static_argnums=1)(logits[:, i], settings, seen)))
        logp += step[np.arange(len(texts)), texts[:, i]]
    return np.exp(logp)


@pytest.mark.slow
@pytest.mark.parametrize("name, settings", [
    ("draft", SamplingSettings(temperature=1.3, top_k=4, top_p=0.95)),
    ("draft", SamplingSettings(temperature=0.9, repetition_penalty=1.4)),
    ("look-up", SamplingSettings(temperature=1.1, top_p=0.9))])
def test_drawn_text_has_the_models_distribution(name, settings):
    params = sharp_params(SMALL, 2, 3.0)
    proposer = DraftModel(sharp_params(SMALL, 3, 3.0), SMALL, 2) if name == "draft" else PromptLookup(2, longest=2)
    prompt = [1, 2, 3, 1, 2, 4, 1]
    made = speculate(params, SMALL, [prompt] * ROWS, proposer, key=7, max_tokens=LENGTH, settings=settings)
    assert 0.1 < made.acceptance_rate < 0.9
    counts = np.bincount(np.asarray(made.generation.tokens) @ SMALL.vocab_size ** np.arange(LENGTH)[::-1],
                         minlength=SMALL.vocab_size ** LENGTH)
    expected = ROWS * exact_distribution(params, prompt, settings)
    assert expected.sum() == pytest.approx(ROWS, rel=1e-4) and counts[expected == 0].sum() == 0
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    assert stats.chi2.sf(statistic, len(wanted) - 1) > 0.01


def test_look_up_prefers_the_longest_and_then_the_latest():
    rows = np.array([[1, 2, 9, 2, 8, 1, 2, 0], [3, 4, 5, 6, 0, 0, 0, 0], [4, 5, 4, 6, 4, 0, 0, 0]], np.int32)
    ids, valid = look_up(rows, np.array([7, 4, 5]), 3, 3)
    assert [row[ok].tolist() for row, ok in zip(np.asarray(ids), np.asarray(valid), strict=True)] == \
        [[9, 2, 8], [], [6, 4]]
    ids, valid = look_up(rows, np.array([7, 4, 5]), 3, 1)
    assert np.asarray(ids)[0].tolist() == [8, 1, 2]


def test_rows_end_where_positions_end():
    prompts = [RNG.integers(0, 256, length).tolist() for length in (54, 3)]
    greedy = SamplingSettings(temperature=0.0)
    expected = generate(PARAMS, CONFIG, prompts, key=0, max_tokens=10, settings=greedy).rows()
    assert speculate(PARAMS, CONFIG, prompts, PromptLookup(8), key=0, max_tokens=10,
                     settings=greedy).generation.rows() == expected


@pytest.mark.parametrize("proposer, sentence", [
    (DraftModel(PARAMS, preset("nano", vocab_size=300), 3), "a vocabulary of 300, the model one of 256"),
    (DraftModel(PARAMS, preset("nano", max_positions=16), 3), "exceeds the model's 16 positions"),
    (DraftModel(PARAMS, CONFIG, 0), "tokens is 0"),
    (PromptLookup(4, longest=1, shortest=2), "1 <= shortest <= longest")])
def test_bad_proposers_are_refused(proposer, sentence):
    with pytest.raises(ValueError, match=sentence):
        speculate(PARAMS, CONFIG, PROMPTS, proposer, key=0, max_tokens=30)
