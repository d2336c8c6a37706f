"""Our tasks as local tasks of lm-evaluation-harness, and what a model of the harness gives on them: item by item.

The prompts are ours, shots and all, so that both sides are asked the same; the harness tokenises, scores and takes its
metrics as it does for any task.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from experiments import report
from jaxllm.evals.tasks import Task, pairs, prefix

OUTPUT = {"choice": "multiple_choice", "schema": "multiple_choice", "continuation": "loglikelihood",
          "document": "loglikelihood_rolling", "generation": "generate_until"}
METRICS = {"choice": ("acc", "acc_norm"), "schema": ("acc",), "continuation": ("acc",), "document": ("bits_per_byte",),
           "generation": ("exact_match",)}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the harness has of a task.

    Attributes:
      responses: of each item, in order: [(log-likelihood, greedy), ...] of its candidates, a log-likelihood or a text.
      scores: metric -> a value per item.
    """

    responses: list[Any]
    scores: dict[str, list[float]]


def installed() -> bool:
    """Whether lm-evaluation-harness is there."""
    return importlib.util.find_spec("lm_eval") is not None


def write_tasks(tasks: Sequence[Task], folder: pathlib.Path, seed: int) -> list[str]:
    """Writes a jsonl and a YAML file for each task; returns the names that the harness knows them by.

    Raises:
      ValueError: for a task of candidates whose delimiter does not end with a blank.
    """
    names = []
    for task in tasks:
        name = task.name.replace("/", "_")
        rows = [_row(task, i, seed) for i in range(len(task.items))]
        data = folder / f"{name}.jsonl"
        report.write_text(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        settings: dict[str, Any] = {
            "task": name, "dataset_path": "json", "test_split": "test", "output_type": OUTPUT[task.kind],
            "dataset_kwargs": {"data_files": {"test": str(data.absolute())}}, "doc_to_text": "{{context}}",
            "target_delimiter": "", "metric_list": [{"metric": metric} for metric in METRICS[task.kind]]}
        settings |= {"choice": {"doc_to_choice": "choices", "doc_to_target": "gold", "target_delimiter": " "},
                     # A number for a text is how the harness knows several contexts, which then stand as the choices.
                     "schema": {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation",
                                "target_delimiter": " "},
                     "continuation": {"doc_to_target": "{{continuation}}"},
                     "document": {"doc_to_text": "", "doc_to_target": "{{text}}"},
                     "generation": {"doc_to_target": "{{answer}}",
                                    "generation_kwargs": {"until": list(task.stop), "max_gen_toks": task.max_tokens,
                                                          "do_sample": False}}}[task.kind]
        report.write_text(folder / f"{name}.yaml", json.dumps(settings, indent=2) + "\n")  # JSON is YAML
        names.append(name)
    return names


def _row(task: Task, index: int, seed: int) -> dict[str, Any]:
    item = task.items[index]
    if task.kind == "document":
        return {"text": item.choices[0]}
    if task.kind == "generation":
        return {"context": prefix(task, index, seed) + item.contexts[0] + task.delimiter.rstrip(" "),
                "answer": item.answer}
    asked = pairs(task, index, seed)
    if task.kind == "continuation":
        return {"context": asked[0][0], "continuation": asked[0][1]}
    if not task.delimiter.endswith(" "):
        raise ValueError(f"task {task.name}: its delimiter must end with a blank for the harness")
    if task.kind == "schema":
        return {"contexts": [context for context, _ in asked], "continuation": item.choices[0], "gold": item.gold[0]}
    several = any(len(one.gold) > 1 for one in task.items)  # the harness takes the first item's form for all
    return {"context": asked[0][0], "choices": list(item.choices), "gold": list(item.gold) if several else item.gold[0]}


def run(model: Any, names: Sequence[str], folder: pathlib.Path) -> tuple[dict[str, Answers], float, float]:
    """Puts local tasks to a model of the harness.

    Args:
      model: an `lm_eval.api.model.LM`.
      names: as `write_tasks` returned them.
      folder: where their files lie.

    Returns:
      (answers of each task, seconds by the clock, seconds of processor time).
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tasks are files, and nothing is to be asked of a network
    import lm_eval
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    begun, used = time.perf_counter(), time.process_time()
    found = lm_eval.simple_evaluate(model=model, tasks=list(names), task_manager=manager, log_samples=True,
                                    bootstrap_iters=0)
    seconds, processor = time.perf_counter() - begun, time.process_time() - used
    answers = {}
    for name in names:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        responses = [[response[0] for response in sample["resps"]] for sample in samples]
        metrics = [key for key in samples[0] if key in ("acc", "acc_norm", "exact_match")]
        answers[name] = Answers(responses, {key: [float(sample[key]) for sample in samples] for key in metrics})
    return answers, seconds, processor
