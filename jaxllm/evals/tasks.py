"""What an evaluation asks: items, the prompts made of them, and the same prompts with the informative part swapped.

    choice        one context, several continuations: which does the model find likeliest?
    schema        several contexts, one continuation (Winograd): under which is it likeliest?
    continuation  one context, one continuation: is every token of it the model's own likeliest (LAMBADA)?
    generation    the model writes, a verifier reads (GSM8K, HumanEval, IFEval)
    document      bits per byte of a text

A task holds its items; where they come from is the business of `task_table`, `task_rows` and `task_records`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence

KINDS = ("choice", "schema", "continuation", "generation", "document")
# Of a kind: the scores it has, the headline's default first.
METRICS: Mapping[str, tuple[str, ...]] = {
    "choice": ("acc", "acc_norm", "acc_bytes", "acc_token", "mass"),
    "schema": ("acc", "acc_token"),
    "continuation": ("greedy", "perplexity"),
    "generation": ("score",),
    "document": ("bits_per_byte",),
}
_TRIES = 50  # draws of a donor before an item is left without a control


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
      contexts: what stands before the answer: one text; of a schema one for each candidate; of a document none.
      choices: the candidates; one continuation of a schema or a continuation; the text of a document; a right reply or
        none of a generation, for use as a shot.
      gold: places of the right candidates; the first stands in the prompt when the item is a shot.
      premise: characters at the start of the context that inform; the rest (the question of a passage, a list of
        lettered options) stays when the control swaps them. None is all.
      subject: shots are of the same one.
      answer, verifier: of a generation: what the verifier compares with, and its name.
      key: names the item, and no other of the task; two models are compared on equal keys. "" is its place.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: tuple[int, ...] = (0,)
    premise: int | None = None
    subject: str = ""
    answer: str = ""
    verifier: str = ""
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Task:
    """Items, and how they are asked.

    Attributes:
      name: of the task.
      kind: one of KINDS.
      items: in the order asked.
      metric: the headline, one of METRICS[kind].
      chance: the headline of a guess, 0 to 1.
      shots: examples before each item.
      pool: what shots are drawn from; empty is the task's other items.
      draw: False takes the pool's first ones (as MMLU's five of dev) instead of a seeded draw for each item.
      delimiter: between a context and its continuation.
      separator: between shots.
      header: what the prompt begins with; "{subject}" stands for the item's.
      stop: strings that end a generation.
      max_tokens: of a generation.
      note: a sentence for the report.

    Raises:
      ValueError: for what no evaluation could ask.
    """

    name: str
    kind: str
    items: tuple[Item, ...]
    metric: str = ""
    chance: float = 0.0
    shots: int = 0
    pool: tuple[Item, ...] = ()
    draw: bool = True
    delimiter: str = " "
    separator: str = "\n\n"
    header: str = ""
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"task {self.name}: unknown kind {self.kind!r}; kinds are {', '.join(KINDS)}")
        if not self.metric:
            object.__setattr__(self, "metric", METRICS[self.kind][0])
        if self.metric not in METRICS[self.kind]:
            raise ValueError(f"task {self.name}: the kind {self.kind} has no metric {self.metric!r}; its metrics are "
                             f"{', '.join(METRICS[self.kind])}")
        if not self.items:
            raise ValueError(f"task {self.name}: it has no items")
        room = len(self.pool) if self.pool else len(self.items) - 1
        if not 0 <= self.shots <= room:
            raise ValueError(f"task {self.name}: {self.shots} shots of {room} that there are; ask for 0 to {room}")
        for item in self.items:
            self._check(item)

    def key(self, index: int) -> str:
        """What an item is called in results."""
        return self.items[index].key or str(index)

    def _check(self, item: Item) -> None:
        where = f"task {self.name}, item {item.key or item.contexts!r:.80}"
        if self.kind in ("choice", "schema"):
            candidates = len(item.choices if self.kind == "choice" else item.contexts)
            if candidates < 2 or not item.gold or not set(item.gold) <= set(range(candidates)):
                raise ValueError(f"{where}: {candidates} candidates with {item.gold} for the right ones; give two "
                                 f"candidates or more, and the place of a right one")
            if len(set(item.gold)) < len(item.gold):
                raise ValueError(f"{where}: {item.gold} names a right candidate more than once")
        if self.kind != "generation" and not all(item.choices):
            raise ValueError(f"{where}: a candidate or a text is empty; leave it out")
        if (len(item.contexts) != 1 and self.kind in ("choice", "continuation", "generation")
                or len(item.choices) != 1 and self.kind in ("schema", "continuation", "document")):
            raise ValueError(f"{where}: {len(item.contexts)} contexts and {len(item.choices)} continuations make no "
                             f"{self.kind}")


def shots_of(task: Task, index: int, seed: int) -> tuple[Item, ...]:
    """The examples before item `index`: a function of (task's name, seed, index), never the item itself."""
    if not task.shots:
        return ()
    item, pool = task.items[index], task.pool or task.items
    places = range(len(pool))
    if item.subject:
        same = [i for i in places if pool[i].subject == item.subject]
        places = same if len(same) > task.shots or task.pool and len(same) == task.shots else places
    count = min(task.shots + 1, len(places))  # one more than needed, as the item itself may be among them
    drawn = random.Random(f"{task.name}/{seed}/{index}").sample(places, count) if task.draw else places[:count]
    return tuple([pool[i] for i in drawn if pool[i] != item][:task.shots])  # the pool may be read from the same file


def prefix(task: Task, index: int, seed: int) -> str:
    """The header and the shots of an item, up to its own context."""
    shown = [_solved(task, shot) + task.separator for shot in shots_of(task, index, seed)]
    return task.header.replace("{subject}", task.items[index].subject) + "".join(shown)


def _solved(task: Task, item: Item) -> str:
    gold = item.gold[0]
    context = item.contexts[gold if task.kind == "schema" else 0]
    if not item.choices:
        raise ValueError(f"task {task.name}, item {item.key}: it has no right reply to show as a shot; use shots=0")
    choice = item.choices[gold if task.kind == "choice" else 0]
    return f"{context}{task.delimiter}{choice}"


def pairs(task: Task, index: int, seed: int, item: Item | None = None) -> list[tuple[str, str]]:
    """(context, continuation) of each candidate of an item, as text.

    Args:
      task, index: which item.
      seed: of the shots.
      item: asked in its place, with the same shots: its control.

    >>> task = Task("t", "choice", (Item(("Is 2 even?",), ("yes", "no")), Item(("Is 3 even?",), ("yes", "no"), (1,))),
    ...             shots=1)
    >>> pairs(task, 0, seed=0)[1]
    ('Is 3 even? no\\n\\nIs 2 even?', ' no')
    """
    item = item or task.items[index]
    before = prefix(task, index, seed)
    contexts = item.contexts if task.kind == "schema" else item.contexts * len(item.choices)
    choices = item.choices * len(item.contexts) if task.kind == "schema" else item.choices
    # The text of a delimiter ("\nAnswer: ") belongs to the prompt, its last blank to the answer, where a tokenizer puts
    # it.
    kept = task.delimiter.rstrip(" ")
    blank = task.delimiter[len(kept):]
    return [(f"{before}{context}{kept}", f"{blank}{choice}") for context, choice in zip(contexts, choices, strict=True)]


def counterfactual(task: Task, index: int, seed: int) -> Item | None:
    """The item with its informative part taken from another: what is right by it is right by a prior over answers.

    A choice keeps its candidates and what stands behind its premise; a schema keeps its contexts and takes another
    item's continuation. The right candidate stays the item's own. None where no other item differs.

    References: the control of nanochat's CORE (swapping what a reader must read). https://github.com/karpathy/nanochat
    """
    item, rng = task.items[index], random.Random(f"{task.name}/{seed}/{index}/swap")
    for _ in range(_TRIES):
        donor = task.items[rng.randrange(len(task.items))]
        if task.kind == "schema":
            if donor.choices != item.choices and donor.contexts != item.contexts:
                return dataclasses.replace(item, choices=donor.choices)
        elif _premise(donor) != _premise(item):
            return dataclasses.replace(item, contexts=(_premise(donor) + item.contexts[0][len(_premise(item)):],))
    return None


def _premise(item: Item) -> str:
    return item.contexts[0][:item.premise]


def limited(items: Sequence[Item], limit: int | None, seed: int = 0) -> tuple[Item, ...]:
    """At most `limit` items, drawn and kept in order; the same ones for every model."""
    if limit is None or limit >= len(items):
        return tuple(items)
    return tuple(items[i] for i in sorted(random.Random(f"limit/{seed}").sample(range(len(items)), limit)))
