"""Tables and pictures of experiments.distill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.claims import of_shares
from experiments.findings import Findings, Table
from jaxllm.evals.intervals import share_interval, spread, t_interval

NAMES = {"teacher": "the teacher", "start": "the student as it starts", "traces": "traces, kept if right",
         "answers": "answers only", "shuffled": "traces of other problems", "logits": "logits on the traces",
         "on_policy": "on-policy, by the teacher's logits", "rl": "RL on the student"}
# What is claimed of small students, as pairs (more, less), with the control or question that each settles.
CLAIMS = {("traces", "answers"): "The skill is in the working", ("traces", "shuffled"): "Form alone does not do it",
          ("traces", "rl"): "Distilling beats practising", ("logits", "traces"): "Logits say more than tokens",
          ("on_policy", "traces"): "One's own mistakes say more than another's solutions",
          ("rl", "start"): "Practice helps"}
Runs = dict[str, list[dict[str, Any]]]


def told(run: dict[str, Any]) -> str:
    """The last look of a run, in a line."""
    last = run["looks"][-1]
    return (f"accuracy {last['accuracy']:.3f}, worked {last['worked']:.3f}, length {last['length']:.1f}; "
            f"{run['updates']} updates, {last['gflop']:.0f} GFLOP, {run['seconds']:.0f} s")


def findings(config: ConfigDict, runs: Runs) -> Findings:
    """What each arm came to, the claims, what was kept of the teacher, and the way there."""
    accuracy = {arm: [run["looks"][-1]["accuracy"] for run in some] for arm, some in runs.items()}
    interval = {arm: share_interval(values) for arm, values in accuracy.items()}

    def mean(some: Sequence[dict[str, Any]], key: str, digits: int) -> str:
        return f"{np.mean([run['looks'][-1][key] for run in some]):.{digits}f}"

    table = Table("What each comes to, at equal FLOPs", [
        ["student", "accuracy", "worked", "tokens a reply", "updates", "GFLOP", "of the teacher"],
        *[[NAMES[arm], spread(interval[arm]), mean(some, "worked", 3), mean(some, "length", 1),
           f"{np.mean([run['updates'] for run in some]):,.0f}" if some[0]["updates"] else "",
           mean(some, "gflop", 0) if some[0]["updates"] else "",
           f"{np.mean([run['teacher_gflop'] for run in some]):.0f}" if some[0]["updates"] else ""]
          for arm, some in runs.items()]],
        f"{len(config.seeds)} seeds, held-out problems ({_from(config)}), one reply each at temperature "
        f"{config.temperature}; mean [95%, t over seeds]. FLOPs of forward and backward passes, padding included, from "
        f"the student's and the teacher's start on: what made those two is not counted.")
    gains = {pair: t_interval(np.subtract(*(accuracy[arm] for arm in pair)).tolist()) for pair in CLAIMS
             if pair[0] in runs and pair[1] in runs}
    last = {arm: [run["looks"][-1] for run in some] for arm, some in runs.items()}
    right = {arm: [(look["accuracy"] * look["problems"], look["problems"]) for look in looks]
             for arm, looks in last.items()}
    claims = [of_shares(CLAIMS[more, less], NAMES[more], right[more], NAMES[less], right[less], of="problems")
              for more, less in gains]
    counts = [run["traces"] for run in runs["traces"]]
    kept = Table("The teacher's traces", [
        ["", *[f"seed {seed}" for seed in config.seeds]],
        *[[label, *[f"{count[key]:,}" for count in counts]] for key, label in (
            ("drawn", "drawn"), ("right", "right"), ("kept", "kept: right, ended, different"),
            ("solved", "problems solved"))]])
    return Findings("Distillation", [table, kept], [
        ("Accuracy by what was spent", report.picture(draw_ways(runs), height=4.2))],
        {"accuracy": accuracy, "gains": {f"{more} - {less}": gain for (more, less), gain in gains.items()},
         "runs": runs}, claims)


def _from(config: ConfigDict) -> str:
    return f"{config.files.held_out:.0%} of the file" if config.files.tasks else config.part


def draw_ways(runs: Runs) -> Callable[[Any], None]:
    """Accuracy against GFLOPs spent, a line per arm; teacher and start are level lines."""
    def draw_on(axes: Any) -> None:
        start = np.mean([run["looks"][-1]["accuracy"] for run in runs["start"]])
        for arm, some in runs.items():
            looks = np.array([[(look["gflop"], look["accuracy"]) for look in run["looks"]] for run in some])
            spent, accuracy = looks[..., 0].mean(0), looks[..., 1]
            if arm in ("teacher", "start"):
                axes.axhline(accuracy.mean(), color="0.5", linewidth=1, linestyle=":" if arm == "start" else "-",
                             label=NAMES[arm])
                continue
            control = arm in ("answers", "shuffled")
            line, = axes.plot([0, *spent], [start, *accuracy.mean(0)], "s--" if control else "o-", markersize=4,
                              linewidth=1.4, label=NAMES[arm])
            axes.fill_between([0, *spent], [start, *accuracy.min(0)], [start, *accuracy.max(0)], alpha=0.12,
                              linewidth=0, color=line.get_color())
        axes.set(xlabel="GFLOP spent, the teacher's among them", ylabel="right answers", ylim=(-0.03, 1.03))
        axes.legend(frameon=False, fontsize=8)
    return draw_on
