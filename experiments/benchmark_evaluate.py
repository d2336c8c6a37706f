"""Measures evaluation beside lm-evaluation-harness with its transformers backend, and checks that both say the same.

    python -m experiments.benchmark_evaluate --config.model=models/smollm2 --config.data=../shared/data
"""

from __future__ import annotations

import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import convert, evaluate_harness, lab, launch
from experiments.benchmark import physical_cores
from experiments.evaluate_harness import Answers
from experiments.findings import Findings, Table, write
from jaxllm.evals.evaluation import Result, evaluate
from jaxllm.evals.intervals import share
from jaxllm.evals.language_model import LanguageModel, encode_pair
from jaxllm.evals.task_table import open_task
from jaxllm.evals.tasks import Task, pairs
from jaxllm.model.config import Execution
from jaxllm.train.checkpoint import load_model

OURS, THEIRS = "jaxllm", "lm-eval, transformers"


def main(config: ConfigDict, workdir: str) -> None:
    """Scores the tasks on both sides in turn, and writes the report.

    Raises:
      ValueError: a key is out of range.
      FileNotFoundError: no such model or task.
      ImportError: without the harness.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    shots = None if config.shots < 0 else config.shots
    tasks = [open_task(name, config.data, limit=config.limit, shots=shots, seed=config.seed) for name in config.tasks]
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
    tokens = {task.name: asked_tokens(model, task, config.seed) for task in tasks}
    equal = [compared(task, result, answers[name]) for task, result, name in zip(tasks, results, names, strict=True)]
    write(findings_of(config, tokens, seconds, equal), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after a model was loaded."""
    for key in ("limit", "rounds", "batch_rows", "batch_tokens"):
        if config[key] < 1:
            raise ValueError(f"config.{key} is {config[key]}; it must be at least 1")
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
    results = [evaluate(model, task, seed=config.seed, control=False, batch_tokens=config.batch_tokens,
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
    """Both sides on the same items: the largest gap of log-likelihoods, and the scores."""
    row: dict[str, Any] = {"task": task.name, "items": len(task.items)}
    if task.kind == "document":
        logp = np.array([one[0] for one in theirs.responses])
        row["gap"] = float(np.abs(logp - result.logp).max())
        row["scores"] = {}
        return row
    logp = np.concatenate([[pair[0] for pair in item] for item in theirs.responses])
    row["gap"] = float(np.abs(logp - np.array(result.logp)).max())
    row["scores"] = {}
    for metric, values in theirs.scores.items():
        own = result.scores["greedy" if task.kind == "continuation" else metric]
        row["scores"][metric] = {"ours": int(sum(own)), "theirs": int(sum(values)),
                                 "differ": sum(a != b for a, b in zip(own, values, strict=True))}
    return row


def findings_of(config: ConfigDict, tokens: Mapping[str, int], seconds: Mapping[str, list[tuple[float, float]]],
                equal: Sequence[Mapping[str, Any]]) -> Findings:
    """Tables of speed and of equality."""
    total = sum(tokens.values())
    middle = {name: tuple(statistics.median(column) for column in zip(*rounds[1:], strict=True))
              for name, rounds in seconds.items()}
    speed = [["side", "tokens/s", "tokens per second of processor time", "seconds", "first round, seconds"]]
    speed += [[name, f"{total / clock:,.0f}", f"{total / processor:,.0f}", f"{clock:.1f}",
               f"{seconds[name][0][0]:.1f}"] for name, (clock, processor) in middle.items()]
    ratio = [middle[THEIRS][i] / middle[OURS][i] for i in (0, 1)]
    speed.append(["ratio", f"{ratio[0]:.2f}", f"{ratio[1]:.2f}", "", ""])
    same = [["task", "items", "largest gap of log-likelihood, nats", "metric", OURS, THEIRS, "items that differ"]]
    for row in equal:
        for metric, found in row["scores"].items() or [("bits_per_byte", None)]:
            counts = ["", "", ""] if found is None else [share(found["ours"], row["items"]), share(
                found["theirs"], row["items"]), str(found["differ"])]
            same.append([row["task"], str(row["items"]), f"{row['gap']:.1e}", metric, *counts])
    note = (f"{total:,} tokens of contexts and continuations, a context counted with each of its candidates on both "
            f"sides; the middle of {config.rounds} rounds, in turn; {physical_cores()} physical cores.")
    return Findings("Evaluation beside lm-evaluation-harness", [Table("Speed", speed, note), Table(
        "Equality", same, "Scores with Wilson's 95% interval.")], [], {"tokens": dict(tokens), "seconds": dict(seconds),
                                                                       "ratio": ratio, "equal": list(equal)})


if __name__ == "__main__":
    launch.run(main, default_config="configs/benchmark_evaluate.py")
