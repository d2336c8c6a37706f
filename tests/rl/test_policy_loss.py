"""Policy losses: what must hold for every one of them, and clips by hand. TRL's numbers are in test_trl_parity."""

import functools

import jax
import numpy as np
import pytest
from scipy import stats

from jaxllm.rl.policy_loss import (
    average_tokens,
    policy_loss,
    sampler_gap,
    token_entropy,
    truncated_importance,
    value_loss,
)

rng = np.random.default_rng(3)
MASK = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]], bool)
LOGP = rng.normal(-2.0, 0.5, (4, 4)).astype(np.float32)
ADVANTAGES = np.where(MASK, rng.normal(size=(4, 1)), 0.0).astype(np.float32)
CHOICES = [{}, {"ratio": "sequence"}, {"ratio": "product"}, {"objective": "cispo"}, {"objective": "reinforce"},
           {"average": "sequence", "dual_clip": 3.0}, {"average": "constant", "length": 10}]


def gradient(old, choices, logp=LOGP, advantages=ADVANTAGES, mask=MASK, **arrays):
    return compiled(tuple(choices.items()))(logp, old, advantages, mask, **arrays)


@functools.cache
def compiled(choices):
    def loss(*args, **arrays):
        found, metrics = policy_loss(*args, **dict(choices), **arrays)
        return found.value, (found, metrics)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_on_policy_every_loss_has_the_plain_policy_gradient(choices):
    (_, (loss, metrics)), slope = gradient(LOGP, choices)
    if choices.get("ratio") == "product":  # the whole row's ratio: the gradient of its log-probability at each token
        assert float(metrics["ratio"].value) == 1.0
    counts = MASK.sum(1, keepdims=True)
    each = {"token": 1 / MASK.sum(), "sequence": 1 / np.maximum(counts, 1) / 3, "constant": 1 / 30}
    expected = np.where(MASK, -ADVANTAGES * each[choices.get("average", "token")], 0.0)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-7)
    assert float(metrics["clip_fraction"].value) == 0.0 and float(metrics["kl_old"].value) == 0.0


@pytest.mark.parametrize("choices", CHOICES[:5], ids=str)
def test_what_stands_outside_the_mask_does_not_matter(choices):
    old = LOGP + rng.normal(0, 0.5, LOGP.shape).astype(np.float32)
    old[0, 1], old[2, 1] = LOGP[0, 1] - 500.0, LOGP[2, 1] + 500.0  # ratios that float32 cannot hold
    clean = gradient(old, choices)
    dirty = gradient(*(np.where(MASK, old, np.nan), choices), np.where(MASK, LOGP, -np.inf),
                     np.where(MASK, ADVANTAGES, np.nan))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(clean))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert not np.asarray(clean[1])[1].any()  # the row without tokens
    (value, _), slope = gradient(old, choices, mask=np.zeros_like(MASK))
    assert value == 0.0 and not np.asarray(slope).any()


def test_micro_batches_add_up_to_the_batch():
    old = LOGP - 0.1
    for average, length in (("token", None), ("sequence", None), ("constant", 7)):
        loss = jax.jit(functools.partial(policy_loss, average=average, length=length))
        one, two, whole = (loss(*(x[rows] for x in (LOGP, old, ADVANTAGES, MASK)))[0] for rows in (
            slice(0, 2), slice(2, 4), slice(0, 4)))
        np.testing.assert_allclose((one + two).value, whole.value, rtol=1e-6)


def test_clips_by_hand():
    # ratio 2 and 1/2, each praised and blamed: what is praised may rise to 1.28, what is blamed may fall to 0.8.
    ratio, advantages = np.array([[2.0, 2.0, 0.5, 0.5]], np.float32), np.array([[1.0, -1.0, 1.0, -1.0]], np.float32)
    old, mask = np.zeros((1, 4), np.float32), np.ones((1, 4), bool)
    (_, (loss, metrics)), slope = gradient(old, {"clip_high": 0.28}, np.log(ratio), advantages, mask)
    np.testing.assert_allclose(loss.total, -(1.28 - 2.0 + 0.5 - 0.8), rtol=1e-6)
    np.testing.assert_allclose(slope * 4, [[0.0, 2.0, -0.5, 0.0]], atol=1e-6)
    assert {name: float(metrics[name].value) for name in ("clip_fraction", "clip_low_fraction", "clip_high_fraction")
            } == {"clip_fraction": 0.5, "clip_low_fraction": 0.25, "clip_high_fraction": 0.25}
    np.testing.assert_allclose(metrics["kl_old"].value, np.mean(ratio - 1 - np.log(ratio)), rtol=1e-6)
    (_, (loss, _)), slope = gradient(old, {"dual_clip": 1.5}, np.log(ratio), advantages, mask)
    np.testing.assert_allclose(loss.total, -(1.2 - 1.5 + 0.5 - 0.8), rtol=1e-6)
    assert slope[0, 1] == 0.0


