"""The words and questions of experiments.spelling: made-up words, their split, and what is asked about them."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import random
from collections.abc import Sequence

TASKS = ("spell", "count", "spaced", "tool")
SPLITS = ("train", "validation", "test")
_ONSETS = "b d f g k l m n p r s t v z st tr".split()
_CODAS = (*[""] * 8, *"n r l s".split())
_SYLLABLES = 120


@dataclasses.dataclass(frozen=True)
class Example:
    """A question on a word: to spell it, or how often it has a letter."""

    task: str
    word: str
    letter: str
    count: int

    @property
    def prompt(self) -> str:
        """What the model is given."""
        word = " ".join(self.word) if self.task == "spaced" else self.word
        return (f'spell "{word}":' if self.task == "spell" else
                f'{"run" if self.task == "tool" else "count"} "{self.letter}" in "{word}":')

    @property
    def answer(self) -> str:
        """What it is to write in the end."""
        return f' {" ".join(self.word)}' if self.task == "spell" else f" {self.count}"

    @property
    def call(self) -> str:
        """The Python that it is to write before, where the task is "tool"."""
        return f'"{self.word}".count("{self.letter}")' if self.task == "tool" else ""


def draw_words(count: int, rng: random.Random) -> list[str]:
    """Different words of two to four syllables, 4 to 8 letters.

    The n-th syllable is drawn in proportion to 1/n (Zipf), so that a tokenizer finds frequent pieces first, as in a
    natural language.
    """
    syllables = [rng.choice(_ONSETS) + rng.choice("aeiou") + rng.choice(_CODAS) for _ in range(_SYLLABLES)]
    weights = [1 / n for n in range(1, _SYLLABLES + 1)]
    words: dict[str, None] = {}
    while len(words) < count:
        word = "".join(rng.choices(syllables, weights, k=rng.randint(2, 4)))
        if 4 <= len(word) <= 8:
            words[word] = None
    return list(words)


def split_of(word: str, seed: int, tenths: int) -> str:
    """The split of a word, by a hash of it and the seed: `tenths` for each of the held-out splits."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{word}".encode()).digest()[:8], "big") * 10 >> 64
    return SPLITS[2] if number < tenths else SPLITS[1] if number < 2 * tenths else SPLITS[0]


def ask(words: Sequence[str], most: int, rng: random.Random) -> list[tuple[Example, ...]]:
    """Questions in random order, at most one a word, each as one example of every task.

    Every count from 0 to `most` is the right answer equally often, so that always giving the most frequent one is worth
    1 / (most + 1). Words for which no question of a rarer count is left are not asked about.

    Raises:
      ValueError: when no word has a letter `most` times.
    """
    frequency = collections.Counter("".join(words))
    asked: dict[int, list[tuple[str, str]]] = {count: [] for count in range(most + 1)}
    for word in rng.sample(words, len(words)):
        letters: dict[int, list[str]] = {0: sorted(set(frequency) - set(word))}
        for letter, count in sorted(collections.Counter(word).items()):
            letters.setdefault(count, []).append(letter)
        # The answer given least often so far, of those that this word has.
        count = min((count for count in letters if count <= most), key=lambda count: len(asked[count]))
        # Letters that are not there are drawn as they occur in words, or a rare letter would say "0".
        weights = [frequency[letter] for letter in letters[count]] if count == 0 else None
        asked[count].append((word, rng.choices(letters[count], weights)[0]))
    fewest = min(map(len, asked.values()))
    if not fewest:
        raise ValueError(f"of {len(words)} words none has a letter for one of the counts 0 to {most}: lower "
                         f"config.most or raise config.words")
    questions = [tuple(Example(task, word, letter, count) for task in TASKS)
                 for count, some in asked.items() for word, letter in some[:fewest]]
    rng.shuffle(questions)
    return questions


def edit_distance(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Letters to insert, delete or replace (Levenshtein).

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(theirs) + 1))
    for i, our in enumerate(ours, 1):
        above, row[0] = row[0], i
        for j, their in enumerate(theirs, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (our != their))
    return row[-1]
