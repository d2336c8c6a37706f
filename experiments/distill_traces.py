"""What distillation learns from: a teacher and a student, problems, and the teacher's solutions, kept if right."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import random
from collections.abc import Iterable, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments import practice, practice_runs
from experiments.practice import Start, Tasks
from jaxllm.data.chat import end_of_turn, render
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.verifiable import Task, read_tasks, split_tasks
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.rl.distill_step import check_vocabularies
from jaxllm.rl.rollout import Drawn, Sampler, SamplerSettings, texts
from jaxllm.train.checkpoint import load_model


@dataclasses.dataclass(frozen=True)
class Pair:
    """Who teaches whom what.

    Attributes:
      teacher, student: chat models of one tokenizer.
      train: problems that every arm may use, by name.
      asked: held-out problems.
      width: tokens of a row, prompt and reply.
    """

    teacher: Start
    student: Start
    train: Tasks
    asked: Tasks
    width: int


@dataclasses.dataclass(frozen=True)
class Traces:
    """A teacher's solutions.

    Attributes:
      kept: (name of the problem, what the teacher wrote): right, ended by itself, no two of a problem alike.
      drawn, right: solutions, and those of them that are right.
      solved: problems of which one is kept, at least.
    """

    kept: list[tuple[str, str]]
    drawn: int
    right: int
    solved: int

    def counts(self) -> dict[str, int]:
        """The numbers alone."""
        return {"drawn": self.drawn, "right": self.right, "kept": len(self.kept), "solved": self.solved}


def make_pair(config: ConfigDict, seed: int) -> Pair:
    """The pair of a seed: published models and a file of tasks where the config names them, else practice problems.

    Raises:
      ValueError: for models of different tokenizers, or a prompt that leaves no room for a reply.
    """
    files = config.files
    if files.tasks:
        teacher, student = (Start(*load_model(folder)) for folder in (files.teacher, files.student))
        sides = split_tasks(list(read_tasks(files.tasks, instruction=files.instruction)), files.held_out)
        train, asked = (_named(sides[part], count, seed) for part, count in ((0, files.train), (1, files.asked)))
    else:
        road = ConfigDict({**config.teacher.to_dict(), "cache": config.cache})
        teacher = practice_runs.run(road, seed, "rl").made
        road.start.update(config.student)
        student = practice_runs.beginning(road, seed)
        train, asked = (practice.tasks(road.start, seed, part) for part in ("train", config.part))
    check_vocabularies(student.model, teacher.model, student.tokenizer.vocab_size)
    if student.tokenizer.fingerprint != teacher.tokenizer.fingerprint:
        raise ValueError("teacher and student have different tokenizers: logits can be compared between equal ones "
                         "only; choose models of one family")
    return Pair(teacher, student, train, asked, _width(config, student, [*train.values(), *asked.values()]))


def _named(tasks: Sequence[Task], count: int, seed: int) -> dict[str, Task]:
    """So many of the tasks under numbers; 0 is all."""
    chosen = sorted(random.Random(seed).sample(range(len(tasks)), min(count or len(tasks), len(tasks))))
    return {f"problem {i}": tasks[i] for i in chosen}


def _width(config: ConfigDict, made: Start, asked: Iterable[Task]) -> int:
    """Tokens of a row as `experiments.improve` has them: whole 16s, and whole pieces of logits."""
    longest = max(len(prompt_ids(made, task)) for task in asked) + config.rl.sampler.max_tokens
    multiple = math.lcm(16, config.rl.logit_chunks)
    width = -(-longest // multiple) * multiple
    if width > made.model.max_positions:
        raise ValueError(f"the longest prompt and rl.sampler.max_tokens ({config.rl.sampler.max_tokens}) make rows of "
                         f"{width} tokens; the student has {made.model.max_positions} positions")
    return width


def prompt_ids(made: Start, task: Task) -> list[int]:
    """A problem as a model reads it."""
    return render(task.prompt, made.tokenizer, add_generation_prompt=True).ids


def draw(config: ConfigDict, pair: Pair, made: Start, names: Sequence[str], *, samples: int, temperature: float,
         seed: int, step: int = 0, asked: Tasks | None = None) -> list[Drawn]:
    """Replies of a model to problems: `samples` to each, beside each other.

    Args:
      config: its `rl.sampler` says by what, and how long replies may be.
      made: teacher or student, with the weights of the moment.
      names: of the problems.
      seed, step: stand for the draws.
      asked: where the names are from; None is `pair.train`.
    """
    tasks, sampler = pair.train if asked is None else asked, config.rl.sampler
    execution = Execution(**{**config.rl.execution.to_dict(), "dtype": sampler.dtype})
    drawing = _sampler(made.model, SamplerSettings(
        sampler.by, sampler.max_tokens, end_of_turn(made.tokenizer), SamplingSettings(temperature),
        made.tokenizer.vocab_size, execution, sampler.weights, sampler.slots, pair.width))
    drawing.load(made.params)
    return drawing.draw([prompt_ids(made, tasks[name]) for name in names], samples, seed, step)


@functools.lru_cache(maxsize=4)
def _sampler(model: ModelConfig, settings: SamplerSettings) -> Sampler:
    return Sampler(model, settings)


def measure(config: ConfigDict, pair: Pair, made: Start, seed: int) -> dict[str, float]:
    """What a model makes of the held-out problems: see `practice.Judged` for "accuracy" (right) and "worked";
    "problems" is how many there are."""
    names = list(pair.asked)
    drawn = draw(config, pair, made, names, samples=1, temperature=config.temperature, seed=seed, asked=pair.asked)
    said = texts(drawn, made.tokenizer, end_of_turn(made.tokenizer))
    judged = [practice.judge(pair.asked[name], text) for name, text in zip(names, said, strict=True)]
    return {"accuracy": float(np.mean([one.right for one in judged])), "problems": len(judged),
            "worked": float(np.mean([one.worked for one in judged])),
            "length": float(np.mean([sum(row.mask) for row in drawn])),
            "ended": float(np.mean([row.finish == "stop" for row in drawn]))}


def teach(config: ConfigDict, pair: Pair, seed: int) -> Traces:
    """The teacher's solutions of the training problems, the right ones kept (rejection sampling)."""
    asked, made = config.traces, pair.teacher
    names = list(pair.train)
    drawn = draw(config, pair, made, names, samples=asked.samples, temperature=asked.temperature, seed=seed)
    said = texts(drawn, made.tokenizer, end_of_turn(made.tokenizer))
    each = [name for name in names for _ in range(asked.samples)]
    return keep(pair.train, list(zip(each, said, [row.finish == "stop" for row in drawn], strict=True)), asked.keep)


