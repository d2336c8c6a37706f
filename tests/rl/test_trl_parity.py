"""Our losses of arrays against TRL's own code, run on the same numbers.

TRL's trainers are objects without their set-up: `object.__new__`, the attributes that the loss reads, and a model that
returns the log-probabilities of the case. Advantages and importance weights stand inside a long method there; their
lines are followed here in torch, with the place.
"""

import collections
import functools
import importlib
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.rl import preference_loss
from jaxllm.rl.advantages import group_advantages, overlong_penalty
from jaxllm.rl.distill import distill_loss
from jaxllm.rl.policy_loss import policy_loss, truncated_importance
from jaxllm.rl.policy_settings import ALGORITHMS
from jaxllm.rl.policy_step import Scores, make_batch, policy_objective
from jaxllm.rl.rollout import Rollout

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the oracle: pip install 'jaxllm[peers]'")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # its warning that this part may change
rng = np.random.default_rng(0)
B, T = 6, 7
# A full row, one token, none, a hole where a tool spoke, and two rows whose policy has moved far.
MASK = np.zeros((B, T), bool)
MASK[0], MASK[1, 0], MASK[3, [0, 1, 5]], MASK[4, :5], MASK[5, :3] = True, True, True, True, True
LOGP = rng.normal(-2.0, 1.0, (B, T)).astype(np.float32)
OLD = LOGP + rng.normal(0.0, 0.3, (B, T)).astype(np.float32)
OLD[1], OLD[4, 2], OLD[5, 1] = LOGP[1], LOGP[4, 2] - 9.0, LOGP[5, 1] + 9.0  # ratios of exactly 1, 8,103 and 1 / 8,103
REFERENCE = LOGP + rng.normal(0.0, 0.5, (B, T)).astype(np.float32)
ADVANTAGES = np.array([1.0, -0.5, 2.0, 0.0, -1.5, 0.7], np.float32)
ONE_WORKER = types.SimpleNamespace(num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x,
                                   reduce=lambda x, reduction: x, device="cpu")
METRICS = collections.defaultdict(lambda: collections.defaultdict(list))


def trl(module, name):
    """Of TRL. Imported by the test that asks: every worker collects this file, and the import takes seconds."""
    return getattr(importlib.import_module(f"trl.{module}"), name)


def trainer_of(kind):
    return trl(f"trainer.{kind.lower()}_trainer", f"{kind}Trainer")


def bare(trainer, **attributes):
    """A trainer of TRL with nothing but what its loss reads."""
    made = object.__new__(trainer)
    common = {"aux_loss_enabled": False, "accelerator": ONE_WORKER, "_metrics": METRICS, "_total_train_tokens": 0,
              "model": types.SimpleNamespace(training=False), "_tp_size": 1}
    for name, value in {**common, **attributes}.items():
        setattr(made, name, value)
    return made


def tensor(x):
    return torch.tensor(np.asarray(x))


def trl_policy(trainer, logp, mask, *, advantages=ADVANTAGES, old=OLD, importance=None, args=(), **attributes):
    """(loss, gradient by logp) of GRPOTrainer or RLOOTrainer."""
    leaf = tensor(logp).requires_grad_()
    made = bare(trainer, **{
        "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "importance_sampling_level": "token",
        "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "loss_type": "grpo", "use_vllm": importance is not None,
        "vllm_importance_sampling_correction": True, "current_gradient_accumulation_steps": 1,
        "max_completion_length": T, "_entropy_bonus_enabled": False, **attributes,
        "args": types.SimpleNamespace(**{"delta": None, "use_bias_correction_kl": False, **dict(args)})})
    made._get_per_token_logps_and_entropies = lambda *_, **__: (leaf, torch.zeros_like(leaf), None)
    counts, nothing = tensor(mask).float(), torch.zeros((len(logp), 0))
    loss = made._compute_loss(None, {
        "prompt_ids": nothing, "prompt_mask": nothing, "completion_ids": counts, "completion_mask": counts,
        "advantages": tensor(advantages), "old_per_token_logps": tensor(old), "num_items_in_batch": counts.sum(),
        "old_logps": (tensor(old) * counts).sum(1), "ref_per_token_logps": tensor(REFERENCE),
        "importance_sampling_ratio": None if importance is None else tensor(importance)})
    loss.backward()
    return loss.item(), leaf.grad.numpy()


