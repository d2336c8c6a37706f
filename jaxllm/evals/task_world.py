"""Tasks about the made-up world: what its documents tell, what they keep from the reader, and its word problems.

    world/facts      questions on facts that documents tell, four answers each
    world/untold     the same on facts that no document tells: nobody can be right but by chance
    world/problems   held-out word problems, the answer written by the model
"""

from __future__ import annotations

import random
import re

from jaxllm.data.verifiable import world_tasks
from jaxllm.data.world import SIZES, Fact, World, make_world
from jaxllm.evals.tasks import Item, Task

WORLD = ("world/facts", "world/untold", "world/problems")
CANDIDATES = 4
_MOST = 400  # items of a task


def world_task(name: str, spec: str) -> Task:
    """A task of WORLD on the world "SEED:SIZE".

    Raises:
      ValueError: for an unknown name, or no such world.
    """
    match = re.fullmatch(r"(\d+):(\w+)", spec)
    if name not in WORLD or match is None or match[2] not in SIZES:
        raise ValueError(f"{name}={spec}: name one of {', '.join(WORLD)} and a world, as in world/facts=0:lab; sizes "
                         f"are {', '.join(SIZES)}")
    if name == "world/problems":
        return problems_task(int(match[1]))
    return facts_task(make_world(int(match[1]), match[2]), seed=int(match[1]), told=name == "world/facts")


def facts_task(world: World, seed: int = 0, *, told: bool = True, count: int = _MOST) -> Task:
    """Questions as documents ask them ("Q: ... A: ..."), with values of other entities for wrong answers.

    Args:
      world: from `make_world`.
      seed: of the draw of facts, wordings and wrong answers.
      told: facts that documents tell; else facts that none does.
      count: items at most.
    """
    rng = random.Random(f"{seed}/facts")
    facts = [fact for fact in world.facts if (fact.band != "never") == told]
    facts = rng.sample(facts, min(count, len(facts)))
    values: dict[tuple[str, str], list[str]] = {}
    for fact in world.facts:
        values.setdefault((fact.entity.kind, fact.attribute), []).append(fact.value)
    name = "world/facts" if told else "world/untold"
    items = [_question(fact, sorted(set(values[fact.entity.kind, fact.attribute]) - {fact.value}), rng)
             for fact in facts]
    return Task(name, "choice", tuple(items), chance=1 / CANDIDATES,
                note="" if told else "Nobody can know these: a score above chance is a fault of the measurement.")


def _question(fact: Fact, others: list[str], rng: random.Random) -> Item:
    choices = rng.sample(others, CANDIDATES - 1)
    gold = rng.randrange(CANDIDATES)
    choices.insert(gold, fact.value)
    question = fact.question(rng.randrange(fact.wordings - 1))
    return Item((f"Q: {question}\nA:",), tuple(f"{choice}." for choice in choices), (gold,),
                key=f"{fact.entity.name}/{fact.attribute}")


def problems_task(seed: int = 0, count: int = 100) -> Task:
    """Held-out word problems as documents put them; the last number of the line is the answer."""
    items = tuple(Item((f"Problem: {task.prompt[0]['content']}",), (f"Solution: {task.reference}",), answer=task.answer,
                       verifier="number", key=task.key) for task in world_tasks(seed, count, "held_out"))
    return Task("world/problems", "generation", items, delimiter="\n", stop=("\n\n", "\nProblem:"), max_tokens=96)
