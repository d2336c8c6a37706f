"""What experiments.train_sample_gap found: the gap of each mismatch, its price, and what importance weights repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.findings import Findings, Table
from experiments.report import picture
from jaxllm.evals.intervals import share_interval, spread, t_interval

CONTROL = "none"
Runs = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


def findings(config: ConfigDict, starts: Sequence[Mapping[str, float]], runs: Runs) -> Findings:
    """Tables, pictures and numbers.

    Args:
      starts: accuracy of the start of each seed, see `train_sample_gap.ask`.
      runs: (mismatch, importance weights) -> what `train_sample_gap.practise` returned for each seed.
    """
    found = {name: summary(config, name, runs) for name in (CONTROL, *config.mismatches)}
    start = share_interval([one["sampled"] for one in starts])
    said = verdict(found)
    price = Table("A sampler that is not the trainer, and the outcome", [
        ["sampler", "gap, nats a token", "KL, nats a token", "accuracy", "less the control's", "greedy",
         "accuracy with weights", "weights less none"],
        *[row(name, one) for name, one in found.items()]],
        f"{config.part} problems, {config.samples} replies each at temperature 1 by an exact sampler, after "
        f"{config.rl.steps} steps of {config.rl.prompts} x {config.rl.samples} replies; start {spread(start)}. Mean "
        f"[95%, t over {len(starts)} seeds]; differences are paired by seed. Gap: mean |trainer's - sampler's "
        f"log-probability|, KL(sampler || trainer) by k3, means over a run. Weights: truncated importance weights, by "
        f"{config.importance}, cap {config.rl.policy.importance_cap}. {said}")
    stopped = [f"{', importance '.join(arm)}, seed {seed}: {run['stopped']}" for arm, some in runs.items()
               for seed, run in zip(config.seeds, some, strict=True) if run["stopped"]]
    if stopped:
        price = Table(price.title, price.rows, f"{price.note} Stopped early: {'; '.join(stopped)}.")
    numbers = {"verdict": said, "start": start, "mismatches": found, "starts": list(starts),
               "runs": [{"mismatch": name, "importance": importance, "seeds": list(some)}
                        for (name, importance), some in runs.items()]}
    return Findings("Train = sample", [price], [
        ("Accuracy after equal samples", outcomes(found, start)), ("The gap, step by step", gaps(runs))], numbers)


def summary(config: ConfigDict, name: str, runs: Runs) -> dict[str, Any]:
    """Of a mismatch: means with intervals, and differences paired by seed; None where it was not run with weights."""
    plain, control, repaired = runs[name, "none"], runs[CONTROL, "none"], runs.get((name, config.importance))

    def over(some: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float, float]:
        return share_interval([one[key] for one in some])

    def apart(some: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
        return t_interval([one["sampled"] - two["sampled"] for one, two in zip(some, other, strict=True)])

    found: dict[str, Any] = {key: t_interval([float(np.mean([step[key] for step in one["rows"]])) for one in plain])
                             for key in ("sampler_gap", "sampler_kl")}
    found |= {"accuracy": over(plain, "sampled"), "greedy": over(plain, "greedy"),
              "price": None if name == CONTROL else apart(plain, control)}
    return {**found, "with_weights": over(repaired, "sampled") if repaired else None,
            "repair": apart(repaired, plain) if repaired else None,
            "left": apart(repaired, control) if repaired else None}


def row(name: str, one: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    def signed(values: Sequence[float] | None) -> str:
        return "" if values is None else f"{values[0]:+.3f} [{values[1]:+.3f}, {values[2]:+.3f}]"

    return ["none (the control)" if name == CONTROL else name, f"{one['sampler_gap'][0]:.1e}",
            f"{one['sampler_kl'][0]:.1e}", spread(one["accuracy"]), signed(one["price"]), spread(one["greedy"]),
            spread(one["with_weights"]) if one["with_weights"] else "", signed(one["repair"])]


def verdict(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence on which mismatches cost something beyond chance, and which of those the weights repair.

    >>> verdict({"none": {"price": None}, "stale=4": {"price": (-0.2, -0.3, -0.1), "repair": (0.1, 0.0, 0.2)}})
    'Below the control, beyond chance: stale=4. Of these the weights help: none.'
    """
    harmed = [name for name, one in found.items() if one["price"] is not None and one["price"][2] < 0]
    if not harmed:
        return "No mismatch ends below the control beyond chance."
    helped = [name for name in harmed if found[name]["repair"] is not None and found[name]["repair"][1] > 0]
    return (f"Below the control, beyond chance: {', '.join(harmed)}. Of these the weights help: "
            f"{', '.join(helped) or 'none'}.")


def outcomes(found: Mapping[str, Mapping[str, Any]], start: Sequence[float]) -> str:
    """Accuracy of every mismatch, as it is and with weights; the start and the control as lines."""
    def draw(axes: Any) -> None:
        for shift, key, colour, label in ((-0.12, "accuracy", "C3", "as it is"), (0.12, "with_weights", "C0",
                                                                                  "with importance weights")):
            places = [(i, one[key]) for i, one in enumerate(found.values()) if one[key]]
            means = [value[0] for _, value in places]
            ends = [[value[0] - value[1] for _, value in places], [value[2] - value[0] for _, value in places]]
            axes.errorbar([i + shift for i, _ in places], means, ends, fmt="o", color=colour, capsize=3, label=label)
        axes.axhline(found[CONTROL]["accuracy"][0], color="0.4", linewidth=1, linestyle="--", label="the control")
        axes.axhline(start[0], color="0.7", linewidth=1, linestyle=":", label="start")
        axes.set_xticks(range(len(found)), list(found), rotation=20)
        axes.set(ylabel="accuracy", ylim=(0, 1))
        axes.legend(frameon=False, fontsize=8)
    return picture(draw)


def gaps(runs: Runs) -> str:
    """Mean gap of a token at every step, mean over seeds, of the runs without weights."""
    def draw(axes: Any) -> None:
        for i, ((name, importance), some) in enumerate(runs.items()):
            if importance == "none":
                length = min(len(one["rows"]) for one in some)
                values = np.mean([[step["sampler_gap"] for step in one["rows"][:length]] for one in some], axis=0)
                axes.plot(np.arange(1, length + 1), values, "--" if name == CONTROL else "-", label=name, color=f"C{i}")
        axes.set(xlabel="step", ylabel="gap, nats a token", yscale="log")
        axes.legend(frameon=False, fontsize=8)
    return picture(draw)
