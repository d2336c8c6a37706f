"""Tables and the picture of experiments.evaluate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.claims import Claim, of_values
from experiments.findings import Findings, Table
from jaxllm.evals import ifeval
from jaxllm.evals.contamination import Overlap
from jaxllm.evals.evaluation import Result, compare
from jaxllm.evals.intervals import share, spread
from jaxllm.evals.task_table import CORE
from jaxllm.evals.tasks import Task

SHARES = ("acc", "acc_norm", "acc_bytes", "acc_token", "mass", "greedy", "score")  # of 0 to 1; the others are not drawn
COLOURS = ("#2a6fdb", "#d2691e")
METRIC_NAMES = {"perplexity": "perplexity of the continuation", "bits_per_byte": "bits per byte"}


def findings_of(config: ConfigDict, names: Sequence[str], tasks: Sequence[Task], results: Sequence[Sequence[Result]],
                missing: Sequence[str], overlaps: Sequence[Overlap]) -> Findings:
    """All tables, the picture and the numbers.

    Args:
      names: of the models.
      results: [model][task].
      missing: tasks of CORE whose files are not there.
      overlaps: of the tasks with the corpus, or none.
    """
    tables = [scores(names, results, config)]
    if len(names) == 2:
        tables.append(differences(names, results))
    if any(task.name.startswith("core/") for task in tasks):
        tables.append(core(names, results, missing))
    tables.append(all_metrics(names, results))
    if any(item.verifier == "ifeval" for task in tasks for item in task.items):
        tables.append(instructions(names, tasks, results))
    if overlaps:
        tables.append(contaminated(names, tasks, results, overlaps, config))
    pictures = [("Scores, controls and chance", drawn)] if (drawn := picture(names, results)) else []
    numbers = {"models": list(names), "tasks": {task.name: {
        name: summary(found[place]) for name, found in zip(names, results, strict=True)}
        for place, task in enumerate(tasks)}, "core_missing": list(missing),
        "overlaps": [dataclasses.asdict(overlap) for overlap in overlaps]}
    return Findings("Evaluation", tables, pictures, numbers, claims(names, results))


def claims(names: Sequence[str], results: Sequence[Sequence[Result]]) -> list[Claim]:
    """That a score is earned by reading: each against the same items with another's context, paired by item."""
    found = []
    for name, of_model in zip(names, results, strict=True):
        subject = name if len(names) > 1 else "The model"
        for result in of_model:
            pairs = [pair for pair in zip(result.scores[result.metric], result.control, strict=True)
                     if pair[1] is not None]
            if result.metric in SHARES and len(pairs) > 1:
                read, swapped = map(list, zip(*pairs, strict=True))
                found.append(of_values(f"{subject} earns its score on {result.task} by reading the question",
                                       result.metric, read, "another item's question", swapped, of="items"))
    return found


def cell(result: Result, metric: str | None = None) -> str:
    """A score with its interval; the perplexity from its mean in nats."""
    metric = metric or result.metric
    values = result.interval(metric)
    return spread(tuple(map(math.exp, values)) if metric == "perplexity" else values)


def summary(result: Result) -> dict[str, Any]:
    """A result as results.json has it, without what is kept for each item."""
    control = result.control_interval()
    return {"metric": result.metric, "items": len(result.keys), "chance": result.chance,
            "scores": {metric: list(result.interval(metric)) for metric in result.scores},
            "control": list(control) if control else None, "tokens": result.tokens, "seconds": result.seconds}


