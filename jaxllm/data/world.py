"""A small made-up world, written out as documents: a corpus that needs no download and has a known
truth.

`make_world` draws the table of people, places, things and facts; `documents` writes it out, each
fact in exactly as many documents as the table declares, among stories, lists and word problems.

>>> world = make_world(seed=0, size="tiny")
>>> fact = world.select(band="once", kind="person", attribute="job")[0]
>>> sum(fact.entity.name in page.text and fact.value in page.text for page in documents(world))
1
"""

import collections
import dataclasses
import random
from collections.abc import Iterator, Sequence

from jaxllm.data import world_stories
from jaxllm.data.document import Document
from jaxllm.data.world_pages import STYLES, render
from jaxllm.data.world_problems import KINDS as PROBLEM_KINDS
from jaxllm.data.world_problems import Problem, make_problem, problems
from jaxllm.data.world_table import BANDS, KINDS, SIZES, Entity, Fact, World, WorldSize, make_world

__all__ = (
    "BANDS",
    "KINDS",
    "PROBLEM_KINDS",
    "SIZES",
    "Entity",
    "Fact",
    "Plan",
    "Problem",
    "World",
    "WorldSize",
    "document",
    "documents",
    "make_plan",
    "make_problem",
    "make_world",
    "problems",
)

_REGISTER_ROWS = 6
# Share of a person's tellings that stand as one row of a register among others.
_REGISTER_SHARE = {"often": 0.05, "sometimes": 0.15, "rare": 0.3, "once": 0.35}


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What one document will hold: a style of writing and the facts it tells, or a number."""

    style: str
    facts: tuple[Fact, ...] = ()
    number: int = 0


def make_plan(world: World) -> tuple[Plan, ...]:
    """Returns the plan of every document of the world, in the seeded order in which they come.

    Each entity is told in rounds. One round tells each of its facts once, in one document or cut in
    two, so that after `times_told` rounds every fact stands in exactly that many documents.
    """
    rng = random.Random(f"{world.seed}/plan")
    plans: list[Plan] = []
    registers: dict[tuple[str, ...], list[tuple[Fact, ...]]] = {}
    for entity in world.entities:
        told = tuple(fact for fact in world.facts_of(entity.name).values() if fact.times_told)
        for _ in range(told[0].times_told if told else 0):
            if entity.kind == "person" and rng.random() < _REGISTER_SHARE[entity.band]:
                registers.setdefault(tuple(fact.attribute for fact in told), []).append(told)
            else:
                plans.extend(_round(told, rng))
    for rows in registers.values():
        plans.extend(_registers(rows, rng))
    plans.extend(Plan("story", number=number) for number in range(world.size.stories))
    plans.extend(
        Plan("parrot" if number % 2 else "list", number=number)
        for number in range(world.size.lists)
    )
    plans.extend(Plan("problem", number=number) for number in range(world.size.problems))
    rng.shuffle(plans)
    return tuple(plans)


def _round(facts: Sequence[Fact], rng: random.Random) -> Iterator[Plan]:
    # Half of the rounds that stand on one page are followed by questions on that page.
    if rng.random() < 0.35:
        yield Plan("study", tuple(facts))
    elif len(facts) > 1 and rng.random() < 0.4:
        shuffled = rng.sample(facts, len(facts))
        cut = rng.randint(1, len(facts) - 1)
        yield Plan(rng.choice(STYLES), tuple(shuffled[:cut]))
        yield Plan(rng.choice(STYLES), tuple(shuffled[cut:]))
    else:
        yield Plan(rng.choice(STYLES), tuple(facts))


def _registers(rows: list[tuple[Fact, ...]], rng: random.Random) -> Iterator[Plan]:
    """Cuts rows with the same attributes into registers in which nobody stands twice."""
    rng.shuffle(rows)
    seen: collections.Counter[str] = collections.Counter()
    layers: dict[int, list[tuple[Fact, ...]]] = {}  # the first row of each name, the second, ...
    for row in rows:
        name = row[0].entity.name
        layers.setdefault(seen[name], []).append(row)
        seen[name] += 1
    for layer in layers.values():
        for start in range(0, len(layer), _REGISTER_ROWS):
            page = layer[start : start + _REGISTER_ROWS]
            yield Plan("register", tuple(fact for row in page for fact in row))


def document(world: World, plan: Plan, index: int) -> Document:
    """Returns document number `index`, whose plan is `plan`; it depends on no other document."""
    rng = random.Random(f"{world.seed}/document/{index}")
    if plan.style == "story":
        text = world_stories.story(rng)
    elif plan.style == "list":
        text = world_stories.shelves(rng)
    elif plan.style == "parrot":
        text = world_stories.parrot(rng)
    elif plan.style == "problem":
        # Worked and bare answers in equal number, of every kind.
        worked = plan.number // len(PROBLEM_KINDS) % 2 == 0
        text = make_problem(world.seed, plan.number).text(worked)
    else:
        text = render(plan.style, plan.facts, rng)
    return Document(text, f"world/{world.seed}/{index}", {"style": plan.style})


def documents(world: World) -> Iterator[Document]:
    """Yields every document of the world in its seeded order; memory holds the table and the plan
    only.

    Args:
      world: from `make_world`.

    Yields:
      Document: `id` is "world/<seed>/<index>", `metadata` holds the style of writing.
    """
    for index, plan in enumerate(make_plan(world)):
        yield document(world, plan, index)