def test_a_row_of_many_advantages_keeps_them_apart_under_gspo():
    """GSPO-token: the row's ratio at every token, the gradient each token's own."""
    old, mask = LOGP[:1] - 0.01, np.ones((1, 4), bool)
    advantages = np.array([[1.0, 0.0, 0.0, -2.0]], np.float32)
    _, slope = gradient(old, {"ratio": "sequence"}, LOGP[:1], advantages, mask)
    np.testing.assert_allclose(slope * 4, -np.exp(0.01) * advantages, rtol=1e-4)


def test_penalty_and_importance_weights():
    penalty, weights = rng.random((2, 4, 4)).astype(np.float32)
    plain, both = (gradient(LOGP, {"objective": "reinforce"}, **arrays)[0][1][0] for arrays in (
        {}, {"importance_BT": weights, "penalty_BT": penalty}))
    assert both.weight == plain.weight
    np.testing.assert_allclose(both.total, np.sum((penalty - weights * ADVANTAGES * LOGP)[MASK]), rtol=1e-5)


def test_value_loss_clips_the_critics_step():
    values, target = rng.normal(size=(2, 4, 4)).astype(np.float32)
    values[~MASK] = np.nan
    found = jax.jit(functools.partial(value_loss, clip=None))
    loss, metrics = found(values, values, target, MASK)
    np.testing.assert_allclose(loss.value, np.mean((values - target)[MASK]**2) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["value"].value, values[MASK].mean(), rtol=1e-5)
    # Beyond the clip and already nearer to the target than the clip allows: no gradient.
    zeros, ones = np.zeros((1, 2)), np.ones((1, 2))
    slope = jax.jit(jax.grad(lambda v: value_loss(v, zeros, ones, ones > 0.0)[0].total))(np.array([[0.5, -0.5]]))
    np.testing.assert_allclose(slope, [[0.0, -1.5]])


def test_importance_weights_hold_at_the_cap_and_carry_no_gradient():
    gap = np.array([[0.1, 5.0, -0.3, 9.0], [np.nan] * 4, [3.0, 0.2, 2.0, 0.2], [0.5, 0.0, 0.0, 0.0]], np.float32)
    counted = np.where(MASK, gap, 0.0)
    found = jax.jit(truncated_importance)(LOGP + gap, LOGP, MASK)
    np.testing.assert_allclose(found, np.minimum(np.exp(counted), 2.0), rtol=1e-5)
    rows = np.exp(counted.sum(1, keepdims=True))  # e^4.8, 1, e^0.4, e^0.5
    found = jax.jit(functools.partial(truncated_importance, level="sequence", drop=True))(LOGP + gap, LOGP, MASK)
    np.testing.assert_allclose(found, np.tile(np.where(rows > 2.0, 0.0, rows), (1, 4)), rtol=1e-5)
    assert not jax.jit(jax.grad(lambda x: truncated_importance(x, LOGP, MASK).sum()))(LOGP).any()
    told = jax.jit(sampler_gap)(LOGP + gap, LOGP, MASK)
    assert float(told["sampler_gap"].value) == pytest.approx(np.abs(counted).sum() / 6, rel=1e-5)
    assert float(told["sampler_kl"].value) > 1.0


def test_entropy_is_scipys():
    logits = rng.normal(size=(4, 4, 5)).astype(np.float32)
    logits[..., 4] = -np.inf  # an id that is never drawn
    np.testing.assert_allclose(jax.jit(token_entropy)(logits), stats.entropy(np.exp(logits), axis=-1), rtol=1e-5)
    assert np.isfinite(jax.jit(jax.grad(lambda x: token_entropy(x).sum()))(logits)).all()


@pytest.mark.parametrize("choices, message", [
    ({"objective": "ppo"}, "objective 'ppo'"), ({"ratio": "row"}, "ratio 'row'"),
    ({"average": "mean"}, "average 'mean'"), ({"average": "constant"}, "length of tokens; it is None")])
def test_wrong_choices_are_named(choices, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(policy_loss, **choices), LOGP, LOGP, ADVANTAGES, MASK)
    with pytest.raises(ValueError, match="cap 0"):
        truncated_importance(LOGP, LOGP, MASK, cap=0.0)


def test_averages_weigh_tokens_or_rows():
    values = np.where(MASK, [[1.0], [9.0], [2.0], [6.0]], np.nan)
    assert [float(average_tokens(values, MASK, *choice).value) for choice in (
        ("token",), ("sequence",), ("constant", 2))] == pytest.approx([13 / 6, 3.0, 13 / 6])
