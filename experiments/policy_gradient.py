"""Policy gradient on human taste, end to end: rankings -> reward model -> RL -> judged by the gold judge.

    python -m experiments.policy_gradient --workdir=runs/policy_gradient

A small chat model tells jokes, simulated people rank some of them, a reward model learns the rankings, and several
algorithms improve the model by it at equal samples. What came of it is judged on held-out things by the judge that
nobody learned from. Controls: a reward model of shuffled rankings, and best-of-n on the start model at the same KL.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import pathlib
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab, launch, report, taste
from experiments.findings import write
from experiments.improve import RewardFn, improve, make_plan
from experiments.policy_gradient_judge import best_of_n, judge
from experiments.policy_gradient_report import findings
from experiments.reward_model_fit import check_fit, fit
from experiments.sft_data import open_conversations
from jaxllm.data.chat import render
from jaxllm.data.preferences import Ranking
from jaxllm.data.world_taste import Human, prompt, rank, things
from jaxllm.model.config import Execution
from jaxllm.rl.policy_settings import ALGORITHMS
from jaxllm.rl.reward_model import Reward, load_reward, save_reward, score_texts
from jaxllm.train import loop
from jaxllm.train.checkpoint import save_model

__all__ = ["improve", "main"]
SHUFFLED = "shuffled labels"


def main(config: ConfigDict, workdir: str) -> bool:
    """Runs the study, or one run at real size where config.model is set; returns whether it came to its end.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    if config.model:
        return run_published(config, pathlib.Path(workdir))
    study(config, pathlib.Path(workdir))
    return True


def check(config: ConfigDict) -> None:
    """Refuses what cannot work, before anything is trained."""
    unknown = [name for name in (*config.algorithms, config.control) if name not in ALGORITHMS]
    if unknown or not config.algorithms or len(set(config.algorithms)) < len(config.algorithms):
        raise ValueError(f"config.algorithms={config.algorithms} and config.control={config.control!r}: name some of "
                         f"{', '.join(ALGORITHMS)}, each once")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    if bool(config.model) != bool(config.prompts) or bool(config.model) != bool(config.reward):
        raise ValueError("config.model, config.prompts and config.reward go together: a model's folder, a file of "
                         "conversations and a reward model's folder; leave all three empty for the study")
    if config.model:
        if len(config.seeds) > 1 or len(config.algorithms) > 1:
            raise ValueError("a published model is improved once: give one seed and one algorithm, as the config "
                             "`configs/policy_gradient.py:real` does")
        return
    if config.part not in ("validation", "test"):
        raise ValueError(f"config.part={config.part!r}: judge on validation or test things")
    for key, least in (("judged", 1), ("judged_samples", 1), ("best_of", 2)):
        if config[key] < least:
            raise ValueError(f"config.{key}={config[key]}: choose {least} or more")
    if config.people.rankings < 1 or config.people.validation < 1 or config.people.completions < 2:
        raise ValueError(f"config.people: rankings {config.people.rankings} and validation {config.people.validation} "
                         f"must be 1 or more, completions {config.people.completions} 2 or more")
    taste.check_start(config.start)
    check_fit(config.reward_model)


def study(config: ConfigDict, folder: pathlib.Path) -> None:
    """Every algorithm and the controls at every seed, judged; writes what was found."""
    begun = time.perf_counter()
    arms = [*config.algorithms, SHUFFLED]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("start", *arms)}
    for seed in config.seeds:
        lazy = functools.cache(functools.partial(taste.start, config.start, seed, pathlib.Path(config.cache)))
        rewards = {shuffled: functools.cache(functools.partial(learn_reward, config, lazy, seed, shuffled, folder))
                   for shuffled in (False, True)}
        shared = [config.start.to_dict(), config.people.to_dict(), config.reward_model.to_dict(), seed,
                  *(config[key] for key in ("judged", "judged_samples", "part"))]
        first = lab.kept(folder / "kept", f"start-{seed}", [shared, config.best_of, config.rl.sampler.to_dict()],
                         functools.partial(_judge_start, config, lazy, rewards[False], seed))
        runs["start"].append(first)
        for arm in arms:
            rl = rl_of(config, config.control if arm == SHUFFLED else arm)
            settings = [shared, arm, rl.to_dict()]
            run = lab.kept(folder / "kept", f"{arm.replace(' ', '_')}-{seed}", settings, functools.partial(
                _improve_and_judge, config, rl, lazy, rewards, arm, seed, first["gold"],
                folder / "runs" / f"{arm.replace(' ', '_')}-{seed}-{lab.key_of(settings)[:6]}"))
            runs[arm].append(run)
            print(f"{arm}, seed {seed}: gold {np.mean(run['gold']):.3f} (start {np.mean(first['gold']):.3f}), wins "
                  f"{run['win_rate']:.3f}, reward {np.mean(run['proxy']):.2f}, KL {run['kl']:.2f}; "
                  f"{time.perf_counter() - begun:.0f} s in all", flush=True)
    write(findings(config, runs), folder, config, time.perf_counter() - begun)


def rl_of(config: ConfigDict, algorithm: str) -> ConfigDict:
    """The settings of a run of one algorithm."""
    rl = ConfigDict(copy.deepcopy(config.rl.to_dict()))
    rl.algorithm = algorithm
    return rl


def held_out(config: ConfigDict) -> list[str]:
    """The things that the judge is asked about."""
    every = list(things(config.part))
    random.Random(0).shuffle(every)
    return every[:config.judged]


