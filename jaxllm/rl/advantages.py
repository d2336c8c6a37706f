"""From rewards to advantages: of a row's tokens by GAE, of a prompt's samples by comparison with each other.

Everything here is a target: no gradient flows through it.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

GroupKind = Literal["grpo", "dr_grpo", "rloo", "mean", "none", "reinforce++", "reinforce++_baseline"]
_KINDS = GroupKind.__args__


def gae(rewards_BT: jax.Array, values_BT: jax.Array, mask_BT: jax.Array, *, discount: float = 1.0,
        decay: float = 0.95) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimation over the counted tokens of each row.

    A_t = sum_k (discount decay)^k delta_{t+k},  delta_t = r_t + discount V_{t+1} - V_t

    where t + 1 is the next counted token and V is 0 after the last. Tokens in between that the policy did not draw (a
    tool's) are stepped over, as if they were not there. With values of 0 and decay 1 the advantage is the sum of the
    rewards to come: REINFORCE.

    Args:
      rewards_BT: float; what came after each token. Rewards on tokens that do not count are dropped: the score of a
        whole row belongs on its last counted token (`token_rewards`).
      values_BT: float; the critic's estimate before each token is drawn.
      mask_BT: bool; True: drawn by the policy.
      discount: gamma, in [0, 1].
      decay: lambda, in [0, 1]; 0 trusts the critic, 1 the rewards.

    Returns:
      (advantages_BT, returns_BT = advantages + values), float32, 0 where mask is False.

    References: Schulman et al., High-dimensional continuous control using generalized advantage estimation, 2016,
      equation 16. https://arxiv.org/abs/1506.02438

    >>> a, _ = gae(jnp.array([[0.0, 1.0]]), jnp.zeros((1, 2)), jnp.ones((1, 2), bool), decay=0.5)
    >>> a.tolist()
    [[0.5, 1.0]]
    """
    rewards_BT, values_BT = (jnp.where(mask_BT, jax.lax.stop_gradient(x), 0.0).astype(jnp.float32)
                             for x in (rewards_BT, values_BT))

    def back(following, now):
        advantage_B, value_B = following
        reward_B, own_value_B, counts_B = now
        found_B = reward_B + discount * value_B - own_value_B + discount * decay * advantage_B
        kept = (jnp.where(counts_B, found_B, advantage_B), jnp.where(counts_B, own_value_B, value_B))
        return kept, jnp.where(counts_B, found_B, 0.0)

    zero_B = jnp.zeros(rewards_BT.shape[0], jnp.float32)
    _, advantages_TB = jax.lax.scan(back, (zero_B, zero_B), (rewards_BT.T, values_BT.T, mask_BT.T), reverse=True)
    return advantages_TB.T, advantages_TB.T + values_BT


