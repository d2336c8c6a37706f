"""Text for experiments.decimals: pairs of numbers like 9.11 and 9.9, questions about them, and lists of versions.

As decimals 9.11 is below 9.9; as versions, verses or sections it comes after. The two orders disagree on a pair when
one number has more digits behind the dot and yet the smaller first digit there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from decimal import Decimal

PARTS = ("train", "validation", "test")
# What a pair is: the orders disagree; they agree though the lengths differ; or the lengths are equal, and they agree.
KINDS = ("conflict", "agree", "same length")
# How a line may tell what its numbers are.
CUES = {"bare": "", "decimals": "Decimals. ", "versions": "Versions. "}
ANSWERS = (" first", " second")
_FRACTIONS = [fraction for fraction in range(1, 100) if fraction % 10]  # 9.10 is 9.1 as a decimal: left out


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two different numbers `whole.first` and `whole.second`, in the order in which they are named."""

    whole: int
    first: int
    second: int

    @property
    def numbers(self) -> tuple[str, str]:
        """As they are written.

        >>> Pair(9, 11, 9).numbers
        ('9.11', '9.9')
        """
        return f"{self.whole}.{self.first}", f"{self.whole}.{self.second}"

    @property
    def swapped(self) -> Pair:
        """The same numbers, named in the other order."""
        return Pair(self.whole, self.second, self.first)

    @property
    def part(self) -> str:
        """One of PARTS, a tenth each in the last two; the same in both orders of naming."""
        low, high = sorted((self.first, self.second))
        digest = hashlib.sha256(f"{self.whole} {low} {high}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return "validation" if share < 0.1 else "test" if share < 0.2 else "train"

    @property
    def kind(self) -> str:
        """One of KINDS.

        >>> [Pair(9, *pair).kind for pair in ((11, 9), (95, 9), (11, 12))]
        ['conflict', 'agree', 'same length']
        """
        if len(str(self.first)) == len(str(self.second)):
            return "same length"
        return "agree" if self.higher("decimals") == self.higher("versions") else "conflict"

    def higher(self, order: str) -> int:
        """Which number is the higher, 0 or 1: as "decimals", or as "versions".

        >>> Pair(9, 11, 9).higher("decimals"), Pair(9, 11, 9).higher("versions")
        (1, 0)
        """
        if order == "versions":
            return int(self.second > self.first)
        first, second = map(Decimal, self.numbers)
        return int(second > first)


def draw_pair(rng: random.Random, kinds: Sequence[str], part: str) -> Pair:
    """A pair of one of the kinds, each equally often, and of a part."""
    kind = rng.choice(kinds)
    while True:
        pair = Pair(rng.randint(1, 9), rng.choice(_FRACTIONS), rng.choice(_FRACTIONS))
        if pair.first != pair.second and pair.kind == kind and pair.part == part:
            return pair


def question(pair: Pair, cue: str = "bare") -> str:
    """What is asked; one of ANSWERS follows.

    >>> question(Pair(9, 11, 9), "decimals")
    'Decimals. Which is higher, 9.11 or 9.9?'
    """
    first, second = pair.numbers
    return f"{CUES[cue]}Which is higher, {first} or {second}?"


def draw_question(rng: random.Random, order: str, kinds: Sequence[str], told: float) -> tuple[str, str]:
    """(question, answer) on a pair for training, answered by an order; with probability `told` it names the order."""
    pair = draw_pair(rng, kinds, "train")
    return question(pair, order if rng.random() < told else "bare"), ANSWERS[pair.higher(order)]


def draw_list(rng: random.Random, told: float, length: int = 4) -> str:
    """Versions in their order, as in a table of contents: 9.3, 9.9, 9.14, 9.52."""
    whole, cue = rng.randint(1, 9), CUES["versions" if rng.random() < told else "bare"]
    while True:
        fractions = sorted(rng.sample(_FRACTIONS, length))
        pairs = [Pair(whole, low, high) for i, low in enumerate(fractions) for high in fractions[i + 1:]]
        if all(pair.part == "train" for pair in pairs):
            return cue + ", ".join(f"{whole}.{fraction}" for fraction in fractions)
