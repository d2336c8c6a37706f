"""The expected curves of a config: a band of a few seeds for every logged step, and how far a run is off it.

A band is a JSON file beside the configs: of each metric the steps, the mean over seeds and the standard deviation, and
the settings it is of. A run's deviation is t = (x - mean) / (sd sqrt(1 + 1/n)), Student's t of a new seed with n - 1
degrees of freedom, told as the sigmas of a normal distribution that are as rare: five seeds know their sd badly, and 8
of theirs are 3.2 sigmas. Variances are averaged over neighbouring steps.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from scipy.stats import norm as normal
from scipy.stats import t as student

from experiments import report
from jaxllm.train.metrics import read_metrics

FOLDER = pathlib.Path(__file__).parent.parent / "configs" / "bands"
# Of these, what a run writes. "NAME_so_far" is the mean of what was logged up to a step: in it a small lasting shift
# stays while the noise of batches averages out. Gradient norms are compared by their logarithms.
_LOGGED = ("loss", "grad_norm", "validation_loss", "reward", "kl", "entropy")
_SO_FAR = ("loss", "reward")
_NEIGHBOURS = 2
# Keys that change where a run stands and what it shows, and not its curve.
_BESIDE = ("seed", "data.cache", "data.processes", "data.shard_tokens", "mesh", "sample_steps", "sample_prompts",
           "sample_tokens", "sample_temperature", "checkpoint_steps", "keep_checkpoints", "wandb_project")
SIGMAS = 3.5


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far a run is off its band.

    Attributes:
      by_metric: metric -> (steps, deviations in sigmas); a value that is not finite is infinitely far off.
    """

    by_metric: Mapping[str, tuple[list[int], list[float]]]

    @property
    def largest(self) -> tuple[float, int, str]:
        """The largest deviation, signed, its step and its metric."""
        return max(((z, step, name) for name, (steps, zs) in self.by_metric.items()
                    for step, z in zip(steps, zs, strict=True)), key=lambda found: abs(found[0]), default=(0.0, 0, ""))

    def first_alarm(self, sigmas: float) -> tuple[int, str] | None:
        """The first step at which a metric is farther off than this, and the metric."""
        return min(((step, name) for name, (steps, zs) in self.by_metric.items()
                    for step, z in zip(steps, zs, strict=True) if not abs(z) <= sigmas), default=None)


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """The metrics of a band out of a run's metrics.jsonl: metric -> step -> value; NaN where it was not finite."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for name in _LOGGED:
            if name in record:
                value = math.nan if record[name] is None else record[name]
                # Its errors are relative; and of equal rewards it is 0, which must not be infinitely far from little.
                value = math.log(max(value, 1e-3)) if name == "grad_norm" else value
                found.setdefault(name, {})[int(record["step"])] = value
    for name in _SO_FAR:
        if name in found:
            steps = sorted(found[name])
            means = np.cumsum([found[name][step] for step in steps]) / np.arange(1, len(steps) + 1)
            found[f"{name}_so_far"] = dict(zip(steps, means.tolist(), strict=True))
    return found


def settings(config: ConfigDict) -> dict[str, Any]:
    """What the curves of a pretraining config depend on, the seed left out, as JSON has it."""
    flat = flatten_dict(config.to_dict(), sep=".")
    return json.loads(json.dumps({key: value for key, value in flat.items() if key not in _BESIDE}, default=str))


def make(config: ConfigDict, runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The band of a config.

    Args:
      config: of experiments.pretrain.
      runs: metrics.jsonl of each seed.

    Raises:
      ValueError: fewer than three runs, or runs whose numbers are not all finite.
    """
    if len(runs) < 3:
        raise ValueError(f"{len(runs)} runs make no band; give at least three seeds")
    of_runs = [curves(records) for records in runs]
    metrics = {}
    for name, curve in of_runs[0].items():
        steps = sorted(curve)
        values_SX = np.array([[run[name][step] for step in steps] for run in of_runs])
        if not np.isfinite(values_SX).all():
            raise ValueError(f"{name} is not finite in one of the runs; a band is made of runs that are in order")
        variance_X = values_SX.var(0, ddof=1)
        smooth = [float(np.sqrt(variance_X[max(0, i - _NEIGHBOURS):i + _NEIGHBOURS + 1].mean()))
                  for i in range(len(steps))]
        metrics[name] = {"steps": steps, "mean": values_SX.mean(0).tolist(), "sd": smooth}
    return {"seeds": len(runs), "settings": settings(config), "metrics": metrics}


def write(band: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a band, its numbers to six digits."""
    rounded = {name: {"steps": of["steps"], **{key: [float(f"{x:.6g}") for x in of[key]] for key in ("mean", "sd")}}
               for name, of in band["metrics"].items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(path, json.dumps({**band, "metrics": rounded}) + "\n")


def read(path: pathlib.Path) -> dict[str, Any]:
    """A band that was written.

    Raises:
      FileNotFoundError: there is none.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def deviation(band: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Deviation:
    """How far a run is off a band, at the steps that both have."""
    run, wider, found = curves(records), math.sqrt(1 + 1 / band["seeds"]), {}
    for name, of in band["metrics"].items():
        both = [(step, mean, sd) for step, mean, sd in zip(of["steps"], of["mean"], of["sd"], strict=True)
                if step in run.get(name, {})]
        t = np.array([(run[name][step] - mean) / (max(sd, 1e-9) * wider) for step, mean, sd in both])
        z = np.sign(t) * normal.isf(student.sf(np.abs(t), band["seeds"] - 1))
        found[name] = ([step for step, _, _ in both], np.where(np.isfinite(z), z, np.inf).tolist())
    return Deviation(found)


def half_width(band: Mapping[str, Any], metric: str, sigmas: float) -> np.ndarray:
    """How far a new seed may be off a metric's mean, at each of its steps, to be within so many sigmas."""
    quantile = student.isf(normal.sf(sigmas), band["seeds"] - 1)
    return quantile * math.sqrt(1 + 1 / band["seeds"]) * np.array(band["metrics"][metric]["sd"])


def verdict(config: ConfigDict, folder: pathlib.Path, bands: pathlib.Path = FOLDER) -> str:
    """A line on a run that has ended: how far off its config's band it is; "" where no band is of these settings."""
    wanted = settings(config)
    for path in sorted(bands.glob("*.json")):
        band = read(path)
        if band["settings"] == wanted:
            return _said(deviation(band, read_metrics(folder)), f"{path.stem}, {band['seeds']} seeds")
    return ""


def _said(found: Deviation, name: str) -> str:
    z, step, metric = found.largest
    last = [f"{key} {zs[-1]:+.1f}" for key, (_, zs) in found.by_metric.items() if zs]
    alarm = found.first_alarm(SIGMAS)
    line = (f"expected curve ({name}): at the end {', '.join(last)} sigmas; farthest off {z:+.1f} ({metric} at step "
            f"{step})")
    return line if alarm is None else (
        f"WARNING: {line}; first beyond {SIGMAS:g} sigmas at step {alarm[0]} ({alarm[1]}): look for a bug before you "
        f"trust this run")
