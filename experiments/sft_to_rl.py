"""From fine-tuning to reinforcement learning: a start that solves few problems, GRPO on answers that can be checked.

    python -m experiments.sft_to_rl --workdir=runs/sft_to_rl

Held-out problems are asked on the way and at the end. Controls: the same FLOPs spent on more fine-tuning, on the same
demonstrations and on the same ones all worked out, and RL with a reward by a coin. With `config.model` one run of a
published chat model on a file of tasks (experiments/sft_to_rl_published.py).
"""

from __future__ import annotations

import functools
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from experiments import lab, launch, practice, practice_runs
from experiments.findings import write
from experiments.sft_to_rl_published import check_published, improve_published
from experiments.sft_to_rl_report import START, findings
from experiments.tokens_to_think_problems import PARTS
from jaxllm.data.conversations import conversation_rows


def main(config: ConfigDict, workdir: str) -> bool:
    """Runs the study, or one run at real size where config.model is set; returns whether it came to its end.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    if config.model:
        return improve_published(config, pathlib.Path(workdir))
    study(config, pathlib.Path(workdir))
    return True


def check(config: ConfigDict) -> None:
    """Refuses what cannot work, before anything is trained."""
    if config.model:
        check_published(config)
        return
    practice_runs.check_runs(config, config.arms)
    if config.arms[:1] != ("rl",):
        raise ValueError(f"config.arms={config.arms}: the first must be 'rl', which the others are compared with")
    if config.part not in PARTS[1:] or config.samples < 1:
        raise ValueError(f"config.part={config.part!r}, config.samples={config.samples}: ask {' or '.join(PARTS[1:])} "
                         f"problems, 1 or more times each")


def study(config: ConfigDict, folder: pathlib.Path) -> None:
    """Goes every road at every seed, asks held-out problems at its end, and writes what was found."""
    begun = time.perf_counter()
    asked: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (START, *config.arms)}
    curves: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in config.arms}
    costs: list[dict[str, float]] = []
    for seed in config.seeds:
        for arm in asked:
            if arm != START:
                run = practice_runs.run(config, seed, arm)
                curves[arm].append(run.curve)
                if run.stopped:
                    print(f"{arm}, seed {seed} was stopped: {run.stopped}", flush=True)
            found = lab.kept(folder / "kept", f"{arm}-{seed}", _of_answers(config, seed, arm),
                             functools.partial(ask, config, seed, arm))
            asked[arm].append(found)
            print(f"{arm}, seed {seed}: {practice.said(found['sampled'])}; greedy {found['greedy']['accuracy']:.3f}; "
                  f"{time.perf_counter() - begun:.0f} s in all", flush=True)
        costs.append(cost(config, seed))
    write(findings(config, asked, curves, costs), folder, config, time.perf_counter() - begun)


def _of_answers(config: ConfigDict, seed: int, arm: str) -> list[Any]:
    """What the answers of `ask` depend on."""
    keys = ("start", "rl", "watched", "watched_samples", "fractions", "part", "samples")
    every = config.to_dict()
    return [arm, seed, practice.wording(config.start, seed), *[every[key] for key in keys]]


def ask(config: ConfigDict, seed: int, arm: str) -> dict[str, dict[str, Any]]:
    """What `practice.measure` says of replies to held-out problems: "sampled" at temperature 1, and "greedy"."""
    made = practice_runs.beginning(config, seed) if arm == START else practice_runs.run(config, seed, arm).made
    problems = practice.tasks(config.start, seed, config.part)
    draw = functools.partial(practice.measure, made, problems, max_tokens=config.start.max_tokens, seed=seed)
    found = {"sampled": draw(samples=config.samples, temperature=1.0), "greedy": draw()}
    return {how: {name: value for name, value in one.items() if name not in practice.TOLD}
            for how, one in found.items()}


def cost(config: ConfigDict, seed: int) -> dict[str, float]:
    """FLOPs of RL, and of what fine-tuning spends: its updates, and how often it reads every demonstration."""
    made = practice_runs.beginning(config, seed)
    steps = practice_runs.sft_steps(config, made, seed)
    rows = conversation_rows(practice.demonstrations(config.start, seed), made.tokenizer, config.start.row_length)
    width = practice_runs.row_width(made, practice.tasks(config.start, seed, "train"), config.rl.sampler.max_tokens)
    return {"flops": practice.rl_flops(made.model, config.rl, width), "sft_steps": steps,
            "epochs": steps * config.start.batch_size / len(rows.batch.tokens),
            "replies": config.rl.steps * config.rl.prompts * config.rl.samples}


if __name__ == "__main__":
    launch.run(main, default_config="configs/sft_to_rl.py")
