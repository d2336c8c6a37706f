"""Losses of policy gradients, functions of arrays: PPO's and its relatives', the critic's, and what corrects a sampler.

A published method is a row of choices, made here and in `advantages`; `policy_settings.ALGORITHMS` has them by name:

method       advantages   ratio     objective  average   besides
PPO          gae          token     clip       token     value_loss; the KL in `token_rewards`
REINFORCE    mean         -         reinforce  constant  length 1: the gradient of the whole row's log-probability
REINFORCE++  to come      token     clip       token     the KL in `token_rewards`; `gae` without values, `whiten`
RLOO         rloo         -         reinforce  constant  length 1
GRPO         grpo         token     clip       sequence  penalty_BT = beta k3
Dr. GRPO     dr_grpo      token     clip       constant  length: the budget of tokens
DAPO         grpo         token     clip       token     clip_high 0.28; `overlong_penalty` in the reward
GSPO         grpo         sequence  clip       sequence  clip_low 3e-4, clip_high 4e-4
CISPO        grpo         token     cispo      token     clip_low >= 1 leaves the lower side open, as MiniMax did

Where the mask is False (a prompt, what a tool answered) nothing is counted and no gradient flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxllm.rl.kl import kl_estimate
from jaxllm.train.metrics import Mean, Metrics

_CAP = 20.0  # nats: the logarithm of a ratio is held within it, as in verl; float32 ends at 88


def policy_loss(logp_BT: jax.Array, old_logp_BT: jax.Array, advantages_BT: jax.Array, mask_BT: jax.Array, *,
                clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None,
                ratio: Literal["token", "sequence", "product"] = "token",
                objective: Literal["clip", "cispo", "reinforce"] = "clip",
                average: Literal["token", "sequence", "constant"] = "token", length: int | None = None,
                importance_BT: jax.Array | None = None, penalty_BT: jax.Array | None = None) -> tuple[Mean, Metrics]:
    """What a policy is pushed by: minus advantage times a ratio that may move only so far.

    With r = exp(logp - old_logp):
      clip       -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), and where A < 0 at most -dual_clip A
      cispo      -stop_gradient(clip(r, 1 - clip_low, 1 + clip_high)) A logp: no token loses its gradient
      reinforce  -A logp; no ratio

    Args:
      logp_BT: float, log-probability of each drawn token under the policy that is trained, nats.
      old_logp_BT: the same under the policy as it was when it drew them (the trainer's numbers, not the sampler's).
      advantages_BT: float; a row's own advantage stands at each of its tokens.
      mask_BT: bool; True: drawn by the policy. What stands elsewhere may be anything, nan included.
      clip_low, clip_high: how far the ratio may fall and rise.
      dual_clip: c > 1, or None: off. TRL calls it delta.
      ratio: "token": of each token. "sequence": the geometric mean over the row's tokens, for all of them (GSPO; the
        gradient is GSPO-token's, the same while a row has one advantage). "product": that of the whole row (RLOO after
        several updates).
      objective: see above.
      average: what the sum is divided by, see `average_tokens`.
      length: for average="constant".
      importance_BT: weights on the tokens' losses (`truncated_importance`), or None.
      penalty_BT: float, added to the tokens' losses under the same average, or None: a coefficient times
        `kl_estimate`, or minus a coefficient times `token_entropy`.

    Returns:
      (loss, metrics): per counted token "ratio", "clip_fraction" (where the clip takes the gradient away, or in cispo
      holds the ratio), "clip_low_fraction", "clip_high_fraction" and "kl_old", KL(old || policy) by k3 in nats.

    Note: a log-ratio is held within 20 nats, beyond which it has no gradient.

    References: Schulman et al., Proximal policy optimization, 2017, equation 7. https://arxiv.org/abs/1707.06347
      Ye et al., Mastering complex control in MOBA games, 2020, equation 5 (dual clip).
      https://arxiv.org/abs/1912.09729
      Yu et al., DAPO, 2025, equation 8 (clip-higher, average over tokens). https://arxiv.org/abs/2503.14476
      Zheng et al., Group sequence policy optimization, 2025, equations 5, 7 and 13. https://arxiv.org/abs/2507.18071
      MiniMax, MiniMax-M1, 2025, equations 4 and 5 (CISPO). https://arxiv.org/abs/2506.13585

    >>> x = jnp.zeros((1, 2))
    >>> float(policy_loss(x, x, jnp.array([[1.0, 3.0]]), jnp.ones((1, 2), bool))[0].value)
    -2.0
    """
    logp_BT = jnp.where(mask_BT, logp_BT, 0.0)
    advantages_BT = jax.lax.stop_gradient(jnp.where(mask_BT, advantages_BT, 0.0))
    log_ratio_BT = logp_BT - jax.lax.stop_gradient(jnp.where(mask_BT, old_logp_BT, 0.0))
    ratio_BT = jnp.exp(jnp.clip(_log_ratio(log_ratio_BT, mask_BT, ratio), -_CAP, _CAP))
    clipped_BT = jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high)
    if objective == "clip":
        gain_BT = jnp.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
        if dual_clip is not None:
            gain_BT = jnp.where(advantages_BT < 0.0, jnp.maximum(gain_BT, dual_clip * advantages_BT), gain_BT)
    elif objective == "cispo":
        gain_BT = jax.lax.stop_gradient(clipped_BT) * advantages_BT * logp_BT
    elif objective == "reinforce":
        gain_BT = advantages_BT * logp_BT
    else:
        raise ValueError(f"objective {objective!r} is unknown; take clip, cispo or reinforce")
    loss_BT = -gain_BT
    if importance_BT is not None:
        loss_BT *= jax.lax.stop_gradient(jnp.where(mask_BT, importance_BT, 0.0))
    if penalty_BT is not None:
        loss_BT += jnp.where(mask_BT, penalty_BT, 0.0)
    too_low_BT = (ratio_BT < 1.0 - clip_low) & ((advantages_BT < 0.0) | (objective == "cispo"))
    too_high_BT = (ratio_BT > 1.0 + clip_high) & ((advantages_BT > 0.0) | (objective == "cispo"))
    reports = {"ratio": ratio_BT, "clip_fraction": too_low_BT | too_high_BT, "clip_low_fraction": too_low_BT,
               "clip_high_fraction": too_high_BT, "kl_old": kl_estimate(-log_ratio_BT, jnp.zeros_like(logp_BT))}
    return average_tokens(loss_BT, mask_BT, average, length), _reports(reports, mask_BT)


def _log_ratio(log_ratio_BT: jax.Array, mask_BT: jax.Array, level: str) -> jax.Array:
    """The log-ratio that stands at each token; a row's is given to each token through the token's own logp."""
    if level == "token":
        return log_ratio_BT
    if level not in ("sequence", "product"):
        raise ValueError(f"ratio {level!r} is unknown; take token, sequence or product")
    row_B1 = jnp.sum(log_ratio_BT, axis=1, keepdims=True)
    if level == "sequence":
        row_B1 = row_B1 / jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), 1)
    return log_ratio_BT - jax.lax.stop_gradient(log_ratio_BT) + jax.lax.stop_gradient(row_B1)


def average_tokens(values_BT: jax.Array, mask_BT: jax.Array, average: str = "token", length: int | None = None
                   ) -> Mean:
    """Sum over the counted tokens, and what it is to be divided by.

    Args:
      values_BT: float.
      mask_BT: bool.
      average: "token": by the counted tokens of all rows (DAPO; long rows weigh more). "sequence": each row by its own,
        then by the rows (GRPO; a token of a long row weighs less). "constant": by rows times `length` (Dr. GRPO).
      length: tokens; for "constant" alone.

    Note: rows that count no token are not among the rows, as in verl: padding or filtering must not shrink a step. TRL
      divides by all rows.

    >>> average_tokens(jnp.ones((2, 2)), jnp.array([[True, True], [False, False]]), "sequence").weight.item()
    1.0
    """
    values_BT = jnp.where(mask_BT, values_BT, 0.0).astype(jnp.float32)
    tokens_B = jnp.sum(mask_BT, axis=1).astype(jnp.float32)
    rows = jnp.sum(tokens_B > 0).astype(jnp.float32)
    if average == "token":
        return Mean(jnp.sum(values_BT), jnp.sum(tokens_B))
    if average == "sequence":
        return Mean(jnp.sum(jnp.sum(values_BT, axis=1) / jnp.maximum(tokens_B, 1.0)), rows)
    if average != "constant":
        raise ValueError(f"average {average!r} is unknown; take token, sequence or constant")
    if length is None or length < 1:
        raise ValueError(f"average='constant' divides by a length of tokens; it is {length}")
    return Mean(jnp.sum(values_BT), rows * length)


def value_loss(values_BT: jax.Array, old_values_BT: jax.Array, returns_BT: jax.Array, mask_BT: jax.Array, *,
               clip: float | None = 0.2) -> tuple[Mean, Metrics]:
    """Half the squared error of the critic, whose step away from its old value is clipped as the policy's is.

    max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2

    Args:
      values_BT: float, the critic that is trained.
      old_values_BT: the same when the row was drawn.
      returns_BT: targets, of `gae`.
      mask_BT: bool; True: counts.
      clip: > 0; None is off.

    Returns:
      (loss, metrics): per counted token "value" and "value_clip_fraction", where the clip takes the gradient away.

    References: Schulman et al., GAE, 2016, and the implementation of PPO in OpenAI's baselines;
      Huang et al., The 37 implementation details of PPO, 2022, detail 9.
      https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/
    """
    values_BT, old_values_BT, returns_BT = (jnp.where(mask_BT, x, 0.0) for x in (values_BT, old_values_BT, returns_BT))
    old_values_BT, returns_BT = jax.lax.stop_gradient((old_values_BT, returns_BT))
    loss_BT, clipped_BT = jnp.square(values_BT - returns_BT), jnp.zeros_like(mask_BT)
    if clip is not None:
        held_BT = old_values_BT + jnp.clip(values_BT - old_values_BT, -clip, clip)
        held_loss_BT = jnp.square(held_BT - returns_BT)
        clipped_BT = held_loss_BT > loss_BT
        loss_BT = jnp.maximum(loss_BT, held_loss_BT)
    reports = {"value": values_BT, "value_clip_fraction": clipped_BT}
    return average_tokens(0.5 * loss_BT, mask_BT), _reports(reports, mask_BT)


def truncated_importance(trainer_logp_BT: jax.Array, sampler_logp_BT: jax.Array, mask_BT: jax.Array, *,
                         cap: float = 2.0, level: Literal["token", "sequence"] = "token", drop: bool = False
                         ) -> jax.Array:
    """min(p_trainer / p_sampler, cap): makes up for a sampler whose numbers are not quite the trainer's.

    Args:
      trainer_logp_BT: float, log-probability of the drawn tokens as the trainer computes it, before any update; nats.
      sampler_logp_BT: what the sampler said it drew them with.
      mask_BT: bool; True: drawn by the policy.
      cap: > 0, the largest weight.
      level: "token": each its own. "sequence": that of the whole row, at each of its tokens.
      drop: give weight 0 beyond the cap instead of the cap (masked importance sampling).

    Returns:
      float32 [B, T], 1 where mask is False and level is "token"; no gradient flows through it.

    References: Yao et al., Your efficient RL framework secretly brings you off-policy RL training, 2025.
      https://fengyao.notion.site/off-policy-rl
      Ionides, Truncated importance sampling, 2008.
    """
    if cap <= 0.0 or level not in ("token", "sequence"):
        raise ValueError(f"importance weights have cap {cap} and level {level!r}; take a cap above 0, and token or "
                         f"sequence")
    gap_BT = jnp.where(mask_BT, trainer_logp_BT - sampler_logp_BT, 0.0)
    if level == "sequence":
        gap_BT = jnp.broadcast_to(jnp.sum(gap_BT, axis=1, keepdims=True), gap_BT.shape)
    weights_BT = jnp.exp(jnp.minimum(gap_BT, 2.0 * _CAP))
    weights_BT = jnp.where(weights_BT > cap, 0.0 if drop else cap, weights_BT)
    return jax.lax.stop_gradient(weights_BT).astype(jnp.float32)


def sampler_gap(trainer_logp_BT: jax.Array, sampler_logp_BT: jax.Array, mask_BT: jax.Array) -> Metrics:
    """How far the sampler's numbers are from the trainer's, per drawn token, nats.

    Returns:
      "sampler_gap", the mean absolute difference, and "sampler_kl", KL(sampler || trainer) by k3.
    """
    trainer_BT, sampler_BT = (jnp.where(mask_BT, x, 0.0) for x in (trainer_logp_BT, sampler_logp_BT))
    return _reports({"sampler_gap": jnp.abs(trainer_BT - sampler_BT),
                     "sampler_kl": kl_estimate(sampler_BT, trainer_BT)}, mask_BT)


def token_entropy(logits_BTV: jax.Array) -> jax.Array:
    """Entropy of each position's distribution, nats, float32 [B, T]; a logit of -inf is a token that is never drawn.

    >>> round(token_entropy(jnp.array([[[0.0, 0.0, -jnp.inf]]])).item(), 4)
    0.6931
    """
    logp_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))
    safe_BTV = jnp.where(jnp.isfinite(logp_BTV), logp_BTV, 0.0)
    return -jnp.sum(jnp.exp(logp_BTV) * safe_BTV, axis=-1)


def _reports(values: Mapping[str, jax.Array], mask_BT: jax.Array) -> Metrics:
    return {name: average_tokens(jax.lax.stop_gradient(x_BT), mask_BT) for name, x_BT in values.items()}
