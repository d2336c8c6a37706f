"""RL without fine-tuning (R1-Zero): on the base itself, in two forms of prompt, beside RL after SFT at equal samples.

    python -m experiments.from_base --workdir=runs/from_base

A reward teaches only what is drawn. In the form of its documents the base solves some problems, and there is a signal;
by a chat format that it has never seen it solves almost none, and whether there is one is what this shows.

References: DeepSeek-AI, DeepSeek-R1, 2025, section 2.2. https://arxiv.org/abs/2501.12948
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab, launch, practice, practice_runs, report
from experiments.findings import Findings, Table, write
from experiments.practice_runs import ROADS
from experiments.sft_to_rl_report import bands
from experiments.tokens_to_think_problems import PARTS
from jaxllm.evals.intervals import share_interval, spread, t_interval

FIRST = 5  # steps at the start whose rewards are reported
SHOWN = 60  # characters of a reply


def main(config: ConfigDict, workdir: str) -> None:
    """Goes every road at every seed, asks held-out problems at its end, and writes what was found.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in config.arms}
    for seed in config.seeds:
        for arm in config.arms:
            keys = ("start", "rl", "watched", "watched_samples", "part", "samples")
            every = config.to_dict()
            settings = [arm, seed, practice.wording(config.start, seed), *[every[key] for key in keys]]
            found = lab.kept(folder / "kept", f"{arm}-{seed}", settings, functools.partial(measure, config, seed, arm))
            runs[arm].append(found)
            print(f"{arm}, seed {seed}: {practice.said(found['start'])} -> {practice.said(found['end'])}; "
                  f"{time.perf_counter() - begun:.0f} s in all", flush=True)
    write(findings(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot work, before anything is trained."""
    practice_runs.check_runs(config, config.arms)
    if config.arms[:1] != ("rl",) or not all(isinstance(ROADS[arm].reward, Mapping) for arm in config.arms):
        raise ValueError(f"config.arms={config.arms}: name 'rl' first, and roads with a reward for replies")
    if config.part not in PARTS[1:] or config.samples < 1:
        raise ValueError(f"config.part={config.part!r}, config.samples={config.samples}: ask {' or '.join(PARTS[1:])} "
                         f"problems, 1 or more times each")


def measure(config: ConfigDict, seed: int, arm: str) -> dict[str, Any]:
    """Goes a road.

    Returns:
      "start", "end": what `practice.measure` says of replies to held-out problems; "curve": of `practice_runs.Run`;
      "signal": of each step, the rewards' standard deviation, 0 where nothing can be learnt; "rewards"; "said": a
      problem and the first reply to it, before and after.
    """
    run, first = practice_runs.run(config, seed, arm), practice_runs.beginning(config, seed, ROADS[arm].start)
    asked = practice.tasks(config.start, seed, config.part)
    draw = functools.partial(practice.measure, asked=asked, samples=config.samples, temperature=1.0, seed=seed,
                             max_tokens=config.start.max_tokens)
    found, name = {"start": draw(first), "end": draw(run.made)}, next(iter(asked))
    said = [name, *[one["said"][name] for one in found.values()]]
    kept = {when: {part: value for part, value in one.items() if part not in practice.TOLD}
            for when, one in found.items()}
    return {**kept, "curve": run.curve, "rewards": [row["reward"] for row in run.rows],
            "signal": [row["reward_sd"] for row in run.rows], "said": said, "stopped": run.stopped}


def findings(config: ConfigDict, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Findings:
    """Before and after, the signal of the first steps, replies, and the curves."""
    def over(some: Sequence[Mapping[str, Any]], when: str, name: str) -> str:
        return spread(share_interval([run[when][name] for run in some]))

    answers = Table("Held-out problems, before and after RL", [
        ["road", "right before", "right after", "RL after SFT is ahead by", "worked before", "worked after",
         "flawless after"],
        *[[ROADS[arm].label, over(some, "start", "accuracy"), over(some, "end", "accuracy"),
           "" if arm == "rl" else spread(t_interval([first["end"]["accuracy"] - run["end"]["accuracy"]
                                                     for first, run in zip(runs["rl"], some, strict=True)])),
           over(some, "start", "worked"), over(some, "end", "worked"), over(some, "end", "flawless")]
          for arm, some in runs.items()]],
        f"{config.part} problems, {config.samples} replies each at temperature 1, each model asked in the form of its "
        f"road; mean [95%, t over {len(config.seeds)} seeds]. All roads draw {config.rl.steps} x {config.rl.prompts} x "
        f"{config.rl.samples} replies.")
    signal = Table("Is there anything to learn from?", [
        ["road", f"reward, first {FIRST} steps", "its standard deviation", "steps without any", "reward, last step"],
        *[[ROADS[arm].label, *[f"{np.mean([np.mean(run[name][:FIRST]) for run in some]):.4f}"
                               for name in ("rewards", "signal")],
           f"{np.mean([np.mean(np.equal(run['signal'], 0)) for run in some]):.0%}",
           f"{np.mean([run['rewards'][-1] for run in some]):.3f}"] for arm, some in runs.items()]],
        "Means over seeds. A step whose replies are all rewarded alike changes nothing.")
    replies = Table("What they say", [
        ["road", "problem", "before", "after"],
        *[[ROADS[arm].label, *[line(text) for text in some[0]["said"]]] for arm, some in runs.items()]],
        f"The first held-out problem, seed {config.seeds[0]}, one reply at temperature 1; / is a new line.")
    curves = {ROADS[arm].label: [run["curve"] for run in some] for arm, some in runs.items()}
    pictures = [(heading, report.picture(bands(curves, lambda point, name=name: point[name], "updates of RL", heading,
                                               (-0.03, 1.03))))
                for name, heading in (("accuracy", "right answers"), ("worked", "replies with working"))]
    return Findings("RL from base", [answers, signal, replies], pictures, {"runs": runs})


def line(text: str) -> str:
    """A text as one line of a table."""
    flat = text.replace("\n", " / ").replace("|", " ")
    return "".join(c if c.isprintable() else "?" for c in flat[:SHOWN]) + ("..." if len(flat) > SHOWN else "")


if __name__ == "__main__":
    launch.run(main, default_config="configs/from_base.py")
