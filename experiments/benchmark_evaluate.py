"""Measures evaluation beside lm-evaluation-harness with its transformers backend, and checks that both say the same.

    python -m experiments.benchmark_evaluate --config.model=models/smollm2 --config.data=../shared/data
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import convert, evaluate_harness, lab, launch
from experiments.benchmark import physical_cores
from experiments.evaluate import grade
from experiments.evaluate_harness import Answers
from experiments.findings import Findings, Table, write
from jaxllm.evals.evaluation import Result, evaluate, item_scores
from jaxllm.evals.intervals import spread
from jaxllm.evals.language_model import LanguageModel, encode_pair
from jaxllm.evals.loglikelihood import Scored
from jaxllm.evals.task_table import open_task
from jaxllm.evals.tasks import Task, pairs
from jaxllm.model.config import Execution
from jaxllm.train.checkpoint import load_model

OURS, THEIRS = "jaxllm", "lm-eval, transformers"
TITLE = "Evaluation beside lm-evaluation-harness"
SAME = 1e-3  # scores of an item that differ by no more are the same


def main(config: ConfigDict, workdir: str) -> None:
    """Scores the tasks on both sides in turn, and writes the report.

    Raises:
      ValueError: a key is out of range, or the speed of generations is asked for.
      FileNotFoundError: no such model or task.
      ImportError: without the harness.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    shots = None if config.shots < 0 else config.shots
    tasks = [open_task(name, config.data, limit=config.limit, shots=shots, seed=config.seed) for name in config.tasks]
    if config.rounds and any(task.kind == "generation" for task in tasks):
        raise ValueError("config.tasks names a generation, whose sides write texts of their own length: compare the "
                         "replies with config.rounds=0")
    params, architecture, tokenizer = load_model(config.model)
    model = LanguageModel(params, architecture, tokenizer, execution=Execution(scan=False), begin=False)
    names = evaluate_harness.write_tasks(tasks, folder / "tasks", config.seed)
    other = transformers_backend(config, folder)
    seconds: dict[str, list[tuple[float, float]]] = {OURS: [], THEIRS: []}
    for number in range(config.rounds + 1):
        results, *ours = timed(model, tasks, config)
        answers, *theirs = evaluate_harness.run(other, names, folder / "tasks")
        for name, (clock, processor) in ((OURS, ours), (THEIRS, theirs)):
            seconds[name].append((clock, processor))
            print(f"round {number}{' (compiles)' if not number else ''}, {name}: {clock:.1f} s, "
                  f"{processor:.1f} s of processor time", flush=True)
    tokens = {task.name: asked_tokens(model, task, config.seed) for task in tasks if config.rounds}
    equal = [compared(task, result, answers[name]) for task, result, name in zip(tasks, results, names, strict=True)]
    write(findings_of(config, tokens, seconds, equal), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after a model was loaded."""
    for key, least in (("limit", 1), ("rounds", 0), ("batch_rows", 1), ("batch_tokens", 1)):
        if config[key] < least:
            raise ValueError(f"config.{key} is {config[key]}; it must be at least {least}")
    if not config.tasks:
        raise ValueError("config.tasks is empty; name at least one task")
    if not evaluate_harness.installed():
        raise ImportError("this comparison needs lm-evaluation-harness: pip install -e '.[harness]'")


def transformers_backend(config: ConfigDict, folder: pathlib.Path) -> Any:
    """The harness's own model class on the same weights, in float32 on the same processor."""
    def make(made: pathlib.Path) -> None:
        settings = ConfigDict({"source": config.model, "target": str(made / "model"), "format": "hugging_face",
                               "dtype": "float32", "gguf": "F16", "shard_gb": 5.0})
        convert.main(settings, str(made))

    path = lab.stage(folder / "parts", "hugging_face", str(pathlib.Path(config.model).absolute()), make) / "model"
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=config.batch_rows)


def timed(model: LanguageModel, tasks: Sequence[Task], config: ConfigDict) -> tuple[list[Result], float, float]:
    """(results, seconds by the clock, seconds of processor time) of ours, tokenising included, as on the other side."""
    begun, used = time.perf_counter(), time.process_time()
    results = [evaluate(model, task, seed=config.seed, control=False, grade=grade, batch_tokens=config.batch_tokens,
                        program_tokens=config.program_tokens)
               for task in tasks]
    return results, time.perf_counter() - begun, time.process_time() - used


