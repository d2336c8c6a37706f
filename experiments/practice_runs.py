"""Roads from a start to a model that has practised: each is run once for a seed, and found by every experiment.

experiments.sft_to_rl, from_base and learn_or_sharpen ask for the same roads by the same settings, so that the second
command trains nothing that the first has trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab, practice, report
from experiments.improve import RewardFn, improve
from experiments.practice import Start
from jaxllm.data.chat import render
from jaxllm.model.params import Params
from jaxllm.train.checkpoint import load_model, save_model


@dataclasses.dataclass(frozen=True)
class Road:
    """One way to practise.

    Attributes:
      label: what tables and pictures call it.
      start: "sft"; "base", asked in the form of its documents; or "chat", the base asked in the chat format, which it
        has never seen.
      reward: weights of what `practice.judge` says, COIN, or None for a fine-tuning that costs as much as "rl".
      worked: of a fine-tuning: the share of demonstrations that show the working; None is that of the start's.
    """

    label: str
    start: str = "sft"
    reward: Mapping[str, float] | str | None = None
    worked: float | None = None


COIN = "coin"  # as a reward: 1 as often as the start is right, whatever the reply
ROADS: Mapping[str, Road] = {
    "rl": Road("RL after SFT", reward={"right": 1.0}),
    "more_sft": Road("more SFT, same demonstrations"),
    "worked_sft": Road("more SFT, all demonstrations worked", worked=1.0),
    "coin": Road("RL, reward by a coin", reward=COIN),
    "form": Road("RL, reward for the form", reward={"form": 1.0}),
    "base": Road("RL from base, documents' prompt", "base", {"right": 1.0}),
    "base_form": Road("RL from base, documents' prompt, form rewarded", "base", {"right": 1.0, "form": 0.2}),
    "chat": Road("RL from base, chat prompt", "chat", {"right": 1.0}),
    "chat_form": Road("RL from base, chat prompt, form rewarded", "chat", {"right": 1.0, "form": 0.2}),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of a road.

    Attributes:
      made: the model at its end.
      curve: what `practice.measure` said of validation problems on the way, with "step", in updates of RL or what
        costs as much, and "flops"; the first is the start's.
      rows: of `improve.Improved`; none for a fine-tuning.
      stopped: as there.
    """

    made: Start
    curve: list[dict[str, Any]]
    rows: list[dict[str, float]]
    stopped: str


