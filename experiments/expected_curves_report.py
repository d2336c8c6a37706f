"""How soon a band shows a bug: the table of bugs, the threshold against false alarms, the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import expected_curves_band as bands
from experiments import report
from experiments.expected_curves_bugs import BUGS
from experiments.findings import Findings, Table
from jaxllm.evals.intervals import share

CLEAN = "no bug"
_THRESHOLDS = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
Records = list[dict[str, Any]]


def findings_of(config: ConfigDict, band: Mapping[str, Any], runs: Mapping[str, Sequence[Records]]) -> Findings:
    """Tables and pictures of clean and buggy runs against the band."""
    found = {name: [bands.deviation(band, records) for records in of] for name, of in runs.items()}
    numbers = {name: [{"first_alarm": _plain(one.first_alarm(config.sigmas)),
                       "first_usual_alarm": _plain(one.first_alarm(config.sigmas, bands.USUAL)),
                       "farthest": min(abs(one.largest[0]), 1e9)} for one in of] for name, of in found.items()}
    return Findings("Expected curves", [_bugs(config, found, runs, band), _thresholds(found)],
                    [("The band and the runs with bugs", _losses(band, runs)),
                     ("The farthest that a run was off, up to each step", _farthest(config, found))], numbers)


def _plain(alarm: tuple[int, str, float] | None) -> list | None:
    """An alarm as JSON holds it."""
    return alarm and [alarm[0], alarm[1], min(alarm[2], 1e9)]


def _bugs(config: ConfigDict, found: Mapping[str, list[bands.Deviation]], runs: Mapping[str, Sequence[Records]],
          band: Mapping[str, Any]) -> Table:
    """A row for every bug: when it was seen and by what; the clean runs last."""
    shown = _shown(runs)
    clean = dict(zip(config.clean_seeds, runs.get(CLEAN, ()), strict=True))
    rows = [["bug", "what it does", "caught", "first alarm, step", "by", "sigmas there", "farthest, sigmas",
             "of usual metrics alone: caught", "step", f"{shown.replace('_', ' ')} at the end, less the same seed's"]]
    for name in [*(name for name in found if name != CLEAN), CLEAN]:
        if not found.get(name):
            continue
        alarms = [one.first_alarm(config.sigmas) for one in found[name]]
        usual = [one.first_alarm(config.sigmas, bands.USUAL) for one in found[name]]
        caught = [alarm for alarm in alarms if alarm]
        rows.append([
            name.replace("_", " "), (BUGS[name].__doc__ or "").strip() if name in BUGS else
            "control: seeds that the band has not seen; every alarm is false",
            share(len(caught), len(alarms)) if name == CLEAN else f"{len(caught)} of {len(alarms)}",
            _steps(alarms), ", ".join(dict.fromkeys(alarm[1].replace("_", " ") for alarm in caught)),
            _range([alarm[2] for alarm in caught]), _range([one.largest[0] for one in found[name]]),
            f"{len([alarm for alarm in usual if alarm])} of {len(usual)}", _steps(usual),
            ", ".join(f"{records[-1][shown] - clean[seed][-1][shown]:+.3f}" for seed, records in zip(
                config.bug_seeds, runs[name], strict=True) if seed in clean and records[-1].get(shown) is not None)
            if name != CLEAN else ""])
    metrics, steps = band["metrics"], band["metrics"]["loss"]["steps"]
    return Table("How soon each bug is seen", rows, (
        f"An alarm: one of {len(metrics)} metrics farther than {config.sigmas:g} sigmas off the band at one of "
        f"{len(steps)} logged steps, the last of which is {steps[-1]}. First alarm: median over the seeds that had "
        f"one, and their range. Usual metrics: "
        f"{', '.join(name.replace('_', ' ') for name in metrics if name in bands.USUAL)}. The bug is there in "
        f"validation as well, as in code that both share."))


def _steps(alarms: Sequence[tuple[int, str, float] | None]) -> str:
    """The median of the steps of those that were, and their range."""
    steps = sorted(alarm[0] for alarm in alarms if alarm)
    if not steps:
        return "never"
    return f"{np.median(steps):g}" + ("" if steps[0] == steps[-1] else f" ({steps[0]} to {steps[-1]})")


def _range(values: Sequence[float]) -> str:
    largest = sorted(map(abs, values))
    if not largest:
        return ""
    low, high = (f"{value:.1f}" if value < 30 else "over 30" for value in (largest[0], largest[-1]))
    return low if low == high else f"{low} to {high}"


def _thresholds(found: Mapping[str, list[bands.Deviation]]) -> Table:
    rows = [["threshold, sigmas", "false alarms", "runs with a bug caught", "bugs caught at every seed"]]
    bugs = {name: of for name, of in found.items() if name != CLEAN and of}
    for sigmas in _THRESHOLDS:
        caught = {name: [one.first_alarm(sigmas) is not None for one in of] for name, of in bugs.items()}
        runs = [hit for hits in caught.values() for hit in hits]
        clean = [one.first_alarm(sigmas) is not None for one in found.get(CLEAN, ())]
        rows.append([f"{sigmas:g}", share(sum(clean), len(clean)), f"{sum(runs)} of {len(runs)}",
                     f"{sum(map(all, caught.values()))} of {len(bugs)}"])
    return Table("The threshold", rows, "Of runs, each judged at all its steps and metrics. 95%, Wilson.")


def _shown(runs: Mapping[str, Sequence[Records]]) -> str:
    """What a run is for: the validation loss, or of reinforcement learning the reward."""
    return "reward" if any("reward" in record for of in runs.values() for records in of for record in records) else (
        "validation_loss")


def _losses(band: Mapping[str, Any], runs: Mapping[str, Sequence[Records]]) -> str:
    """Training loss, or reward, of the first run with each bug over the band."""
    shown = "reward" if _shown(runs) == "reward" else "loss"
    of = band["metrics"][shown]
    steps, mean = (np.array(of[key]) for key in ("steps", "mean"))

    def draw(axes: Any) -> None:
        names = [name for name, made in runs.items() if made and name != CLEAN]
        for i, name in enumerate(names):
            curve = bands.curves(runs[name][0])[shown]
            axes.plot(list(curve), list(curve.values()), linewidth=1.1, color=_colour(i), linestyle=_style(i),
                      label=name.replace("_", " "))
        room = bands.half_width(band, shown, bands.SIGMAS)
        axes.fill_between(steps, mean - room, mean + room, color="0.2", alpha=0.2, linewidth=0)
        axes.plot(steps, mean, color="0.1", linewidth=1.6, label=f"band, {bands.SIGMAS:g} sigmas")
        axes.set(xlabel="step", ylabel="reward" if shown == "reward" else "training loss, nats a token")
        axes.legend(frameon=False, fontsize=7.5, ncols=2)

    return report.picture(draw, 4.6)


def _farthest(config: ConfigDict, found: Mapping[str, list[bands.Deviation]]) -> str:
    """Largest deviation so far over all metrics: clean runs grey, the first run with each bug in its colour."""
    def so_far(one: bands.Deviation) -> tuple[list[int], list[float]]:
        at: dict[int, float] = {}
        for steps, zs in one.by_metric.values():
            for step, z in zip(steps, zs, strict=True):
                at[step] = max(at.get(step, 0.0), min(abs(z), 1e4))
        steps = sorted(at)
        return steps, np.maximum.accumulate([at[step] for step in steps]).tolist()

    def draw(axes: Any) -> None:
        for one in found.get(CLEAN, ()):
            axes.plot(*so_far(one), color="0.65", linewidth=0.8)
        for i, (name, of) in enumerate((name, of) for name, of in found.items() if name != CLEAN and of):
            axes.plot(*so_far(of[0]), color=_colour(i), linestyle=_style(i), linewidth=1.2,
                      label=name.replace("_", " "))
        axes.plot([], [], color="0.65", linewidth=0.8, label="no bug")
        axes.axhline(config.sigmas, color="0.2", linewidth=1, linestyle=":")
        axes.set(yscale="log", xlabel="step", ylabel="sigmas")
        axes.legend(frameon=False, fontsize=7.5, ncols=2)

    return report.picture(draw, 4.6)


def _colour(i: int) -> str:
    return f"C{i % 10}"


def _style(i: int) -> str:
    return "-" if i < 10 else "--"