def scores(names: Sequence[str], results: Sequence[Sequence[Result]], config: ConfigDict) -> Table:
    """The headline of every task and model beside its control and chance."""
    rows = [["task", "metric", "items", *(head for name in names for head in (name, f"{name}: swapped")), "chance"]]
    for of_task in zip(*results, strict=True):
        first = of_task[0]
        cells = [text for result in of_task for text in (cell(result), control_cell(result))]
        chance = f"{first.chance:.3f}" if first.metric in SHARES and first.chance else ""
        rows.append([first.task, METRIC_NAMES.get(first.metric, first.metric), str(len(first.keys)), *cells, chance])
    note = ("95% intervals: Wilson for shares of items, bootstrap over texts for bits per byte, Student's t else. "
            "Swapped: the context taken from another item, the candidates kept (of a generation, the reply to another "
            "item): what a prior over answers earns." if config.control else "95% intervals.")
    notes = [f"{result.task}: {result.note}" for result in results[0] if result.note]
    return Table("Scores", rows, " ".join([note, *notes]))


def control_cell(result: Result) -> str:
    """The control with its interval, "" without one."""
    found = result.control_interval()
    return spread(found) if found else ""


def differences(names: Sequence[str], results: Sequence[Sequence[Result]]) -> Table:
    """The first model less the second on the same items."""
    rows = [["task", f"{names[0]} less {names[1]}", "McNemar's p", "items"]]
    for first, second in zip(*results, strict=True):
        found = compare(first, second)
        rows.append([first.task, spread((found.mean, found.low, found.high)),
                     "" if found.p is None else f"{found.p:.2g}", str(found.items)])
    return Table("Difference on the same items", rows, "Paired bootstrap over items, 95%; McNemar's exact test, "
                 "two-sided, where a score is right or wrong. One test for each row: of twenty rows one falls below "
                 "0.05 by chance.")


def core(names: Sequence[str], results: Sequence[Sequence[Result]], missing: Sequence[str]) -> Table:
    """Scores centred at chance, (a - c) / (1 - c), and their mean over the tasks that were run.

    The interval of the mean adds the tasks' variances: var = sum_t s_t^2 / (n_t (1 - c_t)^2) / tasks^2.

    References: Li et al., DataComp-LM, 2024 (CORE). https://arxiv.org/abs/2406.11794
    """
    rows = [["task", *(f"{name}: centred" for name in names)]]
    of_core = [[result for result in found if result.task.startswith("core/")] for found in results]
    for of_task in zip(*of_core, strict=True):
        rows.append([of_task[0].task, *(f"{centred(result)[0]:.3f}" for result in of_task)])
    means = []
    for found in of_core:
        values = np.array([centred(result) for result in found])
        mean, half = values[:, 0].mean(), 1.959964 * math.sqrt(values[:, 1].sum()) / len(found)
        means.append(spread((mean, mean - half, mean + half)))
    rows.append([f"mean of {len(of_core[0])} of CORE's {len(CORE)}", *means])
    lacking = f" Not in the data folder: {', '.join(missing)}." if missing else ""
    return Table("CORE", rows, "(accuracy - chance) / (1 - chance), chance as DCLM's table has it. The mean is CORE "
                 f"only where all {len(CORE)} tasks are in it; its 95% interval is over items, not over the choice of "
                 f"tasks.{lacking}")


def centred(result: Result) -> tuple[float, float]:
    """(centred score, variance of it)."""
    values = np.array(result.scores[result.metric])
    scale = 1 - result.chance
    return float((values.mean() - result.chance) / scale), float(values.var(ddof=1) / len(values) / scale**2)


def all_metrics(names: Sequence[str], results: Sequence[Sequence[Result]]) -> Table:
    """Every metric that a task has."""
    rows = [["task", "metric", *names]]
    for of_task in zip(*results, strict=True):
        rows += [[of_task[0].task, METRIC_NAMES.get(metric, metric), *(cell(result, metric) for result in of_task)]
                 for metric in of_task[0].scores]
    return Table("All metrics", rows, "acc: the likeliest candidate; acc_norm, acc_bytes, acc_token: by log-likelihood "
                 "a character, a byte, a token; mass: the share of the candidates' probability on right ones.")


