"""The tasks of experiments.few_shot: pairs of key and value of which a model sees some and must continue the next.

Of the symbolic tasks the mapping is drawn anew for every text, so that weights cannot know it:

    look-up   keys have values drawn at random; one of the keys shown is asked again
    classes   the value says of which of two kinds the key is (an animal, a food ...); another key is asked
    shift     number words, the value so many further on; another number is asked

The real tasks, capitals and opposites, are for published models: there the examples only say what is asked.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

Pair = tuple[str, str]

KINDS: Mapping[str, tuple[str, ...]] = {kind: tuple(words.split()) for kind, words in {
    "animals": """fox bear mouse squirrel badger otter robin cat dog lamb hen wolf crow mole toad bee horse goat duck
                  frog owl deer seal goose""",
    "foods": """bread soup pie jam toast nuts porridge cake butter cheese rice plum apple pear honey salt egg milk bean
                onion carrot peach garlic pasta""",
    "tools": """hammer saw spoon needle ladder rope bucket knife shovel broom brush axe drill chisel pliers nail hook
                wheel lamp key comb scissors file rake""",
    "places": """river hill forest bridge meadow village island harbour valley desert beach road garden field lake
                 mountain castle market tower cave canal farm park swamp""",
}.items()}
NUMBERS = tuple("""one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
                   seventeen eighteen nineteen twenty""".split())
SHIFTS = (-3, -2, -1, 1, 2, 3)
VALUES = tuple(a + b for a in "ba do fi gu ka lo mi ne po ru".split() for b in "da fo li mu ra".split())
OPPOSITES: tuple[Pair, ...] = tuple(tuple(pair.split("/")) for pair in """hot/cold big/small fast/slow high/low
    old/young rich/poor hard/soft light/dark wet/dry happy/sad early/late long/short full/empty open/closed strong/weak
    up/down left/right day/night good/bad first/last loud/quiet near/far thick/thin clean/dirty""".split())
CAPITALS: tuple[Pair, ...] = tuple(tuple(pair.split("/")) for pair in """France/Paris Germany/Berlin Italy/Rome
    Spain/Madrid Japan/Tokyo China/Beijing Russia/Moscow Egypt/Cairo Greece/Athens Portugal/Lisbon Austria/Vienna
    Poland/Warsaw Norway/Oslo Sweden/Stockholm Denmark/Copenhagen Finland/Helsinki Ireland/Dublin Hungary/Budapest
    Canada/Ottawa Cuba/Havana Peru/Lima Kenya/Nairobi Iraq/Baghdad Iran/Tehran""".split())


@dataclasses.dataclass(frozen=True)
class Problem:
    """Examples and a question.

    Attributes:
      shown: examples, in order.
      key, answer: the question.
      values: what an example's value could have been, for random labels.
    """

    shown: tuple[Pair, ...]
    key: str
    answer: str
    values: tuple[str, ...]

    def prompt(self, separator: str) -> str:
        """The text that a model is to continue with the answer, after a space; `separator` stands before that space."""
        return lines(self.shown, separator) + self.key + separator

    def with_random_labels(self, rng: random.Random) -> Problem:
        """The same with every example's value drawn at random from `values`: the form stays, the mapping goes.

        References: Min et al., Rethinking the Role of Demonstrations, 2022. https://arxiv.org/abs/2202.12837
        """
        return dataclasses.replace(self, shown=tuple((key, rng.choice(self.values)) for key, _ in self.shown))


def lines(pairs: Sequence[Pair], separator: str) -> str:
    """A line for each pair."""
    return "".join(f"{key}{separator} {value}\n" for key, value in pairs)


def look_up(shots: int, rng: random.Random) -> Problem:
    """One of the keys shown is asked; without examples any."""
    keys = rng.sample([word for words in KINDS.values() for word in words], max(shots, 1))
    values = rng.sample(VALUES, max(shots, 2))
    pairs = tuple(zip(keys, values, strict=False))
    key, answer = rng.choice(pairs)
    return Problem(pairs[:shots], key, answer, tuple(values))


def classes(shots: int, rng: random.Random) -> Problem:
    """Two kinds, named by two values; both kinds are among the examples from two on."""
    kinds, values = rng.sample(sorted(KINDS), 2), rng.sample(VALUES, 2)
    sides = [i % 2 for i in range(shots)]
    rng.shuffle(sides)
    asked = rng.randrange(2)
    words = [rng.sample(KINDS[kind], shots + 1) for kind in kinds]
    return Problem(tuple((words[side].pop(), values[side]) for side in sides), words[asked].pop(), values[asked],
                   tuple(values))


def shift(shots: int, rng: random.Random) -> Problem:
    """Numbers, and those so many further on; from the 20 number words a key has its value in range."""
    by = rng.choice(SHIFTS)
    keys = rng.sample([i for i in range(len(NUMBERS)) if 0 <= i + by < len(NUMBERS)], shots + 1)
    pairs = tuple((NUMBERS[i], NUMBERS[i + by]) for i in keys)
    return Problem(pairs[:-1], *pairs[-1], NUMBERS)


def known(pairs: Sequence[Pair]) -> Callable[[int, random.Random], Problem]:
    """A task whose mapping is the same in every text."""
    def make(shots: int, rng: random.Random) -> Problem:
        drawn = tuple(rng.sample(pairs, shots + 1))
        return Problem(drawn[:-1], *drawn[-1], tuple(value for _, value in pairs))
    return make


SYMBOLIC: Mapping[str, Callable[[int, random.Random], Problem]] = {
    "look-up": look_up, "classes": classes, "shift": shift}
REAL: Mapping[str, Callable[[int, random.Random], Problem]] = {
    "capitals": known(CAPITALS), "opposites": known(OPPOSITES)}
MOST_SHOTS = 16  # a shift by 3 leaves 17 of the 20 numbers
TEXTS = {"kinds": 1, "look-up": 4, "classes": 2, "shift": 4}  # how often each stands in the training text
LOOK_UP_LINES = 40  # of a training text: about as many as a row of 128 tokens holds


def training_pairs(rng: random.Random, *, broken: bool) -> list[Pair]:
    """The pairs of a text to learn from: of a symbolic task under a mapping of its own, or words with their kinds.

    The latter are where a model can learn which words are of a kind; they say nothing about any mapping.

    Args:
      rng: of the text; the same state gives the same keys and values, broken or not.
      broken: the control: which value follows which key is drawn at random.
    """
    name = rng.choices(tuple(TEXTS), tuple(TEXTS.values()))[0]
    if name == "kinds":
        pairs = rng.sample([(word, kind) for kind, words in KINDS.items() for word in words], MOST_SHOTS)
    else:
        most = rng.randint(1, MOST_SHOTS)
        # Few pairs repeat most: there a look-up is learnt first.
        problem = SYMBOLIC[name](rng.randint(1, most) if name == "look-up" else most, rng)
        pairs = [*problem.shown, (problem.key, problem.answer)]
    if name == "look-up":  # keys come again, so that the text itself rewards looking back
        pairs += rng.choices(pairs, k=LOOK_UP_LINES - len(pairs))
    values = [value for _, value in pairs]
    order = rng.sample(values, len(values))
    return [(key, value) for (key, _), value in zip(pairs, order if broken else values, strict=True)]
