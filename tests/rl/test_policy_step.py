"""From rewards to an update, against enumeration of every reply: the gradient is that of the expected reward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_weights
from scipy.special import log_softmax

from jaxllm.model.config import preset
from jaxllm.model.quantize import quantize
from jaxllm.model.transformer import forward
from jaxllm.rl import policy_step
from jaxllm.rl.policy_settings import ALGORITHMS, PolicySettings
from jaxllm.rl.policy_step import PolicyBatch, PolicyModel, Scores
from jaxllm.rl.rollout import Rollout
from jaxllm.train.step import accumulate_gradients

MODEL = preset("nano", layers=1, vocab_size=24)
PARAMS = jax.tree.map(lambda x: 3.0 * x, random_weights(MODEL))
VALID, B, T = 20, 8, 12
POLICY = PolicyModel(MODEL, temperature=0.8, valid_vocab=VALID)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VALID, (B, T)).astype(np.int32)
LENGTHS = np.array([12, 11, 10, 9, 8, 7, 6, 5], np.int32)
MASK = (np.arange(T)[None] >= 3) & (np.arange(T)[None] < LENGTHS[:, None])
_outputs = jax.jit(PolicyModel.outputs, static_argnums=0)
_forward = jax.jit(forward, static_argnums=1)
make_batch = jax.jit(policy_step.make_batch, static_argnames="settings")


def rollout(**changes):
    zero = np.zeros((B, T), np.float32)
    return dataclasses.replace(Rollout(TOKENS, MASK, zero, zero, LENGTHS, np.ones(B, bool)), **changes)


def scores(seed=0):
    rng = np.random.default_rng(seed)
    logp, reference, values = (rng.normal(-2.0, 0.3, (B, T)).astype(np.float32) for _ in range(3))
    return Scores(logp, -logp, reference, values)


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(np.sum((np.asarray(x) - np.asarray(y))**2) for x, y in pairs)))


def test_outputs_are_about_the_token_itself_and_blind_to_padding():
    logp, entropy, values = _outputs(POLICY, {"model": PARAMS}, TOKENS)
    logits = np.asarray(_forward(PARAMS, MODEL, TOKENS), np.float64)[..., :VALID] / 0.8
    expected = log_softmax(logits, axis=-1)
    np.testing.assert_allclose(logp[:, 1:], np.take_along_axis(expected[:, :-1], TOKENS[:, 1:, None], 2)[..., 0],
                               atol=1e-5)
    np.testing.assert_allclose(entropy[:, 1:], -(np.exp(expected) * expected).sum(-1)[:, :-1], atol=1e-5)
    assert values is None and not np.asarray(logp)[:, 0].any()
    other = np.where(np.arange(T)[None] < LENGTHS[:, None], TOKENS, 19 - TOKENS)
    found = _outputs(POLICY, {"model": PARAMS}, other)[0]
    np.testing.assert_allclose(np.where(MASK, found, 0), np.where(MASK, logp, 0), atol=1e-6)


def test_logits_in_chunks_are_the_same_function():
    def total(params, chunks):
        logp, entropy, _ = dataclasses.replace(POLICY, chunks=chunks).outputs({"model": params}, TOKENS)
        return jnp.sum(jnp.where(MASK, logp + 0.1 * entropy, 0.0))

    whole, pieces = (jax.jit(jax.value_and_grad(total), static_argnums=1)(PARAMS, chunks) for chunks in (1, 4))
    np.testing.assert_allclose(whole[0], pieces[0], rtol=1e-5)
    assert distance(whole[1], pieces[1]) < 1e-4 * distance(whole[1], jax.tree.map(np.zeros_like, PARAMS))
    with pytest.raises(ValueError, match="must divide the 12 positions"):
        jax.eval_shape(dataclasses.replace(POLICY, chunks=5).outputs, {"model": PARAMS}, TOKENS)


# Every reply of one token to the prompt [1, 2], with a reward each.
EVERY = np.array([[1, 2, token] for token in range(VALID)], np.int32)
LAST = np.tile([False, False, True], (VALID, 1))
REWARD = np.sin(3.0 * np.arange(VALID)).astype(np.float32)


@jax.jit
def enumerated(params, weight_V, importance_V):
    """Gradient of the loss where each reply's advantage is its reward times its probability: the mean over draws."""
    def column(x):
        return jnp.where(LAST, jnp.asarray(x)[:, None], 0.0)

    zero = jnp.zeros(EVERY.shape)
    old = POLICY.outputs({"model": params}, EVERY)[0]
    batch = PolicyBatch(EVERY, LAST, jax.lax.stop_gradient(old), zero, zero, column(weight_V * REWARD), zero,
                        column(importance_V), jnp.zeros((VALID, 1)))
    settings = PolicySettings(baseline="none", average="constant", kl_in="none")
    return accumulate_gradients(policy_step.policy_objective(POLICY, settings, 1), {"model": params}, batch)[0]["model"]


