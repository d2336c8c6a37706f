"""Does RL teach what the start could not do, or sharpen what it could? pass@1 ... pass@256 before and after.

    python -m experiments.learn_or_sharpen --workdir=runs/learn_or_sharpen

If RL only moves weight to replies that the start already gave, the start overtakes it at some k: that crossing is
looked for twice, by right answers, which a start that guesses often enough also has, and by flawless working, which
nobody guesses. Controls: RL with a reward by a coin and with one for the form alone, and a majority vote among the
start's own replies.

References: Yue et al., Does Reinforcement Learning Really Incentivize Reasoning Capacity in LLMs Beyond the Base
  Model?, 2025. https://arxiv.org/abs/2504.13837
"""

from __future__ import annotations

import functools
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab, launch, practice, practice_runs, report
from experiments.findings import Findings, Table, write
from experiments.sft_to_rl_report import START, bands, label
from experiments.tokens_to_think_problems import PARTS
from jaxllm.data.verifiable import Task
from jaxllm.evals.intervals import share_interval, spread, t_interval
from jaxllm.evals.pass_at_k import MAX_SAMPLES, majority_at_k, pass_at_k

KINDS = {"right": "right answers", "flawless": "flawless working"}
VOTE = "vote"  # among the curves: maj@k of the start
# arm -> a seed each -> KINDS (and "vote") -> k -> mean over problems
Curves = Mapping[str, Sequence[Mapping[str, Mapping[int, float]]]]


def main(config: ConfigDict, workdir: str) -> None:
    """Draws many replies of every model at every seed, and writes what k of them are worth.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    drawn: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (START, *config.arms)}
    for seed in config.seeds:
        for arm, runs in drawn.items():
            keys = ("start", "rl", "watched", "watched_samples", "fractions", "part", "samples", "problems")
            every = config.to_dict()
            settings = [arm, seed, practice.wording(config.start, seed), *[every[key] for key in keys]]
            found = lab.kept(folder / "kept", f"{arm}-{seed}", settings, functools.partial(draw, config, seed, arm))
            runs.append(found)
            print(f"{arm}, seed {seed}: {practice.said(found)}; {time.perf_counter() - begun:.0f} s in all", flush=True)
    write(findings(config, drawn), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot work, before anything is trained."""
    practice_runs.check_runs(config, config.arms)
    if config.arms[:1] != ("rl",) or any(practice_runs.ROADS[arm].start != "sft" for arm in config.arms):
        raise ValueError(f"config.arms={config.arms}: name 'rl' first, and roads that begin at the fine-tuned model")
    if config.part not in PARTS[1:] or config.problems < 1 or not 1 <= config.samples <= MAX_SAMPLES:
        raise ValueError(f"config.part={config.part!r}, config.problems={config.problems}, config.samples="
                         f"{config.samples}: ask 1 or more {' or '.join(PARTS[1:])} problems of a kind, 1 to "
                         f"{MAX_SAMPLES} times each")
    for key in ("k", "vote_k"):
        if list(config[key]) != sorted(set(config[key])) or config[key][:1] != (1,) or config[key][-1] > config.samples:
            raise ValueError(f"config.{key}={config[key]}: give rising numbers from 1 to at most config.samples="
                             f"{config.samples}")


def problems(config: ConfigDict, seed: int) -> dict[str, Task]:
    """The first `config.problems` of each kind."""
    kinds: dict[str, dict[str, Task]] = {kind: {} for kind in config.start.kinds}
    for name, task in practice.tasks(config.start, seed, config.part).items():
        some = kinds[name.partition(": ")[0]]
        if len(some) < config.problems:
            some[name] = task
    return {name: task for some in kinds.values() for name, task in some.items()}


def draw(config: ConfigDict, seed: int, arm: str) -> dict[str, Any]:
    """What `practice.measure` says of `config.samples` replies to each problem."""
    made = practice_runs.beginning(config, seed) if arm == START else practice_runs.run(config, seed, arm).made
    return practice.measure(made, problems(config, seed), samples=config.samples, temperature=1.0, seed=seed,
                            max_tokens=config.start.max_tokens)


def values(config: ConfigDict, seed: int, found: Mapping[str, Any], vote: bool) -> dict[str, dict[int, float]]:
    """pass@k by right answers and by flawless working, mean over problems; with `vote` also maj@k."""
    result = {kind: {k: float(pass_at_k(list(found[key].values()), config.samples, k).mean()) for k in config.k}
              for kind, key in (("right", "right"), ("flawless", "flawless_of"))}
    if vote:
        asked = problems(config, seed)
        result[VOTE] = {k: float(np.mean([majority_at_k(answers, {asked[name].answer}, k)
                                          for name, answers in found["answers"].items()])) for k in config.vote_k}
    return result


