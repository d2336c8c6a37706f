"""An arena: players reply to prompts, their replies meet in pairs, somebody judges, and the votes are made a ranking.

    python -m experiments.rank --workdir=runs/rank
    python -m experiments.rank --config.votes=votes.jsonl

Without settings, small joke models of the made-up world meet before its hidden judge and before a simulated voter who
likes length. Replies and votes are kept as they come; the same command goes on after a kill.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from experiments import findings, launch, rank_players, rank_world
from experiments.improve_plan import Start
from experiments.rank_judges import KINDS, judge_of, prompts_of, version_of
from experiments.rank_report import Rating, findings_of, rate
from experiments.rank_voters import add_voters
from jaxllm.data.world_taste import things
from jaxllm.evals import arena
from jaxllm.evals.arena_judges import by_score
from jaxllm.evals.arena_play import Battle, Prompt, Speak, battles_of, draw_replies, play
from jaxllm.evals.arena_votes import COVARIATES, Vote, read_votes
from jaxllm.train.checkpoint import load_model

# The simulated voters of the world's arena: what of config.world.voter is changed.
VOTERS = {"voter who likes length": {}, "voter who does not": {"length_bias": 0.0}}


def main(config: ConfigDict, workdir: str) -> None:
    """Ranks a file of votes, or plays battles and ranks what comes of them.

    Raises:
      ValueError: a key is out of range, or the votes say nothing of some player.
      OSError: an API cannot be reached; what was played is kept.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    rating = rating_of(config)
    if config.votes:
        board = rate(read_votes(config.votes), rating)
        found = findings_of(board, "Arena", f"{pathlib.Path(config.votes).name}.")
    else:
        found = _played(config, folder, rating)
    findings.write(found, folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after the replies were drawn."""
    judge, rating = config.judge, config.rating
    if judge.kind not in KINDS:
        raise ValueError(f"config.judge.kind={judge.kind!r}: choose one of {', '.join(KINDS)}")
    if bool(config.players) != bool(config.prompts):
        raise ValueError("config.players and config.prompts go together: who plays, and a file of what they are asked; "
                         "leave both empty for the world's joke models")
    if len(config.players) == 1:
        raise ValueError(f"config.players={tuple(config.players)}: an arena needs two players or more")
    if config.players and judge.kind == "gold":
        raise ValueError("config.judge.kind='gold' judges the world's jokes alone; choose verifier, reward, model or "
                         "people for config.players")
    for kind, key in (("reward", "reward"), ("model", "model")):
        if judge.kind == kind and not judge[key]:
            raise ValueError(f"config.judge.{key} is empty; config.judge.kind={kind!r} needs it")
    if judge.kind == "verifier" and not config.prompts:
        raise ValueError("config.judge.kind='verifier' needs config.prompts, a file of tasks with answers")
    for key, least in (("replies.samples", 1), ("replies.max_tokens", 1), ("battles", 0), ("judge.tie", 0),
                       ("judge.port", 0), ("api.together", 1), ("api.attempts", 1), ("rating.prior", 0),
                       ("rating.samples", 100), ("rating.orders", 1), ("replies.temperature", 0)):
        value = config[key.split(".")[0]][key.split(".")[1]] if "." in key else config[key]
        if value < least:
            raise ValueError(f"config.{key}={value}: choose {least} or more")
    if rating.ties not in arena.TIES or set(rating.style) - set(COVARIATES):
        raise ValueError(f"config.rating: ties {rating.ties!r} must be one of {', '.join(arena.TIES)}, and style "
                         f"{tuple(rating.style)} some of {', '.join(COVARIATES)}")
    if not 0 <= judge.overlap <= 1 or judge.port > 65535:
        raise ValueError(f"config.judge: overlap {judge.overlap} is a share, 0 to 1, and ports end at 65535")
    if not config.players and not 2 <= config.world.things <= len(things("test")):
        raise ValueError(f"config.world.things={config.world.things}: choose 2 to {len(things('test'))}")


def rating_of(config: ConfigDict) -> Rating:
    """How the config rates votes."""
    return Rating(**{**config.rating.to_dict(), "style": tuple(config.rating.style)}, seed=config.seed)


def _played(config: ConfigDict, folder: pathlib.Path, rating: Rating) -> findings.Findings:
    prompts, by_people = prompts_of(config), config.judge.kind == "people"
    players = (rank_players.open_players(config.players, config.replies, config.api) if config.players
               else rank_world.players_of(config))
    if rating.anchor and rating.anchor not in players:
        raise ValueError(f"config.rating.anchor={rating.anchor!r}: the players are {', '.join(players)}")
    judge = None if by_people else judge_of(config, prompts)  # says what is wrong with it before anybody replies
    replies = draw_replies(players, prompts, folder / "replies.jsonl", samples=config.replies.samples, seed=config.seed)
    battles = battles_of(prompts, replies, most=config.battles, seed=config.seed)
    title = f"Arena: {len(players)} players, judged by {config.judge.kind}"
    if by_people:
        return findings_of(rate(_ask_people(config, battles, folder), rating), title, "Judged blind by people.")
    together = config.api.together if config.judge.kind == "model" else 1
    file = folder / f"votes-{version_of(config)}.jsonl"
    votes, unread = play(battles, judge, file, config.judge.kind, together=together), getattr(judge, "unread", 0)
    if not votes:
        raise ValueError(f"the judge gave no verdict that can be read on any of {len(battles)} battles: it must reply "
                         f"with A, B, TIE or BAD alone; take a larger model for config.judge.model")
    board = rate(votes, rating)
    about = f"Judged by {config.judge.kind}{f', which gave no verdict on {unread}' if unread else ''}."
    found = findings_of(board, title, about)
    if not config.players and config.judge.kind == "gold":
        voters = [rate(play(battles, rank_world.person(config, prompts, **change), file, name), rating)
                  for name, change in VOTERS.items()]
        add_voters(found, board, *voters)
    return found


def _ask_people(config: ConfigDict, battles: Sequence[Battle], folder: pathlib.Path) -> list[Vote]:
    """Shows the page until it is told to stop; returns all votes on these battles."""
    try:
        from jaxllm.serve.battle_store import BattleStore
        from jaxllm.serve.battling import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"the page needs the package {error.name}: pip install -e '.[serve]'") from error
    store = BattleStore(battles, folder / "votes.jsonl", config.judge.overlap)
    serve(store, config.judge.host, config.judge.port)
    votes = store.votes()
    if not votes:
        raise ValueError(f"nobody has voted; the replies are kept in {folder}: the same command shows the page again")
    return votes


def rank_checkpoints(players: Mapping[str, str | os.PathLike | Start], prompts: Sequence[Prompt],
                     score: Callable[[int, str], float], folder: pathlib.Path, *, samples: int = 1,
                     temperature: float = 1.0, max_tokens: int = 64, tie: float = 0.0, seed: int = 0,
                     rating: Rating = Rating(), title: str = "Arena", about: str = "") -> findings.Findings:
    """An arena of models at hand, judged by a score of their replies: for experiments with checkpoints to compare.

    Args:
      players: name -> a model folder, or anything with params, model and tokenizer, which has a chat template.
      prompts: conversations that each end with a message to the model.
      score: of (which prompt, reply); more wins.
      folder: where replies.jsonl and votes.jsonl are kept; the same call goes on after a kill. A player that is not a
        folder is known by its name alone, and the score by nothing: give another folder when one of these changes.
      samples, temperature, max_tokens: of the replies.
      tie: scores that differ by no more are a tie.
      seed: of the draws.
      rating: how the votes are rated; see `Rating`.
      title, about: of the findings.
    """
    settings = {"temperature": temperature, "max_tokens": max_tokens}
    speakers = {name: _speaker(player, settings) for name, player in players.items()}
    replies = draw_replies(speakers, prompts, folder / "replies.jsonl", samples=samples, seed=seed)
    votes = play(battles_of(prompts, replies, seed=seed), by_score(score, tie), folder / "votes.jsonl", "score")
    return findings_of(rate(votes, dataclasses.replace(rating, seed=seed)), title, about)


def _speaker(player: str | os.PathLike | Start, settings: dict[str, float]) -> tuple[str, Speak]:
    if isinstance(player, str | os.PathLike):
        return (rank_players.version_of(player, settings), rank_players.speaker(lambda: load_model(player), **settings))
    return str(settings), rank_players.speaker(lambda: (player.params, player.model, player.tokenizer), **settings)


if __name__ == "__main__":
    launch.run(main, default_config="configs/rank.py")
