"""Train = sample: a sampler that is not the trainer, in several ways, and what RL at equal samples makes of it.

    python -m experiments.train_sample_gap --workdir=runs/train_sample_gap

A policy-gradient step takes its samples to be the policy's own. Here the sampler has weights of fewer bits, another
temperature, a filter, or weights of some updates ago, and the trainer does not know. Each mismatch is run as it is and
with truncated importance weights, which know. Control: the same run with a sampler that is the trainer.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import lab, launch, practice
from experiments.findings import write
from experiments.improve import improve, make_plan
from experiments.improve_plan import Messages
from experiments.tokens_to_think_problems import PARTS
from experiments.train_sample_gap_report import CONTROL, findings
from jaxllm.data.chat import render
from jaxllm.model.params import Params
from jaxllm.rl.policy_settings import CHOICES
from jaxllm.rl.rollout import WEIGHTS, Drawn, Sampler, SamplerSettings

KEPT = ("reward", "sampler_gap", "sampler_gap_max", "sampler_kl", "importance", "entropy", "length", "grad_norm")


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """What is wrong with a sampler.

    Attributes:
      weights: as in `SamplerSettings`; with "bfloat16" its activations are in bfloat16 too.
      temperature: None is the trainer's.
      top_p: of the likeliest tokens; what is left out is never drawn.
      stale: updates since the sampler was given weights.
    """

    weights: str = "same"
    temperature: float | None = None
    top_p: float = 1.0
    stale: int = 0


def mismatch_of(name: str) -> Mismatch:
    """What a name in the config stands for.

    Raises:
      ValueError: when it is none.

    >>> mismatch_of("stale=4")
    Mismatch(weights='same', temperature=None, top_p=1.0, stale=4)
    """
    if name == CONTROL:
        return Mismatch()
    kind, _, value = name.partition("=")
    try:
        found = Mismatch(**{kind: {"weights": str, "temperature": float, "top_p": float, "stale": int}[kind](value)})
        hot = 1.0 if found.temperature is None else found.temperature
        if found.weights not in WEIGHTS or not (hot > 0 and 0 < found.top_p <= 1 and found.stale >= 0):
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError(f"{name!r} is no mismatch: write weights={'|'.join(WEIGHTS[1:])}, temperature=T above 0, "
                         f"top_p=P in (0, 1] or stale=N updates") from None
    return found


class WrongSampler:
    """A `Converse` of plain replies, drawn otherwise than the trainer thinks.

    Args:
      made: the start model.
      settings: of the right sampler.
      mismatch: what is wrong with it.
      max_length: tokens of the longest prompt and reply.
    """

    def __init__(self, made: practice.Start, settings: SamplerSettings, mismatch: Mismatch, max_length: int) -> None:
        sampling, execution = settings.sampling, settings.execution
        if mismatch.temperature is not None:
            sampling = dataclasses.replace(sampling, temperature=mismatch.temperature)
        if mismatch.weights == "bfloat16":
            execution = dataclasses.replace(execution, dtype="bfloat16")
        self.tokenizer, self.max_length = made.tokenizer, max_length
        self._sampler = Sampler(made.model, dataclasses.replace(
            settings, weights=mismatch.weights, execution=execution,
            sampling=dataclasses.replace(sampling, top_p=mismatch.top_p)))
        self._given: collections.deque[Params] = collections.deque(maxlen=mismatch.stale + 1)

    def __call__(self, params: Params, conversations: Sequence[Messages], samples: int, seed: int, step: int
                 ) -> list[Drawn]:
        self._given.append(jax.tree.map(jnp.copy, params))  # the next update takes the memory of those that are lent
        self._sampler.load(self._given[0])
        asked = [render(talk, self.tokenizer, add_generation_prompt=True).ids for talk in conversations]
        return self._sampler.draw(asked, samples, seed, step)


def main(config: ConfigDict, workdir: str) -> None:
    """Runs every mismatch and the control at every seed, and writes what was found.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    arms = arms_of(config)
    starts: list[dict[str, Any]] = []
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in config.seeds:
        shared = [config.start.to_dict(), config.rl.to_dict(), config.part, config.samples, seed,
                  practice.wording(config.start, seed)]
        starts.append(lab.kept(folder / "kept", f"start-{seed}", shared, functools.partial(ask, config, seed)))
        for name, importance in arms:
            label = f"{name}, importance {importance}"
            run = lab.kept(folder / "kept", label.translate({ord(","): "", ord(" "): "_"}) + f"-{seed}",
                           [*shared, name, importance], functools.partial(practise, config, seed, name, importance))
            runs[name, importance].append(run)
            print(f"{label}, seed {seed}: accuracy {run['sampled']:.3f} (start "
                  f"{starts[-1]['sampled']:.3f}), gap {run['rows'][-1]['sampler_gap']:.1e}; "
                  f"{time.perf_counter() - begun:.0f} s in all", flush=True)
    write(findings(config, starts, runs), folder, config, time.perf_counter() - begun)