@jax.jit
def last_logp(params):
    return POLICY.outputs({"model": params}, EVERY)[0][:, 2]


def test_the_gradient_is_that_of_the_expected_reward():
    """By enumeration: sum_v p(v) r(v) grad log p(v) = grad sum_v p(v) r(v)."""
    found = enumerated(PARAMS, jnp.exp(last_logp(PARAMS)), jnp.ones(VALID))
    expected = jax.jit(jax.grad(lambda params: -jnp.sum(jnp.exp(last_logp(params)) * REWARD) / VALID))(PARAMS)
    assert distance(found, expected) < 1e-4 * distance(expected, jax.tree.map(np.zeros_like, expected))


def test_truncated_importance_weights_take_most_of_a_samplers_bias_away():
    """A sampler of 4-bit weights draws v with q(v); the correction multiplies by min(p / q, cap)."""
    logp, sampler = last_logp(PARAMS), last_logp(jax.jit(lambda params: quantize(params, MODEL, "int4"))(PARAMS))
    assert 0.05 < float(jnp.abs(logp - sampler).max())
    true = enumerated(PARAMS, jnp.exp(logp), jnp.ones(VALID))
    bias = distance(enumerated(PARAMS, jnp.exp(sampler), jnp.ones(VALID)), true)
    left = {}
    for cap in (1.05, 10.0):
        settings = PolicySettings(baseline="none", importance="token", importance_cap=cap)
        drawn = Rollout(EVERY, LAST, *(np.where(LAST, np.asarray(sampler)[:, None], 0.0).astype(np.float32),) * 2,
                        np.full(VALID, 3), np.ones(VALID, bool))
        ours = np.where(LAST, np.asarray(logp)[:, None], 0.0).astype(np.float32)
        found = Scores(ours, ours, ours, None)
        batch = make_batch(settings, drawn, found, jnp.asarray(REWARD)[:, None], 0.0)
        left[cap] = distance(enumerated(PARAMS, jnp.exp(sampler), batch.importance[:, 2]), true)
    assert left[10.0] < 0.01 * bias < bias and left[10.0] < left[1.05] < bias


def test_kl_in_the_reward_and_advantages_by_hand():
    """RLOO by loops: a reply's reward less beta times its summed k1, less the mean of the others to its prompt."""
    found, rewards = scores(), RNG.normal(size=(2, 4)).astype(np.float32)
    batch = make_batch(ALGORITHMS["rloo"], rollout(), found, jnp.asarray(rewards), 0.3)
    whole = rewards - 0.3 * policy_step.reply_kl(found.logp, found.reference_logp, MASK).reshape(2, 4)
    for q in range(2):
        for g in range(4):
            others = np.mean([whole[q, i] for i in range(4) if i != g])
            np.testing.assert_allclose(np.asarray(batch.advantages)[4 * q + g],
                                       np.where(MASK[4 * q + g], whole[q, g] - others, 0.0), atol=1e-5)
    assert (np.asarray(batch.importance) == 1).all() and (np.asarray(batch.mask) == MASK).all()


