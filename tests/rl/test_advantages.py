"""Advantages: against a linear filter and verl's formulas, and where rewards, rows and groups are degenerate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from jaxllm.rl.advantages import gae, group_advantages, overlong_penalty, token_rewards, whiten
from jaxllm.rl.policy_loss import value_loss

rng = np.random.default_rng(1)


def test_gae_steps_over_a_tools_tokens():
    """Schulman et al.'s sum is a linear filter run backwards over the tokens that count."""
    mask = rng.random((5, 9)) < 0.6
    mask[0], mask[1] = False, np.arange(9) == 4  # nothing, and one token
    rewards, values = rng.normal(size=(2, 5, 9)).astype(np.float32)
    rewards[~mask], values[~mask] = np.nan, 1e9  # whatever stands at tokens that do not count
    advantages, returns = jax.device_get(jax.jit(functools.partial(gae, discount=0.95, decay=0.7))(
        rewards, values, mask))
    for row in range(5):
        counted = mask[row]
        reward, value = rewards[row, counted], values[row, counted]
        delta = reward + 0.95 * np.append(value, 0.0)[1:] - value
        expected = lfilter([1.0], [1.0, -0.95 * 0.7], delta[::-1])[::-1] if counted.any() else []
        np.testing.assert_allclose(advantages[row, counted], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(returns[row, counted], expected + value, rtol=1e-5, atol=1e-6)
    assert not np.asarray(advantages)[~mask].any() and not np.asarray(returns)[~mask].any()


def test_gae_whitening_and_value_loss_are_verls():
    """verl/trainer/ppo/core_algos.py, compute_gae_advantage_return and compute_value_loss, and masked_whiten."""
    torch = pytest.importorskip("torch")
    counts = rng.random((6, 7)) < 0.6
    counts[0], counts[1] = True, False
    mask, following, advantage, found = torch.tensor(counts).float(), 0.0, 0.0, []
    rewards, values = (torch.tensor(rng.normal(size=(6, 7)).astype(np.float32)) for _ in range(2))
    for t in reversed(range(7)):
        delta = rewards[:, t] + 0.9 * following - values[:, t]
        here = mask[:, t]
        advantage = (delta + 0.9 * 0.8 * advantage) * here + (1 - here) * advantage
        following = values[:, t] * here + (1 - here) * following
        found.insert(0, advantage)
    found, agree = torch.stack(found, 1), functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    mine, returns = jax.jit(functools.partial(gae, discount=0.9, decay=0.8))(rewards.numpy(), values.numpy(), counts)
    agree(mine, found * mask)
    agree(returns, (found + values) * mask)

    mean = (found * mask).sum() / mask.sum()
    variance = ((found - mean)**2 * mask).sum() / (mask.sum() - 1)
    agree(jax.jit(whiten)(mine, counts), (found - mean) * torch.rsqrt(variance + 1e-8) * mask)

    leaf = values.clone().requires_grad_()
    old, target = values + torch.tensor(rng.normal(0, 0.4, (6, 7)).astype(np.float32)), torch.tensor(np.array(returns))
    held = torch.clamp(leaf, old - 0.2, old + 0.2)
    loss = 0.5 * (torch.max((leaf - target)**2, (held - target)**2) * mask).sum() / mask.sum()
    loss.backward()
    mine, slope = jax.jit(jax.value_and_grad(
        lambda v: value_loss(v, old.numpy(), returns, counts, clip=0.2)[0].value))(values.numpy())
    agree(mine, loss.item())
    agree(slope, leaf.grad)


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
