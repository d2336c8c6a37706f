"""The sets of samples that people rank on the page, and their rankings: two files of lines in a folder.

`sets.jsonl` has every set that was drawn, `rankings.jsonl` every ranking in the form of jaxllm/data/preferences.py. A
line is on the disk before anybody is told that it is saved; a server that starts again on the folder goes on.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import random
import secrets
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

from jaxllm.data.preferences import Message, Ranking, append_line, append_ranking, drop_rankings, mend, read_rankings
from jaxllm.evals.agreement import Agreement, agreement


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Completions of a prompt, drawn to be ranked.

    Attributes:
      name: of the set, unique in its folder.
      prompt: messages.
      completions: K different texts, as they were drawn.
      annotator: for whom it was drawn.
      listed: whether the prompt came from the list of prompts.
    """

    name: str
    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    annotator: str
    listed: bool

    def shown(self, annotator: str) -> list[int]:
        """The order in which an annotator sees the completions: random, and the same each time."""
        order = list(range(len(self.completions)))
        random.Random(f"{self.name}/{annotator}").shuffle(order)
        return order


class PreferenceStore:
    """What is ranked and by whom; safe to use from many threads.

    Args:
      folder: of the two files; made if it is not there.
      prompts: to draw samples on, in turn; () where annotators write their own.
      overlap: share of an annotator's sets that somebody else has ranked before, so that agreement can be measured.
      agreement_samples: draws of the bootstrap behind the intervals.
    """

    def __init__(self, folder: pathlib.Path, prompts: Sequence[Sequence[Message]] = (), overlap: float = 0.2,
                 agreement_samples: int = 200) -> None:
        self.prompts = tuple(tuple(prompt) for prompt in prompts)
        self._overlap, self._agreement_samples = overlap, agreement_samples
        self._sets_file, self.file = folder / "sets.jsonl", folder / "rankings.jsonl"
        self._lock = threading.Lock()
        self._sets: dict[str, SampleSet] = {}
        self._ranked: dict[str, list[str]] = collections.defaultdict(list)  # annotator -> names of sets, as they came
        self._skipped: dict[str, set[str]] = collections.defaultdict(set)
        self._agreement: Agreement | None = None
        for path in (self._sets_file, self.file):
            mend(path)
        for record in _records(self._sets_file):
            found = SampleSet(record["set"], tuple(record["prompt"]), tuple(record["completions"]),
                              record["annotator"], record["listed"])
            self._sets[found.name] = found
        for record in _records(self.file):
            self._ranked[record["annotator"]].append(record["set"])

    def waiting(self, annotator: str, holding: Collection[str] = ()) -> SampleSet | None:
        """A set for an annotator that need not be drawn: one that was and is not ranked, or one that others ranked.

        Args:
          annotator: who asks.
          holding: names of sets that the page has already.
        """
        with self._lock:
            done = {*self._ranked[annotator], *self._skipped[annotator], *holding}
            for found in self._sets.values():
                if found.annotator == annotator and found.name not in done:
                    return found
            by_others = collections.Counter(name for other, names in self._ranked.items() if other != annotator
                                            for name in names)
            shared = sum(name in by_others for name in (*self._ranked[annotator], *holding))
            if shared >= self._overlap * (len(self._ranked[annotator]) + len(holding) + 1):
                return None
            left = [name for name in by_others if name not in done]
            # What most have ranked comes first: agreement of all is measured on what all have ranked.
            return self._sets[max(left, key=lambda name: by_others[name])] if left else None

    def next_prompt(self) -> tuple[Message, ...] | None:
        """The next prompt of the list, from the start again behind its end; None without a list."""
        with self._lock:
            used = sum(found.listed for found in self._sets.values())
            return self.prompts[used % len(self.prompts)] if self.prompts else None

    def add(self, prompt: Sequence[Message], completions: Sequence[str], annotator: str, listed: bool) -> SampleSet:
        """Keeps a set that was drawn."""
        found = SampleSet(secrets.token_hex(6), tuple(prompt), tuple(completions), annotator, listed)
        with self._lock:
            append_line(self._sets_file, {"set": found.name, "prompt": list(prompt), "completions": list(completions),
                                          "annotator": annotator, "listed": listed})
            self._sets[found.name] = found
        return found

    def find(self, name: str) -> SampleSet:
        """The set of a name; KeyError when there is none."""
        with self._lock:
            return self._sets[name]

    def rank(self, name: str, annotator: str, shown_ranking: Sequence[Sequence[int]], **more: Any) -> int:
        """Saves a ranking, in the place of this annotator's earlier one of the set.

        Args:
          name: of the set.
          annotator: who ranked it.
          shown_ranking: tiers of indices into the completions as they were shown.
          more: further fields of the line.

        Returns:
          How many sets this annotator has ranked.

        Raises:
          KeyError: there is no such set.
          ValueError: the tiers do not hold each completion once.
        """
        found = self.find(name)
        order = found.shown(annotator)
        if any(not 0 <= i < len(order) for tier in shown_ranking for i in tier):
            raise ValueError(f"the ranking {list(shown_ranking)} must hold each of 0 to {len(order) - 1} once")
        tiers = tuple(tuple(order[i] for i in tier) for tier in shown_ranking)
        ranking = Ranking(found.prompt, found.completions, tiers, annotator)
        with self._lock:
            if name in self._ranked[annotator]:
                self._drop(name, annotator)
            append_ranking(self.file, ranking, set=name, shown=order, time=int(time.time()), **more)
            self._ranked[annotator].append(name)
            self._agreement = None
            return len(self._ranked[annotator])

    def skip(self, name: str, annotator: str) -> None:
        """Shows this annotator the set no more, while this server runs; KeyError when there is none."""
        self.find(name)
        with self._lock:
            self._skipped[annotator].add(name)

    def undo(self, name: str, annotator: str) -> None:
        """Takes back this annotator's ranking of a set, or that it was skipped; KeyError when there is neither."""
        with self._lock:
            if name in self._skipped[annotator]:
                self._skipped[annotator].remove(name)
            elif name in self._ranked[annotator]:
                self._drop(name, annotator)
            else:
                raise KeyError(name)

    def _drop(self, name: str, annotator: str) -> None:
        drop_rankings(self.file, lambda record: (record.get("set"), record.get("annotator")) == (name, annotator))
        self._ranked[annotator].remove(name)
        self._agreement = None

    def counts(self) -> dict[str, int]:
        """Annotator -> sets ranked."""
        with self._lock:
            return {name: len(sets) for name, sets in sorted(self._ranked.items()) if sets}

    def agreement(self) -> Agreement:
        """How far the annotators agree on the sets that several ranked."""
        with self._lock:
            if self._agreement is None:
                rankings = read_rankings(self.file) if self.file.stat().st_size else ()
                self._agreement = agreement(rankings, samples=self._agreement_samples)
            return self._agreement


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as lines:  # not splitlines: a text may hold a separator of Unicode's
        return [json.loads(line) for line in lines if line.strip()]


@dataclasses.dataclass(frozen=True)
class Preferring:
    """How rankings are collected; `Served.preferring` is one where they are.

    Attributes:
      store: where they are kept.
      samples: completions of a set, 2 to 9: so many have a key each on the page.
      temperature, max_tokens: of the draws.
    """

    store: PreferenceStore
    samples: int = 4
    temperature: float = 1.0
    max_tokens: int = 256
