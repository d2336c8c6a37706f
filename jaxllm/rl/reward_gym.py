"""Tasks of reasoning-gym by name, scored by the library's own functions.

The answer is a JSON object with the task's name, its settings and the library's whole entry, which the scorer gets
back: not every task of the library is the same in another process, so that its seed would not do. Nine of the library's
scorers pass text to Python's `eval` or to sympy's `parse_expr`, which evaluates as well; for these `may_read` lets
numbers, operators and known names through and nothing else.

References: Stojanovski et al., Reasoning Gym, 2025. https://arxiv.org/abs/2505.24760
  https://github.com/open-thought/reasoning-gym
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.rl.reward_extract import Grade, extract
from jaxllm.rl.reward_worker import Refused, Worker, shared

ORDER = ("tag", "boxed", "hashes", "phrase", "whole")
FIELDS = {"task": str, "config": dict, "entry": dict}
# A list without a bracket that calls, a point or an operator; and formulas of short names and known functions.
_LIST = re.compile(r"[\w\s\[\],'\"#-]*")
_ARITHMETIC = re.compile(r"[\d\s+\-*/().]*")
_FORMULA = re.compile(r"(?:[\d\s+\-*/()^,.]|(?<![A-Za-z])(?:[A-Za-z]|exp|log|ln|sqrt|sin|cos|tan|asin|acos|atan|sinh"
                      r"|cosh|pi)(?![A-Za-z]))*")
READS: Mapping[str, re.Pattern[str]] = {
    "string_insertion": _LIST, "spiral_matrix": _LIST, "binary_matrix": _LIST, "n_queens": _LIST,
    "countdown": _ARITHMETIC, "puzzle24": _ARITHMETIC, "polynomial_multiplication": _FORMULA,
    "simple_integration": _FORMULA, "intermediate_integration": _FORMULA}


def may_read(task: str, text: str) -> bool:
    """Whether a text may be passed to a task's scorer: everything to most, harmless text to those that evaluate it."""
    pattern = READS.get(task)
    return pattern is None or pattern.fullmatch(text) is not None and not re.search(r"__|\.\s*[A-Za-z]", text)


def reasoning_gym(completion: str, answer: str, *, partial: bool = False, order: Sequence[str] = ORDER,
                  worker: Worker | None = None) -> Grade:
    """1 where the library's scorer gives the extracted text its full score.

    Args:
      completion: the reply.
      answer: as `jaxllm.data.verifiable.reasoning_gym_tasks` writes it.
      partial: the library's own score in [0, 1] instead; several of its scorers give some of it for any text.
      order: where the answer is looked for; see `extract`.
      worker: of kind "reasoning_gym"; None is the one that this process shares.

    Raises:
      ImportError: without the extra `verify`.
      ValueError: for an answer of another shape.
    """
    asked = _read(answer)
    if asked["task"] == "composite":
        raise ValueError("the task 'composite' hides which scorer reads a text; name the tasks it is made of instead")
    found = extract(completion, order)
    if found.text is None:
        return Grade(0.0, None, found.problem)
    if not may_read(asked["task"], found.text):
        return Grade(0.0, found.text, f"the scorer of {asked['task']} evaluates text, and this is no formula or list")
    try:
        score = (worker or shared("reasoning_gym")).call(**asked, said=found.text)
    except Refused as error:
        return Grade(0.0, found.text, f"the scorer gave no verdict: {error}")
    score = min(max(score, 0.0), 1.0)
    return Grade(score if partial else float(score == 1.0), found.text, f"{asked['task']} scores it {score:g}")


def _read(answer: str) -> Mapping[str, Any]:
    try:
        asked = json.loads(answer)
        good = set(asked) == set(FIELDS) and all(isinstance(asked[name], kind) for name, kind in FIELDS.items())
    except (ValueError, TypeError, KeyError):
        good = False
    if not good:
        raise ValueError(f"the answer must be a JSON object with {', '.join(FIELDS)}: {answer[:80]!r}")
    return asked
