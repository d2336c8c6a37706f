"""Tables and pictures of experiments.sft_to_rl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.claims import Claim, of_shares
from experiments.findings import Findings, Table
from experiments.practice_runs import ROADS
from jaxllm.evals.intervals import share_interval, spread, t_interval

START = "start"  # among the arms: the fine-tuned model that all others begin with
Asked = Mapping[str, Sequence[Mapping[str, Any]]]  # arm -> what `sft_to_rl.ask` returned, a seed each
Curves = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]  # arm -> `practice_runs.Run.curve`, a seed each


def findings(config: ConfigDict, asked: Asked, curves: Curves, costs: Sequence[Mapping[str, float]]) -> Findings:
    """Held-out answers, RL against every other arm, the bars, what each arm cost, and the curves."""
    accuracy = {arm: [run["sampled"]["accuracy"] for run in runs] for arm, runs in asked.items()}
    gains = {arm: np.subtract(accuracy["rl"], values).tolist() for arm, values in accuracy.items() if arm != "rl"}
    numbers = {"accuracy": accuracy, "gain": gains, "costs": list(costs), "asked": asked, "curves": curves}
    return Findings("From SFT to RL", [answers(config, asked), against(config, asked, gains), spent(config, costs)],
                    pictures(config, curves), numbers, claims(asked))


def claims(asked: Asked) -> list[Claim]:
    """What practice is said to do, each with the arm that could refute it."""
    def right(arm: str, of: str = "accuracy") -> list[tuple[float, int]]:
        # Replies to one problem are alike: the problems are what is counted.
        return [(run["sampled"][of] * run["sampled"]["problems"], run["sampled"]["problems"]) for run in asked[arm]]

    against = {"more_sft": "Practice with a reward teaches more than the same FLOPs of the same demonstrations",
               "coin": "It is the reward that teaches, not the updates"}
    found = [of_shares(text, ROADS["rl"].label, right("rl"), ROADS[arm].label, right(arm), of="problems")
             for arm, text in against.items() if arm in asked]
    return [*found, of_shares("Nobody asks for working, and it comes", "worked after RL", right("rl", "worked"),
                              "worked before", right(START, "worked"), of="problems")]


def label(arm: str) -> str:
    """What tables call an arm."""
    return "start (SFT)" if arm == START else ROADS[arm].label


def answers(config: ConfigDict, asked: Asked) -> Table:
    """A row per arm."""
    def over(runs: Sequence[Mapping[str, Any]], *path: str) -> str:
        values = []
        for run in runs:
            for key in path:
                run = run[key]
            values.append(run)
        return f"{t_interval(values)[0]:.1f}" if path[-1] == "length" else spread(share_interval(values))

    columns = {"right": ("sampled", "accuracy"), "right, greedy": ("greedy", "accuracy"),
               "worked": ("sampled", "worked"), "flawless": ("sampled", "flawless"), "tokens": ("sampled", "length"),
               **{kind: ("sampled", "kinds", kind) for kind in config.start.kinds}}
    return Table("Held-out problems", [
        ["model", *columns], *[[label(arm), *[over(runs, *path) for path in columns.values()]]
                               for arm, runs in asked.items()]],
        f"{config.part} problems ({config.start[config.part]} drawn of a kind), {config.samples} replies each at "
        f"temperature 1, and one greedy; mean [95%, t over {len(config.seeds)} seeds, cut to 0 to 1]. Worked: as many "
        f"equations as the problem has steps stand before the answer. Flawless: all of the working is right too. The "
        f"last columns: right by kind of problem.")


def against(config: ConfigDict, asked: Asked, gains: Mapping[str, Sequence[float]]) -> Table:
    """RL less every other arm, paired by seed, and what that says of the bars."""
    first, last = ([run["sampled"][name] for run in asked[arm]] for arm, name in ((START, "accuracy"),
                                                                                  ("rl", "accuracy")))
    worked = [run["sampled"]["worked"] for run in asked["rl"]]
    bars = [(f"from under {config.bar_start} to at least {config.bar}",
             max(first) < config.bar_start and np.mean(last) >= config.bar),
            (f"worked at least {config.bar_worked}", np.mean(worked) >= config.bar_worked)]
    if "more_sft" in gains:
        bars.append((f"ahead of more SFT by at least {config.bar_ahead}",
                     np.mean(gains["more_sft"]) >= config.bar_ahead))
    told = "; ".join(f"{bar}: {'reached' if reached else 'missed'}" for bar, reached in bars)
    return Table("RL against the others, held-out accuracy", [
        ["against", "RL is ahead by", "at each seed"],
        *[[label(arm), spread(t_interval(values)), ", ".join(f"{value:.3f}" for value in values)]
          for arm, values in gains.items()]],
        f"Paired by seed; mean [95%, t over {len(config.seeds)} seeds]. Bars, on the mean: {told}.")


def spent(config: ConfigDict, costs: Sequence[Mapping[str, float]]) -> Table:
    """What RL and the fine-tuning that costs as much consist of."""
    mean = {name: float(np.mean([cost[name] for cost in costs])) for name in costs[0]}
    return Table("Equal FLOPs", [
        ["", "GFLOP", "updates", "replies drawn", "times over the demonstrations"],
        [ROADS["rl"].label, f"{mean['flops'] / 1e9:,.0f}", f"{config.rl.steps}", f"{mean['replies']:,.0f}", "0"],
        ["more SFT", f"{mean['flops'] / 1e9:,.0f}", f"{mean['sft_steps']:,.0f}", "0", f"{mean['epochs']:,.0f}"]],
        "Of RL are counted drawing, scoring under policy and start, and the update, each over whole rows with their "
        "padding; looks at validation problems are not.")


def pictures(config: ConfigDict, curves: Curves) -> list[tuple[str, str]]:
    """Validation problems on the way: accuracy, length and worked share of all arms, and RL's accuracy by kind."""
    steps = "updates of RL, or of equal FLOPs"
    shown = [(heading, report.picture(bands(curves, lambda point, name=name: point[name], steps, heading, limits)))
             for name, heading, limits in (("accuracy", "right answers", (-0.03, 1.03)),
                                           ("length", "length of a reply, tokens", None),
                                           ("worked", "replies with working", (-0.03, 1.03)))]
    kinds = {kind: [[{**point, "of_kind": point["kinds"][kind]} for point in curve] for curve in curves["rl"]]
             for kind in config.start.kinds}
    by_kind = report.picture(bands(kinds, lambda point: point["of_kind"], steps, "right answers", (-0.03, 1.03)))
    return [*shown, ("RL's right answers by kind", by_kind)]


def bands(curves: Curves, value: Callable[[Mapping[str, Any]], float], x_label: str, y_label: str,
          limits: tuple[float, float] | None) -> Callable[[Any], None]:
    """A line per arm: mean over seeds, and the range of the seeds as a band."""
    def draw(axes: Any) -> None:
        for arm, runs in curves.items():
            steps = sorted(set.intersection(*[{point["step"] for point in curve} for curve in runs]))
            found = np.array([[value(point) for point in curve if point["step"] in steps] for curve in runs])
            axes.plot(steps, found.mean(0), "o-" if arm == "rl" or arm not in ROADS else "s--", markersize=3.5,
                      linewidth=1.4, label=ROADS[arm].label if arm in ROADS else arm)
            axes.fill_between(steps, found.min(0), found.max(0), alpha=0.15, linewidth=0)
        axes.set(xlabel=x_label, ylabel=y_label, **({"ylim": limits} if limits else {}))
        axes.legend(frameon=False, fontsize=8)
    return draw
