"""The policy-gradient update: rollouts and rewards -> advantages -> a batch -> a `LossFn` over policy and value head.

`PolicySettings` spans PPO, REINFORCE, RLOO, GRPO and its relatives: which baseline, which objective, where the KL to
the start model enters and by which estimator, how the loss is averaged, how often a rollout is gone over.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.transformer import hidden_states, logits
from jaxllm.rl.advantages import gae, group_advantages, token_rewards, whiten
from jaxllm.rl.kl import kl_estimate
from jaxllm.rl.policy_loss import policy_loss, sampler_gap, token_entropy, truncated_importance, value_loss
from jaxllm.rl.policy_settings import PolicySettings
from jaxllm.rl.rollout import Rollout
from jaxllm.train.metrics import Mean, Metrics
from jaxllm.train.step import LossFn, TrainState


@struct.dataclass
class PolicyState:
    """All that a run changes: a checkpoint of it and the seed are enough to go on.

    Attributes:
      train: weights, optimizer, and the number of updates taken.
      kl_coefficient: float32, the weight of the KL at the next rollout.
    """

    train: TrainState
    kl_coefficient: jax.Array


@struct.dataclass
class Scores:
    """What the trainer says of a rollout's tokens before it learns from them; float32 [B, T], 0 outside the rows.

    Attributes:
      logp: nats, under the policy that was sampled, as the trainer computes it.
      entropy: nats, of the distribution that a token was drawn from.
      reference_logp: nats, under the start model.
      values: of the state in which a token was drawn; None without a critic.
    """

    logp: Any
    entropy: Any
    reference_logp: Any
    values: Any


@struct.dataclass
class PolicyBatch:
    """A rollout with all that its loss needs; [B, T] but for `kl_coefficient` [B, 1], which is one number repeated.

    Attributes:
      tokens, mask: of the rollout.
      old_logp, reference_logp, old_values: see `Scores`.
      advantages, returns: 0 where the mask is False.
      importance: weights of the correction for the sampler, 1 without.
      kl_coefficient: of the KL in the loss.
    """

    tokens: Any
    mask: Any
    old_logp: Any
    reference_logp: Any
    old_values: Any
    advantages: Any
    returns: Any
    importance: Any
    kl_coefficient: Any


@dataclasses.dataclass(frozen=True)
class PolicyModel:
    """The policy as a function: a model, how it runs, and which distribution its tokens are drawn from.

    Attributes:
      config, execution: as `forward` takes them.
      temperature: divides the logits, > 0: the policy that is trained is the one that is sampled.
      valid_vocab: ids from here on have probability 0; None is V.
      chunks: pieces of a row for which logits stand in memory at once; divides T.
      critic: "none", "shared" or "own", see `PolicySettings`.
    """

    config: ModelConfig
    execution: Execution = Execution()
    temperature: float = 1.0
    valid_vocab: int | None = None
    chunks: int = 1
    critic: str = "none"

    def outputs(self, params: Params, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """(logp, entropy, values), each float32 [B, T] and about tokens[b, t] given those before; column 0 is 0."""
        hidden_BTD = hidden_states(params["model"], self.config, tokens, execution=self.execution)
        logp_BT, entropy_BT = self.token_scores(params["model"], hidden_BTD, jnp.roll(tokens, -1, axis=1))
        values_BT = None
        if self.critic != "none":
            if self.critic == "own":
                hidden_BTD = hidden_states(params["critic"], self.config, tokens, execution=self.execution)
            head = params["value"]
            values_BT = _later(hidden_BTD.astype(jnp.float32) @ head["weight"] + head["bias"])
        return _later(logp_BT), _later(entropy_BT), values_BT

    def token_scores(self, params: Params, hidden_BTD: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probability of the targets and entropy, nats [B, T]; logits of one chunk at a time, forward and back."""
        def piece(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden, targets = chunk
            scores = logits(params, self.config, hidden) / self.temperature
            if self.valid_vocab is not None and self.valid_vocab < self.config.vocab_size:
                scores = jnp.where(jnp.arange(scores.shape[-1])[None, None] < self.valid_vocab, scores, -1e30)
            chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
            return chosen - jax.nn.logsumexp(scores, axis=-1), token_entropy(scores)

        if self.chunks == 1:
            return piece((hidden_BTD, targets_BT))
        B, T = targets_BT.shape
        if T % self.chunks:
            raise ValueError(f"logit_chunks ({self.chunks}) must divide the {T} positions of a row")
        cut = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(B, self.chunks, T // self.chunks, *x.shape[2:]), 0, 1),
                           (hidden_BTD, targets_BT))
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(B, T), jax.lax.map(jax.checkpoint(piece), cut))

    def score(self, params: Params, reference: Params, tokens: jax.Array) -> Scores:
        """The `Scores` of tokens [B, T]; `reference` are the start model's own parameters."""
        logp, entropy_BT, values = self.outputs(params, tokens)
        hidden_BTD = hidden_states(reference, self.config, tokens, execution=self.execution)
        reference_logp, _ = self.token_scores(reference, hidden_BTD, jnp.roll(tokens, -1, axis=1))
        return Scores(logp, entropy_BT, _later(reference_logp), values)


