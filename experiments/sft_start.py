"""Measures how new control tokens should start: loss and right answers after a short fine-tuning, by start and length.

    python -m experiments.sft_start --workdir=runs/sft_start
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import random
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import lab, launch, report
from experiments.findings import Findings, Table, write
from experiments.sft_tokens import STARTS, start_tokens
from jaxllm.data.conversations import conversation_rows, mix
from jaxllm.data.loader import Rows
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.world import Fact, make_world
from jaxllm.data.world_talks import fact_talk, fact_talks
from jaxllm.evals.intervals import share_interval, spread, t_interval
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params
from jaxllm.train.checkpoint import load_model
from jaxllm.train.objective import evaluate, next_token_objective

PARTS = ("validation", "test")


def main(config: ConfigDict, workdir: str) -> None:
    """Trains and asks from every start, at every length and seed, and writes what was found.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for seed in config.seeds:
        base = lab.base_model(config.base, seed)
        for start, steps in itertools.product(config.starts, config.steps):
            settings = {**config.to_dict(), "seeds": seed, "starts": start, "steps": steps}
            run = lab.kept(folder / "kept", f"{start}-{steps}-{seed}", settings,
                           functools.partial(measure, config, base, seed, start, steps))
            runs.setdefault((start, steps), []).append(run)
            print(f"seed {seed}, {start}, {steps} steps: loss {run['before']:.3f} -> {run['loss']:.3f}, right "
                  f"{run['right_told']:.3f}, in the new wording {run['right_new']:.3f}; "
                  f"{time.perf_counter() - begun:.0f} s in all", flush=True)
    write(findings(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be measured, before anything is trained."""
    if not config.starts or len(set(config.starts)) < len(config.starts) or not set(config.starts) <= set(STARTS):
        raise ValueError(f"config.starts={config.starts}: name some of {', '.join(STARTS)}, each once")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    if not config.steps or min(config.steps) <= config.warmup_steps:
        raise ValueError(f"config.steps={config.steps}: name lengths above config.warmup_steps={config.warmup_steps}")
    for key in ("batch_size", "asked_people"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if config.part not in PARTS:
        raise ValueError(f"config.part={config.part!r}: ask {' or '.join(PARTS)}")
    wanted = f"world:{{seed}}:{config.size}"
    if wanted not in config.base.data.sources:
        raise ValueError(f"config.base.data.sources={config.base.data.sources} lacks {wanted!r}, whose people are "
                         f"asked about")


def measure(config: ConfigDict, base: pathlib.Path, seed: int, start: str, steps: int) -> dict[str, float]:
    """Fine-tunes from a start and asks.

    Returns:
      "before", "loss": nats per counted token on questions in a wording that no text has, before and after the
      fine-tuning; "right_new", "right_told": share of replies, to questions in that wording and in one that documents
      use, that are the value and nothing else; "ended": share of all replies with an end.
    """
    train, asked = facts_of(config, seed)
    params, model, tokenizer = load_model(base)
    params = start_tokens(params, model, tokenizer, "im_sep", start, seed)
    tokenizer = dataclasses.replace(tokenizer, chat_template="im_sep")
    rows = conversation_rows(fact_talks(train, seed), tokenizer, config.row_length)
    recipe = lab.Recipe(steps, config.batch_size, config.learning_rate, config.warmup_steps)
    trained = lab.train(params, model, mix([rows], epochs=[1], seed=seed), recipe,
                        f"seed {seed}, {start}, {steps} steps")
    held_out = Rows(conversation_rows([fact_talk(fact, -1) for fact in asked], tokenizer, config.row_length).batch,
                    sequential=True)
    before, after = (loss(config, tree, model, held_out) for tree in (params, trained))
    return {"before": before, "loss": after, **answers(trained, model, tokenizer, asked)}


def facts_of(config: ConfigDict, seed: int) -> tuple[list[Fact], list[Fact]]:
    """(facts to train on, facts to ask): of people told often, nobody in two of training, validation and test."""
    facts = [fact for fact in make_world(seed, config.size).select(band="often", kind="person") if fact.times_told]
    names = sorted({fact.entity.name for fact in facts})
    if len(names) <= 2 * config.asked_people:
        raise ValueError(f"config.asked_people={config.asked_people}: two parts of so many leave nobody of the "
                         f"{len(names)} people told often to train on")
    random.Random(f"{seed}/sft_start").shuffle(names)
    first = PARTS.index(config.part) * config.asked_people
    asked = set(names[first:first + config.asked_people])
    trained = set(names[2 * config.asked_people:])
    return ([fact for fact in facts if fact.entity.name in trained],
            [fact for fact in facts if fact.entity.name in asked])


def loss(config: ConfigDict, params: Params, model: ModelConfig, held_out: Rows) -> float:
    """Mean over the counted tokens of all rows, nats."""
    batches = (held_out.batch_at(step, batch_size=config.batch_size)
               for step in range(held_out.steps(config.batch_size)))
    return evaluate(_compiled(model), params, batches)["loss"]


@functools.lru_cache(maxsize=2)
def _compiled(model: ModelConfig) -> Callable:
    return jax.jit(next_token_objective(model, lab.EXECUTION))


def answers(params: Params, model: ModelConfig, tokenizer: Tokenizer, asked: list[Fact]) -> dict[str, float]:
    """Shares of right and of ended replies, greedy, in both wordings."""
    questions = [fact.question(wording) for wording in (-1, 0) for fact in asked]
    replies = [some[0] for some in lab.ask(params, model, tokenizer, [
        [{"role": "user", "content": question}] for question in questions])]
    right = np.array([reply.ended and reply.text.strip() == f"{fact.value}."
                      for reply, fact in zip(replies, [*asked, *asked], strict=True)])
    return {"right_new": float(right[:len(asked)].mean()), "right_told": float(right[len(asked):].mean()),
            "ended": float(np.mean([reply.ended for reply in replies]))}


def findings(config: ConfigDict, runs: dict[tuple[str, int], list[dict[str, float]]]) -> Findings:
    """Tables and a picture: means over the seeds with 95% intervals by Student's t."""
    def cell(start: str, steps: int, key: str) -> str:
        interval = t_interval if key in ("before", "loss") else share_interval
        return spread(interval([run[key] for run in runs[start, steps]]))

    rows = [["start", "steps", "loss before", "loss after", "right", "right, new wording", "ended"]]
    rows += [[start, str(steps), *(cell(start, steps, key) for key in ("before", "loss", "right_told", "right_new",
                                                                      "ended"))]
             for steps in config.steps for start in config.starts]
    note = (f"{len(config.seeds)} seeds; questions about people told often, of whom the fine-tuning says nothing "
            f"({config.part} part). Right: the reply is the value and ends, asked in a wording of the documents and in "
            f"one that no text has. Loss: nats per token of the reply, in the new wording.")
    tables = [Table("New control tokens by their start", rows, note)]
    first, *others = config.starts
    if others and len(config.seeds) > 1:
        pairs = [["pair", "steps", "loss", "right", "right, new wording"]]
        pairs += [[f"{first} - {other}", str(steps), *(spread(t_interval(
            [a[key] - b[key] for a, b in zip(runs[first, steps], runs[other, steps], strict=True)]))
            for key in ("loss", "right_told", "right_new"))] for steps in config.steps for other in others]
        tables.append(Table("The same seed from two starts", pairs, "Differences, paired by seed."))
    numbers: dict[str, Any] = {f"{start}/{steps}": found for (start, steps), found in runs.items()}
    return Findings("How new control tokens start", tables, [
        (label, report.picture(functools.partial(_draw, config=config, runs=runs, key=key, label=label)))
        for key, label in (("right_told", "share of right answers"), ("loss", "loss, nats per token"))], numbers)


def _draw(axes: Any, config: ConfigDict, runs: dict, key: str, label: str) -> None:
    for start in config.starts:
        found = np.array([[run[key] for run in runs[start, steps]] for steps in config.steps])
        line, = axes.plot(config.steps, found.mean(axis=1), marker="o", markersize=4, label=start)
        for column in found.T:
            axes.plot(config.steps, column, marker=".", linestyle="", color=line.get_color(), alpha=0.5)
    axes.set(xscale="log", xlabel="steps of fine-tuning", ylabel=label, xticks=config.steps,
             xticklabels=[str(steps) for steps in config.steps])
    axes.minorticks_off()
    axes.legend(frameon=False)


if __name__ == "__main__":
    launch.run(main, default_config="configs/sft_start.py")
