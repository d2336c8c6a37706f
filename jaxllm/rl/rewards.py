r"""Verifiable rewards: a reply and the true answer in, a score out.

    grade("number", "6 x 7 = 42.\n#### 42", "42")  ->  Grade(1.0, '42', 'equal to the answer (hashes)')

A verifier is a function of (completion, answer, **options) in the table VERIFIERS; the door `jaxllm.data.verifiable`
names one for each task. None of them evaluates or runs on the host what a model wrote: numbers are parsed, formulas go
to a LaTeX parser in a child process, code to the sandbox. A reply can fail to be read; it cannot fail the grader: for
any text there is a `Grade`, in bounded time. A malformed answer is the caller's mistake and raises ValueError, and a
judge that cannot be reached raises OSError.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxllm.rl import reward_choice, reward_code, reward_format, reward_gym, reward_judge, reward_math, reward_steps
from jaxllm.rl.reward_extract import Grade

__all__ = ["Grade", "Part", "VERIFIERS", "grade", "weighted"]

MAX_COMPLETION = 1_000_000  # characters; what is longer is not read

VERIFIERS: Mapping[str, Callable[..., Grade]] = {
    "number": reward_math.number,
    "math": reward_math.math,
    "exact": reward_math.exact,
    "choice": reward_choice.choice,
    "code": reward_code.code,
    "steps": reward_steps.steps,
    "format_strict": reward_format.format_strict,
    "format_soft": reward_format.format_soft,
    "reasoning_gym": reward_gym.reasoning_gym,
    "judge": reward_judge.judge,
}


def grade(verifier: str, completion: str, answer: str, **options: Any) -> Grade:
    """What a verifier says of a completion.

    Args:
      verifier: a key of VERIFIERS.
      completion: what the model wrote, the prompt not included.
      answer: the true answer, as the verifier reads it.
      **options: of the verifier.

    Raises:
      ValueError: for an unknown verifier, or an answer that it cannot read.
      ImportError: when it needs a package of an extra that is not installed.
      TypeError: for an option that it does not have.

    >>> grade("choice", "The answer is (C).", "C").score
    1.0
    """
    if verifier not in VERIFIERS:
        raise ValueError(f"unknown verifier {verifier!r}: use one of {', '.join(VERIFIERS)}")
    if len(completion) > MAX_COMPLETION:
        return Grade(0.0, None, f"the reply has more than {MAX_COMPLETION} characters")
    return VERIFIERS[verifier](completion, answer, **options)


@dataclasses.dataclass(frozen=True)
class Part:
    """One term of a composed reward.

    Attributes:
      verifier: a key of VERIFIERS; "" is the verifier that the task names.
      weight: of its score; below 0 for a punishment.
      options: of the verifier.
    """

    verifier: str
    weight: float
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def weighted(parts: Sequence[Part], verifier: str, completion: str, answer: str) -> tuple[float, Mapping[str, Grade]]:
    """sum_i weight_i score_i, with the grade of every part by its verifier's name.

    Args:
      parts: of the reward, each verifier once.
      verifier: the one that the task names, for a part whose verifier is "".
      completion, answer: as `grade` takes them.

    Raises:
      ValueError: for no parts, a verifier named twice or a weight that is not finite.

    >>> parts = (Part("", 1.0), Part("format_strict", 0.2))
    >>> weighted(parts, "number", "<think>6 x 7</think><answer>42</answer>", "42")[0]
    1.2
    """
    names = [part.verifier or verifier for part in parts]
    if not parts or len(set(names)) < len(names) or not all(math.isfinite(part.weight) for part in parts):
        raise ValueError(f"the parts of a reward must name different verifiers with finite weights, not {names} with "
                         f"{[part.weight for part in parts]}")
    grades = {name: grade(name, completion, answer, **part.options) for name, part in zip(names, parts, strict=True)}
    return sum(part.weight * grades[name].score for name, part in zip(names, parts, strict=True)), grades