def _later(x_BT: jax.Array) -> jax.Array:
    """From "about the next token" to "about this one"."""
    return jnp.pad(x_BT[:, :-1], ((0, 0), (1, 0)))


def init_policy(params: Params, config: ModelConfig, critic: str = "none") -> Params:
    """The parameters that a run trains: {"model"}, and with a critic {"value"}, with one of its own {"critic"}.

    The value head starts at zero, so that the first advantages are the rewards themselves.
    """
    policy: Params = {"model": params}
    if critic != "none":
        policy["value"] = {"weight": jnp.zeros((config.dim,)), "bias": jnp.zeros(())}
    if critic == "own":
        policy["critic"] = jax.tree.map(jnp.copy, params)
    return policy


def reply_kl(logp: np.ndarray, reference_logp: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """KL to the start model on the drawn tokens, nats [B]: the sum of k1 over a reply, unbiased for the whole reply."""
    return np.where(mask, np.asarray(logp, np.float32) - reference_logp, 0.0).sum(axis=1)


def make_batch(settings: PolicySettings, rollout: Rollout, scores: Scores, rewards_QG: jax.Array,
               kl_coefficient: jax.Array | float) -> PolicyBatch:
    """Rewards and scores -> advantages -> the batch that the loss takes. Pure; jit it with `settings` static.

    Args:
      rewards_QG: float32 [Q, G], of the replies in the order of the rollout's rows.
      kl_coefficient: of this rollout.

    Raises:
      ValueError: when Q G is not the number of rows.
    """
    B = rollout.tokens.shape[0]
    if rewards_QG.ndim != 2 or rewards_QG.size != B:
        raise ValueError(f"rewards of shape {rewards_QG.shape} do not stand for {B} replies")
    mask = jnp.asarray(rollout.mask)
    coefficient = kl_coefficient if settings.kl_in == "reward" else 0.0
    kl_BT = kl_estimate(scores.logp, scores.reference_logp, settings.kl_kind)
    rewards_BT = token_rewards(rewards_QG.reshape(B).astype(jnp.float32), kl_BT, mask, coefficient)
    returns = old_values = jnp.zeros(mask.shape, jnp.float32)
    if settings.baseline == "critic":
        old_values = scores.values
        advantages, returns = gae(rewards_BT, old_values, mask, discount=settings.discount, decay=settings.gae_decay)
    elif settings.baseline == "returns":
        advantages, _ = gae(rewards_BT, old_values, mask, discount=settings.discount, decay=1.0)
    else:
        whole_QG = jnp.sum(rewards_BT, axis=1).reshape(rewards_QG.shape)
        advantages = jnp.broadcast_to(group_advantages(whole_QG, kind=settings.baseline).reshape(B, 1), mask.shape)
    counts = mask & jnp.asarray(rollout.stopped)[:, None] if settings.mask_truncated else mask
    if settings.whiten:
        advantages = whiten(advantages, counts)
    importance = jnp.ones(mask.shape, jnp.float32)
    if settings.importance != "none":
        importance = truncated_importance(scores.logp, jnp.asarray(rollout.sampling_logp), mask,
                                          cap=settings.importance_cap, level=settings.importance)
    return PolicyBatch(
        tokens=jnp.asarray(rollout.tokens), mask=counts, old_logp=scores.logp, reference_logp=scores.reference_logp,
        old_values=old_values, advantages=jnp.where(mask, advantages, 0.0), returns=jnp.where(mask, returns, 0.0),
        importance=importance, kl_coefficient=jnp.full((B, 1), kl_coefficient, jnp.float32))


def policy_objective(model: PolicyModel, settings: PolicySettings, max_tokens: int) -> LossFn:
    """Returns loss_fn(params, PolicyBatch) -> (loss, metrics), whose totals add over micro-batches.

    loss = policy loss + c_v value loss + beta KL(policy || start) - c_e entropy, all averaged alike.

    Args:
      model: the policy.
      settings: see `PolicySettings`.
      max_tokens: of a reply: what `average="constant"` divides by.
    """
    def loss_fn(params: Params, batch: PolicyBatch) -> tuple[Mean, Metrics]:
        logp, entropy_BT, values = model.outputs(params, batch.tokens)
        penalty_BT = -settings.entropy_coefficient * entropy_BT if settings.entropy_coefficient else None
        if settings.kl_in == "loss":
            kl_BT = kl_estimate(logp, batch.reference_logp, settings.kl_kind)
            penalty_BT = (0.0 if penalty_BT is None else penalty_BT) + batch.kl_coefficient * kl_BT
        loss, metrics = policy_loss(
            logp, batch.old_logp, batch.advantages, batch.mask, clip_low=settings.clip_low,
            clip_high=settings.clip_high, dual_clip=settings.dual_clip, ratio=settings.ratio,
            objective=settings.objective, average=settings.average, length=max_tokens,
            importance_BT=batch.importance, penalty_BT=penalty_BT)
        if settings.baseline == "critic":
            worth, found = value_loss(values, batch.old_values, batch.returns, batch.mask,
                                      clip=settings.value_clip or None)
            metrics |= {"value_loss": worth, "value_clip_fraction": found["value_clip_fraction"]}
            loss = Mean(loss.total + settings.value_coefficient * worth.total, loss.weight)
        return loss, jax.lax.stop_gradient(metrics)
    return loss_fn


def explained_variance(scores: Scores, returns_BT: np.ndarray, mask_BT: np.ndarray) -> float:
    """Share of the variance of the returns that the critic foresaw, before it learned from them; 0 without a variance.

    1 - var(returns - values) / var(returns)
    """
    returns, values = np.asarray(returns_BT)[mask_BT], np.asarray(scores.values)[mask_BT]
    variance = float(returns.var()) if returns.size else 0.0
    return 1.0 - float((returns - values).var()) / variance if variance else 0.0


def advantage_size(batch: PolicyBatch) -> float | None:
    """Root mean square over replies of the mean advantage of a reply's tokens, where it is not 0; None where all are.

    What a normalisation fixes, whatever the rewards: of "grpo" it is sqrt(1 - 1/G), G being the replies of a group.
    """
    mask_BT = np.asarray(batch.mask, np.float32)
    told_B = (np.asarray(batch.advantages) * mask_BT).sum(axis=1) / np.maximum(mask_BT.sum(axis=1), 1.0)
    told_B = told_B[told_B != 0]
    return float(np.sqrt(np.mean(np.square(told_B)))) if told_B.size else None


def describe(scores: Scores, rollout: Rollout) -> dict[str, float]:
    """What a rollout says of its policy before the update.

    Returns:
      "kl": KL to the start model, nats a reply: the sum of k1 over its drawn tokens; "kl_token": the same by k3, nats a
      token; "entropy": nats a token; "length": drawn tokens of a reply; "truncated": share of replies cut off;
      "sampler_gap", "sampler_gap_max": mean and largest |trainer's - sampler's log-probability| of a token, nats;
      "sampler_kl": KL(sampler || trainer), nats a token.
    """
    mask = rollout.mask
    k3, gap = jax.device_get(_against_others(scores.logp, scores.reference_logp, rollout.sampling_logp, mask))
    apart = np.abs(np.where(mask, np.asarray(scores.logp) - rollout.sampling_logp, 0.0))
    counted = max(int(mask.sum()), 1)
    return {
        "kl": float(reply_kl(np.asarray(scores.logp), np.asarray(scores.reference_logp), mask).mean()),
        "kl_token": float(np.where(mask, k3, 0.0).sum()) / counted,
        "entropy": float(np.where(mask, scores.entropy, 0.0).sum()) / counted,
        "length": counted / len(mask), "truncated": float(1.0 - rollout.stopped.mean()),
        **{name: float(value) for name, value in gap.items()}, "sampler_gap_max": float(apart.max())}


@jax.jit
def _against_others(logp: jax.Array, reference_logp: jax.Array, sampling_logp: jax.Array, mask: jax.Array
                    ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(k3 to the start model [B, T], means of `sampler_gap`), as one program."""
    gap = sampler_gap(logp, sampling_logp, mask)
    return kl_estimate(logp, reference_logp, "k3"), {name: mean.value for name, mean in gap.items()}
