"""What a reply commits itself to: the one piece of its text that is graded.

A reply is searched for marks in a stated order. The first mark of that order that the reply bears decides, whatever
stands behind it, and of several marks of one kind the last. Nothing else of the reply is looked at, so that naming
many answers gains nothing and a badly written answer is not replaced by a luckier piece of text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from jaxllm.rl.reward_numbers import last_number

MAX_TEXT = 1_000  # characters of an extracted answer; what is longer is no answer

# "the answer is", "answer:", "Final answer = "; letters and spaces may stand between, as in "the answer to this is".
_PHRASE = re.compile(r"\banswer\b(?:\s+[a-z]{1,12}){0,5}?\s*(?:\bis\b|:|=)[:\s]*", re.IGNORECASE)
# A sentence ends at its mark, unless the next one goes on with another candidate: "A. Or B."
_SENTENCE_END = re.compile(r"[.!?](?=[\s*]|$)(?!\W{0,9}(?:or|and|maybe|perhaps|alternatively)\b)", re.IGNORECASE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")


@dataclasses.dataclass(frozen=True)
class Grade:
    """What a verifier says of a reply.

    Attributes:
      score: 1.0 for right and 0.0 for wrong, unless the verifier says otherwise.
      extracted: the text that was graded, or None where there was none.
      reason: a sentence for whoever reads the samples; nothing depends on it.
    """

    score: float
    extracted: str | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Found:
    """An extracted answer.

    Attributes:
      text: without blanks around it; None where the mark is there and holds no answer.
      mark: the one of MARKS that decided, or "" where the reply bears none.
      problem: why text is None, as a sentence; else "".
    """

    text: str | None
    mark: str
    problem: str = ""


def _tag(reply: str) -> Found | None:
    start = reply.rfind("<answer>")
    if start < 0:
        return None
    text, closed, _ = reply[start + len("<answer>"):].partition("</answer>")
    return _found(text, "tag") if closed else Found(None, "tag", "the last <answer> is not closed")


def _boxed(reply: str) -> Found | None:
    """The content of the last \\boxed{...} that stands in no other; braces are counted, escaped ones are not."""
    last, at = None, 0
    while opening := _BOXED.search(reply, at):
        depth, at = 1, opening.end()
        while depth and (brace := _BRACE.search(reply, at)):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            at = brace.end()
        if depth:
            return Found(None, "boxed", "the last \\boxed{ is not closed")
        last = reply[opening.end():at - 1]
    return None if last is None else _found(last, "boxed")


def _hashes(reply: str) -> Found | None:
    """What follows the last #### on its line, as GSM8K ends its solutions."""
    before, mark, after = reply.rpartition("####")
    del before
    return _found(after.partition("\n")[0].rstrip(". "), "hashes") if mark else None


def _phrase(reply: str) -> Found | None:
    """What follows the last "the answer is" or "Answer:", up to the end of the sentence or of the line."""
    ends = [match.end() for match in _PHRASE.finditer(reply)]
    if not ends:
        return None
    line = reply[ends[-1]:ends[-1] + 2 * MAX_TEXT].partition("\n")[0]
    end = _SENTENCE_END.search(line)
    return _found(line[:end.start()] if end else line, "phrase")


def _last_number(reply: str) -> Found | None:
    number = last_number(reply)
    return None if number is None else _found(number, "last number")


def _whole(reply: str) -> Found | None:
    return _found(reply, "whole") if reply.strip() else None


def _found(text: str, mark: str) -> Found:
    text = text.strip()
    if not text:
        return Found(None, mark, "the place of the answer is empty")
    if len(text) > MAX_TEXT:
        return Found(None, mark, f"the place of the answer holds more than {MAX_TEXT} characters")
    return Found(text, mark)


# Of a mark: the answer it holds, or None where the reply does not bear it.
MARKS: Mapping[str, Callable[[str], Found | None]] = {
    "tag": _tag, "boxed": _boxed, "hashes": _hashes, "phrase": _phrase, "last number": _last_number, "whole": _whole}


def after_thinking(reply: str) -> str:
    """The reply behind its last `</think>`; the whole of it where there is none; nothing where <think> stays open."""
    if reply.rfind("<think>") > reply.rfind("</think>"):
        return ""
    return reply.rpartition("</think>")[2]


def extract(reply: str, order: Sequence[str]) -> Found:
    """The answer that a reply commits itself to.

    Args:
      reply: what the model wrote; only what follows its thinking is searched.
      order: of MARKS. "tag": <answer>...</answer>; "boxed": \\boxed{...}; "hashes": #### to the end of the line;
        "phrase": "the answer is" or "Answer:" to the end of the sentence; "last number": of the reply's end; "whole":
        the reply itself.

    Raises:
      ValueError: for an order that is empty or names no mark.

    >>> extract("So 6 * 7 = 42.\\n#### 42", ("boxed", "hashes"))
    Found(text='42', mark='hashes', problem='')
    """
    unknown = [mark for mark in order if mark not in MARKS]
    if unknown or not order:
        raise ValueError(f"order {tuple(order)!r} must name some of the marks {', '.join(MARKS)}")
    said = after_thinking(reply)
    for mark in order:
        found = MARKS[mark](said)
        if found is not None:
            return found
    return Found(None, "", f"no answer marked by {', '.join(order)}")
