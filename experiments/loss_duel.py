"""Loss duel: policy-gradient algorithms at equal samples on one task, and the angles between their gradients.

    python -m experiments.loss_duel --workdir=runs/loss_duel

Every algorithm improves the same start on the same prompts with as many replies; what it samples apart from that, such
as further prompts, is part of the count. Control: one of them on rewards in a random order, from which nothing can be
learned.
"""

from __future__ import annotations

import copy
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab, launch, practice
from experiments.findings import write
from experiments.improve import RewardFn, improve
from experiments.loss_duel_angles import angles
from experiments.loss_duel_report import SHUFFLED, findings
from experiments.tokens_to_think_problems import PARTS
from experiments.train_sample_gap import ask
from jaxllm.model.params import Params
from jaxllm.rl.policy_settings import ALGORITHMS

KEPT = ("reward", "drawn", "equal", "entropy", "length", "ratio", "clip_fraction", "kl_old", "grad_norm", "kl",
        "updates")


def main(config: ConfigDict, workdir: str) -> None:
    """Runs every algorithm and the control at every seed, compares gradients, and writes what was found.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (*config.algorithms, SHUFFLED)}
    starts, compared = [], []
    for seed in config.seeds:
        start = [config.start.to_dict(), seed, practice.wording(config.start, seed)]
        shared = [*start, config.rl.to_dict(), config.part, config.samples]
        kept = functools.partial(lab.kept, folder / "kept")
        starts.append(kept(f"start-{seed}", shared, functools.partial(ask, config, seed)))
        dump = [config[key] for key in ("algorithms", "control", "dump_prompts", "dump_samples", "dump_updates")]
        compared.append(kept(f"angles-{seed}", [*start, dump, {**config.rl.to_dict(), "steps": None}],
                             functools.partial(angles, config, seed)))
        for arm in runs:
            about = [arm, config.control] if arm == SHUFFLED else [arm]
            run = kept(f"{arm.replace(' ', '_')}-{seed}", [*shared, *about],
                       functools.partial(practise, config, seed, arm))
            runs[arm].append(run)
            print(f"{arm}, seed {seed}: accuracy {run['sampled']:.3f} (start {starts[-1]['sampled']:.3f}) after "
                  f"{run['drawn']:,} replies; {time.perf_counter() - begun:.0f} s in all", flush=True)
    write(findings(config, starts, runs, compared), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot work, before anything is trained."""
    practice.check_start(config.start)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    unknown = [name for name in (*config.algorithms, config.control) if name not in ALGORITHMS]
    if unknown or len(set(config.algorithms)) < len(config.algorithms) or config.control not in config.algorithms:
        raise ValueError(f"config.algorithms={config.algorithms} and config.control={config.control!r}: name some of "
                         f"{', '.join(ALGORITHMS)}, each once, the control among them")
    for key, least in (("dump_prompts", 2), ("dump_samples", 2), ("dump_updates", 1), ("samples", 1)):
        if config[key] < least:
            raise ValueError(f"config.{key}={config[key]}: choose {least} or more")
    if config.part not in PARTS[1:]:
        raise ValueError(f"config.part={config.part!r}: ask {' or '.join(PARTS[1:])} problems")


def practise(config: ConfigDict, seed: int, arm: str) -> dict[str, Any]:
    """One run of RL until its replies are spent.

    Returns:
      What `ask` says of its end; "drawn" replies in all; "rows" of its steps with the columns KEPT; why it "stopped"
      for another reason, or "".
    """
    made = practice.start(config.start, seed, pathlib.Path(config.cache))
    tasks = practice.tasks(config.start, seed, "train")
    rl = ConfigDict(copy.deepcopy(config.rl.to_dict()))
    rl.algorithm = config.control if arm == SHUFFLED else arm
    reward = Counted(practice.reward(tasks), seed if arm == SHUFFLED else None)
    budget = rl.steps * rl.prompts * rl.samples
    spent = "all replies are drawn"

    def watch(step: int, params: Params) -> str | None:
        return spent if step < rl.steps and reward.drawn >= budget else None

    done = improve(rl, made, reward, seed, prompts=practice.prompts(tasks), watch=watch, title=f"{arm}, seed {seed}")
    return {**ask(config, seed, done.params), "drawn": reward.drawn,
            "rows": [{key: row[key] for key in KEPT} for row in done.rows],
            "stopped": "" if done.stopped.startswith(spent) else done.stopped}


class Counted:
    """A reward function that counts the replies it was asked about.

    Args:
      reward: the function.
      shuffle: a seed, by which rewards of replies to all prompts change places; None leaves them.
    """

    def __init__(self, reward: RewardFn, shuffle: int | None = None) -> None:
        self.reward, self.drawn = reward, 0
        self._rng = None if shuffle is None else np.random.default_rng(shuffle)

    def __call__(self, names: Sequence[str], said: Sequence[Sequence[str]]) -> np.ndarray:
        rewards_QG = self.reward(names, said)
        self.drawn += rewards_QG.size
        return rewards_QG if self._rng is None else self._rng.permutation(rewards_QG.ravel()).reshape(rewards_QG.shape)


if __name__ == "__main__":
    launch.run(main, default_config="configs/loss_duel.py")
