"""Stops a run that has gone wrong, and says why: KL that explodes, entropy that dies, rewards that are no numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

Row = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Beyond what a run is stopped.

    Attributes:
      kl: nats a reply from the start model; 0 is off.
      entropy: of a token, as a share of what it was at the first step; 0 is off.
      truncated: share of replies that are cut off at max_tokens; 1 is off.
      patience: steps in a row that must breach a limit, so that one odd batch stops nothing.
    """

    kl: float = 50.0
    entropy: float = 0.05
    truncated: float = 0.9
    patience: int = 3

    def __post_init__(self) -> None:
        if self.kl < 0 or not 0 <= self.entropy < 1 or not 0 < self.truncated <= 1 or self.patience < 1:
            raise ValueError(f"guard: kl {self.kl} must be at least 0, entropy {self.entropy} in [0, 1), truncated "
                             f"{self.truncated} in (0, 1] and patience {self.patience} at least 1")


def breach(row: Row, first: Row, limits: Limits) -> str:
    """The limit that a step breaches, in words with the numbers; "" for a step in order.

    Args:
      row: of the step: "kl", "entropy", "truncated", "skipped" (updates left out because loss or gradient was not
        finite) and "updates".
      first: of the first step.
      limits: see `Limits`.
    """
    if not all(math.isfinite(row[name]) for name in ("kl", "entropy")):
        return f"the policy's log-probabilities are not finite (KL {row['kl']}, entropy {row['entropy']})"
    if row["skipped"] and row["skipped"] >= row["updates"]:
        return "loss or gradient was not finite in every update; lower the learning rate"
    if limits.kl and row["kl"] > limits.kl:
        return (f"the KL to the start model exploded: {row['kl']:.1f} nats a reply, the limit is {limits.kl:g}; lower "
                f"the learning rate or raise policy.kl_coefficient")
    if row["entropy"] < limits.entropy * first["entropy"]:
        return (f"the entropy died: {row['entropy']:.4f} nats a token, {first['entropy']:.3f} at the first step and "
                f"the limit is {limits.entropy:g} of that; lower the learning rate or raise policy.kl_coefficient or "
                f"policy.entropy_coefficient")
    if row["truncated"] > limits.truncated:
        return (f"{row['truncated']:.0%} of the replies were cut off, the limit is {limits.truncated:.0%}; raise "
                f"sampler.max_tokens, or look whether the policy has unlearned to end")
    return ""


def reason_to_stop(rows: Sequence[Row], limits: Limits) -> str:
    """Why the run should end after the last of these steps, or "".

    Args:
      rows: of all steps so far, see `breach`, in order. "reward" that is not finite stops at once: the update that it
        would lead to must not be made.
      limits: see `Limits`.
    """
    if not rows:
        return ""
    last = rows[-1]
    if not math.isfinite(last["reward"]):
        return f"the reward is not finite ({last['reward']}); look at the reward model's replies"
    if len(rows) < limits.patience or not all(breach(row, rows[0], limits) for row in rows[-limits.patience:]):
        return ""
    times = f" ({limits.patience} steps in a row)" if limits.patience > 1 else ""
    return f"step {last['step']:.0f}: {breach(last, rows[0], limits)}{times}"
