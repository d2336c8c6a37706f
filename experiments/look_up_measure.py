"""Looking up, asked: who is asked what, in which way, and what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.data.search_talks import SYSTEM, prompt, query_for
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.world import BANDS, Fact, World
from jaxllm.infer.engine import Engine
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.infer.tool_loop import Transcript, run_with_tools
from jaxllm.infer.tool_search import SearchIndex, search_tool, world_encyclopedia

# A question counts for its fact's band, but for what no document tells about a person whom documents speak of.
HELD_OUT = "held out"
GROUPS = (*BANDS, HELD_OUT)
MODES = ("closed book", "page", "search", "wrong pages")
SIDES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Library:
    """Pages to search in, the world that they are true in, and the text of each by its title."""

    world: World
    pages: Mapping[str, str]
    index: SearchIndex


def library(world: World, style: str) -> Library:
    """A page on each entity of a world; a card begins with the bare name, as pages of other styles do."""
    pages = {title: text.removeprefix("Name: ") for title, text in world_encyclopedia(world, style)}
    return Library(world, pages, SearchIndex(pages.items()))


def mislaid(world: World, seed: int) -> World:
    """The same people with all facts of somebody else: nobody keeps their own."""
    names = [person.name for person in world.people]
    random.Random(f"{seed}/mislaid").shuffle(names)
    giver = dict(zip(names, names[1:] + names[:1], strict=True))
    facts = tuple(dataclasses.replace(fact, value=world.facts_of(giver[fact.entity.name])[fact.attribute].value)
                  if fact.entity.kind == "person" else fact for fact in world.facts)
    return dataclasses.replace(world, facts=facts)


def side_of(fact: Fact, seed: int) -> str:
    """One of SIDES by a hash of the person: a half trains and a quarter each tests; whom no document tells, only tests.
    """
    place = hashlib.sha256(f"{seed}/{fact.entity.name}".encode()).digest()[0] / 256
    if fact.entity.band == "never":
        return "validation" if place < 0.5 else "test"
    return "train" if place < 0.5 else "validation" if place < 0.75 else "test"


def group_of(fact: Fact) -> str:
    """One of GROUPS: where a question on the fact counts."""
    return fact.band if fact.band == fact.entity.band else HELD_OUT


def facts_of_side(world: World, side: str, seed: int) -> dict[str, list[Fact]]:
    """Group -> the facts on people of a side, in an order drawn from the seed."""
    facts = [fact for fact in world.select(kind="person") if side_of(fact, seed) == side]
    random.Random(f"{seed}/facts/{side}").shuffle(facts)
    return {group: [fact for fact in facts if group_of(fact) == group] for group in GROUPS}


def measure(engine: Engine, tokenizer: Tokenizer, facts: Sequence[Fact], mode: str, shelves: Library, *,
            wording: int | None = None, max_tokens: int = 64) -> list[dict[str, Any]]:
    """Asks each fact once, greedily, and says of each what happened.

    Args:
      engine: holds the model.
      tokenizer: with the chat format.
      facts: what is asked, of the true world.
      mode: one of MODES. "page" puts the right page of `shelves` into the system message; "search" and "wrong pages"
        give the tool.
      shelves: what the search finds; of "wrong pages" those of a mislaid world.
      wording: of all questions; None takes those that documents use in turn, -1 is the held-out one.
      max_tokens: of a reply.

    Returns:
      As many records as facts, see `record`.
    """
    wordings = [number % (fact.wordings - 1) if wording is None else wording for number, fact in enumerate(facts)]
    system = {"closed book": lambda fact: "", "page": lambda fact: shelves.pages[fact.entity.name]}.get(
        mode, lambda fact: SYSTEM)
    prompts = [prompt(fact, number, system(fact)) for fact, number in zip(facts, wordings, strict=True)]
    tools = [] if mode in ("closed book", "page") else [search_tool(shelves.index)]
    transcripts = run_with_tools(engine, prompts, tools, tokenizer, settings=SamplingSettings(temperature=0.0),
                                 max_calls=1, max_tokens=max_tokens, describe=False)
    return [record(fact, transcript, shelves, len(asked))
            for fact, transcript, asked in zip(facts, transcripts, prompts, strict=True)]


def record(fact: Fact, transcript: Transcript, shelves: Library, asked: int) -> dict[str, Any]:
    """What came of a question.

    Args:
      fact: what was asked.
      transcript: how it went.
      shelves: what was searched.
      asked: messages of the prompt.

    Returns:
      group, attribute; said: the last words; right: whether they are the value; searched: whether a call was run;
      query; query_right: whether it is `query_for(fact)`; found: whether the page is on the person; copied: whether
      the last words are what the page found tells, None without a page.
    """
    messages = transcript.messages[asked:]
    calls = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]
    results = [message["content"] for message in messages if message["role"] == "tool"]
    query = _query(calls[0]) if calls else None
    title = results[0].split("\n", 1)[0] if results else None
    told = shelves.world.facts_by_name.get(title, {}).get(fact.attribute)
    last = messages[-1].get("content") if messages[-1]["role"] == "assistant" else None
    said = (last or "").strip().removesuffix(".")
    return {"group": group_of(fact), "attribute": fact.attribute, "name": fact.entity.name, "value": fact.value,
            "said": said, "right": said == fact.value, "searched": bool(results), "query": query,
            "query_right": query == query_for(fact), "found": title == fact.entity.name,
            "copied": None if told is None else said == told.value}


def _query(arguments: str | Mapping[str, Any]) -> str | None:
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    query = arguments.get("query")
    return query if isinstance(query, str) else None
