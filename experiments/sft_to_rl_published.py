"""One run of RL at real size: a published chat model, a file of tasks with answers that can be checked."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import time
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments import findings, practice, report
from experiments.claims import of_shares
from experiments.improve import Improved, improve, make_plan
from jaxllm.data.chat import render
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.verifiable import Task, read_tasks, split_tasks
from jaxllm.evals.intervals import share
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.params import Params
from jaxllm.rl.rewards import VERIFIERS
from jaxllm.rl.rollout import Sampler, texts
from jaxllm.train import loop
from jaxllm.train.checkpoint import load_model, save_model


def check_published(config: ConfigDict) -> None:
    """Refuses settings that would fail only after the model is loaded."""
    if not config.tasks:
        raise ValueError("config.tasks is empty: name the file of tasks that config.model practises on")
    if config.verifier and config.verifier not in VERIFIERS:
        raise ValueError(f"config.verifier={config.verifier!r}: choose one of {', '.join(VERIFIERS)}, or '' for what "
                         f"the file says")
    if len(config.seeds) != 1:
        raise ValueError(f"config.seeds={config.seeds}: a published model is improved once, give one seed")
    if not 0 < config.held_out < 1:
        raise ValueError(f"config.held_out={config.held_out}: hold out a share of the tasks, above 0 and below 1")
    for key in ("asked", "watched", "max_prompt_tokens"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")


def improve_published(config: ConfigDict, folder: pathlib.Path) -> bool:
    """Improves a published chat model on a file of tasks; the same command goes on after a kill.

    Held-out tasks, split off by a hash, are asked greedily every `config.watched` steps. Written: the run with its
    index.html, accuracy.jsonl, results.json, report.html and the model. Returns whether nobody asked it to stop.

    Raises:
      ValueError: the model has no chat template, or no task's prompt is short enough.
    """
    begun, seed = time.perf_counter(), config.seeds[0]
    made = practice.Start(*load_model(pathlib.Path(config.model).expanduser()))
    if not made.tokenizer.chat_template:
        raise ValueError(f"{config.model}: its tokenizer has no chat template; give a chat model, or fine-tune this "
                         f"one with experiments.sft first")
    learnt, asked = tasks_of(config, made.tokenizer)
    print(f"{config.model} practises on {len(learnt):,} tasks of {config.tasks}; {len(asked):,} are held out",
          flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    examiner = Examiner(config, made, asked, folder / "accuracy.jsonl")
    with loop.StopRequest() as stop:
        improved = improve(config.rl, made, practice.reward(learnt), seed, prompts=practice.prompts(learnt),
                           folder=folder / "run", watch=examiner.watch, stop=stop,
                           title=f"{config.rl.algorithm} on {pathlib.Path(config.tasks).name}")
    save_model(folder / "model", improved.params, made.model, made.tokenizer)
    points = examiner.points()
    findings.write(findings_of(config, improved, points, len(asked)), folder, config, time.perf_counter() - begun)
    print(f"{len(improved.rows)} of {config.rl.steps} steps; model in {folder / 'model'}, the run in "
          f"{folder / 'run' / 'index.html'}", flush=True)
    return not stop.requested


def findings_of(config: ConfigDict, improved: Improved, points: Sequence[Mapping[str, float]], asked: int
                ) -> findings.Findings:
    """The looks at held-out tasks, and curves of the run."""
    first, last = ((round(points[place]["accuracy"] * asked), asked) for place in (0, -1))
    looks = findings.Table("Held-out tasks", [
        ["step", "right, greedy", "ended", "tokens"],
        *[[f"{point['step']}", share(round(point["accuracy"] * asked), asked), f"{point['ended']:.3f}",
           f"{point['length']:.0f}"] for point in points]], f"{config.model} on {config.tasks}.")
    steps, drawn = [point["step"] for point in points], [row["step"] for row in improved.rows]
    shown = (("Held-out tasks", "right answers", steps, [point["accuracy"] for point in points]),
             ("Reward of the rollouts", "reward", drawn, [row["reward"] for row in improved.rows]),
             ("Length of a reply", "tokens", drawn, [row["length"] for row in improved.rows]))
    return findings.Findings(
        "From SFT to RL", [looks], [(heading, report.curves([(label, x, y)], x_label="step", y_label=label))
                                    for heading, label, x, y in shown],
        {"rows": improved.rows, "accuracy": points, "stopped": improved.stopped},
        [of_shares("Practice with a reward solves tasks that were not practised", "after RL", [last], "before", [first],
                   of="held-out tasks")])


def tasks_of(config: ConfigDict, tokenizer: Tokenizer) -> tuple[dict[str, Task], dict[str, Task]]:
    """(to practise on, held out): tasks by their place in the file; prompts that are too long are left out.

    Raises:
      ValueError: when a side is empty.
    """
    fitting = []
    for task in read_tasks(config.tasks, instruction=config.instruction):
        if len(render(task.prompt, tokenizer, add_generation_prompt=True, mask=False).ids) <= config.max_prompt_tokens:
            fitting.append(dataclasses.replace(task, verifier=config.verifier or task.verifier))
    learnt, held = split_tasks(fitting, config.held_out)
    random.Random(0).shuffle(held)
    if not learnt or not held:
        raise ValueError(f"of {config.tasks} {len(learnt)} tasks are left to practise on and {len(held)} held out: "
                         f"raise config.max_prompt_tokens ({config.max_prompt_tokens}) or change config.held_out "
                         f"({config.held_out})")
    return {task.where: task for task in learnt}, {task.where: task for task in held[:config.asked]}


class Examiner:
    """Asks held-out tasks greedily while the run goes, by the sampler of the run; a line of a file per look."""

    def __init__(self, config: ConfigDict, made: practice.Start, asked: practice.Tasks, path: pathlib.Path) -> None:
        self.config, self.asked, self.path, self.tokenizer = config, asked, path, made.tokenizer
        plan = make_plan(config.rl, made)
        self.ids = [render(task.prompt, made.tokenizer, add_generation_prompt=True).ids for task in asked.values()]
        self.settings = dataclasses.replace(
            plan.sampler, sampling=SamplingSettings(temperature=0.0),
            capacity=min(max(map(len, self.ids)) + plan.sampler.max_tokens, made.model.max_positions))
        self.sampler = Sampler(made.model, self.settings)

    def watch(self, step: int, params: Params) -> None:
        """Looks at step 0, every `config.watched` steps and at the end."""
        if step % self.config.watched and step != self.config.rl.steps:
            return
        begun = time.perf_counter()
        self.sampler.load(params)
        rows = self.sampler.draw(self.ids, 1, seed=0)
        said = texts(rows, self.tokenizer, self.settings.stop_tokens)
        right = [practice.judge(task, text).right for task, text in zip(self.asked.values(), said, strict=True)]
        point = {"step": step, "accuracy": float(np.mean(right)), "ended": float(np.mean([
            row.finish == "stop" for row in rows])), "length": float(np.mean([sum(row.mask) for row in rows]))}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")
        print(f"step {step}: {sum(right)} of {len(right)} held-out tasks right, {point['length']:.0f} tokens; "
              f"{time.perf_counter() - begun:.0f} s", flush=True)

    def points(self) -> Sequence[dict[str, float]]:
        """All looks, the last of each step."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        by_step = {point["step"]: point for point in map(json.loads, lines)}
        return [by_step[step] for step in sorted(by_step)]