def ours(weight=None, **choices):
    """(loss, gradient by logp) of `policy_loss`, its sum divided by `weight` (None: by its own)."""
    @jax.jit
    def found(logp):
        loss, _ = policy_loss(logp, jnp.asarray(OLD), jnp.tile(jnp.asarray(ADVANTAGES)[:, None], (1, T)),
                              jnp.asarray(MASK), **choices)
        return loss.total / (loss.weight if weight is None else weight)
    return jax.value_and_grad(found)(jnp.asarray(LOGP))


def agree(mine, theirs, tolerance=1e-6):
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=tolerance)


IMPORTANCE = np.exp(np.minimum(OLD - REFERENCE, 0.4))


@pytest.mark.parametrize("mine, theirs", [
    ({"dual_clip": 3.0}, {"args": {"delta": 3.0}}), ({"importance_BT": IMPORTANCE}, {"importance": IMPORTANCE}),
], ids=["dual_clip", "importance"])
def test_what_no_algorithm_sets_is_trls(mine, theirs):
    agree(ours(**mine), trl_policy(trainer_of("GRPO"), LOGP, MASK, loss_type="bnpo", **theirs))


def test_rloo_has_trls_gradient():
    # Its value is that of the row once, ours that of each of its tokens; the gradient is the same.
    _, theirs = trl_policy(trainer_of("RLOO"), LOGP, MASK)
    _, mine = ours(ratio="product", average="constant", length=1, weight=B)
    agree(mine, theirs)


def torch_group(rewards, kind):
    """grpo_trainer.py:2767-2787 and rloo_trainer.py:1661-1684 of TRL 1.16.0."""
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    return {"grpo": (rewards - mean) / (std + 1e-4), "dr_grpo": rewards - mean,
            "rloo": rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)}[kind]


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_group_advantages_are_trls(kind):
    rewards = rng.normal(size=(4, 5)).astype(np.float32)
    rewards[1], rewards[2], rewards[3] = 0.1, [0, 0, 0, 0, 1], [1e3, -1e3, 5, 5, 5]
    mine = np.array(jax.jit(functools.partial(group_advantages, kind=kind))(rewards))
    assert (mine[1] == 0.0).all()  # TRL keeps the rounding of the mean: 7e-9, and over 1e-4 more of it
    agree(mine, torch_group(tensor(rewards), kind), tolerance=1e-4)


# The ratio of 8,103 comes with a gain, that of its inverse with a loss; a row without a token has no reward.
REWARDS = np.array([[1.0, 0.5, 0.0], [0.3, 1.0, -2.0]], np.float32)
COUNTED = MASK.any(1).mean()  # of the rows, which TRL divides by


def end_to_end(name):
    """(loss, gradient by logp) from rewards through `make_batch` and `policy_objective`, settings as they come."""
    settings, zero = ALGORITHMS[name], np.zeros((B, T), np.float32)
    drawn = Rollout(np.zeros((B, T), np.int32), MASK, zero, zero, np.full(B, T, np.int32), np.ones(B, bool))
    batch = make_batch(settings, drawn, Scores(OLD, zero, REFERENCE, None), jnp.asarray(REWARDS), 0.1)
    model = types.SimpleNamespace(outputs=lambda params, tokens: (params, jnp.zeros((B, T)), None))
    objective = policy_objective(model, settings, T)
    return jax.jit(jax.value_and_grad(lambda logp: objective(logp, batch)[0].value))(jnp.asarray(LOGP))


def reinforce_plus_plus():
    """Equations 8 to 10 of Hu et al. in torch: rewards to come, less the KL's, whitened over all tokens."""
    mask, last = tensor(MASK), [row.nonzero()[0][-1] if row.any() else 0 for row in MASK]
    rewards = -0.1 * (tensor(OLD) - tensor(REFERENCE)) * mask
    rewards[torch.arange(B), last] += tensor(REWARDS).reshape(B) * mask.any(1)
    returns = rewards.flip(1).cumsum(1).flip(1)
    return (returns - returns[mask].mean()) / returns[mask].std() * mask


@pytest.mark.parametrize("name, kind, rows, theirs", [  # CISPO of TRL names the ratio itself, not its distance from 1
    ("grpo", "grpo", COUNTED, {"loss_type": "grpo", "beta": 0.1}),
    ("dr_grpo", "dr_grpo", COUNTED, {"loss_type": "dr_grpo"}),
    ("dapo", "grpo", 1.0, {"loss_type": "dapo", "epsilon_high": 0.28}),
    ("gspo", "grpo", COUNTED, {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4,
                               "epsilon_high": 4e-4}),
    ("cispo", "grpo", 1.0, {"loss_type": "cispo", "epsilon_high": 5.0}),
    ("reinforce++", None, 1.0, {"loss_type": "bnpo"})])
