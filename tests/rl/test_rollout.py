"""Rollouts: both samplers give the trainer's log-probabilities, a mismatch shows, rows tell what was drawn."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from random_weights import random_weights

from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import preset
from jaxllm.rl.policy_step import PolicyModel, Scores, describe
from jaxllm.rl.rollout import Sampler, SamplerSettings, stack

MODEL = preset("nano", layers=1, vocab_size=48)
PARAMS = jax.tree.map(lambda x: 4.0 * x, random_weights(MODEL))  # far from uniform
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8]]
WIDTH = 16
SETTINGS = SamplerSettings(max_tokens=8, stop_tokens=(9, 10), valid_vocab=40, capacity=WIDTH,
                           sampling=SamplingSettings(temperature=0.7))
_outputs = jax.jit(PolicyModel.outputs, static_argnums=0)


def drawn(params=PARAMS, step=0, **changes):
    sampler = Sampler(MODEL, dataclasses.replace(SETTINGS, **changes))
    sampler.load(params)
    return sampler, sampler.draw(PROMPTS, 4, seed=3, step=step)


def trainer_logp(rollout, temperature=0.7, valid_vocab=40):
    return np.asarray(_outputs(PolicyModel(MODEL, temperature=temperature, valid_vocab=valid_vocab),
                               {"model": PARAMS}, rollout.tokens)[0])


@pytest.mark.parametrize("by", ["generate", "engine"])
def test_samplers_give_the_trainers_log_probabilities(by):
    """Of the distribution that was drawn from, temperature and missing ids included, and of the model itself."""
    _, rows = drawn(by=by)
    rollout = stack(rows, WIDTH)
    assert rollout.mask.sum() > 12 and rollout.tokens.max() < 40
    np.testing.assert_allclose(np.where(rollout.mask, trainer_logp(rollout), 0.0), rollout.sampling_logp, atol=2e-5)
    own = np.where(rollout.mask, trainer_logp(rollout, 1.0, None), 0.0)
    np.testing.assert_allclose(own, rollout.logp, atol=2e-5)
    assert np.abs(rollout.logp - rollout.sampling_logp).max() > 0.1


@pytest.mark.parametrize("by", ["generate", "engine"])
def test_draws_are_a_function_of_seed_and_step_and_new_weights_count(by):
    sampler, first = drawn(by=by)
    assert sampler.draw(PROMPTS, 4, seed=3) == first != sampler.draw(PROMPTS, 4, seed=3, step=1)
    sampler.load(jax.tree.map(lambda x: -x, PARAMS))
    assert sampler.draw(PROMPTS, 4, seed=3) != first
    sampler.load(PARAMS)
    assert sampler.draw(PROMPTS, 4, seed=3) == first


def test_rows_say_what_was_drawn():
    _, rows = drawn()
    rollout = stack(rows, WIDTH)
    for i, row in enumerate(rows):
        prompt = PROMPTS[i // 4]
        assert row.ids[:len(prompt)] == prompt and rollout.lengths[i] == len(row.ids)
        assert rollout.mask[i].tolist() == [len(prompt) <= t < len(row.ids) for t in range(WIDTH)]
        assert rollout.stopped[i] == (row.ids[-1] in SETTINGS.stop_tokens)
        assert rollout.stopped[i] or len(row.ids) == len(prompt) + SETTINGS.max_tokens
    # A transcript of a loop with tools: the tool's tokens stand between the policy's own.
    talk = SimpleNamespace(ids=[1, 2, 3, 4], mask=[False, True, False, True], logp=[0, -1, 0, -2],
                           sampling_logp=[0, -1, 0, -2], finish="stop")
    found = stack([talk], 6)
    assert found.mask.tolist() == [[False, True, False, True, False, False]] and found.logp.sum() == -3
    with pytest.raises(ValueError, match="does not fit 3 positions"):
        stack([talk], 3)


@pytest.mark.parametrize("changes, low, high", [
    ({}, 0.0, 1e-5), ({"weights": "int8"}, 1e-4, 0.2)])
def test_a_sampler_that_is_not_the_trainer_shows_in_the_gap(changes, low, high):
    _, rows = drawn(**changes)
    rollout = stack(rows, WIDTH)
    logp = trainer_logp(rollout)
    found = describe(Scores(logp, np.zeros_like(logp), logp, None), rollout)
    apart = np.abs(logp - rollout.sampling_logp)[rollout.mask]
    np.testing.assert_allclose([found["sampler_gap"], found["sampler_gap_max"]], [apart.mean(), apart.max()], rtol=1e-4,
                               atol=1e-8)
    assert low <= found["sampler_gap"] <= high and found["sampler_gap"] <= found["sampler_gap_max"]
    assert (found["sampler_kl"] > 1e-9) == bool(changes)


@pytest.mark.parametrize("change, message", [
    ({"by": "magic"}, "sampler.by"), ({"weights": "int2"}, "sampler.weights"), ({"max_tokens": 0}, "at least 1"),
    ({"slots": -1}, "at least 0")])
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**change)


def test_nothing_is_drawn_without_weights():
    with pytest.raises(ValueError, match="load"):
        Sampler(MODEL, SETTINGS).draw(PROMPTS, 1, seed=0)
