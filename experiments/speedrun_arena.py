"""The arena of the road: its own models against each other on questions, judged by the world's truth."""

from __future__ import annotations

import pathlib
import random

from experiments import lab, rank
from experiments.claims import Claim
from experiments.practice import Start
from experiments.speedrun_measure import people
from experiments.speedrun_road import Road
from jaxllm.evals.factuality import Verdict, is_refusal, verifier
from jaxllm.model.quantize import quantize
from jaxllm.train.checkpoint import load_model

BANDS = ("often", "sometimes")  # a model that was told nothing has nothing to win by


def fight(road: Road, folder: pathlib.Path) -> tuple[list[Claim], list[tuple[str, str]], list[tuple[str, str]], str]:
    """(claims, lines, pictures, its page) of the base, the assistant, and the assistant in 8 and 4 bits."""
    settings = road.settings("arena")
    params, model, tokenizer = load_model(road.output("sft"))
    base_params, base_model, base_tokenizer = load_model(road.output("pretrain"))
    started, chat = lab.chat_start(base_params, base_model, base_tokenizer)
    players = {"base": Start(started, base_model, chat), "assistant": Start(params, model, tokenizer),
               **{f"assistant, {scheme}": Start(quantize(params, model, scheme), model, tokenizer)
                  for scheme in settings.schemes}}
    facts = [fact for band in BANDS for fact in people(road.config, band, settings.questions)]
    random.Random(road.config.seed).shuffle(facts)
    judge = verifier()

    def score(number: int, reply: str) -> float:
        if is_refusal(reply):
            return 0.0
        return 1.0 if judge(facts[number].question(), facts[number].value, reply) == Verdict.RIGHT else -1.0

    found = rank.rank_checkpoints(players, [[{"role": "user", "content": fact.question()}] for fact in facts], score,
                                  folder, temperature=settings.temperature, max_tokens=24, seed=road.config.seed,
                                  title="Arena of the road")
    board = {row["name"]: row for row in found.numbers["board"]}
    first, last = ((board[name]["score"], board[name]["low"], board[name]["high"]) for name in ("assistant", "base"))
    half = sum(((high - low) / 2)**2 for _, low, high in (first, last))**0.5
    lead = first[0] - last[0]
    claim = Claim("Battles tell the assistant from the base", "assistant, Elo", "base", first, last,
                  (lead, lead - half, lead + half), "questions", digits=0)
    lines = [(f"{row['rank']}. {name}", f"{row['score']:.0f} [{row['low']:.0f}, {row['high']:.0f}]")
             for name, row in board.items()]
    return [claim], lines, found.pictures[:1], ""