def test_algorithms_are_trls_from_the_rewards_on(name, kind, rows, theirs):
    advantages = torch_group(tensor(REWARDS), kind).reshape(B) if kind else reinforce_plus_plus()
    mine = jax.tree.map(lambda x: x * rows, end_to_end(name))
    agree(mine, trl_policy(trainer_of("GRPO"), LOGP, MASK, advantages=advantages, **theirs), tolerance=1e-5)


@pytest.mark.parametrize("level, drop", [("token", False), ("sequence", False), ("token", True), ("sequence", True)])
def test_importance_weights_are_trls(level, drop):
    """grpo_trainer.py:2663-2703, modes token_truncate, sequence_truncate, token_mask and sequence_mask."""
    difference = (tensor(OLD) - tensor(REFERENCE)) * tensor(MASK)
    if level == "sequence":
        difference = difference.sum(-1, keepdim=True).expand(B, T)
    expected = torch.exp(difference)
    expected = expected.masked_fill(expected > 3.0, 0.0) if drop else expected.clamp(max=3.0)
    mine = jax.jit(functools.partial(truncated_importance, cap=3.0, level=level, drop=drop))
    agree(mine(OLD, REFERENCE, MASK), expected)


def test_overlong_penalty_is_trls():
    lengths = [0, 79, 80, 81, 90, 100, 101, 500]
    expected = trl("rewards", "get_soft_overlong_punishment")(100, 20)([[0] * length for length in lengths])
    agree(overlong_penalty(np.array(lengths), limit=100, buffer=20), np.array(expected))


# Sums over whole replies: near, equal, one moved far up and the other down, and both moved alike.
POLICY = np.array([[-4.0, -6.0], [-5.0, -5.0], [-1.0, -90.0], [-90.0, -1.0], [-30.0, -40.0]], np.float32)
START = np.array([[-4.5, -5.5], [-5.0, -5.0], [-40.0, -20.0], [-30.0, -40.0], [-10.0, -20.0]], np.float32)
LENGTHS = np.array([[3, 5], [1, 1], [4, 4], [1, 5], [2, 2]])