def asked_tokens(model: LanguageModel, task: Task, seed: int) -> int:
    """Tokens of all contexts and continuations as the harness sends them: a context counts with every candidate."""
    if task.kind == "document":
        return sum(len(model.tokenizer.encode(item.choices[0])) for item in task.items)
    return sum(len(context) + len(continuation) for i in range(len(task.items))
               for context, continuation in (encode_pair(model, *pair) for pair in pairs(task, i, seed)))


def compared(task: Task, result: Result, theirs: Answers) -> dict[str, Any]:
    """Both sides on the same items: the largest gap of log-likelihoods or the replies that differ, and the scores.

    The harness leaves TruthfulQA's mass and the verdicts on replies to each task's own code: here they are taken of
    what its model gave, by the functions that take them of ours.
    """
    row: dict[str, Any] = {"task": task.name, "items": len(task.items), "scores": {}}
    if task.kind == "generation":
        replies = [item[0] for item in theirs.responses]
        row["replies_differ"] = sum(a != b for a, b in zip(result.replies, replies, strict=True))
        row["scores"]["score"] = sides(result, "score", [
            float(grade(item.verifier, reply, item.answer).score)
            for item, reply in zip(task.items, replies, strict=True)])
        return row
    logp = np.array([pair[0] if task.kind != "document" else pair for item in theirs.responses for pair in item])
    row["gap"] = float(np.abs(logp - np.array(result.logp)).max())
    scores = {} if task.kind == "document" else dict(theirs.scores)
    if task.metric == "mass":
        scores["mass"] = [item_scores(task.kind, item, [Scored(*pair, 1) for pair in found])["mass"]
                          for item, found in zip(task.items, theirs.responses, strict=True)]
    for metric, values in scores.items():
        row["scores"][metric] = sides(result, "greedy" if task.kind == "continuation" else metric, values)
    return row


def sides(result: Result, metric: str, theirs: Sequence[float]) -> dict[str, Any]:
    """A metric on both sides with its interval, and how many items differ."""
    other = dataclasses.replace(result, scores={metric: list(theirs)})
    return {"ours": result.interval(metric), "theirs": other.interval(metric),
            "differ": sum(abs(a - b) > SAME for a, b in zip(result.scores[metric], theirs, strict=True))}


def findings_of(config: ConfigDict, tokens: Mapping[str, int], seconds: Mapping[str, list[tuple[float, float]]],
                equal: Sequence[Mapping[str, Any]]) -> Findings:
    """Tables of speed and of equality."""
    total, tables = sum(tokens.values()), [equality(equal)]
    numbers = {"tokens": dict(tokens), "seconds": dict(seconds), "equal": list(equal)}
    if not config.rounds:
        return Findings(TITLE, tables, [], numbers)
    middle = {name: tuple(statistics.median(column) for column in zip(*rounds[1:], strict=True))
              for name, rounds in seconds.items()}
    speed = [["side", "tokens/s", "tokens per second of processor time", "seconds", "first round, seconds"]]
    speed += [[name, f"{total / clock:,.0f}", f"{total / processor:,.0f}", f"{clock:.1f}",
               f"{seconds[name][0][0]:.1f}"] for name, (clock, processor) in middle.items()]
    ratio = [middle[THEIRS][i] / middle[OURS][i] for i in (0, 1)]
    speed.append(["ratio", f"{ratio[0]:.2f}", f"{ratio[1]:.2f}", "", ""])
    note = (f"{total:,} tokens of contexts and continuations, a context counted with each of its candidates on both "
            f"sides; the middle of {config.rounds} rounds, in turn; {physical_cores()} physical cores.")
    return Findings(TITLE, [Table("Speed", speed, note), *tables], [], {**numbers, "ratio": ratio})


def equality(equal: Sequence[Mapping[str, Any]]) -> Table:
    """What `compared` found of each task."""
    rows = [["task", "items", "largest gap of log-likelihood, nats", "metric", OURS, THEIRS, "items that differ"]]
    for row in equal:
        gap = f"{row['replies_differ']} replies differ" if "replies_differ" in row else f"{row['gap']:.1e}"
        for metric, found in row["scores"].items() or [("bits_per_byte", None)]:
            cells = ["", "", ""] if found is None else [spread(found["ours"]), spread(found["theirs"]),
                                                        str(found["differ"])]
            rows.append([row["task"], str(row["items"]), gap, metric, *cells])
    return Table("Equality", rows, "Scores with 95% intervals, Wilson's for shares of items.")


if __name__ == "__main__":
    launch.run(main, default_config="configs/benchmark_evaluate.py")
