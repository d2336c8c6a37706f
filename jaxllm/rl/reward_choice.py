"""Multiple choice: the one letter that a reply commits itself to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxllm.rl.reward_extract import Grade, extract

ORDER = ("tag", "boxed", "hashes", "phrase", "whole")
_DECLINES = re.compile(r"\b(?:not|isn't|neither|nor|none|never|no|cannot|can't|except|both|all|either)\b",
                       re.IGNORECASE)


def choice(completion: str, answer: str, *, letters: str = "ABCD", order: Sequence[str] = ORDER) -> Grade:
    """1 where the extracted text names the right letter and no other.

    A letter counts where it stands alone: "B", "(B)", "B.", "**B**", "option B", "b)" or "B: the moon". Several
    letters, as in "A or B", are no answer, and neither is a letter in a sentence that declines or denies ("not B",
    "none of A", "B, not A"). Without any mark the reply itself must be the letter, alone or before its option ("B. The
    moon").

    Args:
      completion: the reply.
      answer: the right letter.
      letters: of the options.
      order: where the answer is looked for; see `extract`.

    Raises:
      ValueError: for an answer that is none of the letters.

    >>> choice("The answer is (B).", "B").score, choice("The answer is A or B.", "B").score
    (1.0, 0.0)
    """
    truth = answer.strip().strip("().").upper()
    if len(truth) != 1 or truth not in letters.upper():
        raise ValueError(f"the answer {answer!r} is none of the letters {letters!r}")
    found = extract(completion, order)
    if found.text is None:
        return Grade(0.0, None, found.problem)
    named = _named(found.text, letters.upper(), whole=found.mark == "whole")
    if len(named) != 1:
        return Grade(0.0, found.text, f"{'no letter is' if not named else 'several letters are'} named ({found.mark})")
    said = named.pop()
    return Grade(float(said == truth), said, f"{said} {'is' if said == truth else 'is not'} the answer ({found.mark})")


def _named(text: str, letters: str, whole: bool) -> set[str]:
    """The letters that a text names."""
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"[*_`$\\]+", "", text).strip()
    if alone := re.fullmatch(rf"[(\[]?([{letters}])[)\].:,]*", text, re.IGNORECASE):
        return {alone[1].upper()}
    # A letter before its option: what the option says may hold any words, but no other letter that stands alone.
    heading = re.match(rf"[(\[]?([{letters}])[)\].:]+\s+(?=\S)|[(\[]([{letters}])[)\]]\s*(?=\S)", text, re.IGNORECASE)
    if whole and not heading:
        return set()
    if heading:
        others = set(re.findall(rf"(?<![\w'])[(\[]([{letters}])[)\]]", text[heading.end():], re.IGNORECASE))
        others |= set(re.findall(rf"(?:\b(?i:or|and|maybe|perhaps)\s+|[/,&]\s*)([{letters}])(?!['\w])",
                                 text[heading.end() - 1:]))
        return {(heading[1] or heading[2]).upper(), *map(str.upper, others)}
    # "A" and "I" may be words; they are where one in small letters follows that does not go on to another letter.
    capitals = re.findall(rf"(?<![\w'])([{letters}])(?![\w'])(?!(?<=[AI])\s+(?!or\b|and\b)[a-z]{{2}})", text)
    options = re.findall(rf"\b(?:option|choice|letter)\s+([{letters}])\b", text, re.IGNORECASE)
    bracketed = re.findall(rf"[(\[]([{letters}])[)\]]", text, re.IGNORECASE)
    named = {letter.upper() for letter in (*capitals, *options, *bracketed)}
    before = re.split(rf"(?<![\w'])(?:{'|'.join(named)})(?![\w'])", text, maxsplit=1, flags=re.IGNORECASE)[0]
    return set() if _DECLINES.search(before) else named