def test_rewards_to_come_by_hand():
    """REINFORCE++ by loops: at each token the reward less beta times the k1 from there on, whitened over all tokens."""
    found, rewards = scores(), RNG.normal(size=(2, 4)).astype(np.float32)
    batch = make_batch(ALGORITHMS["reinforce++"], rollout(), found, jnp.asarray(rewards), 0.3)
    k1 = np.where(MASK, np.asarray(found.logp) - found.reference_logp, 0.0)
    to_come = np.array([[rewards.ravel()[b] - 0.3 * k1[b, t:].sum() for t in range(T)] for b in range(B)])
    expected = (to_come - to_come[MASK].mean()) / to_come[MASK].std(ddof=1)
    np.testing.assert_allclose(batch.advantages, np.where(MASK, expected, 0.0), atol=1e-5)


ARMS, PAYS = np.tile(np.arange(6), 4), np.arange(6) > 3  # each of four like prompts has every reply of one token once
TALKS = np.stack([np.zeros(24, int), ARMS], axis=1)
OWN = np.tile([False, True], (24, 1))


class Bandit:
    """A policy that is a row of logits."""

    def outputs(self, params, tokens):
        return jnp.where(OWN, jax.nn.log_softmax(params)[tokens], 0.0), jnp.zeros(OWN.shape), None


