"""A scaling law of small models, and how well it foresees the larger ones it has never seen.

    python -m experiments.scaling_law --workdir=runs/scaling_law

A sweep trains models of several widths; every run gives its loss at several token budgets. L = E + A/N^alpha +
B/D^beta is fitted on the smaller widths and budgets and predicts the rest. Power laws describe the end of learning:
budgets at which a model of the fit is still at its beginning are left out. Controls that could refute the law: a law
of compute alone, and the loss of the nearest model in the fit.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import findings, lab, launch, scaling_law_run, sweep
from experiments.scaling_law_fit import Law, fit, nearest, start_of
from experiments.scaling_law_report import findings_of
from experiments.sweep_plan import Point, plan
from experiments.sweep_points import values
from experiments.sweep_pool import Here


def main(config: ConfigDict, workdir: str) -> None:
    """Runs the sweep or goes on with it, fits, predicts, and writes what was found.

    Raises:
      ValueError: a key is out of range, or runs failed.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    points = plan("scaling_law_run", config.run, values("dim", config.widths), config.seeds, folder.parent / "points")
    last = f"results.losses.{config.run.budgets[-1]}"
    failed = sweep.run(points, Here(config.parallel), folder / "sweep", config.run, (last,), "Scaling law")
    if failed:
        raise ValueError(f"{len(failed)} runs failed: {', '.join(point.label for point in failed)}; their logs say why")
    data = measured(config, points)
    settings = {**config.to_dict(), "parallel": None, "data": data}
    found = lab.kept(folder / "kept", "fits", settings, functools.partial(fitted, config, data))
    findings.write(findings_of(config, data, found), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after training."""
    scaling_law_run.check(config.run)
    widths, budgets = len(config.widths), len(config.run.budgets)
    if list(config.widths) != sorted(set(config.widths)):
        raise ValueError(f"config.widths={config.widths} must ascend")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    if not 0 < config.regime <= 1:
        raise ValueError(f"config.regime={config.regime} is a share of the loss of guessing: above 0, at most 1")
    for key in ("held_widths", "held_budgets", "bootstrap", "parallel"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if widths - config.held_widths < 2 or budgets - config.held_budgets < 2 or \
            (widths - config.held_widths) * (budgets - config.held_budgets) < 5:
        raise ValueError(f"{widths} widths and {budgets} budgets less the held out ({config.held_widths} and "
                         f"{config.held_budgets}) leave too little to fit five parameters: at least two of each, and "
                         f"five points")
    if config.huber <= 0:
        raise ValueError(f"config.huber={config.huber} must be above 0")


def measured(config: ConfigDict, points: list[Point]) -> dict[str, Any]:
    """What the runs left behind, as arrays.

    Returns:
      "params" [W] and "flops_per_token" [W] of each width, "tokens" [B] of each budget, "losses" [W, S, B], nats; all
      as lists. And "corpus_tokens", "vocab_size".
    """
    runs = [json.loads((point.folder / "results.json").read_text(encoding="utf-8")) for point in points]
    of_width = [runs[i:i + len(config.seeds)] for i in range(0, len(runs), len(config.seeds))]
    tokens = config.run.batch_size * config.run.row_length
    return {"params": [group[0]["params"] for group in of_width],
            "flops_per_token": [group[0]["flops_per_token"] for group in of_width],
            "corpus_tokens": runs[0]["corpus_tokens"], "vocab_size": runs[0]["vocab_size"],
            "tokens": [budget * tokens for budget in config.run.budgets],
            "losses": [[[run["losses"][str(budget)] for budget in config.run.budgets] for run in group]
                       for group in of_width]}


def sizes(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and tokens [W, B, 2], and FLOPs of training [W, B, 1], of every width and budget."""
    params_W, tokens_B, flops_W = (np.array(data[key], float) for key in ("params", "tokens", "flops_per_token"))
    both_WB2 = np.stack(np.broadcast_arrays(params_W[:, None], tokens_B), -1)
    return both_WB2, (flops_W[:, None] * tokens_B)[..., None]


def held_out(config: ConfigDict) -> np.ndarray:
    """Which widths and budgets no fit sees: bool [W, B]."""
    held_WB = np.zeros((len(config.widths), len(config.run.budgets)), bool)
    held_WB[-config.held_widths:] = True
    held_WB[:, -config.held_budgets:] = True
    return held_WB


def parts(config: ConfigDict, data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What is fitted and what is predicted, (seen, asked), bool [W, B] each; in neither where the law is not claimed.

    A budget counts when every width of the fit has a mean loss below `config.regime` of the logarithm of the
    vocabulary. Held-out losses have no part in this: a budget that is held out always counts.

    Raises:
      ValueError: too few budgets count.
    """
    held_WB = held_out(config)
    level = config.regime * math.log(data["vocab_size"])
    mean_WB = np.mean(data["losses"], 1)
    counts_B = ((mean_WB < level) | held_WB)[:-config.held_widths].all(0)
    seen_WB, asked_WB = ~held_WB & counts_B, held_WB & counts_B
    if (seen_WB.any(0)).sum() < 2 or seen_WB.sum() < 5:
        raise ValueError(f"at {seen_WB.any(0).sum()} of the budgets of the fit all its widths have a loss below "
                         f"{level:.2f} nats; the law needs two budgets and five losses: raise config.run.budgets, or "
                         f"config.regime ({config.regime}) where a law of the beginning is wanted")
    return seen_WB, asked_WB


def fitted(config: ConfigDict, data: dict[str, Any]) -> dict[str, Any]:
    """The law of all seeds with its bootstrap, and for each seed what law and controls predict.

    Returns:
      "seen" and "asked": see `parts`; "law" and "compute": of `_described`; "bootstrap": laws of resampled runs,
      described alike; "predicted" [W, B] of the law, "predicted_bootstrap" [draws, W, B]; "by_seed": method ->
      [S, W, B], each prediction from a seed's runs.
    """
    size_WB2, flops_WB1 = sizes(data)
    losses_WSB, (seen_WB, asked_WB) = np.array(data["losses"]), parts(config, data)
    seeds = losses_WSB.shape[1]

    def of_seeds(sizes_WBK: np.ndarray, chosen_WS: np.ndarray, start: Law | None = None) -> Law:
        """The law of these seeds of each width."""
        picked_WBS = np.take_along_axis(losses_WSB, chosen_WS[:, :, None], 1).swapaxes(1, 2)
        x = np.repeat(sizes_WBK[seen_WB], chosen_WS.shape[1], 0)
        return fit(x, picked_WBS[seen_WB].ravel(), config.huber, None if start is None else [start_of(start, x)])

    every_WS = np.tile(np.arange(seeds), (len(losses_WSB), 1))
    law, compute = of_seeds(size_WB2, every_WS), of_seeds(flops_WB1, every_WS)
    # Losses of one run at its budgets share its seed and its trunk: whole runs are drawn anew, within each width. With
    # one seed there is nothing to draw.
    rng = np.random.default_rng(0)
    draws = config.bootstrap if seeds > 1 else 0
    drawn = [of_seeds(size_WB2, rng.integers(0, seeds, every_WS.shape), law) for _ in range(draws)]
    by_seed: dict[str, list] = {"law": [], "compute": [], "nearest": []}
    for seed in range(seeds):
        by_seed["law"].append(of_seeds(size_WB2, every_WS[:, seed:seed + 1])(size_WB2).tolist())
        by_seed["compute"].append(of_seeds(flops_WB1, every_WS[:, seed:seed + 1])(flops_WB1).tolist())
        known = nearest(size_WB2[seen_WB], losses_WSB[:, seed][seen_WB], size_WB2.reshape(-1, 2))
        by_seed["nearest"].append(known.reshape(seen_WB.shape).tolist())
    return {"seen": seen_WB.tolist(), "asked": asked_WB.tolist(), "law": _described(law),
            "compute": _described(compute), "bootstrap": [_described(one) for one in drawn],
            "predicted": law(size_WB2).tolist(), "predicted_bootstrap": [one(size_WB2).tolist() for one in drawn],
            "by_seed": by_seed}


def _described(law: Law) -> dict[str, Any]:
    return {"floor": law.floor, "log_scales": law.log_scales.tolist(), "exponents": law.exponents.tolist()}


if __name__ == "__main__":
    launch.run(main, default_config="configs/scaling_law.py")