def reply_model(leaf, lengths):
    """A model whose log-probabilities of a reply of n tokens are each an n-th of the given sum."""
    width = int(lengths.max())
    counts = (torch.arange(width) < lengths[:, None]).float()
    each, zeros = leaf[:, None] / lengths[:, None] * counts, torch.zeros((len(leaf), width))

    def model(**_):
        return types.SimpleNamespace(log_probs=each, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return model, torch.cat([torch.zeros((len(leaf), 1)), counts], 1)


def trl_direct(loss_type, rows=slice(None), **attributes):
    """(loss, gradient by the sums) of DPOTrainer; the batch is the chosen rows and then the rejected ones."""
    leaf, lengths = (tensor(x[rows].T.reshape(-1)) for x in (POLICY, LENGTHS))
    leaf.requires_grad_()
    model, mask = reply_model(leaf, lengths)
    made = bare(trainer_of("DPO"), **{"ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl",
                               "loss_types": [loss_type], "loss_weights": [1.0], "beta": 0.3, "label_smoothing": 0.0,
                               "use_weighting": False, **attributes})
    loss = made._compute_loss(model, {"input_ids": mask.long(), "attention_mask": mask, "completion_mask": mask.long(),
                                      "ref_chosen_logps": tensor(START[rows, 0]),
                                      "ref_rejected_logps": tensor(START[rows, 1])}, False)
    loss.backward()
    return loss.item(), leaf.grad.numpy().reshape(2, -1).T


def direct(loss, rows=slice(None), divide=1, **settings):
    def found(policy):
        policy, start = policy / divide, START[rows] / divide
        return loss(policy[:, 0], policy[:, 1], start[:, 0], start[:, 1], beta=0.3, **settings)[0].value
    return jax.jit(jax.value_and_grad(found))(jnp.asarray(POLICY[rows]))


def test_direct_losses_are_trls():
    agree(direct(preference_loss.dpo), trl_direct("sigmoid"))
    one = slice(2, 3)  # TRL smooths labels in aot alone, which for a batch of one pair is this loss
    agree(direct(preference_loss.dpo, one, label_smoothing=0.1), trl_direct("aot", one, label_smoothing=0.1))
    # TRL counts a reply's tokens in the mask of inputs: the same here, since no prompt token stands in it.
    agree(direct(preference_loss.ipo, divide=LENGTHS.astype(np.float32)), trl_direct("ipo"))


@pytest.mark.parametrize("desirable", [[True, False, True, False, False], [False] * 5], ids=["both", "bad alone"])
def test_kto_is_trls(desirable):
    policy, start, other, other_start = POLICY[:, 0], START[:, 0], POLICY[::-1, 1].copy(), START[:, 1]
    leaf = tensor(policy).requires_grad_()
    model, mask = reply_model(leaf, tensor(LENGTHS[:, 0]))
    made = bare(trainer_of("KTO"), calculate_KL=True, precompute_ref_logps=True, loss_type="kto", beta=0.1,
                desirable_weight=1.3, undesirable_weight=0.8)
    made._compute_kl_logps = lambda *_: tensor(other)
    theirs = made._compute_loss(model, {"label": tensor(desirable), "input_ids": mask.long(), "completion_mask": mask,
                                        "attention_mask": mask, "ref_logps": tensor(start),
                                        "ref_KL_logps": tensor(other_start)}, False)
    theirs.backward()
    baseline = preference_loss.kto_baseline(other, other_start)
    mine = jax.jit(jax.value_and_grad(lambda x: preference_loss.kto(
        x, start, np.array(desirable), baseline, desirable_weight=1.3, undesirable_weight=0.8)[0].value))(policy)
    agree(mine, (theirs.item(), leaf.grad.numpy()))


@pytest.mark.parametrize("margin", [None, np.array([0.0, 1.0, 2.0, 0.5], np.float32)], ids=["plain", "margin"])
def test_reward_loss_is_trls(margin):
    scores = np.array([[1.0, 0.0], [2.0, 2.0], [-80.0, 80.0], [0.5, -0.5]], np.float32)
    leaf = tensor(scores.T.reshape(-1, 1)).requires_grad_()
    made = bare(trainer_of("Reward"), args=types.SimpleNamespace(center_rewards_coefficient=0.01))
    batch = {} if margin is None else {"margin": tensor(margin)}
    theirs = made.compute_loss(lambda **_: types.SimpleNamespace(logits=leaf), batch)
    theirs.backward()

    def found(scores):
        loss, metrics = preference_loss.bradley_terry(scores[:, 0], scores[:, 1], margin=margin, centring=0.01)
        return loss.value, metrics

    (loss, metrics), mine = jax.jit(jax.value_and_grad(found, has_aux=True))(scores)
    agree((loss, mine), (theirs.item(), leaf.grad.numpy().reshape(2, -1).T))
    agree((metrics["accuracy"].value, metrics["margin"].value),
          (METRICS["eval"]["accuracy"][-1], METRICS["eval"]["margin"][-1]))


@pytest.mark.parametrize("kind, beta, theirs", [("forward", 0.5, 0.0), ("reverse", 0.5, 1.0), ("jsd", 0.5, 0.5),
                                                ("jsd", 0.1, 0.1)])
def test_distillation_is_trls(kind, beta, theirs):
    student, teacher = (rng.normal(0.0, 3.0, (B, T, 11)).astype(np.float32) for _ in range(2))
    leaf, labels = tensor(student).requires_grad_(), tensor(np.where(MASK, 1, -100))
    divergence = trl("experimental.gkd", "GKDTrainer").generalized_jsd_loss
    loss = divergence(leaf, tensor(teacher), labels, beta=theirs, temperature=1.5)
    loss.backward()
    mine = jax.jit(jax.value_and_grad(lambda x: distill_loss(x, teacher, MASK, kind, beta=beta, temperature=1.5
                                                             )[0].value))(student)
    agree(mine, (loss.item(), leaf.grad.numpy()))
    if kind != "jsd":  # and torch's own KL, whose first argument is what the second is measured against
        q, p = (torch.log_softmax(tensor(x)[tensor(MASK)] / 1.5, -1) for x in (student, teacher))
        pair = (q, p) if kind == "forward" else (p, q)
        expected = torch.nn.functional.kl_div(*pair, log_target=True, reduction="batchmean")
        agree(mine[0], expected)
