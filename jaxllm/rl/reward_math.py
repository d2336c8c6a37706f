"""Numbers and mathematical expressions: is what the reply says equal to the answer?

References: Cobbe et al., Training Verifiers to Solve Math Word Problems (GSM8K), 2021. https://arxiv.org/abs/2110.14168
  math-verify. https://github.com/huggingface/Math-Verify
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxllm.rl.reward_extract import Found, Grade, extract
from jaxllm.rl.reward_numbers import read_number, same
from jaxllm.rl.reward_worker import Refused, Worker, shared

ORDER = ("tag", "boxed", "hashes", "phrase", "last number")
MAX_EXPRESSION = 400  # characters that sympy is asked about
# A formula in dollars, or in \( \) or \[ \]: what of a sentence is its answer.
_FORMULA = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")


def number(completion: str, answer: str, *, order: Sequence[str] = ORDER) -> Grade:
    """1 where the extracted text says the same number as the answer; see `read_number` and `same`.

    Args:
      completion: the reply.
      answer: a number, such as "42", "1,250.50" or "1/3".
      order: where the answer is looked for; see `extract`.

    Raises:
      ValueError: for an answer that is no number.

    >>> number("6 * 7 = 42, so the answer is 42 eggs.", "42").score
    1.0
    """
    truth = read_number(answer)
    if truth is None:
        raise ValueError(f"the answer {answer!r} is not one number; verify it with 'math' or 'exact'")
    found = extract(completion, order)
    if found.text is None:
        return Grade(0.0, None, found.problem)
    said = read_number(found.text)
    if said is None:
        return Grade(0.0, found.text, "the answer is not one number")
    return _verdict(same(said, truth), found)


def math(completion: str, answer: str, *, order: Sequence[str] = ORDER, worker: Worker | None = None) -> Grade:
    """1 where the extracted text is mathematically equal to the answer.

    Two plain numbers are compared as `number` does; all else is settled by math-verify, which reads LaTeX, sets,
    tuples, intervals, equations and matrices and simplifies. It knows no difference between an expression and its
    value, between 5 cm and 5 m, or between 50% and 0.5.

    Args:
      completion: the reply.
      answer: LaTeX or plain, without dollars.
      order: where the answer is looked for; see `extract`.
      worker: of kind "math"; None is the one that this process shares.

    Raises:
      ImportError: without the extra `verify`.
      ValueError: for an answer that is empty or longer than MAX_EXPRESSION characters.
    """
    wanted = _formula(answer)
    if not wanted or len(wanted) > MAX_EXPRESSION:
        raise ValueError(f"the answer {answer[:40]!r} must have 1 to {MAX_EXPRESSION} characters")
    found = extract(completion, order)
    if found.text is None:
        return Grade(0.0, None, found.problem)
    said = _formula(found.text) if found.mark in ("phrase", "hashes", "tag") else found.text
    if "%" not in said + wanted:
        numbers = read_number(said), read_number(wanted)
        if None not in numbers:
            return _verdict(same(*numbers), found)
    if len(said) > MAX_EXPRESSION or not _balanced(said):
        return Grade(0.0, found.text, f"the answer is no expression of at most {MAX_EXPRESSION} characters")
    try:
        return _verdict((worker or shared("math")).call(truth=wanted, said=said), found)
    except Refused as error:
        return Grade(0.0, found.text, f"math-verify gave no verdict: {error}")


def exact(completion: str, answer: str, *, order: Sequence[str] = ("tag", "boxed", "hashes", "phrase", "whole")
          ) -> Grade:
    """1 where the extracted text is the answer but for case, blanks at the ends and a full stop behind it."""
    found = extract(completion, order)
    if found.text is None:
        return Grade(0.0, None, found.problem)
    said, wanted = (" ".join(text.casefold().split()).removesuffix(".") for text in (found.text, answer))
    if not wanted:
        raise ValueError("the answer is empty; nothing can equal it")
    return _verdict(said == wanted, found)


def _verdict(right: bool, found: Found) -> Grade:
    return Grade(float(right), found.text, f"{'equal' if right else 'not equal'} to the answer ({found.mark})")


def _formula(text: str) -> str:
    """The one formula of a sentence, without its dollars; the text where it has none or several."""
    formulas = [next(filter(None, match.groups())) for match in _FORMULA.finditer(text)]
    return (formulas[0] if len(formulas) == 1 else text).strip().rstrip(".")


def _balanced(text: str) -> bool:
    """Whether every brace closes one before it: a text that closes its box would bring a second answer."""
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0
