"""Conversations about people of the made-up world with a search at hand, with a page in the context, or with neither.

What stands in the system message tells the three apart: SYSTEM where the model may search, a page, or nothing. People
for practice are invented, so that there are as many names as copying a name into a query takes to learn.

>>> from jaxllm.data.world import make_world
>>> world = make_world(seed=0, size="tiny")
>>> practice = invented_people(world, 5, seed=0)
>>> {fact.entity.name for fact in practice.facts} & set(world.facts_by_name)
set()
>>> query_for(practice.facts[1]).startswith("job of ")
True
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.world import Entity, Fact, World
from jaxllm.data.world_talks import value_reply
from jaxllm.data.world_words import LABELS, VALUES

SYSTEM = "You can search."


def invented_people(world: World, count: int, seed: int) -> World:
    """A world of people that are not in `world`, each with all facts, told nowhere.

    Their names pair first and last names that people of the world bear, as those of its band "never" do, so that
    nothing in a name shows who is real.

    Args:
      world: whose names, places and seed are taken.
      count: people to invent.
      seed: of the draw.

    Raises:
      ValueError: when more are wanted than half of the pairs that are left.
    """
    rng = random.Random(f"{world.seed}/invented/{seed}")
    pronouns = {person.name.split()[0]: person.pronoun for person in world.people}
    lasts = sorted({person.name.split()[1] for person in world.people})
    taken = {person.name for person in world.people}
    room = (len(pronouns) * len(lasts) - len(taken)) // 2
    if count > room:
        raise ValueError(f"{count} people were to be invented of {len(pronouns)} first and {len(lasts)} last names, of "
                         f"which at most {room} go; ask for fewer or take a larger world")
    names: dict[str, None] = {}
    while len(names) < count:
        name = f"{rng.choice(sorted(pronouns))} {rng.choice(lasts)}"
        if name not in taken:
            names[name] = None
    people = tuple(Entity("person", name, "never", pronouns[name.split()[0]]) for name in names)
    choices = {attribute: world.values("person", attribute) for attribute in VALUES["person"]}
    facts = tuple(Fact(person, attribute, rng.choice(values), "never", 0)
                  for person in people for attribute, values in choices.items())
    return dataclasses.replace(world, people=people, places=(), things=(), facts=facts)


def query_for(fact: Fact) -> str:
    """What to search for: the attribute and the name, in tokens of the question (a name behind a space)."""
    return f"{LABELS[fact.attribute].lower()} of {fact.entity.text}"


def prompt(fact: Fact, wording: int, system: str = "") -> list[dict[str, Any]]:
    """The question on a fact, below a system message where there is one."""
    question = {"role": "user", "content": fact.question(wording)}
    return [{"role": "system", "content": system}, question] if system else [question]


def plain_talk(fact: Fact, wording: int, system: str = "") -> Conversation:
    """The question, answered from memory at once; with SYSTEM, although the model could search."""
    return _talk(fact, [*prompt(fact, wording, system), _answer(fact)])


def page_talk(fact: Fact, wording: int, page: str) -> Conversation:
    """The question with a page in the system message, on which the answer stands."""
    return _talk(fact, [*prompt(fact, wording, page), _answer(fact)])


def search_talk(fact: Fact, wording: int, search: Callable[[str], str]) -> Conversation:
    """The question, a call of `search`, what it finds, and the answer.

    Args:
      fact: which the result tells.
      wording: of the question, an index.
      search: the tool, from a query to its result.
    """
    query = query_for(fact)
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": query}}}
    return _talk(fact, [*prompt(fact, wording, SYSTEM), {"role": "assistant", "tool_calls": [call]},
                        {"role": "tool", "name": "search", "content": search(query)}, _answer(fact)])


def _answer(fact: Fact) -> dict[str, str]:
    return {"role": "assistant", "content": value_reply(fact)}


def _talk(fact: Fact, messages: Sequence[dict[str, Any]]) -> Conversation:
    return Conversation(list(messages), where=f"world: {fact.entity.name}, {fact.attribute}", origin=fact.entity.name)
