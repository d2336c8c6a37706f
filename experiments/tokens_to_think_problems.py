"""Problems for experiments.tokens_to_think: two families, cut into train, validation and test by their numbers.

"world" are the word problems of the made-up world. "dial" are shorter: a dial shows one of ten digits (after 9 comes
0), and is turned on by some places, or to so many times what it shows. Every turn maps the ten digits one to one, so
that no turn can be left out and a guess is right one time in ten, however many turns there are.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping

from jaxllm.data import world_problems
from jaxllm.data.world_problems import Problem

PARTS = ("train", "validation", "test")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
DIAL_KINDS = tuple(f"{turns} step{'s' * (turns > 1)}" for turns in range(1, len(_ORDINALS) + 1))
_TURNS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda shown, number: (shown + number) % 10,
    "*": lambda shown, number: shown * number % 10,
}
_FACTORS = (3, 7, 9)  # with 1 those that have no divisor in common with 10: only such a product can be undone


def make_dial_problem(rng: random.Random, turns: int) -> Problem:
    """A dial problem with so many turns, 1 to 6.

    >>> problem = make_dial_problem(random.Random(0), 2)
    >>> problem.question, problem.steps, problem.answer
    ('dial:6 first*3 second*9', ' first:6*3=8 second:8*9=2', 2)
    """
    shown = rng.randrange(10)
    question, steps, key = f"dial:{shown}", "", f"dial {shown}"
    for ordinal in _ORDINALS[:turns]:
        sign = rng.choice(tuple(_TURNS))
        number = rng.choice(_FACTORS) if sign == "*" else rng.randint(1, 9)
        after = _TURNS[sign](shown, number)
        question += f" {ordinal}{sign}{number}"
        steps += f" {ordinal}:{shown}{sign}{number}={after}"
        key += f" {sign}{number}"
        shown = after
    return Problem(DIAL_KINDS[turns - 1], question, steps, shown, key)


def part_of(problem: Problem) -> str:
    """Which of PARTS a problem belongs to: the world's split, its held-out part cut in two.

    >>> part_of(world_problems.make_problem(seed=0, index=0, kind="one_item"))
    'train'
    """
    if problem.split == "train":
        return "train"
    return PARTS[1 + hashlib.sha256(problem.key.encode()).digest()[-1] % 2]


def kinds_of(family: str) -> tuple[str, ...]:
    """The kinds of problem of a family.

    Raises:
      ValueError: an unknown family.
    """
    kinds = {"dial": DIAL_KINDS, "world": world_problems.KINDS}
    if family not in kinds:
        raise ValueError(f"unknown family of problems {family!r}: choose one of {', '.join(kinds)}")
    return kinds[family]


def draw(family: str, kind: str, part: str, count: int, seed: int) -> list[Problem]:
    """So many problems of a kind; the same arguments give the same problems.

    Dial problems of one turn are the table that longer ones are made of (120 in all): each part has all of them.

    Args:
      family: "dial" or "world".
      kind: one of `kinds_of(family)`.
      part: one of PARTS; no problem of two turns or more has the numbers of one in another part.
      count: how many; they may repeat.
      seed: of the draws.
    """
    found: list[Problem] = []
    rng, index = random.Random(f"{seed}/{family}/{kind}/{part}"), 0
    while len(found) < count:
        if family == "dial":
            problem = make_dial_problem(rng, 1 + DIAL_KINDS.index(kind))
        else:
            problem = world_problems.make_problem(seed, index, "train" if part == "train" else "held_out", kind)
        index += 1
        if kind == DIAL_KINDS[0] or part_of(problem) == part:
            found.append(problem)
    return found


def equations(problem: Problem) -> int:
    """How many steps its solution has."""
    return problem.steps.count("=")