def learn_reward(config: ConfigDict, start: Any, seed: int, shuffled: bool, folder: pathlib.Path) -> Reward:
    """The reward model of simulated people's rankings of the start model's jokes, made now or found.

    Args:
      shuffled: give every ranking's completions in a random order: labels that say nothing.
    """
    def make(place: pathlib.Path) -> None:
        people = config.people
        learnt, validation = (rankings(config, start(), split, count, seed)
                              for split, count in (("train", people.rankings), ("validation", people.validation)))
        if shuffled:
            rng = random.Random(seed)
            learnt = [dataclasses.replace(one, completions=tuple(rng.sample(one.completions, len(one.completions))))
                      for one in learnt]
        label = f"reward model{', shuffled labels' if shuffled else ''}, seed {seed}"
        found = fit(config.reward_model, start(), learnt, seed, validation=validation, label=label)
        save_reward(place / "model", found)

    settings = [config.start.to_dict(), config.people.to_dict(), config.reward_model.to_dict(), seed, shuffled]
    name = "shuffled_reward" if shuffled else "reward"
    return load_reward(lab.stage(folder / "kept", name, settings, make) / "model")


def rankings(config: ConfigDict, start: taste.Start, split: str, count: int, seed: int) -> list[Ranking]:
    """What people say of the start model's jokes about things of a split."""
    rng = random.Random(f"{seed}/{split}/policy_gradient")
    asked = [rng.choice(things(split)) for _ in range(count)]
    drawn = taste.draw(start.params, start.model, start.tokenizer, asked, samples=config.people.completions, seed=seed,
                       max_tokens=config.rl.sampler.max_tokens)
    human = Human(**config.people.human.to_dict())
    return [rank(human, thing, [answer.text for answer in some], rng) for thing, some in zip(asked, drawn, strict=True)]


def rewarded_by(reward: Reward) -> RewardFn:
    """The reward function of the jokes' task."""
    return lambda asked, said: score_texts(reward, [prompt(thing) for thing in asked], said)


def _judge_start(config: ConfigDict, start: Any, reward: Any, seed: int) -> dict[str, Any]:
    """The start model's own jokes, and the best of n of them by the reward model."""
    asked = held_out(config)
    plan = make_plan(rl_of(config, config.control), start())
    found = judge(plan, start(), start().params, rewarded_by(reward()), asked, config.judged_samples, seed)
    pool = judge(plan, start(), start().params, rewarded_by(reward()), asked, config.best_of, seed + 1_000_003)
    return {**found, "best_of_n": best_of_n(pool, np.array(found["gold"]))}


def _improve_and_judge(config: ConfigDict, rl: ConfigDict, start: Any, rewards: dict[bool, Any], arm: str, seed: int,
                       start_gold: Sequence[Sequence[float]], folder: pathlib.Path) -> dict[str, Any]:
    """One run; its rows, and what the judge says of its jokes about held-out things beside the start's."""
    improved = improve(rl, start(), rewarded_by(rewards[arm == SHUFFLED]()), seed, folder=folder,
                       title=f"{arm}, seed {seed}")
    plan = make_plan(rl, start())
    found = judge(plan, start(), improved.params, rewarded_by(rewards[False]()), held_out(config),
                  config.judged_samples, seed, start_gold=start_gold)
    return {**found, "rows": improved.rows, "stopped": improved.stopped}


def run_published(config: ConfigDict, folder: pathlib.Path) -> bool:
    """Improves a published chat model by a saved reward model; the same command goes on after a kill.

    Returns:
      whether nobody asked it to stop.
    """
    begun, seed = time.perf_counter(), config.seeds[0]
    settings = ConfigDict(copy.deepcopy(config.start.to_dict()))
    settings.model, settings.talks = config.model, 0
    start, reward = taste.start(settings, seed, folder), load_reward(pathlib.Path(config.reward).expanduser())
    asked = {}
    for talk in open_conversations(config.prompts).conversations:
        messages = list(itertools.takewhile(lambda message: message["role"] != "assistant", talk.messages))
        ids = render(messages, start.tokenizer, add_generation_prompt=True).ids if messages else []
        if 0 < len(ids) <= config.max_prompt_tokens:
            asked[talk.where] = messages
    if not asked:
        raise ValueError(f"no conversation of {config.prompts} begins with a prompt of at most "
                         f"config.max_prompt_tokens ({config.max_prompt_tokens}) tokens")
    rl, execution = rl_of(config, config.algorithms[0]), Execution(**config.rl.execution.to_dict())
    print(f"{len(asked):,} prompts of {config.prompts}; {config.model} rewarded by {config.reward}", flush=True)
    with loop.StopRequest() as stop:
        improved = improve(rl, start, lambda names, said: score_texts(
            reward, [asked[name] for name in names], said, batch=16, execution=execution), seed, prompts=asked,
            folder=folder, title=f"{rl.algorithm} on {pathlib.Path(config.prompts).name}", stop=stop)
    save_model(folder / "model", improved.params, start.model, start.tokenizer)
    report.write_text(folder / "results.json", json.dumps({"rows": improved.rows, "stopped": improved.stopped}) + "\n")
    print(f"{len(improved.rows)} of {rl.steps} steps in {time.perf_counter() - begun:.0f} s; model in "
          f"{folder / 'model'}, the run in {folder / 'index.html'}", flush=True)
    return not stop.requested


if __name__ == "__main__":
    launch.run(main, default_config="configs/policy_gradient.py")