@pytest.mark.parametrize("name", ["dr_grpo", "dapo", "gspo", "cispo", "reinforce++"])
def test_several_updates_of_a_rollout_improve_a_bandit_and_the_clip_holds(name):
    zero, settings = np.zeros(OWN.shape, np.float32), ALGORITHMS[name]
    old = Bandit().outputs(jnp.zeros(6), TALKS)[0]
    drawn = Rollout(TALKS, OWN, zero, zero, np.full(24, 2), np.ones(24, bool))
    batch = make_batch(settings, drawn, Scores(old, zero, old, None),
                                   jnp.tile(jnp.asarray(PAYS, jnp.float32), (4, 1)), 0.0)
    objective = policy_step.policy_objective(Bandit(), settings, 1)

    @jax.jit
    def step(params):
        def loss_fn(params):
            loss, metrics = objective(params, batch)
            return loss.value, {key: mean.value for key, mean in metrics.items()}
        (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return params - 2.0 * gradient, metrics

    params, said = jnp.zeros(6), []
    for _ in range(8):
        params, metrics = step(params)
        said.append(jax.device_get(metrics))
    assert jax.nn.softmax(params) @ PAYS > 0.4  # a third at first
    assert said[0]["clip_fraction"] == 0.0 and said[0]["ratio"] == pytest.approx(1.0)
    if settings.objective == "clip":  # once all have gone too far, nothing moves: not so without a clip
        assert said[-1]["clip_fraction"] == 1.0 and said[-1]["kl_old"] == said[-2]["kl_old"]
    else:
        assert said[-1]["kl_old"] > said[-2]["kl_old"]


def test_a_critic_that_knows_the_return_leaves_no_advantage():
    """The reward comes with the last token, so a critic that says it at every token makes GAE zero everywhere."""
    rewards = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    known = dataclasses.replace(scores(), values=np.tile(rewards.reshape(B, 1), (1, T)))
    settings = dataclasses.replace(ALGORITHMS["ppo"], kl_in="none", whiten=False)
    batch = make_batch(settings, rollout(), known, jnp.asarray(rewards), 0.0)
    np.testing.assert_allclose(batch.advantages, 0.0, atol=1e-6)
    np.testing.assert_allclose(batch.returns, np.where(MASK, rewards.reshape(B, 1), 0.0), atol=1e-6)
    returns = np.asarray(batch.returns)
    assert policy_step.explained_variance(known, returns, MASK) == pytest.approx(1.0)
    assert policy_step.explained_variance(dataclasses.replace(known, values=known.values * 0), returns, MASK) == 0.0


def test_a_critic_of_its_own_reads_its_own_states():
    params = policy_step.init_policy(PARAMS, MODEL, "own")
    params["value"]["weight"] = jnp.ones(MODEL.dim)
    params["critic"] = jax.tree.map(lambda x: 0.5 * x, params["critic"])
    own, shared = (_outputs(dataclasses.replace(POLICY, critic=critic), params, TOKENS)[2]
                   for critic in ("own", "shared"))
    of_own = _outputs(dataclasses.replace(POLICY, critic="shared"), {**params, "model": params["critic"]}, TOKENS)[2]
    np.testing.assert_allclose(own, of_own, atol=1e-5)
    assert np.abs(own - shared).max() > 0.1 and not np.asarray(own)[:, 0].any()


def test_equal_rewards_and_cut_off_replies():
    for name in ("grpo", "rloo"):
        settings = dataclasses.replace(ALGORITHMS[name], kl_in="none", mask_truncated=True)
        stopped = np.arange(B) % 2 == 0
        batch = make_batch(settings, rollout(stopped=stopped), scores(), jnp.ones((2, 4)), 0.0)
        assert not np.asarray(batch.advantages).any()
        assert (np.asarray(batch.mask) == MASK & stopped[:, None]).all()
        assert policy_step.advantage_size(batch) is None
        one_of_two = jnp.array([[2.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
        size = policy_step.advantage_size(make_batch(settings, rollout(stopped=stopped), scores(), one_of_two, 0.0))
        assert size == pytest.approx({"grpo": np.sqrt(3 / 4), "rloo": 4 / 3}[name], rel=1e-3)
    with pytest.raises(ValueError, match="do not stand for 8 replies"):
        make_batch(ALGORITHMS["grpo"], rollout(), scores(), jnp.ones((2, 3)), 0.0)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_on_policy_the_ratio_is_1_and_micro_batches_add_up(name):
    settings = dataclasses.replace(ALGORITHMS[name], entropy_coefficient=0.01)
    model = dataclasses.replace(POLICY, critic=settings.critic if name == "ppo" else "none")
    params = policy_step.init_policy(PARAMS, MODEL, model.critic)
    found = jax.device_get(jax.jit(model.score)(params, jax.tree.map(lambda x: 1.1 * x, PARAMS), TOKENS))
    if name == "ppo":
        assert not found.values.any()  # the head starts at zero
        found = dataclasses.replace(found, values=scores().values)
    rewards = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4)), jnp.float32)
    batch = make_batch(settings, rollout(), found, rewards, 0.2)
    objective = policy_step.policy_objective(model, settings, 9)
    whole, pieces = (jax.jit(lambda p, b, n=n: accumulate_gradients(objective, p, b, n))(params, batch) for n in (1, 4))
    assert distance(whole[0], pieces[0]) < 1e-4 * distance(whole[0], jax.tree.map(np.zeros_like, params))
    np.testing.assert_allclose(whole[1].value, pieces[1].value, rtol=1e-4)
    metrics = {key: float(mean.value) for key, mean in whole[2].items()}
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-6) and metrics["clip_fraction"] == 0.0
    moved = {key for key, part in whole[0].items() if any(np.asarray(x).any() for x in jax.tree.leaves(part))}
    assert moved == ({"model", "value"} if name == "ppo" else {"model"})


@pytest.mark.parametrize("change, message", [
    ({"baseline": "magic"}, "policy.baseline"), ({"kl_kind": "k9"}, "policy.kl_kind"), ({"epochs": 0}, "at least 1"),
    ({"discount": 1.5}, "in \\[0, 1\\]"), ({"importance_cap": 0.0}, "above 0"),
    ({"baseline": "critic", "average": "sequence"}, "must be 'token'"),
    ({"kl_in": "none", "kl_target": 3.0}, "nothing would hold"), ({"resample": -1}, "at least 0"),
    ({"overlong": 1.5}, "in \\[0, 1\\]")])
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        PolicySettings(**change)
