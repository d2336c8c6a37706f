"""Teaches a model to search for what it does not know, and asks it with the search on and off.

    python -m experiments.look_up --workdir=runs/look_up

For each seed: a base model of a made-up world, fine-tuned on conversations of four kinds (from memory, with a page in
the context, with a call of the search, and from memory although it could search) about other people than those it is
asked about. Controls: the same steps on conversations from memory alone; a search whose pages tell of everybody what is
true of somebody else.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import pathlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import findings, lab, launch
from experiments.look_up_measure import GROUPS, MODES, SIDES, Library, facts_of_side, library, measure, mislaid
from experiments.look_up_report import findings_of
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.conversations import conversation_rows, mix
from jaxllm.data.search_talks import SYSTEM, invented_people, page_talk, plain_talk, search_talk
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.world import SIZES, Fact, World, make_world
from jaxllm.infer.engine import Engine
from jaxllm.infer.tool_search import search_tool
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params
from jaxllm.train.checkpoint import load_model


def main(config: ConfigDict, workdir: str) -> None:
    """Runs or resumes all seeds and writes the report.

    Raises:
      ValueError: a key is out of range.
      FileNotFoundError: no model where the config says.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    settings = {key: value for key, value in config.to_dict().items() if key != "seeds"}
    records: list[dict[str, list[dict[str, Any]]]] = [{} for _ in config.seeds]
    for part, (number, seed) in itertools.product((search, memory), enumerate(config.seeds)):
        records[number] |= lab.kept(folder, f"seed-{seed}-{part.__name__}", [settings, seed],
                                    functools.partial(part, config, seed))
    findings.write(findings_of(records, config), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after the base model is trained."""
    if not importlib.util.find_spec("bm25s"):
        raise ValueError("the search needs the extra `tools`: pip install -e '.[tools]'")
    if config.size not in SIZES:
        raise ValueError(f"config.size={config.size!r}: choose one of {', '.join(SIZES)}")
    wanted, sources = f"world:{{seed}}:{config.size}", config.base.data.sources
    if not config.model and wanted not in sources and any(spec.startswith("world:") for spec in sources):
        raise ValueError(f"config.base.data.sources={sources} lacks {wanted!r}, whose people are "
                         f"to be asked")
    if config.split not in SIDES[1:]:
        raise ValueError(f"config.split={config.split!r}: choose one of {', '.join(SIDES[1:])}")
    if len(set(config.seeds)) != len(config.seeds) or not config.seeds:
        raise ValueError(f"config.seeds={config.seeds}: name one or more, each once")
    for key in ("batch_size", "row_length", "questions", "never_questions", "slots", "max_tokens"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if config.steps <= lab.Recipe.warmup_steps:
        raise ValueError(f"config.steps={config.steps}: choose more than the {lab.Recipe.warmup_steps} of the warm-up")
    for key, count in config.talks.items():
        if count < 1:
            raise ValueError(f"config.talks.{key}={count}: choose 1 or more")


def search(config: ConfigDict, seed: int) -> dict[str, list[dict[str, Any]]]:
    """What is measured of a model that was taught to search -> a record of every question, see
    `look_up_measure.record`."""
    world = make_world(seed, config.size)
    params, model, tokenizer = open_model(config, seed)
    talks = [talk for kind in lessons(config, world, seed).values() for talk in kind]
    ask = asker(fine_tune(params, model, tokenizer, config, seed, talks, "search"), model, tokenizer, config)
    shelves = library(world, config.page_style)
    wrong = library(mislaid(world, seed), config.page_style)
    facts = questions(config, world, seed)
    found = {mode: ask(facts, mode, wrong if mode == "wrong pages" else shelves) for mode in MODES}
    return found | {"new wording": ask(facts, "search", shelves, wording=-1)}


def memory(config: ConfigDict, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The same of the control, which was trained on answers from memory alone."""
    world = make_world(seed, config.size)
    params, model, tokenizer = open_model(config, seed)
    talks = lessons(config, world, seed)["plain"]
    ask = asker(fine_tune(params, model, tokenizer, config, seed, talks, "closed book"), model, tokenizer, config)
    shelves = library(world, config.page_style)
    return {"closed-book training": ask(questions(config, world, seed), "closed book", shelves)}


def asker(params: Params, model: ModelConfig, tokenizer: Tokenizer, config: ConfigDict) -> Callable[..., list[dict]]:
    """`measure` with a model in it."""
    engine = Engine(params, model, slots=config.slots, capacity=model.max_positions, execution=lab.EXECUTION,
                    valid_vocab=tokenizer.vocab_size)
    return functools.partial(measure, engine, tokenizer, max_tokens=config.max_tokens)


def open_model(config: ConfigDict, seed: int) -> tuple[Params, ModelConfig, Tokenizer]:
    """The model to fine-tune, ready for conversations."""
    params, model, tokenizer = load_model(config.model or lab.base_model(config.base, seed))
    if config.row_length > model.max_positions:
        raise ValueError(f"config.row_length={config.row_length}: the model has {model.max_positions} positions")
    if tokenizer.chat_template is None:
        params, tokenizer = lab.chat_start(params, model, tokenizer)
    return params, model, tokenizer


def lessons(config: ConfigDict, world: World, seed: int) -> dict[str, list[Conversation]]:
    """Kind of conversation -> conversations, in the numbers of config.talks; nobody who is asked later is in them."""
    rng, counts = random.Random(f"{seed}/lessons"), config.talks
    facts = facts_of_side(world, "train", seed)
    practice = invented_people(world, counts.search_invented + counts.page, seed)
    about = [rng.choice(list(practice.facts_of(person.name).values())) for person in practice.people]
    searched, paged = about[:counts.search_invented], about[counts.search_invented:]
    pages = library(practice, config.page_style)
    told = [fact for group in ("often", "sometimes", "rare", "once") for fact in _some(facts[group], counts.plain)]

    def wording(fact: Fact) -> int:
        return rng.randrange(fact.wordings - 1)

    return {
        "search_invented": _searches(searched, pages, wording),
        "search_once": _searches(_some(facts["once"], counts.search_once), library(world, config.page_style), wording),
        "page": [page_talk(fact, wording(fact), pages.pages[fact.entity.name]) for fact in paged],
        "known": [plain_talk(fact, wording(fact), SYSTEM) for fact in _some(facts["often"], counts.known)],
        "plain": [plain_talk(fact, wording(fact)) for fact in rng.sample(told, counts.plain)]}


def _searches(facts: Sequence[Fact], shelves: Library, wording) -> list[Conversation]:
    tool = search_tool(shelves.index)
    return [search_talk(fact, wording(fact), lambda query: tool.call({"query": query})) for fact in facts]


def _some(facts: Sequence[Fact], count: int) -> list[Fact]:
    """So many facts, from the start again where there are fewer."""
    return list(itertools.islice(itertools.cycle(facts), count))


def fine_tune(params: Params, model: ModelConfig, tokenizer: Tokenizer, config: ConfigDict, seed: int,
              talks: Sequence[Conversation], label: str) -> Params:
    """The model after config.steps updates on the conversations, in an order of the seed."""
    rows = conversation_rows(talks, tokenizer, config.row_length)
    if rows.too_long:
        raise ValueError(f"{rows.too_long} of {len(talks)} conversations are longer than config.row_length="
                         f"{config.row_length} tokens; raise it")
    recipe = lab.Recipe(config.steps, config.batch_size, config.learning_rate)
    return lab.train(params, model, mix([rows], seed=seed), recipe, f"seed {seed}, {label}")


def questions(config: ConfigDict, world: World, seed: int) -> list[Fact]:
    """The facts to ask, group by group."""
    facts = facts_of_side(world, config.split, seed)
    return [fact for group in GROUPS
            for fact in facts[group][:config.never_questions if group == "never" else config.questions]]


if __name__ == "__main__":
    launch.run(main, default_config="configs/look_up.py")