def check_runs(config: ConfigDict, roads: Sequence[str]) -> None:
    """Refuses settings of `run` that would fail only after some work."""
    practice.check_start(config.start)
    unknown = [road for road in roads if road not in ROADS]
    if unknown or len(set(roads)) < len(roads):
        raise ValueError(f"{tuple(roads)}: name some of {', '.join(ROADS)}, each once")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    for key in ("watched", "watched_samples"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    fractions = list(config.fractions)
    if fractions != sorted(fractions) or fractions[-1:] != [1.0] or fractions[0] <= 0:
        raise ValueError(f"config.fractions={config.fractions}: give rising shares above 0, the last of them 1.0")
    if config.rl.sampler.max_tokens != config.start.max_tokens:
        raise ValueError(f"config.rl.sampler.max_tokens={config.rl.sampler.max_tokens} must equal "
                         f"config.start.max_tokens={config.start.max_tokens}: both bound a reply")


def beginning(config: ConfigDict, seed: int, start: str = "sft") -> Start:
    """The model at the start of a road: see `Road.start`."""
    made = practice.start(config.start, seed, pathlib.Path(config.cache), stage="sft" if start == "sft" else "base")
    if start == "chat":
        made = dataclasses.replace(made, tokenizer=dataclasses.replace(made.tokenizer, chat_template="im_sep"))
    return made


def run(config: ConfigDict, seed: int, road: str) -> Run:
    """Goes a road, or finds it gone; a run that was killed goes on.

    Args:
      config: with the keys of configs.sft_to_rl.run_config.
      seed: of the start, the problems and the draws.
      road: a key of ROADS.
    """
    way = ROADS[road]

    def make(folder: pathlib.Path) -> None:
        (_practise if way.reward is not None else _study)(config, seed, way, folder)

    settings = {"start": config.start.to_dict(), "rl": config.rl.to_dict(), "seed": seed,
                "way": dataclasses.asdict(way), "watched": [config.watched, config.watched_samples],
                "corpus": practice.wording(config.start, seed),
                **({"fractions": config.fractions} if way.reward is None else {})}
    del settings["start"]["test"], settings["way"]["label"]
    folder = lab.stage(pathlib.Path(config.cache).expanduser(), f"practice-{road}", settings, make)
    told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    by_step = {point["step"]: point for point in curve}  # a run that was resumed may have measured a step twice
    return Run(Start(*load_model(folder / "model")), [by_step[step] for step in sorted(by_step)], told["rows"],
               told["stopped"])


def row_width(made: Start, asked: practice.Tasks, max_tokens: int) -> int:
    """Tokens of a row in which the longest of the prompts and a reply fit, as `improve` lays them out."""
    longest = max(len(render(task.prompt, made.tokenizer, add_generation_prompt=True).ids) for task in asked.values())
    return -(-(longest + max_tokens) // 16) * 16


def coin(rate: float, seed: int) -> RewardFn:
    """1 with a chance of `rate` and else 0: the same for the same rollout, and for another one drawn anew."""
    def rewarded(names: Sequence[str], said: Sequence[Sequence[str]]) -> np.ndarray:
        digest = hashlib.sha256(json.dumps([seed, list(names), [list(row) for row in said]]).encode()).digest()
        draws_QG = np.random.default_rng(int.from_bytes(digest[:8], "big")).random((len(said), len(said[0])))
        return (draws_QG < rate).astype(np.float32)
    return rewarded


def _practise(config: ConfigDict, seed: int, way: Road, folder: pathlib.Path) -> None:
    """RL; leaves the model, the curve and the rows in the folder."""
    made, asked = beginning(config, seed, way.start), practice.tasks(config.start, seed, "train")
    a_step = practice.rl_flops(made.model, config.rl, row_width(made, asked, config.rl.sampler.max_tokens), steps=1)
    look = _Look(config, seed, folder / "curve.jsonl")

    def watch(step: int, params: Params) -> None:
        if step % config.watched == 0 or step == config.rl.steps:
            look(dataclasses.replace(made, params=params), step, a_step * step)

    if way.reward == COIN:
        reward = coin(look(made, 0, 0.0)["accuracy"], seed)
    else:
        reward = practice.reward(asked, way.reward)
    improved = improve(config.rl, made, reward, seed, prompts=practice.prompts(asked), folder=folder / "run",
                       watch=watch, title=f"{way.label}, seed {seed}")
    save_model(folder / "model", improved.params, made.model, made.tokenizer)
    report.write_text(folder / "told.json", json.dumps({"rows": improved.rows, "stopped": improved.stopped}) + "\n")


def _study(config: ConfigDict, seed: int, way: Road, folder: pathlib.Path) -> None:
    """Fine-tunes on for shares of what RL costs, each from the start; leaves the last model and the curve."""
    made, look = beginning(config, seed, way.start), _Look(config, seed, folder / "curve.jsonl")
    shown = practice.demonstrations(config.start, seed, way.worked)
    look(made, 0, 0.0)
    for fraction in config.fractions:
        steps = sft_steps(config, made, seed, fraction)
        trained = practice.fine_tune(config.start, made, shown, seed, steps=steps,
                                     label=f"{way.label}, {fraction:g} of RL's FLOPs, seed {seed}")
        cost = practice.flops(made.model, config.start.row_length,
                              learnt=steps * config.start.batch_size * config.start.row_length)
        look(trained, fraction * config.rl.steps, cost)
    save_model(folder / "model", trained.params, made.model, made.tokenizer)
    report.write_text(folder / "told.json", json.dumps({"rows": [], "stopped": ""}) + "\n")


def sft_steps(config: ConfigDict, made: Start, seed: int, fraction: float = 1.0) -> int:
    """Updates of a fine-tuning that cost this share of the FLOPs of "rl", or a little more."""
    width = row_width(made, practice.tasks(config.start, seed, "train"), config.rl.sampler.max_tokens)
    one = practice.flops(made.model, config.start.row_length,
                         learnt=config.start.batch_size * config.start.row_length)
    return math.ceil(fraction * practice.rl_flops(made.model, config.rl, width) / one)


class _Look:
    """Measures a model on validation problems, and adds a line to the curve."""

    def __init__(self, config: ConfigDict, seed: int, path: pathlib.Path) -> None:
        self.config, self.seed, self.path = config, seed, path
        self.asked = practice.tasks(config.start, seed, "validation")

    def __call__(self, made: Start, step: float, cost: float) -> dict[str, Any]:
        found = practice.measure(made, self.asked, samples=self.config.watched_samples, temperature=1.0,
                                 seed=self.seed, max_tokens=self.config.start.max_tokens)
        point = {"step": step, "flops": cost, **{name: value for name, value in found.items()
                                                 if name not in practice.TOLD}}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")
        print(f"step {step:g}, seed {self.seed}: validation {practice.said(found)}", flush=True)
        return found
