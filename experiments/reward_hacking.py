"""Over-optimisation: a policy is trained until it games the reward model, over and over, and stopped in time or not.

    python -m experiments.reward_hacking --workdir=runs/reward_hacking

People rank jokes, reward models of several sizes learn from the rankings, and best-of-n and RL optimise against them
while a gold judge, whom neither sees, looks on. Every run is recorded once, with all that a user would know of it; the
laws of over-optimisation are fitted to the records, and stop rules are scored on them. Controls: runs against the gold
judge itself, which nothing can game; added rankings that hold no replies that gamed a reward model.
"""

from __future__ import annotations

import math
import multiprocessing
import pathlib
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from ml_collections import ConfigDict

from experiments import launch, taste
from experiments.findings import write
from experiments.reward_hacking_report import findings_of
from experiments.reward_hacking_runs import Records, Run, pool_of, record, rounds
from experiments.reward_model_fit import check_fit
from jaxllm.data.world_taste import Human, things

ARMS = ("adversarial", "ordinary")


def main(config: ConfigDict, workdir: str) -> None:
    """Makes or finds all runs, and writes what they show.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs = runs_of(config)
    chains = [(seed, arm) for arm in ARMS if config.rounds for seed in config.seeds[:config.round_seeds]]
    # A run needs the pool of its split, and rounds begin with what a run keeps.
    for kind, some in (("pool", ("test", "validation")), ("run", runs), ("chain", chains)):
        make_all(config, folder, [(kind, about) for about in some], begun)
    found = Records({split: pool_of(config, folder, split) for split in ("test", "validation")},
                    {run: record(config, folder, run) for run in runs},
                    {(seed, arm): rounds(config, folder, seed, arm) for seed, arm in chains})
    write(findings_of(config, found), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be measured, before anything is trained."""
    both = (*config.seeds, *config.validation_seeds)
    if len(set(both)) < len(both) or not config.seeds or not config.validation_seeds:
        raise ValueError(f"config.seeds={config.seeds} and config.validation_seeds={config.validation_seeds}: name one "
                         f"or more of each, none twice, since thresholds are chosen on the latter alone")
    for key, most in (("controls", "seeds"), ("other_seeds", "seeds"), ("round_seeds", "seeds"),
                      ("validation_controls", "validation_seeds")):
        if not 0 <= config[key] <= len(config[most]):
            raise ValueError(f"config.{key}={config[key]} must lie from 0 to the number of config.{most}")
    proxies = (tuple(config.proxy), *map(tuple, config.other_proxies))
    blocks = math.inf if config.start.model else config.start.shape.layers
    if len(set(proxies)) < len(proxies) or any(not 1 <= size <= blocks or count < 2 for size, count in proxies):
        raise ValueError(f"config.proxy={config.proxy}, config.other_proxies={config.other_proxies}: give different "
                         f"pairs of blocks, from 1 to the start model's {blocks}, and rankings, 2 or more")
    for key, least in (("completions", 2), ("members", 1), ("held_out", 2), ("rounds", 0), ("adversarial", 1),
                       ("look_steps", 1), ("look_samples", 2), ("pool", 4), ("pool_things", 1), ("label_draws", 1),
                       ("processes", 1)):
        if config[key] < least:
            raise ValueError(f"config.{key}={config[key]}: choose {least} or more")
    asked = config.look_samples * min(len(things(split)) for split in ("test", "validation"))
    if not config.labels or min(config.labels) < 1 or max(config.labels) > asked:
        raise ValueError(f"config.labels={config.labels}: name numbers from 1 to the {asked} replies of a look")
    if config.pool_labels < math.log2(config.pool):
        raise ValueError(f"config.pool_labels={config.pool_labels}: give one or more for each power of 2 up to "
                         f"config.pool ({config.pool})")
    if config.rl.steps < 3 * config.look_steps:
        raise ValueError(f"config.rl.steps={config.rl.steps} must be three times config.look_steps "
                         f"({config.look_steps}) or more: a law has two numbers")
    if config.tolerance < 0 or config.fall <= 0:
        raise ValueError(f"config.tolerance={config.tolerance} must be 0 or more, config.fall={config.fall} above 0")
    taste.check_start(config.start)
    check_fit(config.reward)
    Human(**config.human.to_dict())


def runs_of(config: ConfigDict) -> list[Run]:
    """All runs of RL but the rounds: gamed ones, controls, and those against other reward models."""
    proxy = tuple(config.proxy)
    return [*(Run(seed, "test", proxy) for seed in config.seeds),
            *(Run(seed, "validation", proxy) for seed in config.validation_seeds),
            *(Run(seed, "test", None) for seed in config.seeds[:config.controls]),
            *(Run(seed, "validation", None) for seed in config.validation_seeds[:config.validation_controls]),
            *(Run(seed, "test", tuple(other)) for other in config.other_proxies
              for seed in config.seeds[:config.other_seeds])]


Job = tuple[str, Any]


def make_all(config: ConfigDict, folder: pathlib.Path, jobs: Sequence[Job], begun: float) -> None:
    """Makes what is not kept yet, in config.processes processes."""
    if config.processes == 1:
        for job in jobs:
            make(config, folder, job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.processes, context, launch.set_up_process) as pool:
        waiting = [pool.submit(make, config, folder, job) for job in jobs]
        for count, done in enumerate(as_completed(waiting), 1):
            try:
                done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            print(f"{count} of {len(jobs)} {jobs[0][0]}s, {time.perf_counter() - begun:.0f} s in all", flush=True)


def make(config: ConfigDict, folder: pathlib.Path, job: Job) -> None:
    """One job of a process: keeps what it made and returns nothing, since records are large."""
    kind, about = job
    if kind == "pool":
        pool_of(config, folder, about)
    elif kind == "run":
        record(config, folder, about)
    else:
        rounds(config, folder, *about)


if __name__ == "__main__":
    launch.run(main, default_config="configs/reward_hacking.py")
