"""Practice problems as texts: documents, demonstrations, tasks, and what is said of a reply to one.

Problems are those of experiments.tokens_to_think_problems, cut into train, validation and test by their numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments.improve import Prompts, RewardFn
from experiments.tokens_to_think_problems import draw, kinds_of
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.tokenizer import Tokenizer, train_tokenizer
from jaxllm.data.verifiable import Task
from jaxllm.data.world_problems import Problem
from jaxllm.rl.rewards import grade

# The form in which documents put a problem; as a chat template, with which a base model is asked what it has read.
DOCUMENT = "<|endoftext|>{{ messages[0]['content'] + '\\n' }}{{ messages[1]['content'] if messages[1:] else '' }}"
PARTS_OF_REWARD = ("right", "worked", "form", "flawless")
_FORM = re.compile(r"Work:.*=.*\nAnswer:\d+\.")
Tasks = Mapping[str, Task]


def reply(problem: Problem, worked: bool) -> str:
    """A right reply, with the working or as the bare answer.

    >>> reply(Problem("1 step", "dial:6 first+1", " first:6+1=7", 7, ""), worked=True)
    'Work: first:6+1=7\\nAnswer:7.'
    """
    working = f"Work: {problem.steps.strip()}\n" if worked else ""
    return f"{working}Answer:{problem.answer}."


def documents(settings: ConfigDict, seed: int) -> list[str]:
    """What the base reads: training problems, each with the working or without it, one as likely as the other.

    Between a problem and its solution stand 1 to `settings.lines` line breaks. With one alone a small base learns to
    copy from a fixed distance, which a chat format changes: fine-tuned, it then copies the wrong number.
    """
    rng, breaks = random.Random(f"{seed}/practice/documents"), random.Random(f"{seed}/practice/lines")
    return [f"{problem.question}{breaks.randint(1, settings.lines) * chr(10)}{reply(problem, rng.random() < 0.5)}"
            for kind, count in zip(settings.document_kinds, settings.documents, strict=True)
            for problem in draw(settings.family, kind, "train", count, seed)]


def wording(settings: ConfigDict, seed: int) -> str:
    """Stands for the wording of the problems: a model of another wording is of no use."""
    return lab.key_of(documents(settings, seed)[::100])


def demonstrations(settings: ConfigDict, seed: int, worked: float | None = None) -> list[Conversation]:
    """What the fine-tuning shows: training problems of `settings.kinds` in turn.

    Args:
      settings: as `start` takes them.
      seed: of the problems.
      worked: share of the conversations that show the working; None is `settings.worked`.
    """
    rng, share = random.Random(f"{seed}/practice/demonstrations"), settings.worked if worked is None else worked
    each = math.ceil(settings.demonstrations / len(settings.kinds))
    by_kind = [draw(settings.family, kind, "train", each, seed + 1_000_003) for kind in settings.kinds]
    problems = list(itertools.chain.from_iterable(zip(*by_kind, strict=True)))[:settings.demonstrations]
    return [Conversation([{"role": "user", "content": problem.question},
                          {"role": "assistant", "content": reply(problem, rng.random() < share)}])
            for problem in problems]


def learn_tokenizer(settings: ConfigDict) -> Tokenizer:
    """One tokenizer for all seeds and for every choice of kinds; a digit is a token, and so is a role's name."""
    texts = [f"{problem.question}\n{reply(problem, worked=True)}" for kind in kinds_of(settings.family)
             for problem in draw(settings.family, kind, "train", 500, 0)]
    return train_tokenizer([*texts, *2000 * ("user", "assistant")], settings.vocab_size, "digits")


def tasks(settings: ConfigDict, seed: int, part: str) -> dict[str, Task]:
    """Problems of a part under names of the form "KIND: QUESTION"; the reference is the worked reply.

    The parts are split by a hash of the problems' numbers, so none of "validation" and "test" is in documents,
    demonstrations or "train" (but for problems of one step, see `tokens_to_think_problems.draw`).

    Args:
      settings: as `start` takes them; `settings[part]` problems are drawn of each kind, and equal ones count once.
      seed: of the draws.
      part: "train", "validation" or "test".
    """
    drawn = [problem for kind in settings.kinds for problem in draw(settings.family, kind, part, settings[part], seed)]
    return {f"{problem.kind}: {problem.question}":
            Task(({"role": "user", "content": problem.question},), str(problem.answer), "exact",
                 reply(problem, worked=True), problem.key, f"{settings.family}, {part}") for problem in drawn}


def prompts(asked: Tasks) -> Prompts:
    """What `experiments.improve.improve` draws replies to."""
    return {name: task.prompt for name, task in asked.items()}


@dataclasses.dataclass(frozen=True)
class Judged:
    """What is said of a reply.

    Attributes:
      right: its answer is, by the task's verifier.
      worked: it shows as many equations before its answer as the reference has, right or wrong.
      form: it is working, then an answer, and nothing else; right or wrong.
      flawless: it is the reference, word for word: what cannot be guessed.
      answer: what it commits itself to, or None.
    """

    right: bool
    worked: bool
    form: bool
    flawless: bool
    answer: str | None


def judge(task: Task, text: str) -> Judged:
    """Judges a reply; of "worked" and "flawless" a task without a reference gets False."""
    found, before, reference = grade(task.verifier, text, task.answer), text.partition("Answer")[0], task.reference
    return Judged(found.score >= 1, reference is not None and before.count("=") >= reference.count("=") > 0,
                  bool(_FORM.fullmatch(text.strip())), reference is not None and text.strip() == reference.strip(),
                  found.extracted)


def reward(asked: Tasks, parts: Mapping[str, float] = {"right": 1.0}) -> RewardFn:
    """sum over parts of weight x what `judge` says of it, 0 or 1.

    Args:
      asked: the tasks that replies will be about, by name.
      parts: weights of PARTS_OF_REWARD, see `Judged`.

    Raises:
      ValueError: for no parts, or one that `judge` does not have.
    """
    unknown = [name for name in parts if name not in PARTS_OF_REWARD]
    if unknown or not parts:
        raise ValueError(f"parts={dict(parts)}: weigh some of {', '.join(PARTS_OF_REWARD)}")

    def rewarded(names: Sequence[str], said: Sequence[Sequence[str]]) -> np.ndarray:
        judged = [[judge(asked[name], text) for text in row] for name, row in zip(names, said, strict=True)]
        return np.array([[sum(weight * getattr(one, part) for part, weight in parts.items()) for one in row]
                         for row in judged], np.float32)
    return rewarded
