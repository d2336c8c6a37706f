"""Advantages: against a linear filter, and where rewards, rows and groups are degenerate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from jaxllm.rl.advantages import gae, group_advantages, overlong_penalty, token_rewards, whiten

rng = np.random.default_rng(1)


def test_gae_steps_over_a_tools_tokens():
    """Schulman et al.'s sum is a linear filter run backwards over the tokens that count."""
    mask = rng.random((5, 9)) < 0.6
    mask[0], mask[1] = False, np.arange(9) == 4  # nothing, and one token
    rewards, values = rng.normal(size=(2, 5, 9)).astype(np.float32)
    rewards[~mask], values[~mask] = np.nan, 1e9  # whatever stands at tokens that do not count
    advantages, returns = jax.jit(functools.partial(gae, discount=0.95, decay=0.7))(rewards, values, mask)
    for row in range(5):
        counted = mask[row]
        reward, value = rewards[row, counted], values[row, counted]
        delta = reward + 0.95 * np.append(value, 0.0)[1:] - value
        expected = lfilter([1.0], [1.0, -0.95 * 0.7], delta[::-1])[::-1] if counted.any() else []
        np.testing.assert_allclose(advantages[row, counted], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(returns[row, counted], expected + value, rtol=1e-5, atol=1e-6)
    assert not np.asarray(advantages)[~mask].any() and not np.asarray(returns)[~mask].any()


@pytest.mark.parametrize("kind, expected", [
    ("grpo", [[0, 0, 0], [-1 / 1.0001, 0, 1 / 1.0001], [-1.1546, 0.5773, 0.5773]]),
    ("dr_grpo", [[0, 0, 0], [-1, 0, 1], [-2 / 3, 1 / 3, 1 / 3]]),
    ("rloo", [[0, 0, 0], [-1.5, 0, 1.5], [-1, 0.5, 0.5]]),
    ("mean", [[-0.822222, -0.822222, -0.822222], [0.077778, 1.077778, 2.077778], [-0.922222, 0.077778, 0.077778]]),
    ("none", [[0.1, 0.1, 0.1], [1, 2, 3], [0, 1, 1]]),
])
def test_group_advantages_of_three_prompts(kind, expected):
    rewards = jnp.array([[0.1, 0.1, 0.1], [1.0, 2.0, 3.0], [0.0, 1.0, 1.0]])
    found = np.array(jax.jit(functools.partial(group_advantages, kind=kind))(rewards))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    if kind in ("grpo", "dr_grpo", "rloo"):
        assert (found[0] == 0.0).all()  # equal rewards push nothing, not even by their rounding


@pytest.mark.parametrize("kind", ["reinforce++", "reinforce++_baseline"])
def test_advantages_over_the_whole_batch_have_its_unit(kind):
    rewards = rng.normal(3.0, 10.0, (6, 4)).astype(np.float32)
    found = np.asarray(jax.jit(functools.partial(group_advantages, kind=kind))(rewards))
    assert abs(found.mean()) < 1e-5 and abs(found.std(ddof=1) - 1.0) < 1e-3
    means = rewards.mean(1, keepdims=True) if kind.endswith("baseline") else rewards.mean()
    assert np.corrcoef(found.ravel(), (rewards - means).ravel())[0, 1] > 0.999999


def test_samples_without_a_reward_count_in_no_mean():
    valid = np.array([[True, True, False], [True, False, False], [False, False, False]])
    rewards = np.where(valid, [[1.0, 3.0, 0.0]] * 3, np.nan).astype(np.float32)
    found = np.array(jax.jit(functools.partial(group_advantages, kind="rloo"))(rewards, valid_QG=valid))
    np.testing.assert_array_equal(found, [[-2.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_whitening_of_equal_entries_is_zero():
    x, mask = np.full((2, 3), 0.1, np.float32), np.array([[True, True, False], [True, False, False]])
    whitened = jax.jit(whiten)
    assert not whitened(x, mask).any() and not whitened(x, np.zeros_like(mask)).any()


def test_reward_of_a_row_stands_on_its_last_counted_token():
    mask = np.array([[True, False, True, False], [False] * 4, [True] * 4])
    found = jax.jit(token_rewards)(np.array([5.0, 7.0, 9.0]), np.full((3, 4), 2.0), mask, 0.5)
    np.testing.assert_array_equal(found, [[-1, 0, 4, 0], [0, 0, 0, 0], [-1, -1, -1, 8]])
    # KL in the reward and no critic: the advantage is what is still to come.
    advantages, _ = jax.jit(functools.partial(gae, decay=1.0))(found, np.zeros((3, 4)), mask)
    np.testing.assert_array_equal(advantages, [[3, 0, 4, 0], [0, 0, 0, 0], [5, 6, 7, 8]])


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="ppo.*take one of grpo"):
        group_advantages(jnp.zeros((1, 2)), kind="ppo")
    with pytest.raises(ValueError, match="buffer .* is 0 tokens"):
        overlong_penalty(jnp.zeros(1), limit=10, buffer=0)
