"""Word problems of the made-up world: seeded, with worked solutions, split by a hash of their
numbers.

The split looks at the numbers alone, never at the names or the wording. A held-out problem is
therefore not a training problem told with pears in place of apples.
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence

from jaxllm.data import world_words as words

SPLITS = ("train", "held_out")
HELD_OUT_SHARE = 0.2
_GOODS = tuple(
    """apples pears plums eggs rolls pies cups plates spoons pens ribbons buttons
bells balls hats scarves candles boxes ropes jars lemons onions cakes tickets""".split()
)
_COUNTED = tuple("marbles shells stamps coins cards stones feathers beads".split())


@dataclasses.dataclass(frozen=True)
class Problem:
    """A word problem: `steps` lead to `answer`; `key` is what the split hashes.

    >>> problem = make_problem(seed=0, index=0, kind="one_item")
    >>> problem.split, problem.answer == int(problem.steps.split(" = ")[-1].rstrip("."))
    ('train', True)
    """

    kind: str
    question: str
    steps: str
    answer: int
    key: str

    @property
    def split(self) -> str:
        """ "train" or "held_out", by the first 8 bytes of the SHA-256 of `key`."""
        number = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big")
        return "held_out" if number < HELD_OUT_SHARE * 2**64 else "train"

    @property
    def prompt(self) -> str:
        """The problem as it stands in a document; "\\nSolution:" or "\\nAnswer:" comes next."""
        return f"Problem: {self.question}"

    def text(self, worked: bool) -> str:
        """Returns the problem with its worked solution, or with the bare answer."""
        steps = f"\nSolution: {self.steps}" if worked else ""
        return f"{self.prompt}{steps}\nAnswer: {self.answer}."


def make_problem(seed: int, index: int, split: str = "train", kind: str | None = None) -> Problem:
    """Returns problem number `index` of a split; the same arguments give the same problem
    everywhere.

    Args:
      seed: of the world.
      index: 0, 1, ...; the numbers repeat in time (there are only 64 problems of kind "one_item").
      split: "train" (all that stand in documents) or "held_out".
      kind: one of KINDS, or None for each in turn.

    Returns:
      Problem.

    Raises:
      ValueError: an unknown split or kind.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of problem {kind!r}: use one of {', '.join(KINDS)}")
    rng = random.Random(f"{seed}/problem/{split}/{kind}/{index}")
    while True:
        problem = _KINDS[kind or KINDS[index % len(KINDS)]](rng)
        if problem.split == split:
            return problem


def problems(
    seed: int, split: str = "train", kinds: Sequence[str] | None = None
) -> Iterator[Problem]:
    """Yields problems of a split without end, the given kinds (default: KINDS) in turn."""
    index = 0
    while True:
        yield make_problem(seed, index, split, kinds[index % len(kinds)] if kinds else None)
        index += 1


def _shopping(kind: str, items: int, change: bool, rng: random.Random) -> Problem:
    name = rng.choice(words.WOMEN + words.MEN)
    goods = rng.sample(_GOODS, items)
    pairs = [(rng.randint(2, 9), rng.randint(2, 9)) for _ in range(items)]
    total = sum(count * price for count, price in pairs)
    listed = [
        f"{count} {good} at {price} coins each"
        for (count, price), good in zip(pairs, goods, strict=True)
    ]
    bought = ", ".join(listed[:-1]) + (" and " if items > 1 else "") + listed[-1]
    steps = [f"{count} x {price} = {count * price}." for count, price in pairs]
    if items > 1:
        steps.append(" + ".join(str(count * price) for count, price in pairs) + f" = {total}.")
    ending, answer = f"How many coins does {name} pay?", total
    if change:
        paid = total + rng.randint(1, 40)
        ending = f"{name} pays with {paid} coins. How many coins come back?"
        answer = paid - total
        steps.append(f"{paid} - {total} = {answer}.")
    # The order of the goods and the sum paid are left out: with or without change, in either order,
    # the same purchase belongs to the same split.
    key = "buy " + " ".join(f"{count}x{price}" for count, price in sorted(pairs))
    return Problem(kind, f"{name} buys {bought}. {ending}", " ".join(steps), answer, key)


def _collection(rng: random.Random) -> Problem:
    name, other = rng.sample(words.WOMEN + words.MEN, 2)
    thing = rng.choice(_COUNTED)
    had, found = rng.randint(5, 49), rng.randint(2, 30)
    given = rng.randint(2, had + found - 1)
    answer = had + found - given
    question = (
        f"{name} has {had} {thing}, finds {found} more and gives {given} to {other}. "
        f"How many {thing} does {name} have now?"
    )
    steps = f"{had} + {found} = {had + found}. {had + found} - {given} = {answer}."
    return Problem("collection", question, steps, answer, f"collect {had} {found} {given}")


_KINDS = {
    "one_item": lambda rng: _shopping("one_item", 1, False, rng),
    "two_items": lambda rng: _shopping("two_items", 2, False, rng),
    "change": lambda rng: _shopping("change", 2, True, rng),
    "three_items": lambda rng: _shopping("three_items", 3, False, rng),
    "collection": _collection,
}
KINDS = tuple(_KINDS)