def keep(tasks: Tasks, written: Sequence[tuple[str, str, bool]], most: int) -> Traces:
    """Of (name, text, whether it ended by itself): the right ones that ended, at most so many of a problem."""
    kept: dict[str, list[str]] = {}
    right = 0
    for name, text, ended in written:
        if practice.judge(tasks[name], text).right:
            right += 1
            of_it = kept.setdefault(name, [])
            if ended and len(of_it) < most and text not in of_it:
                of_it.append(text)
    return Traces([(name, text) for name, some in kept.items() for text in some], len(written), right,
                  sum(map(bool, kept.values())))


def conversations(arm: str, tasks: Tasks, kept: Sequence[tuple[str, str]], answer: str) -> list[Conversation]:
    """What an arm is shown: a conversation for every trace that was kept.

    Args:
      arm: "answers": the true answer alone. "shuffled": the trace of another problem of the same kind. Else the trace.
      tasks: the problems, by name; what stands before ": " is the kind.
      kept: (name, trace).
      answer: of "answers", the form of a bare answer: "{}" stands for it.

    Raises:
      ValueError: when a kind has too few problems to be shuffled.
    """
    shown = list(kept)
    if arm == "answers":
        shown = [(name, answer.format(tasks[name].answer)) for name, _ in kept]
    elif arm == "shuffled":
        shown = _shuffled(kept)
    return [Conversation([*tasks[name].prompt, {"role": "assistant", "content": text}]) for name, text in shown]


def _shuffled(kept: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Every problem with a trace of another one: within a kind, traces move by the most that one problem has."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for name, text in kept:
        kinds.setdefault(name.partition(": ")[0] if ": " in name else "", {}).setdefault(name, []).append(text)
    found = []
    for kind, problems in kinds.items():
        most = max(map(len, problems.values()))
        names = [name for name, some in problems.items() for _ in some]
        every = list(itertools.chain.from_iterable(problems.values()))
        if len(every) < 2 * most:
            raise ValueError(f"too few problems {f'of {kind!r} ' if kind else ''}were solved to give each the trace of "
                             f"another; draw more of them, or leave out the arm shuffled")
        found += zip(names, every[most:] + every[:most], strict=True)
    return found


def write_conversations(path: pathlib.Path, shown: Iterable[Conversation]) -> int:
    """Writes the house's door for `experiments.sft`, a json line {"messages": [...]} each; returns how many."""
    lines = [json.dumps({"messages": one.messages}, ensure_ascii=False) for one in shown]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)
