"""Votes on battles as files, and as the arrays that jaxllm/evals/arena.py fits.

A vote is a ranking (jaxllm/data/preferences.py) that also says who wrote the completions, so a file of votes is a file
of preferences: what an arena collects, a reward model can learn. A line:

    {"prompt": [{"role": "user", "content": "..."}], "completions": ["a", "b"], "ranking": [1, 0], "annotator": "ada",
     "players": ["sft", "rl"], "bad": false, "shown": [1, 0], "said": []}

`players` wrote `completions`; `ranking` is best first, a list being a tie. `bad`: the tie means that both are bad.
`shown`: the order in which they were seen. `said`: what a judge that was asked twice gave the first completion, 1, 0.5
or 0, seen first and seen second. Only `players` is needed beyond a ranking.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.data import source_files
from jaxllm.data.preference_files import FORMATS
from jaxllm.data.preferences import Ranking, append_ranking
from jaxllm.evals.intervals import wilson
from jaxllm.evals.votes import Votes

_COLUMNS = ("prompt", "completions", "ranking", "annotator", "players", "bad", "shown", "said", "cmp_key",
            "instruction", "input", "response1", "response2", "model_a", "model_b", "winner", "conversation_a",
            "conversation_b", "judge")
_WINNERS = {"model_a": ((0,), (1,)), "model_b": ((1,), (0,)), "tie": ((0, 1),), "tie (bothbad)": ((0, 1),)}


@dataclasses.dataclass(frozen=True)
class Vote:
    """One order of completions of a prompt, and who wrote them.

    Attributes:
      ranking: the order, and who gave it.
      players: names, one for each completion.
      bad: whether the tie means that both are bad.
      shown: indices into the completions, first seen first; () where it is not known.
      said: of a judge that saw both orders: points of the first completion when it was seen first, and when it was seen
        second; else ().
    """

    ranking: Ranking
    players: tuple[str, ...]
    bad: bool = False
    shown: tuple[int, ...] = ()
    said: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.ranking.completions)
        if len(self.players) != count or len(set(self.players)) < count:
            raise ValueError(f"players {list(self.players)} must name the writer of each of the {count} completions, "
                             f"each once")
        if self.shown and sorted(self.shown) != list(range(count)):
            raise ValueError(f"shown {list(self.shown)} must hold each of 0 to {count - 1} once")
        if self.said and (count != 2 or len(self.said) != 2):
            raise ValueError(f"said {list(self.said)} is for two completions, and holds two numbers")

    def points(self, first: int, second: int) -> float:
        """Of one completion against another: 1, 0.5 or 0."""
        tiers = self.ranking.tiers
        return 0.5 + 0.5 * (tiers[first] < tiers[second]) - 0.5 * (tiers[first] > tiers[second])


def read_votes(path: str | os.PathLike) -> list[Vote]:
    """The votes of a file: this project's form, PandaLM's (`cmp_key`) or the Chatbot Arena's (`model_a`, `winner`).

    Args:
      path: .jsonl or .json (an array, or an object per line), also with .gz, .xz or .zst behind; or .parquet.

    Raises:
      FileNotFoundError: for a file that is not there.
      ValueError: for a malformed record, with file and line, and for a file without votes.
    """
    path, found, read = pathlib.Path(path).expanduser(), [], None
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a file of votes")
    for place, record in source_files.reader_for(path)(path, _columns_of(path)):
        where = f"{path}, {place}"
        if not isinstance(record, Mapping):
            raise ValueError(f"{where}: expected an object, got {type(record).__name__}")
        read = read or _form_of(record, where)
        try:
            votes = read(record, where)
            if not all(isinstance(text, str) for vote in votes for text in (*vote.players, *vote.ranking.completions)):
                raise TypeError("players and completions must be texts")
            found += votes
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: not a vote ({reason})") from error
    if not found:
        raise ValueError(f"{path}: the file holds no vote")
    return found


def _columns_of(path: pathlib.Path) -> tuple[str, ...]:
    """The fields to read, of a table those that it has first: a reader asks for the first of them."""
    if path.suffix.lower() != ".parquet":
        return _COLUMNS
    import pyarrow.parquet

    present = pyarrow.parquet.read_schema(path).names
    return tuple(sorted(_COLUMNS, key=lambda column: column not in present))


def _form_of(record: Mapping[str, Any], where: str) -> Callable[[Mapping[str, Any], str], list[Vote]]:
    for field, read in (("players", _own), ("cmp_key", _pandalm), ("winner", _chatbot_arena)):
        if record.get(field) is not None:
            return read
    raise ValueError(f'{where}: a vote says who wrote the completions; write {{"prompt": ..., "completions": [...], '
                     f'"ranking": [...], "players": [...]}}')


def _own(record: Mapping[str, Any], where: str) -> list[Vote]:
    (draft,) = FORMATS["rankings"](record)
    ranking = Ranking(tuple(draft.prompt), tuple(draft.completions), tuple(map(tuple, draft.ranking)), draft.annotator,
                      where)
    return [Vote(ranking, tuple(record["players"]), bool(record.get("bad", False)), tuple(record.get("shown") or ()),
                 tuple(record.get("said") or ()))]


def _pandalm(record: Mapping[str, Any], where: str) -> list[Vote]:
    """`cmp_key` is "PLAYER1_PLAYER2": who wrote response1 and response2."""
    players = tuple(record["cmp_key"].split("_"))
    return [Vote(Ranking(tuple(draft.prompt), tuple(draft.completions), tuple(map(tuple, draft.ranking)),
                         draft.annotator, where), players) for draft in FORMATS["pandalm"](record)]


def _chatbot_arena(record: Mapping[str, Any], where: str) -> list[Vote]:
    """What users asked is the prompt, and all that a model said to it the completion; model_a was seen first."""
    if record["winner"] not in _WINNERS:
        raise ValueError(f"winner must be one of {', '.join(_WINNERS)}, not {record['winner']!r}")
    talks = [record["conversation_a"], record["conversation_b"]]
    prompt = tuple({"role": "user", "content": turn["content"]} for turn in talks[0] if turn["role"] == "user")
    said = tuple("\n\n".join(turn["content"] for turn in talk if turn["role"] == "assistant") for talk in talks)
    ranking = Ranking(prompt, said, _WINNERS[record["winner"]], str(record.get("judge") or ""), where)
    return [Vote(ranking, (record["model_a"], record["model_b"]), record["winner"] == "tie (bothbad)", (0, 1))]


def append_vote(path: str | os.PathLike, vote: Vote, **more: Any) -> None:
    """Adds a line to a file of votes, and returns when it is on the disk; as safe as `preferences.append_ranking`."""
    append_ranking(path, vote.ranking, players=list(vote.players), bad=vote.bad, shown=list(vote.shown),
                   said=list(vote.said), **more)


# What of a text a voter may like whoever wrote it; compared as (a - b) / (a + b).
STYLE: Mapping[str, Callable[[str], int]] = {
    "length": len,
    "headers": lambda text: len(re.findall(r"^#{1,6}\s", text, re.MULTILINE)),
    "lists": lambda text: len(re.findall(r"^\s*(?:[-*+]|\d+[.)])\s", text, re.MULTILINE)),
    "bold": lambda text: len(re.findall(r"\*\*[^*\n]+\*\*|__[^_\n]+__", text)),
}
COVARIATES = (*STYLE, "position")


def tally(votes: Sequence[Vote], covariates: Sequence[str] = ()) -> Votes:
    """Votes as arrays: all pairs of a ranking; votes on one prompt are one group.

    Args:
      votes: at least one.
      covariates: some of COVARIATES. A style is (a - b) / (a + b) of its count in the two texts, "position" is 1 where
        the first of them was seen first, -1 where second, 0 where it is not known or both orders were. Each is divided
        by its root mean square, so that a coefficient is nats for one of these; and one that is always 0 is left out
        (see `Votes.names`).

    Raises:
      ValueError: for an unknown covariate.

    References: the differences are those of LMSYS's style control; not centred here, so that it does not matter which
    reply is called the first.
    """
    if unknown := set(covariates) - set(COVARIATES):
        raise ValueError(f"unknown covariates {', '.join(map(repr, sorted(unknown)))}; choose from "
                         f"{', '.join(COVARIATES)}")
    players = tuple(sorted({name for vote in votes for name in vote.players}))
    number = {name: i for i, name in enumerate(players)}
    groups: dict[str, int] = {}
    rows, found = [], []
    for vote in votes:
        group = groups.setdefault(json.dumps(vote.ranking.prompt, sort_keys=True), len(groups))
        for i, j in itertools.combinations(range(len(vote.players)), 2):
            rows.append((number[vote.players[i]], number[vote.players[j]], group, vote.points(i, j)))
            found.append([_difference(vote, i, j, name) for name in covariates])
    first_V, second_V, group_V, points_V = map(np.array, zip(*rows, strict=True))
    found_VC = np.array(found, float).reshape(len(rows), len(covariates))
    size_C = np.sqrt(np.square(found_VC).mean(0))
    there_C = size_C > 0
    return Votes(players, first_V, second_V, points_V, group_V, found_VC[:, there_C] / size_C[there_C],
                 tuple(name for name, there in zip(covariates, there_C, strict=True) if there))


def _difference(vote: Vote, i: int, j: int, name: str) -> float:
    if name == "position":
        return 0.0 if not vote.shown or vote.said else 1.0 - 2.0 * (vote.shown.index(i) > vote.shown.index(j))
    first, second = (STYLE[name](vote.ranking.completions[k]) for k in (i, j))
    return (first - second) / (first + second) if first + second else 0.0


@dataclasses.dataclass(frozen=True)
class PositionBias:
    """How much it matters to a judge which reply it sees first.

    Attributes:
      asked: battles in which it saw both orders.
      same: in how many it said the same twice.
      first, second: in how many it leaned to what it saw first, or second, both times together.
    """

    asked: int
    same: int
    first: int
    second: int

    def lean(self) -> tuple[float, float, float]:
        """Share of the changed verdicts that lean to what was seen first, with its 95% interval; 0.5 is none."""
        changed = self.first + self.second
        return (self.first / changed if changed else float("nan"), *wilson(self.first, changed))


def position_bias(votes: Sequence[Vote]) -> PositionBias:
    """Counts the battles whose judge saw both orders (`Vote.said`).

    References: Zheng et al., Judging LLM-as-a-judge, 2023, https://arxiv.org/abs/2306.05685
    """
    said = [vote.said for vote in votes if vote.said]
    leans = [seen_first - seen_second for seen_first, seen_second in said]
    return PositionBias(len(said), leans.count(0), sum(lean > 0 for lean in leans), sum(lean < 0 for lean in leans))
