"""The players of an arena that needs no download: small models that tell jokes, after different lessons.

All begin as the model of experiments.taste. One was taught little; one was improved by RL on the taste of a simulated
person, one by RL on the length of its jokes alone; one has weights of 4 bits; and one is the start again under another
name, the control: what tells it from the start is chance.
"""

from __future__ import annotations

import copy
import functools
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments import lab, taste
from experiments.improve import RewardFn, improve
from experiments.rank_players import Loaded, speaker
from jaxllm.data.world_taste import Human, gold, prompt, things, words_of
from jaxllm.evals.arena_play import Battle, Outcome, Prompt, Speak
from jaxllm.model.quantize import quantize
from jaxllm.train.checkpoint import load_model, save_model

START, TWIN, LITTLE, FEW_BITS = "start", "start again", "taught little", "start in 4 bits"
TASTE, LONG = "RL on taste", "RL on length"
PLAYERS = (START, TWIN, LITTLE, FEW_BITS, TASTE, LONG)


def prompts_of(config: ConfigDict) -> list[Prompt]:
    """Requests for jokes about things that no player was taught on."""
    return [prompt(thing) for thing in things("test")[:config.world.things]]


def players_of(config: ConfigDict) -> dict[str, tuple[str, Speak]]:
    """Name -> (version, how it speaks), in the order of PLAYERS; made when they first speak, or found in the cache."""
    world, cache = config.world, pathlib.Path(config.cache).expanduser()
    little = ConfigDict(copy.deepcopy(world.start.to_dict()))
    little.update(world.little.to_dict())
    start = functools.cache(functools.partial(taste.start, world.start, config.seed, cache))
    human = Human(**world.human.to_dict())
    load: Mapping[str, Callable[[], Loaded]] = {
        START: lambda: _parts(start()), TWIN: lambda: _parts(start()),
        LITTLE: lambda: _parts(taste.start(little, config.seed, cache)),
        FEW_BITS: lambda: (quantize(start().params, start().model, "int4"), start().model, start().tokenizer),
        TASTE: lambda: _improved(config, "taste", start(), lambda asked, said: _over(human.taste, asked, said)),
        LONG: lambda: _improved(config, "length", start(), lambda asked, said: _over(_length, asked, said))}
    made = [world[name].to_dict() for name in ("start", "little", "human", "rl")]
    key = lab.key_of([made, config.replies.to_dict(), config.seed, taste.corpus_key(config.seed)])
    return {name: (key, speaker(load[name], config.replies.temperature, config.replies.max_tokens)) for name in PLAYERS}


def _parts(start: taste.Start) -> Loaded:
    return start.params, start.model, start.tokenizer


def _improved(config: ConfigDict, name: str, start: taste.Start, reward: RewardFn) -> Loaded:
    world = config.world

    def make(folder: pathlib.Path) -> None:
        done = improve(world.rl, start, reward, config.seed, title=f"RL on {name}")
        save_model(folder / "model", done.params, start.model, start.tokenizer)

    settings = [name, world.start.to_dict(), world.rl.to_dict(), world.human.to_dict(), config.seed,
                taste.corpus_key(config.seed)]
    return load_model(lab.stage(pathlib.Path(config.cache).expanduser(), f"arena_{name}", settings, make) / "model")


def _over(score: Callable[[str, str], float], asked: Sequence[str], said: Sequence[Sequence[str]]) -> np.ndarray:
    return np.array([[score(thing, text) for text in texts] for thing, texts in zip(asked, said, strict=True)])


def _length(thing: str, text: str) -> float:
    del thing
    return len(words_of(text)) / 6


def gold_of(asked: Sequence[Prompt]) -> Callable[[int, str], float]:
    """The score of the hidden judge, for `arena_judges.by_score`."""
    subjects = [taste.thing_of(list(messages)) for messages in asked]
    return lambda number, text: gold(subjects[number], text)


def person(config: ConfigDict, asked: Sequence[Prompt], **change: float) -> Callable[[Battle], Outcome]:
    """A simulated person with the biases of config.world.voter, changed or not; the noise is each battle's own."""
    voter = Human(**{**config.world.voter.to_dict(), **change})
    subjects = [taste.thing_of(list(messages)) for messages in asked]

    def judge(battle: Battle) -> Outcome:
        rng = random.Random(f"{config.seed}/{battle.name}")
        first, second = (voter.taste(subjects[battle.number], text) + rng.gauss(0.0, voter.noise)
                         for text in battle.completions)
        return Outcome(0.5 if abs(first - second) < voter.tie else float(first > second))
    return judge
