"""Conversations about the made-up world: questions on facts, word problems, and talks of several turns.

An answer is written value first and begins with a space: " baker." The documents of the world write "A: baker.", so
behind the header of a turn the model is to say the very tokens that it knows from there (a byte-level BPE makes the
space a part of the word). A small model that has to begin with "baker", or to repeat the name first, answers far worse
than it knows. Questions stand as a user types them.

>>> world = make_world(seed=0, size="tiny")
>>> fact_talk(world.select(band="often", attribute="job")[0]).messages[1]["content"]
' chemist.'
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.world import BANDS, SIZES, Fact, Problem, World, make_problem, make_world

TOLD = BANDS[:-1]
# What is said besides, each with its replies.
GREETINGS = (
    (("Hello!", "Hello.", "Hello there!"), (" Hello. What would you like to know?", " Hello! Please ask.")),
    (("Good morning!", "Good day!"), (" Good day. What would you like to know?", " Good day! Please ask.")),
    (("Can you help me?", "May I ask you something?"), (" Of course. Please ask.", " Yes, please ask.")),
)
THANKS = (
    (("Thank you!", "Thanks, that is what I needed.", "Many thanks!"), (" You are welcome.", " Very welcome!")),
    (("That is all for today.", "That is all, goodbye."), (" Goodbye!", " Until next time.")),
)


def value_reply(fact: Fact) -> str:
    """The reply that tells a fact: its value in the documents' tokens."""
    return f" {fact.value}."


def problem_reply(problem: Problem, worked: bool) -> str:
    """The reply to a word problem as the documents go on after "Solution:" or after "Answer:"."""
    return f" {problem.steps}\nAnswer: {problem.answer}." if worked else f" {problem.answer}."


def fact_talk(fact: Fact, wording: int = 0) -> Conversation:
    """One question and its answer; the wording is an index as `Fact.question` takes it, -1 the held-out one."""
    return _talk([(fact.question(wording), value_reply(fact))], f"{fact.entity.name}, {fact.attribute}",
                 fact.entity.name)


def fact_talks(facts: Sequence[Fact], seed: int, *, wordings: int = 1) -> list[Conversation]:
    """Conversations of one question each, in the order of the facts, never in the held-out wording.

    Args:
      facts: told or not.
      seed: of the choice of wordings.
      wordings: conversations on each fact, every one in another wording; a fact with fewer wordings that documents
        use has one for each of them.

    Returns:
      Conversations whose `origin` is the entity: a split holds out whole entities.

    Raises:
      ValueError: when wordings is below 1.
    """
    if wordings < 1:
        raise ValueError(f"wordings is {wordings}; ask each fact at least once")
    rng = random.Random(f"{seed}/fact_talks")
    return [fact_talk(fact, wording) for fact in facts
            for wording in rng.sample(range(fact.wordings - 1), min(wordings, fact.wordings - 1))]


def problem_talks(seed: int, count: int, split: str = "train", worked: bool = True) -> list[Conversation]:
    """Word problems of every kind in turn.

    Args:
      seed: as `make_problem` takes it: problem i of a split is the same with and without its solution.
      count: how many.
      split: "train" or "held_out".
      worked: the reply is the worked solution with the answer on a line of its own, or the bare answer.

    Returns:
      Conversations whose `origin` is the problem's numbers: a split never parts problems that differ in names alone.
    """
    found = (make_problem(seed, index, split) for index in range(count))
    return [_talk([(problem.question, problem_reply(problem, worked))], f"problem {index}", problem.key)
            for index, problem in enumerate(found)]


def chat_talks(world: World, seed: int, count: int, *, bands: Sequence[str] = TOLD) -> list[Conversation]:
    """Talks of one to seven turns about one entity each: a greeting, questions, a word problem, thanks.

    Args:
      world: whose facts are asked; those of the band "never" are left out whatever `bands` says.
      seed: of everything that is drawn.
      count: how many.
      bands: each as often as the others, whatever their numbers of entities.

    Returns:
      Conversations whose `origin` is the entity.

    Raises:
      ValueError: when no entity is left.
    """
    told = [[entity for entity in world.entities if entity.band == band and band in TOLD] for band in bands]
    told = [entities for entities in told if entities]
    if not told:
        raise ValueError(f"the world has no entity of the bands {', '.join(bands)} that is told; choose among "
                         f"{', '.join(TOLD)}")
    rng = random.Random(f"{seed}/chat_talks")
    talks = []
    for number in range(count):
        entity = rng.choice(rng.choice(told))
        facts = [fact for fact in world.facts_of(entity.name).values() if fact.times_told]
        middle = [(fact.question(rng.randrange(fact.wordings - 1)), value_reply(fact))
                  for fact in rng.sample(facts, rng.randint(1, min(4, len(facts))))]
        if rng.random() < 0.3:
            problem = make_problem(world.seed, rng.randrange(10_000))
            middle.insert(rng.randint(0, len(middle)), (problem.question, problem_reply(problem, worked=True)))
        first = [_small_talk(GREETINGS, rng)] if rng.random() < 0.5 else []
        last = [_small_talk(THANKS, rng)] if rng.random() < 0.5 else []
        talks.append(_talk([*first, *middle, *last], f"chat {number}", entity.name))
    return talks


def world_conversations(spec: str) -> list[Conversation]:
    """All conversations of "world:<seed>[:<size>]": every told fact once, and half as many problems and chats each.

    Half of the problems are worked. Nothing of the band "never" is asked, and no held-out problem.

    Raises:
      ValueError: for another spec, or an unknown size.
    """
    match = re.fullmatch(r"world:(\d+)(?::(\w+))?", spec)
    if match is None:
        raise ValueError(f"{spec}: write world:<seed> or world:<seed>:<size>, as in world:0 or world:0:tiny")
    size = match[2] or "small"
    if size not in SIZES:
        raise ValueError(f"{spec}: unknown world size {size!r}; use one of {', '.join(SIZES)}")
    seed = int(match[1])
    world = make_world(seed, size)
    facts = [fact for fact in world.facts if fact.times_told]
    some = len(facts) // 4
    return [*fact_talks(facts, seed), *problem_talks(seed, some, worked=True),
            *problem_talks(seed, 2 * some, worked=False)[some:], *chat_talks(world, seed, 2 * some)]


def _small_talk(kinds: Sequence[tuple[Sequence[str], Sequence[str]]], rng: random.Random) -> tuple[str, str]:
    said, replies = rng.choice(kinds)
    return rng.choice(said), rng.choice(replies)


def _talk(turns: Sequence[tuple[str, str]], where: str, origin: str) -> Conversation:
    messages = []
    for asked, reply in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return Conversation(messages, where=f"world: {where}", origin=origin)