def crossing(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """The least k at which the curve that was below has caught up, between the measured by log2 k; inf for none.

    >>> crossing({1: 0.2, 4: 0.8}, {1: 0.5, 4: 0.5})
    2.0
    """
    gap = {k: after[k] - before[k] for k in sorted(before)}
    counts = list(gap)
    for k, following in zip(counts, counts[1:], strict=False):
        if gap[k] > 0 >= gap[following]:
            share = gap[k] / (gap[k] - gap[following])
            return float(2 ** (math.log2(k) + share * (math.log2(following) - math.log2(k))))
    return math.inf


def findings(config: ConfigDict, drawn: Mapping[str, Sequence[Mapping[str, Any]]]) -> Findings:
    """pass@k of every model, what RL gains and loses against the start, and the curves."""
    curves: Curves = {arm: [values(config, seed, found, arm == START)
                            for seed, found in zip(config.seeds, runs, strict=True)] for arm, runs in drawn.items()}
    asked = np.mean([len(found["right"]) for found in drawn["rl"]])
    note = (f"{asked:.0f} {config.part} problems, {config.samples} replies each at temperature 1; mean over problems "
            f"without bias, then over {len(config.seeds)} seeds [95%, Student's t, cut to 0 to 1].")
    tables = [Table(f"pass@k by {heading}", [
        ["model", *[f"k = {k}" for k in shown(config.k)]],
        *[[label(arm), *[spread(share_interval([run[kind][k] for run in runs])) for k in shown(config.k)]]
          for arm, runs in curves.items()]], note) for kind, heading in KINDS.items()]
    tables.append(Table("A vote among the start's replies", [
        ["", *[f"k = {k}" for k in config.vote_k]],
        ["maj@k of the start", *[spread(share_interval([run[VOTE][k] for run in curves[START]]))
                                 for k in config.vote_k]]],
        "The commonest answer of k replies; ties share the vote."))
    tables.append(against(config, drawn, curves))
    pictures = [(f"pass@k by {heading}", report.picture(on_axes(curves, kind, heading)))
                for kind, heading in KINDS.items()]
    counts = {arm: [{name: found[name] for name in ("right", "flawless_of")} for found in runs]
              for arm, runs in drawn.items()}
    return Findings("Learn or sharpen", tables, pictures, {"curves": curves, "drawn": counts})


def shown(counts: Sequence[int]) -> list[int]:
    """Every other k of a table, and the last."""
    return sorted({*counts[::2], counts[-1]})


def against(config: ConfigDict, drawn: Mapping[str, Sequence[Mapping[str, Any]]], curves: Curves) -> Table:
    """Every road against the start: gains at the least and the largest k, the crossing, and problems won and lost."""
    most, rows = config.k[-1], []
    for arm in config.arms:
        for kind, key in (("right", "right"), ("flawless", "flawless_of")):
            pairs = [(first[kind], run[kind]) for first, run in zip(curves[START], curves[arm], strict=True)]
            solved = [(first[key], run[key]) for first, run in zip(drawn[START], drawn[arm], strict=True)]
            crossings = [crossing(before, after) for before, after in pairs]
            rows.append([
                label(arm), KINDS[kind],
                *[spread(t_interval([after[k] - before[k] for before, after in pairs])) for k in (1, most)],
                ", ".join("none" if math.isinf(k) else f"{k:.0f}" for k in crossings),
                f"{np.mean([newly(before, after) for before, after in solved]):.1f}",
                f"{np.mean([newly(after, before) for before, after in solved]):.1f}"])
    return Table("Against the start", [
        ["model", "by", "gain at k = 1", f"gain at k = {most}", "k at which the start has caught up, by seed",
         "problems won", "problems lost"], *rows],
        f"Gains paired by seed [95%, Student's t]. Won: solved in some of {config.samples} replies, and in none of the "
        f"start's; lost: the other way; mean over seeds.")


def newly(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """How many problems the second solves in some of its replies, and the first in none."""
    return sum(after[name] > 0 == before[name] for name in after)


def on_axes(curves: Curves, kind: str, heading: str) -> Any:
    """pass@k of all models against k, and the vote where answers are compared."""
    lines = {label(arm): [[{"step": k, "share": share} for k, share in run[kind].items()] for run in runs]
             for arm, runs in curves.items()}
    if kind == "right":
        lines["start (SFT), majority vote"] = [[{"step": k, "share": share} for k, share in run[VOTE].items()]
                                               for run in curves[START]]
    plain = bands(lines, lambda point: point["share"], "replies k", heading, (-0.03, 1.03))

    def draw_on(axes: Any) -> None:
        plain(axes)
        axes.set_xscale("log", base=2)
    return draw_on


if __name__ == "__main__":
    launch.run(main, default_config="configs/learn_or_sharpen.py")