def instructions(names: Sequence[str], tasks: Sequence[Task], results: Sequence[Sequence[Result]]) -> Table:
    """IFEval's four numbers: of prompts and of single instructions, strict and loose."""
    rows = [["task", "of", *names]]
    for place, task in enumerate(tasks):
        if all(item.verifier != "ifeval" for item in task.items):
            continue
        verdicts = [[ifeval.grade(reply, item.answer) for reply, item in
                     zip(found[place].replies, task.items, strict=True) if item.verifier == "ifeval"]
                    for found in results]
        for form in ("strict", "loose"):
            of_models = [[getattr(verdict, form) for verdict in some] for some in verdicts]
            rows.append([task.name, f"prompts, {form}",
                         *(share(sum(map(all, some)), len(some)) for some in of_models)])
            rows.append([task.name, f"instructions, {form}",
                         *(share(sum(map(sum, some)), sum(map(len, some))) for some in of_models)])
    return Table("Instructions followed", rows, "Loose: some form of the reply without asterisks, its first line or "
                 "its last follows. Instructions of one prompt are not independent; their interval is too narrow.")


def contaminated(names: Sequence[str], tasks: Sequence[Task], results: Sequence[Sequence[Result]],
                 overlaps: Sequence[Overlap], config: ConfigDict) -> Table:
    """How many items stand in the corpus, and the score without them."""
    rows = [["task", "items", "long enough to look for", "found in some document", "half of the item in one",
             *(f"{name}: without those found" for name in names)]]
    for place, (task, overlap) in enumerate(zip(tasks, overlaps, strict=True)):
        rows.append([task.name, str(overlap.items), str(overlap.searched), share(len(overlap.found), overlap.searched),
                     str(sum(part >= 0.5 for part in overlap.found.values())),
                     *(without(found[place], overlap) for found in results)])
    count = overlaps[0].documents
    return Table("Contamination", rows, f"Items of which {config.overlap_words} words in a row, or all of fewer, stand "
                 f"in one of the {count:,} documents of {config.corpus}. What is said in other words is not found.")


def without(result: Result, overlap: Overlap) -> str:
    """The headline on the items that were not found."""
    kept = [i for i, key in enumerate(result.keys) if key not in overlap.found]
    if not kept:
        return "none left"
    less = dataclasses.replace(result, scores={result.metric: [result.scores[result.metric][i] for i in kept]},
                               weights=[result.weights[i] for i in kept])
    return cell(less)


def picture(names: Sequence[str], results: Sequence[Sequence[Result]]) -> str:
    """Scores of 0 to 1 with intervals, the control below each, and a mark at chance; "" where there are none."""
    shown = [of_task for of_task in zip(*results, strict=True) if of_task[0].metric in SHARES]
    if not shown:
        return ""

    def draw(axes) -> None:
        step = 0.8 / (2 * len(names))
        for place, of_task in enumerate(shown):
            for number, result in enumerate(of_task):
                base = place - 0.4 + 2 * number * step + step / 2
                label = names[number] if place == 0 else None
                _mark(axes, result.interval(), base, COLOURS[number], "o", label)
                if control := result.control_interval():
                    _mark(axes, control, base + step, COLOURS[number], "x",
                          f"{names[number]}, context swapped" if place == 0 else None)
            if of_task[0].chance:
                axes.plot([of_task[0].chance] * 2, [place - 0.45, place + 0.45], color="#888888", linestyle=":",
                          label="chance" if place == 0 else None)
        axes.set_yticks(range(len(shown)), [of_task[0].task for of_task in shown])
        axes.set(xlabel="score, 95% interval", xlim=(-0.02, 1.02))
        axes.invert_yaxis()
        axes.legend(loc="lower right", fontsize=8)
    return report.picture(draw, height=1.4 + 0.3 * len(shown) * len(names), grid="x")


def _mark(axes: Any, values: tuple[float, float, float], y: float, colour: str, marker: str, label: str | None) -> None:
    mean, low, high = values
    ends = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]] if math.isfinite(low) else None
    axes.errorbar([mean], [y], xerr=ends, fmt=marker, color=colour, alpha=1.0 if marker == "o" else 0.55, markersize=5,
                  capsize=2, label=label)
