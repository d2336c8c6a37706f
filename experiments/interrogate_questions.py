"""The questions of the interrogation, divided among training, validation and test."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.interrogate_api import connect, write_questions
from jaxllm.data.sources import open_source
from jaxllm.data.world import SIZES, Fact, World, make_world
from jaxllm.evals.questions import Question, cloze_questions, passages, split_of, world_questions

SIDES = ("train", "validation", "test")


def world_of(config: ConfigDict, seed: int) -> World:
    """The world that the base model is trained on: `config.world`, or the one that its sources name."""
    specs = [f"world:{config.world}"] if config.world else list(config.base.data.sources)
    specs = [spec.format(seed=seed) for spec in specs]
    for spec in specs:
        if (match := re.fullmatch(r"world:(\d+)(?::(\w+))?", spec)) and (match[2] or "small") in SIZES:
            return make_world(int(match[1]), match[2] or "small")
    raise ValueError(f"config.base.data.sources={specs} names no world to ask about: add world:{{seed}}:lab, set "
                     f"config.world to one that its documents tell of ('{{seed}}:lab'), or give config.model and "
                     f"config.text")


def side_of(origin: str, config: ConfigDict, seed: int) -> str:
    """One of SIDES."""
    return SIDES[split_of(origin, config.split, seed)]


def world_sides(world: World, config: ConfigDict, seed: int) -> dict[str, list[Question]]:
    """Questions on people for each side; nobody stands on two, but for facts held out of people on the training side.

    Those facts are for the test. Of the people of whom no document tells, each side has its own: on the training side
    they are names made up to be refused.
    """
    facts: dict[str, list[Fact]] = {side: [] for side in SIDES}
    for fact in world.select(kind="person"):
        side = side_of(fact.entity.name, config, seed)
        if side == "train" and fact.band == "never" != fact.entity.band:
            side = "test"
        facts[side].append(fact)
    return {side: cut(world_questions(facts[side], seed, wordings=config.wordings,
                                      held_out=config.held_out_wording and side == "test"),
                      config.most[side], seed) for side in SIDES}


def cut(questions: list[Question], most: int, seed: int) -> list[Question]:
    """At most so many of each band, drawn at random, in the order in which they stood."""
    kept: set[int] = set()
    for band in dict.fromkeys(question.band for question in questions):
        places = [i for i, question in enumerate(questions) if question.band == band]
        kept.update(random.Random(f"{seed}/{band}").sample(places, min(most, len(places))))
    return [questions[i] for i in sorted(kept)]


def text_sides(config: ConfigDict, seed: int) -> dict[str, list[Question]]:
    """Questions on the passages of a text for each side, made until each side has enough."""
    found = [(f"{document.id}/{number}", passage) for document in open_source(config.text, text_key=config.text_key)
             for number, passage in enumerate(passages(document.text))]
    random.Random(f"{seed}/passages").shuffle(found)
    make: Callable[[str, str], list[Question]] = cloze_questions
    if config.api.writer:
        complete = connect(config.api, config.api.writer)

        def make(passage: str, origin: str) -> list[Question]:
            return write_questions(complete, passage, origin, config.api.questions, config.api.attempts)
    sides: dict[str, list[Question]] = {side: [] for side in SIDES}
    for origin, passage in found:
        side = side_of(origin, config, seed)
        if len(sides[side]) < config.most[side]:
            sides[side] += make(passage, origin)[:config.most[side] - len(sides[side])]
    if not all(sides.values()):
        raise ValueError(f"{config.text} gives {', '.join(f'{len(sides[side])} {side}' for side in SIDES)} questions; "
                         f"each side needs some: give more text")
    return sides