def arms_of(config: ConfigDict) -> list[tuple[str, str]]:
    """(mismatch, importance weights) of every run, the control first."""
    return [(CONTROL, "none"), *((name, "none") for name in config.mismatches),
            *((name, config.importance) for name in config.repaired)]


def check(config: ConfigDict) -> None:
    """Refuses what cannot work, before anything is trained."""
    practice.check_start(config.start)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    arms = arms_of(config)
    for name, _ in arms:
        mismatch_of(name)
    if config.importance not in CHOICES["importance"][1:]:
        raise ValueError(f"config.importance={config.importance!r}: choose {' or '.join(CHOICES['importance'][1:])}")
    if len(set(arms)) < len(arms) or not {*config.repaired} <= {CONTROL, *config.mismatches}:
        raise ValueError(f"config.mismatches={config.mismatches} and config.repaired={config.repaired}: name each once "
                         f"and repair only {CONTROL!r} or what is among the mismatches")
    if config.part not in PARTS[1:] or config.samples < 1:
        raise ValueError(f"config.part={config.part!r}, config.samples={config.samples}: ask {' or '.join(PARTS[1:])} "
                         f"problems, 1 or more times each")


def ask(config: ConfigDict, seed: int, params: Params | None = None) -> dict[str, float]:
    """Accuracy on held-out problems at temperature 1 ("sampled") and "greedy", always by an exact sampler."""
    made = practice.start(config.start, seed, pathlib.Path(config.cache))
    made = made if params is None else dataclasses.replace(made, params=params)
    problems = practice.tasks(config.start, seed, config.part)
    draw = functools.partial(practice.measure, made, problems, max_tokens=config.start.max_tokens, seed=seed)
    return {"sampled": draw(samples=config.samples, temperature=1.0)["accuracy"], "greedy": draw()["accuracy"]}


def practise(config: ConfigDict, seed: int, name: str, importance: str) -> dict[str, Any]:
    """One run of RL; what `ask` says of its end, "rows" of its steps with the columns KEPT, and why it "stopped"."""
    made = practice.start(config.start, seed, pathlib.Path(config.cache))
    tasks = practice.tasks(config.start, seed, "train")
    rl = ConfigDict(copy.deepcopy(config.rl.to_dict()))
    rl.policy.importance = importance
    plan = make_plan(rl, made)
    longest = max(len(render(task.prompt, made.tokenizer, add_generation_prompt=True).ids) for task in tasks.values())
    sampler = WrongSampler(made, plan.sampler, mismatch_of(name), longest + plan.sampler.max_tokens)
    done = improve(rl, made, practice.reward(tasks), seed, prompts=practice.prompts(tasks), converse=sampler,
                   title=f"{name}, importance {importance}, seed {seed}")
    return {**ask(config, seed, done.params), "rows": [{key: row[key] for key in KEPT if key in row}
                                                       for row in done.rows], "stopped": done.stopped}


if __name__ == "__main__":
    launch.run(main, default_config="configs/train_sample_gap.py")