def whiten(x_BT: jax.Array, mask_BT: jax.Array, *, epsilon: float = 1e-8) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) over the counted entries, the variance with n - 1; 0 where not counted.

    Entries that are all equal become exactly 0, and so does a single one.
    """
    mean, variance = _moments(x_BT, mask_BT, axis=None)
    return jax.lax.stop_gradient(jnp.where(mask_BT, (x_BT - mean) * jax.lax.rsqrt(variance + epsilon), 0.0))


def group_advantages(rewards_QG: jax.Array, *, kind: GroupKind = "grpo", valid_QG: jax.Array | None = None,
                     epsilon: float = 1e-4) -> jax.Array:
    """Advantages of G samples of each of Q prompts; every token of a sample takes its sample's.

    kind                    A_i
    "grpo"                  (r_i - mean(r)) / (std(r) + epsilon), over the samples of the prompt
    "dr_grpo"               r_i - mean(r): dividing by std gives more weight to prompts that are almost solved or lost
    "rloo"                  r_i - the mean of the prompt's other samples = G / (G - 1) (r_i - mean(r))
    "mean"                  r_i - mean over all prompts: REINFORCE with a baseline
    "none"                  r_i
    "reinforce++"           (r_i - mean) / (std + epsilon), both over all prompts; the paper has them over all tokens,
                            of the reward to come less the KL: `gae` with values of 0 and decay 1, then `whiten`
    "reinforce++_baseline"  r_i - mean(r), then divided by its std over all prompts + epsilon

    A prompt whose samples have equal rewards gets exactly 0 under "grpo", "dr_grpo", "rloo", "reinforce++_baseline".

    Args:
      rewards_QG: float.
      kind: see above.
      valid_QG: bool; False: no reward could be had; the sample counts in no mean and gets 0. None: all.
      epsilon: as TRL's; verl has 1e-6. Standard deviations are with n - 1, as in both.

    Returns:
      float32 [Q, G]

    References: Shao et al., DeepSeekMath, 2024, section 4.1.2 (GRPO). https://arxiv.org/abs/2402.03300
      Liu et al., Understanding R1-Zero-like training, 2025, section 3.1 (Dr. GRPO). https://arxiv.org/abs/2503.20783
      Ahmadian et al., Back to basics, 2024 (RLOO). https://arxiv.org/abs/2402.14740
      Hu et al., REINFORCE++, 2025. https://arxiv.org/abs/2501.03262

    >>> group_advantages(jnp.array([[1.0, 0.0, 2.0]]), kind="rloo").tolist()
    [[0.0, -1.5, 1.5]]
    """
    if kind not in _KINDS:
        raise ValueError(f"kind of advantage is {kind!r}; take one of {', '.join(_KINDS)}")
    rewards_QG = jax.lax.stop_gradient(rewards_QG).astype(jnp.float32)
    valid_QG = jnp.ones(rewards_QG.shape, bool) if valid_QG is None else valid_QG
    mean_Q1, variance_Q1 = _moments(rewards_QG, valid_QG, axis=1)
    mean, variance = _moments(rewards_QG, valid_QG, axis=None)
    centred_QG = rewards_QG - mean_Q1
    if kind == "grpo":
        found_QG = centred_QG / (jnp.sqrt(variance_Q1) + epsilon)
    elif kind == "rloo":
        count_Q1 = jnp.sum(valid_QG, axis=1, keepdims=True)
        found_QG = centred_QG * count_Q1 / jnp.maximum(count_Q1 - 1, 1)
    elif kind == "reinforce++":
        found_QG = (rewards_QG - mean) / (jnp.sqrt(variance) + epsilon)
    elif kind == "reinforce++_baseline":
        _, variance = _moments(centred_QG, valid_QG, axis=None)
        found_QG = centred_QG / (jnp.sqrt(variance) + epsilon)
    else:
        found_QG = {"dr_grpo": centred_QG, "mean": rewards_QG - mean, "none": rewards_QG}[kind]
    return jnp.where(valid_QG, found_QG, 0.0)


def _moments(x: jax.Array, counts: jax.Array, axis: int | None) -> tuple[jax.Array, jax.Array]:
    """Mean and variance (n - 1) of the counted entries along an axis that is kept; 0 where there are too few.

    Taken about one of the entries, so that equal entries have exactly that mean and a variance of exactly 0: what is
    left of a rounding, divided by a small epsilon, would be an advantage.
    """
    x = jnp.where(counts, x, 0.0).astype(jnp.float32)
    number = jnp.sum(counts, axis=axis, keepdims=axis is not None).astype(jnp.float32)
    origin = jnp.max(jnp.where(counts, x, -jnp.inf), axis=axis, keepdims=axis is not None)
    origin = jnp.where(number > 0, origin, 0.0)
    mean = origin + jnp.sum(jnp.where(counts, x - origin, 0.0), axis=axis,
                            keepdims=axis is not None) / jnp.maximum(number, 1.0)
    square = jnp.sum(jnp.where(counts, jnp.square(x - mean), 0.0), axis=axis, keepdims=axis is not None)
    return mean, square / jnp.maximum(number - 1.0, 1.0)


def token_rewards(scores_B: jax.Array, kl_BT: jax.Array, mask_BT: jax.Array, coefficient: float | jax.Array
                  ) -> jax.Array:
    """KL in the reward: -coefficient kl_t on every counted token, and the row's score on the last of them.

    Args:
      scores_B: float, of the whole rows.
      kl_BT: estimates by token (`kl.kl_estimate`; k1 is what InstructGPT takes).
      mask_BT: bool; True: drawn by the policy. A row without any gets no reward.
      coefficient: beta >= 0.

    Returns:
      float32 [B, T], 0 where mask is False.

    References: Ziegler et al., Fine-tuning language models from human preferences, 2019, equation 2.
      https://arxiv.org/abs/1909.08593

    >>> token_rewards(jnp.array([3.0]), jnp.ones((1, 3)), jnp.array([[True, True, False]]), 0.5).tolist()
    [[-0.5, 2.5, 0.0]]
    """
    after_BT = jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1]  # counted tokens from here on
    last_BT = mask_BT & (after_BT == 1)
    penalty_BT = jnp.where(mask_BT, coefficient * kl_BT, 0.0)
    return jax.lax.stop_gradient(jnp.where(last_BT, scores_B[:, None], 0.0) - penalty_BT).astype(jnp.float32)


def overlong_penalty(lengths: jax.Array, *, limit: int, buffer: int) -> jax.Array:
    """What DAPO adds to the reward of a long reply: 0 up to limit - buffer, then falling linearly to -1 at limit.

    Args:
      lengths: int, tokens; any shape.
      limit: tokens from which on the penalty is -1.
      buffer: tokens over which it falls, 0 < buffer <= limit.

    References: Yu et al., DAPO, 2025, equation 13. https://arxiv.org/abs/2503.14476

    >>> overlong_penalty(jnp.array([80, 90, 120]), limit=100, buffer=20).tolist()
    [0.0, -0.5, -1.0]
    """
    if not 0 < buffer <= limit:
        raise ValueError(f"the buffer of the length penalty is {buffer} tokens; take 1 to {limit}, the limit")
    return jnp.clip((limit - buffer - lengths) / buffer, -1.0, 0.0).astype(jnp.float32)
