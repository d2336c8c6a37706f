"""Questions whose answers are known: from the table of the made-up world, or made from paragraphs by a template."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
import re
from collections.abc import Sequence

from jaxllm.data.world import BANDS, Fact

HELD_OUT = "held out"  # the band of a fact that no document tells of a person whom others do tell of
WORLD_BANDS = (*BANDS, HELD_OUT)
UNTOLD = ("never", HELD_OUT)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its answer.

    Attributes:
      text: as a user would ask it.
      answer: the truth.
      origin: whom it is about or where it was found; a split never parts equal ones.
      band: how often documents tell the answer, one of WORLD_BANDS, or "" where nobody counted.
    """

    text: str
    answer: str
    origin: str
    band: str = ""


def world_questions(facts: Sequence[Fact], seed: int, *, wordings: int = 1, held_out: bool = False) -> list[Question]:
    """Questions on facts of the world.

    Args:
      facts: told or not.
      seed: of the choice of wordings.
      wordings: questions on each fact, every one in another wording that documents use, as far as there are so many.
      held_out: instead one question a fact, in the wording that stands in no document.

    Raises:
      ValueError: when wordings is below 1.
    """
    if wordings < 1:
        raise ValueError(f"wordings is {wordings}; ask each fact at least once")
    rng = random.Random(f"{seed}/questions")
    questions = []
    for fact in facts:
        used = fact.wordings - 1
        chosen = (-1,) if held_out else rng.sample(range(used), min(wordings, used))
        band = HELD_OUT if fact.band == "never" != fact.entity.band else fact.band
        questions += [Question(fact.question(wording), fact.value, fact.entity.name, band) for wording in chosen]
    return questions


def split_of(origin: str, shares: Sequence[float], seed: int) -> int:
    """Which of the sides an origin falls on, by a hash of it and the seed: 0 .. len(shares), the last has the rest."""
    digest = hashlib.sha256(f"{seed}/{origin}".encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return sum(place >= end for end in itertools.accumulate(shares))


# A sentence ends before a space and a capital letter.
_SENTENCE = re.compile(r"(?<=[a-z0-9)\]\"\u201d][.!?])\s+(?=[A-Z\"\u201c(])")
# What points back to another sentence: without it nobody could tell who is meant.
_POINTS_BACK = re.compile(r"\b(he|she|they|him|them|his|their|it|its|this|these|those|such|former|latter|we|our|I|"
                          r"you|here|there|however|therefore|also|then)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,/:$\u20ac\u00a3\u2013-])(?:\d{1,3}(?:,\d{3})+|\d+)(?![\w%/:\u2013-]|[.,]\d)")
# An address, a mark-up sign, or a full stop with no space behind it: no sentence.
_DAMAGED = re.compile(r"://|www\.|[a-z)]\.[A-Z]|[<>{}|=@\\]")
_NAME = re.compile(r"\b[A-Z][a-z\u00c0-\u024f]+(?:[ -](?:of |de |van |von )?[A-Z][a-z\u00c0-\u024f]+)*")
_MONTHS = frozenset("January February March April May June July August September October November December".split())
_WORDS = (8, 32)
BLANK = "____"


def passages(text: str, shortest: int = 200, longest: int = 1500) -> list[str]:
    """The paragraphs of a text, one a line; longer ones are cut behind sentences, shorter ones are left out.

    Args:
      text: prose.
      shortest, longest: characters; a single sentence may be longer.
    """
    found: list[str] = []
    for paragraph in text.split("\n"):
        parts = [""]
        for sentence in _SENTENCE.split(paragraph.strip()):
            if parts[-1] and len(parts[-1]) + len(sentence) >= longest:
                parts.append("")
            parts[-1] = f"{parts[-1]} {sentence}".strip()
        found += [part for part in parts if len(part) >= shortest]
    return found


def cloze_questions(passage: str, origin: str) -> list[Question]:
    """One question for each sentence of a passage that can stand alone: its last number, else last name, is blanked.

    A sentence stands alone when it has 8 to 32 words and no trace of mark-up, nothing in it points back to another one,
    and a name is left in it besides the blank. An answer that the sentence gives twice, or its first word,
    is never blanked.

    Args:
      passage: prose.
      origin: of the questions.

    >>> cloze_questions("The town of Redbrook in Kent was founded in 1321 by Ada Fenwick.", "a")[0].answer
    '1321'
    """
    pairs = [_cloze(sentence) for sentence in _SENTENCE.split(passage.strip())]
    return [Question(*pair, origin) for pair in pairs if pair is not None]


def _cloze(sentence: str) -> tuple[str, str] | None:
    words = len(sentence.split())
    if not (_WORDS[0] <= words <= _WORDS[1] and sentence[0].isupper() and sentence.endswith(".")
            and not _POINTS_BACK.search(sentence) and not _DAMAGED.search(sentence)
            and sentence.count("(") == sentence.count(")")):
        return None
    names = [match for match in _NAME.finditer(sentence) if match[0] not in _MONTHS]
    inner = [match for match in names if match.start()]
    numbers = list(_NUMBER.finditer(sentence))
    for match in [*numbers[::-1], *inner[::-1]]:
        # The first word is in capitals whatever it is: it names somebody only with another capital behind it.
        others = [name for name in names if name is not match and (name.start() or " " in name[0])]
        if others and sentence.count(match[0]) == 1:
            blanked = sentence[:match.start()] + BLANK + sentence[match.end():]
            return f"Fill in the blank with {_kind(match[0])}. {blanked}\nReply with the missing words alone.", match[0]
    return None


def _kind(answer: str) -> str:
    if not answer[0].isdigit():
        return "a name"
    return "a year" if re.fullmatch(r"1[0-9]{3}|20[0-9]{2}", answer) else "a number"
