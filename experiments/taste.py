"""A model that tells jokes, for the experiments that learn from taste: made once, drawn from, and judged.

    python -m experiments.taste --workdir=runs/taste

`start`, `draw` and `judge` are what experiments.reward_model, policy_gradient and reward_hacking share. Run by itself
it compares the model's jokes with the corpus and simulated people with each other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import random
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import findings, lab, launch, report
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.conversations import conversation_rows
from jaxllm.data.loader import Rows
from jaxllm.data.preferences import Ranking
from jaxllm.data.tokenizer import Tokenizer, train_tokenizer
from jaxllm.data.world_taste import Human, gold, gold_parts, joke, prompt, rank, talks, thing_of, things
from jaxllm.evals.agreement import agreement
from jaxllm.evals.intervals import spread, t_interval
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params, init
from jaxllm.train.checkpoint import load_model, save_model

# Who tells the jokes that the judge hears. The last is the control: the judge must notice that they miss their thing.
TELLERS = {"corpus": "people (the corpus)", "model": "the model", "other": "people, about another thing"}
# The annotators whose agreement is measured, besides the person of the config: one without noise, and a coin.
PEOPLE = {"human": "as configured", "exact": "no noise", "coin": "noise alone (x 1000)"}


def main(config: ConfigDict, workdir: str) -> None:
    """Makes the model of every seed, judges its jokes, lets people rank some, and writes what was found.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs = []
    for seed in config.seeds:
        some = [gold(thing_of(talk[:1]), talk[1]["content"]) for talk in talks(seed, 50)]
        settings = {**config.to_dict(), "seeds": seed, "cache": None, "corpus": corpus_key(seed), "gold": some}
        run = lab.kept(folder / "kept", f"taste-{seed}", settings, functools.partial(measure, config, seed))
        runs.append(run)
        means = ", ".join(f"{name} {run[key]['gold']:.3f}" for key, name in TELLERS.items())
        print(f"seed {seed}: gold of {means}; {time.perf_counter() - begun:.0f} s in all", flush=True)
    asked = [{"prompt": prompt(thing)} for thing in things("train")]
    report.write_text(folder / "prompts.jsonl", "".join(f"{json.dumps(record)}\n" for record in asked))
    findings.write(findings_of(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after training."""
    check_start(config.start)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    if not 1 <= config.things <= len(things("validation")):
        raise ValueError(f"config.things={config.things}: choose 1 to {len(things('validation'))}")
    for key, least in (("samples", 1), ("rankings", 2), ("completions", 2), ("people", 2)):
        if config[key] < least:
            raise ValueError(f"config.{key}={config[key]}: choose {least} or more")
    if not config.temperature > 0 or config.human.noise < 0 or config.human.tie < 0:
        raise ValueError("config.temperature must be above 0, and config.human.noise and config.human.tie not below")


def measure(config: ConfigDict, seed: int) -> dict[str, Any]:
    """Gold, its parts and variety of the jokes of each of TELLERS; agreement of people, for each of PEOPLE."""
    made = start(config.start, seed, pathlib.Path(config.cache))
    asked = list(things("validation")[:config.things])
    answers = draw(made.params, made.model, made.tokenizer, asked, samples=config.samples, seed=seed,
                   temperature=config.temperature, max_tokens=config.start.max_tokens)
    rng = random.Random(f"{seed}/taste")
    corpus = [[joke(rng, thing) for _ in range(config.samples)] for thing in asked]
    model = [[answer.text for answer in row] for row in answers]
    told = {messages[-1]["content"] for messages in talks(seed, config.start.talks)}
    found: dict[str, Any] = {"corpus": heard(asked, corpus), "model": heard(asked, model),
                             "other": heard(asked[1:] + asked[:1], corpus)}
    found["model"] |= {"ended": float(np.mean([answer.ended for row in answers for answer in row])),
                       "told": float(np.mean([text in told for row in model for text in row]))}
    human = Human(**config.human.to_dict())
    exact = dataclasses.replace(human, noise=0.0)
    for name, person in (("human", human), ("exact", exact), ("coin", dataclasses.replace(human, noise=1e3))):
        found[name] = people_agree(config, person, seed)
    return found


def heard(asked: Sequence[str], jokes: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What the judge says of jokes about things: mean gold, its spread, the share of different texts, mean parts."""
    judged = judge(asked, jokes)
    parts = [gold_parts(thing, text) for thing, row in zip(asked, jokes, strict=True) for text in row]
    return {"gold": float(judged.mean()), "spread": float(judged.std()),
            "different": len({text for row in jokes for text in row}) / judged.size,
            "parts": {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}}


def people_agree(config: ConfigDict, person: Human, seed: int) -> dict[str, float]:
    """How people who differ in their noise alone agree on sets of the corpus's jokes, with each other and with gold."""
    rng = random.Random(f"{seed}/people")
    rankings: list[Ranking] = []
    for messages in itertools.islice(talks(seed + 1, config.rankings, "validation"), config.rankings):
        thing = thing_of(messages[:1])
        jokes = [joke(rng, thing) for _ in range(config.completions)]
        rankings += [rank(dataclasses.replace(person, annotator=f"person {i}"), thing, jokes, rng)
                     for i in range(config.people)]
    agreed = agreement(rankings, samples=2)  # the intervals here are over seeds
    right = [gold(thing_of(r.prompt), r.completions[i]) > gold(thing_of(r.prompt), r.completions[j])
             for r in rankings for i, j in r.pairs()]
    pairs = len(rankings) * config.completions * (config.completions - 1) // 2
    return {"decided": float(np.mean([pair.decided for pair in agreed.two])), "gold": float(np.mean(right)),
            "kappa": agreed.fleiss[0], "tied": 1 - len(right) / pairs}


def findings_of(config: ConfigDict, runs: Sequence[dict[str, Any]]) -> findings.Findings:
    """The tables of jokes, of the parts of gold, and of agreement."""
    def over(*keys: str) -> str:
        values = [functools.reduce(lambda found, key: found[key], keys, run) for run in runs]
        return spread(t_interval(values)) if len(values) > 1 else f"{values[0]:.3f}"

    count = f"{config.things} things of the validation split, {config.samples} jokes each; mean [95%, t over "
    jokes = findings.Table("Jokes by the gold judge", [
        ["jokes of", "gold", "its spread", "different texts"],
        *[[name, over(key, "gold"), over(key, "spread"), over(key, "different")] for key, name in TELLERS.items()]],
        f"{count}{len(runs)} seeds]. Gold is in standard deviations of the corpus. Of the model's jokes "
        f"{over('model', 'told')} stand in what it was trained on, and {over('model', 'ended')} end by themselves.")
    names = list(runs[0]["corpus"]["parts"])
    parts = findings.Table("The parts of gold, points", [
        ["part", *TELLERS.values()], *[[name, *[over(key, "parts", name) for key in TELLERS]] for name in names]])
    people = findings.Table("Agreement of people", [
        ["people", "same order of a pair", "gold's order of a pair", "kappa (Fleiss)", "tied pairs"],
        *[[name, *[over(key, part) for part in ("decided", "gold", "kappa", "tied")]] for key, name in PEOPLE.items()]],
        f"{config.people} people on {config.rankings} sets of {config.completions} jokes of the corpus. The first two "
        f"columns leave out tied pairs.")
    return findings.Findings("Jokes, their judge and people", [jokes, parts, people], [],
                             {"runs": list(runs)})


@dataclasses.dataclass(frozen=True)
class Start:
    """A chat model that tells jokes; its tokenizer knows its chat format."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer


def start(settings: ConfigDict, seed: int, cache: pathlib.Path) -> Start:
    """The model that learning from taste begins with, trained now or found in the cache.

    Args:
      settings: as configs.taste.start_config makes them.
      seed: of the first weights, the conversations and their order.
      cache: the folder of stages.

    Raises:
      ValueError: a setting is out of range, or the published model has no chat template.
    """
    check_start(settings)
    if settings.model and not settings.talks:
        return _published(settings.model)

    def make(folder: pathlib.Path) -> None:
        made = _published(settings.model) if settings.model else _new(settings, seed)
        conversations = [Conversation(messages) for messages in talks(seed, settings.talks)]
        rows = Rows(conversation_rows(conversations, made.tokenizer, settings.row_length).batch, seed=seed)
        steps = math.ceil(settings.epochs * rows.count / settings.batch_size)
        recipe = lab.Recipe(steps, settings.batch_size, settings.learning_rate, warmup_steps=min(10, steps // 2))
        params = lab.train(made.params, made.model, rows, recipe, f"jokes, seed {seed}")
        save_model(folder / "model", params, made.model, made.tokenizer)

    key = {**settings.to_dict(), "seed": seed, "corpus": corpus_key(seed)}
    return Start(*load_model(lab.stage(pathlib.Path(cache).expanduser(), "jokes", key, make) / "model"))


def corpus_key(seed: int) -> str:
    """Stands for the wording of the jokes: a model of another wording is of no use."""
    return lab.key_of(list(talks(seed, 50)))


def check_start(settings: ConfigDict) -> None:
    """Refuses settings of `start` that would fail only after some work."""
    if settings.talks < 0 or not settings.model and not settings.talks:
        raise ValueError(f"start.talks={settings.talks}: give 1 or more conversations, or name a model in "
                         f"start.model")
    for key in ("epochs", "batch_size", "learning_rate", "max_tokens"):
        if not settings[key] > 0:
            raise ValueError(f"start.{key}={settings[key]} must be above 0")
    if not settings.model and settings.row_length > settings.shape.max_positions:
        raise ValueError(f"start.row_length={settings.row_length} exceeds start.shape.max_positions="
                         f"{settings.shape.max_positions}")


def _new(settings: ConfigDict, seed: int) -> Start:
    """First weights, and a tokenizer that is the same for every seed."""
    texts = (message["content"] for messages in talks(0, 4000) for message in messages)
    tokenizer = dataclasses.replace(train_tokenizer(texts, settings.vocab_size, "digits"), chat_template="im_sep")
    model = ModelConfig(vocab_size=tokenizer.vocab_size, **settings.shape.to_dict())
    return Start(init(model, jax.random.key(seed)), model, tokenizer)


def _published(folder: str) -> Start:
    found = Start(*load_model(folder))
    if not found.tokenizer.chat_template:
        raise ValueError(f"{folder}: its tokenizer has no chat template; give a chat model, or fine-tune this one with "
                         f"experiments.sft first")
    return found


def draw(params: Params, model: ModelConfig, tokenizer: Tokenizer, things: Sequence[str], *, samples: int,
         temperature: float = 1.0, max_tokens: int = 64, seed: int = 0, batch: int = 64) -> list[list[lab.Answer]]:
    """Jokes about things: [thing][sample]; see `lab.ask`, which this is with the task's prompts."""
    return lab.ask(params, model, tokenizer, [prompt(thing) for thing in things], samples=samples,
                   temperature=temperature, max_tokens=max_tokens, seed=seed, batch=batch)


def judge(things: Sequence[str], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """The gold judge's opinion of G jokes about each of Q things: float64 [Q, G]."""
    return np.array([[gold(thing, text) for text in row] for thing, row in zip(things, texts, strict=True)])


if __name__ == "__main__":
    launch.run(main, default_config="configs/taste.py")
