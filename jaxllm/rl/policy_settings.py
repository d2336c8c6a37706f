"""What one policy-gradient update computes: a record of choices, and the algorithms as points in their space.

References:
  Schulman et al., Proximal Policy Optimization, 2017. https://arxiv.org/abs/1707.06347
  Ouyang et al., InstructGPT, 2022 (KL to the start model in the reward). https://arxiv.org/abs/2203.02155
  Ahmadian et al., Back to Basics, 2024 (RLOO, REINFORCE). https://arxiv.org/abs/2402.14740
  Shao et al., DeepSeekMath, 2024 (GRPO). https://arxiv.org/abs/2402.03300
  Liu et al., Understanding R1-Zero-like Training, 2025 (Dr. GRPO). https://arxiv.org/abs/2503.20783
  Yu et al., DAPO, 2025. https://arxiv.org/abs/2503.14476
  Zheng et al., Group Sequence Policy Optimization, 2025 (GSPO). https://arxiv.org/abs/2507.18071
  MiniMax, MiniMax-M1, 2025 (CISPO); Khatri et al., The Art of Scaling Reinforcement Learning Compute for LLMs, 2025
    (its upper bound). https://arxiv.org/abs/2506.13585 https://arxiv.org/abs/2510.13786
  Hu et al., REINFORCE++, 2025. https://arxiv.org/abs/2501.03262
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class PolicySettings:
    """What one update computes, and from which groups of replies.

    Attributes:
      baseline: "critic" (a value head and GAE); "returns" (none: each token has the reward that comes after it); or a
        kind of `group_advantages`: "grpo", "dr_grpo", "rloo", "mean", "none", "reinforce++", "reinforce++_baseline".
      objective, ratio, clip_low, clip_high, dual_clip, average: as `policy_loss` takes them.
      kl_in: where the KL to the start model enters: "loss", "reward" or "none".
      kl_kind: its estimator, "k1", "k2" or "k3".
      kl_coefficient: its weight, to begin with.
      kl_target: nats a reply, to which the weight adapts; 0 keeps it fixed.
      kl_horizon: replies over which it adapts.
      epochs, minibatches: times that a rollout is gone over, and the updates of each.
      whiten: give the advantages of a rollout mean 0 and standard deviation 1, over its tokens.
      discount: of rewards that come later; of "critic" and "returns".
      gae_decay: lambda of GAE; of the critic alone.
      critic: "shared": the value head reads the policy's hidden states, "own": those of a model of its own.
      value_coefficient, value_clip: weight of the value loss, and how far a value may move in one rollout.
      entropy_coefficient: weight of the entropy that is added to the objective; 0 is off.
      importance: correction for a sampler that is not the trainer: "none", "token" or "sequence".
      importance_cap: where its weights are truncated.
      mask_truncated: leave replies that were cut off out of the loss.
      resample: rounds of further prompts at most, drawn in place of groups whose rewards are all equal (DAPO's dynamic
        sampling, equation 11); 0 is off.
      overlong: share of the longest reply, at its end, over which the reward falls by up to 1
        (`advantages.overlong_penalty`); 0 is off.
    """

    baseline: str = "grpo"
    objective: str = "clip"
    ratio: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    average: str = "token"
    kl_in: str = "loss"
    kl_kind: str = "k3"
    kl_coefficient: float = 0.1
    kl_target: float = 0.0
    kl_horizon: int = 10_000
    epochs: int = 1
    minibatches: int = 1
    whiten: bool = False
    discount: float = 1.0
    gae_decay: float = 0.95
    critic: str = "shared"
    value_coefficient: float = 0.1
    value_clip: float = 0.2
    entropy_coefficient: float = 0.0
    importance: str = "none"
    importance_cap: float = 2.0
    mask_truncated: bool = False
    resample: int = 0
    overlong: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"policy.{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        for name, least in (("clip_low", 0), ("clip_high", 0), ("kl_coefficient", 0), ("kl_target", 0),
                            ("kl_horizon", 1), ("epochs", 1), ("minibatches", 1), ("value_coefficient", 0),
                            ("value_clip", 0), ("entropy_coefficient", 0), ("resample", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"policy.{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("discount", "gae_decay", "overlong"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"policy.{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.importance_cap <= 0:
            raise ValueError(f"policy.importance_cap is {self.importance_cap}; it must be above 0")
        if self.baseline == "critic" and self.average != "token":
            raise ValueError(f"policy.average is {self.average!r}; with a critic it must be 'token', as the value "
                             f"loss is")
        if self.kl_target and self.kl_in == "none":
            raise ValueError("policy.kl_target is set and policy.kl_in is 'none': nothing would hold the KL to it")

    @property
    def updates(self) -> int:
        """Optimizer steps on one rollout."""
        return self.epochs * self.minibatches


CHOICES = {
    "baseline": ("critic", "grpo", "dr_grpo", "rloo", "mean", "none", "reinforce++", "reinforce++_baseline",
                 "returns"),
    "objective": ("clip", "cispo", "reinforce"), "ratio": ("token", "sequence", "product"),
    "average": ("token", "sequence", "constant"), "kl_in": ("loss", "reward", "none"), "kl_kind": ("k1", "k2", "k3"),
    "critic": ("shared", "own"), "importance": ("none", "token", "sequence"),
}

# As published, but for the updates of a rollout: all but PPO take one here, in which no clip acts yet. DAPO and MiniMax
# took 16, GSPO 4: set minibatches and epochs.
ALGORITHMS = {
    "ppo": PolicySettings(baseline="critic", kl_in="reward", kl_kind="k1", epochs=2, minibatches=2, whiten=True),
    "reinforce": PolicySettings(baseline="mean", objective="reinforce", kl_in="reward", kl_kind="k1",
                                average="constant"),
    "rloo": PolicySettings(baseline="rloo", objective="reinforce", kl_in="reward", kl_kind="k1", average="constant"),
    "grpo": PolicySettings(baseline="grpo", average="sequence"),
    "dr_grpo": PolicySettings(baseline="dr_grpo", average="constant", kl_in="none"),
    # Its prompts are drawn until the batch is full; 10 rounds are what verl allows.
    "dapo": PolicySettings(baseline="grpo", clip_high=0.28, kl_in="none", resample=10, overlong=0.2),
    "gspo": PolicySettings(baseline="grpo", ratio="sequence", clip_low=3e-4, clip_high=4e-4, average="sequence",
                           kl_in="none"),
    # The lower side is open; a ratio of 5 as the upper bound is Khatri et al.'s.
    "cispo": PolicySettings(baseline="grpo", objective="cispo", clip_low=1.0, clip_high=4.0, kl_in="none"),
    "reinforce++": PolicySettings(baseline="returns", kl_in="reward", kl_kind="k1", whiten=True),
}
