"""The expected curves of a config: a band of a few seeds for every logged step, and how far a run is off it.

A band is a JSON file beside the configs: of each metric the steps, the mean over seeds, the standard deviation and its
degrees of freedom, and the settings it is of. A run's deviation is t = (x - mean) / (sd sqrt(1 + 1/n)), Student's t of
a new seed, told as the sigmas of a normal distribution that are as rare: five seeds alone know their sd badly, and 10.5
of theirs are 3.5 sigmas. Variances are averaged over neighbouring steps, which know more the less they follow each
other: see `_freedom`.
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
# Of these, what a run writes, of all parameters and of each kind ("grad_norm/query"). Sizes are above 0 and their
# errors relative: they are compared by their logarithms.
_LEVELS = ("loss", "validation_loss", "reward", "kl", "entropy")
_SIZES = ("grad_norm", "update_norm", "param_norm", "tokens", "context", "advantage")
# "NAME_so_far" is the mean of what was logged up to a step: in it a small lasting shift stays while the noise of
# batches averages out.
_SO_FAR = ("loss", "reward", "tokens", "context")
# What a run of any training loop shows: its losses and one gradient norm.
USUAL = ("loss", "loss_so_far", "validation_loss", "grad_norm", "reward", "reward_so_far", "kl", "entropy")
# The sd of what is the same for all seeds: rounding on another machine, or one token more in a batch, is no alarm, and
# a difference of a few percent is. Nats, and of sizes a thousandth.
_LEAST_SD = 1e-3
_NEIGHBOURS = 2
# Keys that change where a run stands and what it shows, and not its curve.
_BESIDE = ("seed", "data.cache", "data.processes", "data.shard_tokens", "mesh", "sample_steps", "sample_prompts",
           "sample_tokens", "sample_temperature", "checkpoint_steps", "keep_checkpoints", "wandb_project")
# Where an alarm begins: among a thousand comparisons, which a run makes, one in twenty runs has one by chance.
SIGMAS = 4.0


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

    def first_alarm(self, sigmas: float, among: Sequence[str] | None = None) -> tuple[int, str, float] | None:
        """The first step at which a metric is farther off than this, the metric and how far it is.

        Of several at one step it is the one that is farthest off; `among` names those that are looked at, None is all.
        """
        found = [(step, -abs(z), name) for name, (steps, zs) in self.by_metric.items()
                 if among is None or name in among for step, z in zip(steps, zs, strict=True) if abs(z) > sigmas]
        step, z, name = min(found, default=(0, 0.0, ""))
        return (step, name, -z) if found else None


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """The metrics of a band out of a run's metrics.jsonl: metric -> step -> value; NaN where it was not finite."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for name, logged in record.items():
            kind = name.partition("/")[0]
            if kind not in _LEVELS + _SIZES:
                continue
            value = math.nan if logged is None else logged
            # The gradient of equal rewards is 0, which must not be infinitely far from little.
            value = math.log(max(value, 1e-3)) if kind in _SIZES else value
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
      config: of what was run.
      runs: metrics.jsonl of each seed.

    Raises:
      ValueError: fewer than three runs, or runs whose numbers are not all finite.
    """
    if len(runs) < 3:
        raise ValueError(f"{len(runs)} runs make no band; give at least three seeds")
    of_runs = [curves(records) for records in runs]
    metrics = {}
    for name in of_runs[0]:
        steps = sorted(set.intersection(*(set(run.get(name, ())) for run in of_runs)))
        values_SX = np.array([[run[name][step] for step in steps] for run in of_runs])
        if not np.isfinite(values_SX).all():
            raise ValueError(f"{name} is not finite in one of the runs; a band is made of runs that are in order")
        windows = [slice(max(0, i - _NEIGHBOURS), i + _NEIGHBOURS + 1) for i in range(len(steps))]
        variance_X = values_SX.var(0, ddof=1)
        sd_X = np.array([math.sqrt(variance_X[window].mean()) for window in windows])
        rho_K = _autocorrelation((values_SX - values_SX.mean(0)) / np.maximum(sd_X, _LEAST_SD))
        metrics[name] = {"steps": steps, "mean": values_SX.mean(0).tolist(), "sd": sd_X.tolist(),
                         "freedom": [_freedom(len(runs), len(steps[window]), rho_K) for window in windows]}
    return {"seeds": len(runs), "settings": settings(config), "metrics": metrics}


def _autocorrelation(z_SX: np.ndarray) -> np.ndarray:
    """Of deviations of seeds [S, X] over steps, at lags 1 to 2 _NEIGHBOURS; in [0, 1], and 1 where nothing varies."""
    power, rho_K = np.mean(z_SX**2), np.ones(2 * _NEIGHBOURS)
    for lag in range(1, min(len(rho_K) + 1, z_SX.shape[1])):
        if power > 1e-6:
            rho_K[lag - 1] = np.clip(np.mean(z_SX[:, lag:] * z_SX[:, :-lag]) / power, 0.0, 1.0)
    return rho_K


def _freedom(seeds: int, steps: int, rho_K: np.ndarray) -> float:
    """Degrees of freedom of a variance of so many seeds, averaged over so many neighbouring steps.

    (S - 1) n / (1 + 2 sum_k (1 - k/n) rho_k^2): S - 1 where a step tells what the next will, n times that where
    neighbours know nothing of each other (Bayley and Hammersley, The effective number of independent observations in
    an autocorrelated time series, 1946, for variances).
    """
    lags = np.arange(1, steps)
    return float((seeds - 1) * steps / (1 + 2 * np.sum((1 - lags / steps) * rho_K[:steps - 1]**2)))


def write(band: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a band, its numbers to six digits."""
    rounded = {name: {"steps": of["steps"], **{key: [float(f"{x:.6g}") for x in of[key]]
                                               for key in ("mean", "sd", "freedom")}}
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
        both = np.array([(step, run[name][step], mean, sd, freedom) for step, mean, sd, freedom in zip(
            of["steps"], of["mean"], of["sd"], of["freedom"], strict=True) if step in run.get(name, {})]).reshape(-1, 5)
        steps, value_X, mean_X, sd_X, freedom_X = both.T
        t_X = (value_X - mean_X) / (np.maximum(sd_X, _LEAST_SD) * wider)
        z_X = np.sign(t_X) * normal.isf(student.sf(np.abs(t_X), freedom_X))
        found[name] = (steps.astype(int).tolist(), np.where(np.isnan(z_X), np.inf, z_X).tolist())
    return Deviation(found)


def half_width(band: Mapping[str, Any], metric: str, sigmas: float) -> np.ndarray:
    """How far a new seed may be off a metric's mean, at each of its steps, to be within so many sigmas."""
    of = band["metrics"][metric]
    quantile_X = student.isf(normal.sf(sigmas), np.array(of["freedom"]))
    return quantile_X * math.sqrt(1 + 1 / band["seeds"]) * np.maximum(of["sd"], _LEAST_SD)


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
    last = [f"{key} {zs[-1]:+.1f}" for key, (_, zs) in found.by_metric.items() if zs and key in _LEVELS]
    alarm = found.first_alarm(SIGMAS)
    line = (f"expected curve ({name}): at the end {', '.join(last)} sigmas; farthest off of {len(found.by_metric)} "
            f"metrics {z:+.1f} ({metric} at step {step})")
    return line if alarm is None else (
        f"WARNING: {line}; first beyond {SIGMAS:g} sigmas at step {alarm[0]} ({alarm[1]}): look for a bug before you "
        f"trust this run")
