"""Which battle a person judges next, and the votes of people: one file of lines, from which a server goes on.

A vote is on the disk, in the form of jaxllm/evals/arena_votes.py, before anybody is told that it is saved. Which reply
stands on the left is drawn for each person and battle, and is kept with the vote.
"""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

from jaxllm.data.preferences import drop_rankings, mend
from jaxllm.evals.arena_play import Battle, Outcome, vote_of
from jaxllm.evals.arena_votes import Vote, append_vote, read_votes

# Verdict -> (points of the left reply, whether both are bad).
VERDICTS = {"left": (1.0, False), "right": (0.0, False), "tie": (0.5, False), "bad": (0.5, True)}


class BattleStore:
    """Battles to judge; safe to use from many threads.

    Args:
      battles: in the order in which they are shown; those of two equal texts are left out, there is nothing to see.
      file: of votes, made if it is not there.
      overlap: share of a person's battles that somebody else has judged already, so that agreement can be measured.
    """

    def __init__(self, battles: Sequence[Battle], file: str | os.PathLike, overlap: float = 0.2) -> None:
        self.battles = {battle.name: battle for battle in battles if battle.completions[0] != battle.completions[1]}
        self.file, self._overlap = pathlib.Path(file), overlap
        self._lock = threading.Lock()
        self._judged: dict[str, list[str]] = collections.defaultdict(list)  # annotator -> battles, as they came
        self._skipped: dict[str, set[str]] = collections.defaultdict(set)
        mend(self.file)
        for vote in self.votes():
            self._judged[vote.ranking.annotator].append(_name_of(vote))

    def left(self, battle: Battle, annotator: str) -> int:
        """Which completion this person sees on the left: by chance, and the same each time."""
        return hashlib.sha256(f"{battle.name}/{annotator}".encode()).digest()[0] % 2

    def next(self, annotator: str, holding: Collection[str] = ()) -> Battle | None:
        """A battle that this person has not judged; None when there is none left.

        Args:
          annotator: who asks.
          holding: names of battles that the page has already.
        """
        with self._lock:
            done = {*self._judged[annotator], *self._skipped[annotator], *holding}
            others = collections.Counter(name for other, names in self._judged.items() if other != annotator
                                         for name in names)
            left = [name for name in self.battles if name not in done]
            shared, fresh = [name for name in left if others[name]], [name for name in left if not others[name]]
            had = sum(name in others for name in (*self._judged[annotator], *holding))
            wanted = self._overlap * (len(self._judged[annotator]) + len(holding) + 1)
            names = (shared or fresh) if had < wanted else (fresh or shared)
            return self.battles[names[0]] if names else None

    def vote(self, name: str, annotator: str, verdict: str, **more: Any) -> int:
        """Saves a verdict in the place of this person's earlier one; returns how many battles the person has judged.

        Args:
          name: of the battle.
          annotator: who judges.
          verdict: a key of VERDICTS.
          more: further fields of the line.

        Raises:
          KeyError: there is no such battle, or no such verdict.
        """
        battle, (points, bad) = self.battles[name], VERDICTS[verdict]
        left = self.left(battle, annotator)
        outcome = Outcome(points if left == 0 else 1 - points, bad, shown=(left, 1 - left))
        with self._lock:
            if name in self._judged[annotator]:
                self._drop(name, annotator)
            append_vote(self.file, vote_of(battle, outcome, annotator), battle=name, time=int(time.time()), **more)
            self._judged[annotator].append(name)
            return len(self._judged[annotator])

    def skip(self, name: str, annotator: str) -> None:
        """Shows this person the battle no more, while this server runs; KeyError when there is none."""
        with self._lock:
            self._skipped[annotator].add(self.battles[name].name)

    def undo(self, name: str, annotator: str) -> Battle:
        """Takes back this person's vote on a battle, or that it was skipped; KeyError when there is neither."""
        with self._lock:
            if name in self._skipped[annotator]:
                self._skipped[annotator].remove(name)
            elif name in self._judged[annotator]:
                self._drop(name, annotator)
            else:
                raise KeyError(name)
            return self.battles[name]

    def _drop(self, name: str, annotator: str) -> None:
        drop_rankings(self.file, lambda record: (record.get("battle"), record.get("annotator")) == (name, annotator))
        self._judged[annotator].remove(name)

    def counts(self) -> dict[str, int]:
        """Annotator -> battles judged."""
        with self._lock:
            return {name: len(names) for name, names in sorted(self._judged.items()) if names}

    def votes(self) -> list[Vote]:
        """All votes in the file on these battles."""
        found = read_votes(self.file) if self.file.stat().st_size else []
        return [vote for vote in found if _name_of(vote) in self.battles]


def _name_of(vote: Vote) -> str:
    return Battle(vote.ranking.prompt, 0, vote.players, vote.ranking.completions).name
