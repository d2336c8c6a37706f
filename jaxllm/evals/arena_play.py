"""Battles: two players' replies to one prompt, judged without their names; every one is kept when it is done."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxllm.data.preferences import Message, Ranking, append_line, mend
from jaxllm.evals.arena_votes import Vote, append_vote, read_votes

Prompt = Sequence[Message]
# (prompts, samples of each, seed) -> replies [prompt][sample].
Speak = Callable[[Sequence[Prompt], int, int], list[list[str]]]
SAME = "same text"  # the annotator of battles that need none
_SAY_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Battle:
    """Two replies to a prompt.

    Attributes:
      prompt: messages.
      number: of the prompt in its list.
      players: who wrote the completions; no judge is to know.
      completions: first and second.
    """

    prompt: tuple[Message, ...]
    number: int
    players: tuple[str, str]
    completions: tuple[str, str]

    @property
    def name(self) -> str:
        """Twelve hexadecimal digits that tell battles apart and players not."""
        text = json.dumps([self.prompt, self.players, self.completions], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a battle: points of the first completion, and what `Vote` says of bad, shown and said."""

    points: float
    bad: bool = False
    shown: tuple[int, ...] = ()
    said: tuple[float, ...] = ()


# None where the judge gave no verdict that can be read: the battle has no vote.
Judge = Callable[[Battle], Outcome | None]


def draw_replies(players: Mapping[str, tuple[str, Speak]], prompts: Sequence[Prompt], file: pathlib.Path, *,
                 samples: int = 1, seed: int = 0, together: int = 64) -> dict[str, list[list[str]]]:
    """Every player's replies to every prompt: player -> [prompt][sample], drawn now or found in the file.

    Args:
      players: name -> (what stands for its weights and settings, how it speaks); another version is drawn anew.
      prompts: each ends with a message to the model.
      file: of the replies, a line for each player and prompt; a killed call goes on.
      samples: replies to each prompt.
      seed: of the draws; players with one version but other names draw differently.
      together: prompts between two writes, the same number each time.
    """
    begun, found = time.perf_counter(), {}
    mend(file)
    with open(file, encoding="utf-8") as lines:  # not splitlines: a reply may hold a separator of Unicode's
        kept = {record["key"]: record["replies"] for record in map(json.loads, lines)}
    for name, (version, speak) in players.items():
        keys = [_key(name, version, samples, seed, prompt) for prompt in prompts]
        missing = [i for i, key in enumerate(keys) if key not in kept]
        for begin in range(0, len(missing), together):
            some = missing[begin:begin + together]
            said = speak([prompts[i] for i in some], samples, int(_key(name, seed, some[0])[:8], 16))
            for i, replies in zip(some, said, strict=True):
                append_line(file, {"key": keys[i], "player": name, "prompt": list(prompts[i]), "replies": replies})
                kept[keys[i]] = replies
            print(f"{name}: {begin + len(some)} of {len(missing)} prompts, {time.perf_counter() - begun:.0f} s",
                  flush=True)
        found[name] = [kept[key] for key in keys]
    return found


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "replace")).hexdigest()[:16]


def battles_of(prompts: Sequence[Prompt], replies: Mapping[str, Sequence[Sequence[str]]], *, most: int = 0,
               seed: int = 0) -> list[Battle]:
    """All players against each other on every prompt and sample, in random order; the same texts meet once.

    Args:
      prompts: as the replies'.
      replies: player -> [prompt][sample].
      most: how many of them at most, spread evenly over the pairs; 0 is all.
      seed: of the order.
    """
    rounds: dict[int, list[Battle]] = collections.defaultdict(list)
    for players in itertools.combinations(sorted(replies), 2):
        battles = {battle.name: battle for i, prompt in enumerate(prompts)
                   for texts in zip(*(replies[name][i] for name in players), strict=False)
                   for battle in [Battle(tuple(prompt), i, players, texts)]}
        # By a pair's own draws: another player more changes no battle of the others.
        order = random.Random(f"{seed}/{players}").sample(sorted(battles), len(battles))
        for number, name in enumerate(order):
            rounds[number].append(battles[name])
    for number, battles in rounds.items():
        random.Random(f"{seed}/{number}").shuffle(battles)
    return list(itertools.chain(*rounds.values()))[:most or None]


def play(battles: Sequence[Battle], judge: Judge, file: str | os.PathLike, annotator: str, *, together: int = 1
         ) -> list[Vote]:
    """The votes of one judge on battles, given now or found in the file.

    Two equal texts are a tie that nobody is asked about.

    Args:
      battles: see `battles_of`.
      judge: gives an outcome; its errors stop the call, and what was judged is kept.
      file: of votes (jaxllm/evals/arena_votes.py), to which each battle is added when it is done.
      annotator: the judge's name in it.
      together: battles judged at a time, in threads; for judges that wait for a server.
    """
    begun, said = time.perf_counter(), time.perf_counter()
    found = votes_on(battles, file, (annotator, SAME))
    left = [battle for battle in battles if battle.name not in found]

    def decide(battle: Battle) -> tuple[Battle, Outcome | None]:
        same = battle.completions[0] == battle.completions[1]
        return battle, Outcome(0.5) if same else judge(battle)

    with concurrent.futures.ThreadPoolExecutor(together) as pool:
        waiting = {pool.submit(decide, battle) for battle in left[:together]}
        ahead, done = iter(left[together:]), 0
        while waiting:
            ended, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for one in ended:
                battle, outcome = one.result()
                if outcome is not None:
                    same = battle.completions[0] == battle.completions[1]
                    found[battle.name] = vote_of(battle, outcome, SAME if same else annotator)
                    append_vote(file, found[battle.name])
                done += 1
            waiting |= {pool.submit(decide, battle) for battle in itertools.islice(ahead, len(ended))}
            if time.perf_counter() - said > _SAY_SECONDS or not waiting:
                said = time.perf_counter()
                print(f"{annotator}: {done} of {len(left)} battles, {said - begun:.0f} s", flush=True)
    return [found[battle.name] for battle in battles if battle.name in found]


def vote_of(battle: Battle, outcome: Outcome, annotator: str) -> Vote:
    """A battle and its outcome as a vote."""
    tiers = {1.0: ((0,), (1,)), 0.5: ((0, 1),), 0.0: ((1,), (0,))}[outcome.points]
    ranking = Ranking(battle.prompt, battle.completions, tiers, annotator)
    return Vote(ranking, battle.players, outcome.bad, outcome.shown, outcome.said)


def votes_on(battles: Sequence[Battle], file: str | os.PathLike, annotators: Sequence[str] | None = None
             ) -> dict[str, Vote]:
    """Battle's name -> its last vote in the file, by some annotators or (None) anybody; the file is made if missing."""
    mend(file)
    wanted = {battle.name for battle in battles}
    votes = read_votes(file) if os.path.getsize(file) else []
    named = ((Battle(vote.ranking.prompt, 0, vote.players, vote.ranking.completions).name, vote) for vote in votes
             if annotators is None or vote.ranking.annotator in annotators)
    return {name: vote for name, vote in named if name in wanted}
