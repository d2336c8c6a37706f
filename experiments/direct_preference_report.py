"""Tables and pictures of experiments.direct_preference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.findings import Findings, Table
from jaxllm.evals.intervals import spread, t_interval

SHUFFLED = "_shuffled"
NAMES = {"start": "start", "dpo": "DPO", "ipo": "IPO", "kto": "KTO", "sft": "SFT on the chosen"}
# Looks of a run, by arm and seed.
Runs = dict[str, list[list[dict[str, float]]]]
Interval = tuple[float, float, float]
COLUMNS = {"gold": ("gold", 2), "wins": ("preferred to the start", 3), "kl": ("KL, nats a reply", 2),
           "margin": ("held-out margin", 3), "accuracy": ("held-out pairs right", 3), "tokens": ("tokens a reply", 1),
           "distinct": ("different replies", 3)}


def loss_of(arm: str) -> str:
    """The loss that an arm trains with."""
    return arm.removesuffix(SHUFFLED)


def name_of(arm: str) -> str:
    """What tables call an arm.

    >>> name_of("dpo_shuffled")
    'DPO, shuffled'
    """
    return NAMES[loss_of(arm)] + (", shuffled" if arm.endswith(SHUFFLED) else "")


def findings(config: ConfigDict, runs: Runs) -> Findings:
    """What each arm came to, how it compares with the controls by gold, and the way there."""
    last = {arm: {key: [looks[-1][key] for looks in seeds] for key in COLUMNS if key in seeds[0][-1]}
            for arm, seeds in runs.items()}
    judged = "gold" in last["start"]
    interval = {arm: {key: t_interval(values) for key, values in found.items()} for arm, found in last.items()}
    note = (f"{len(config.seeds)} seeds; {config.judged} {config.part if judged else 'held-out'} prompts, "
            f"{config.judged_samples} replies to each; mean [95%, t over seeds].")
    if judged:
        note += (" Gold is in standard deviations of people's jokes. Replies of the start model are preferred to each "
                 "other .5 of the time.")
    columns = [key for key in COLUMNS if key in last["start"]]
    table = Table(f"After {config.steps} updates of {config.batch_size} pairs", [
        ["", *[COLUMNS[key][0] for key in columns]],
        *[[name_of(arm), *[told(arm, key, values[key]) for key in columns]] for arm, values in interval.items()]], note)
    tables = [table]
    numbers: dict[str, Any] = {"last": last, "interval": interval, "runs": runs}
    if judged:
        gain = gains(last)
        others = list(gain[next(iter(gain))])
        tables.append(Table("Gold, paired by seed", [
            ["", *[f"less {name_of(other)}" for other in others]],
            *[[name_of(arm), *[spread(found[other], 2) if other in found else "" for other in others]]
              for arm, found in gain.items()]], verdict(gain)))
        numbers["gain"] = gain
    y = "gold" if judged else "margin"
    pictures = [(f"{COLUMNS[y][0].capitalize()} against the distance from the start model",
                 report.picture(draw_paths(runs, "kl", y))),
                ("Held-out margin by updates", report.picture(draw_paths(runs, "step", "margin")))]
    return Findings("Direct preference optimisation", tables, pictures, numbers)


def told(arm: str, key: str, interval: Interval) -> str:
    """A cell; the start model has no margin over itself."""
    return "" if arm == "start" and key in ("margin", "accuracy", "wins") else spread(interval, COLUMNS[key][1])


def gains(last: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Interval]]:
    """Gold of each arm less that of the start model and of the controls, from the differences of each seed."""
    controls = [arm for arm in last if arm in ("start", "sft") or arm.endswith(SHUFFLED)]
    return {arm: {other: t_interval(np.subtract(last[arm]["gold"], last[other]["gold"]).tolist())
                  for other in controls if other != arm} for arm in last if arm != "start"}


def verdict(gain: dict[str, dict[str, Interval]]) -> str:
    """For each arm that learns from pairs, over whom its whole interval is ahead."""
    lines = []
    for arm, found in gain.items():
        if arm == "sft" or arm.endswith(SHUFFLED):
            continue
        ahead = [name_of(other) for other, (_, low, _) in found.items() if low > 0.0]
        behind = [name_of(other) for other, (_, _, high) in found.items() if high < 0.0]
        open_ = [name_of(other) for other in found if name_of(other) not in (*ahead, *behind)]
        parts = [f"{word} {', '.join(names)}" for word, names in (
            ("ahead of", ahead), ("behind", behind), ("not told apart from", open_)) if names]
        lines.append(f"{name_of(arm)}: {'; '.join(parts)}.")
    return " ".join(lines)


def draw_paths(runs: Runs, x: str, y: str) -> Callable[[Any], None]:
    """A line per arm through the means of its looks, from the start model on; a dot per seed at the end."""
    def draw_on(axes: Any) -> None:
        beginning = [looks[0] for looks in runs["start"]]
        for i, (arm, seeds) in enumerate(item for item in runs.items() if item[0] != "start"):
            way = np.array([[[found[x], found[y]] for found in (first, *looks)]
                            for first, looks in zip(beginning, seeds, strict=True)])
            mean = way.mean(axis=0)
            style = "--" if arm == "sft" or arm.endswith(SHUFFLED) else "-"
            axes.plot(*mean.T, style, color=f"C{i}", marker="o", markersize=4, linewidth=1.4, label=name_of(arm))
            axes.plot(*way[:, -1].T, ".", color=f"C{i}", markersize=5, alpha=0.5)
        axes.set(xlabel="updates" if x == "step" else COLUMNS[x][0], ylabel=COLUMNS[y][0])
        axes.legend(frameon=False)
    return draw_on
