"""Learning a taste from rankings: how far a reward model agrees, whether its certainty means anything, what it likes.

    python -m experiments.reward_model --workdir=runs/reward_model
    python -m experiments.reward_model --config=configs/reward_model.py:FILE --config.start.model=models/smollm2

Simulated people rank jokes of the start model, and models of several label counts, an ensemble, and controls are held
against orders that none has seen, up to the ceiling of a judge without noise. With a file of preferences it is the same
model in folds by prompt. `fit` makes one reward model; experiments that need one call it.
"""

from __future__ import annotations

import pathlib
import time

import numpy as np
from ml_collections import ConfigDict

from experiments import launch, taste
from experiments.findings import write
from experiments.reward_model_file import File, file_scores
from experiments.reward_model_fit import check_fit, fit
from experiments.reward_model_jokes import joke_scores
from experiments.reward_model_measure import held_out
from experiments.reward_model_report import Run, findings_of
from jaxllm.data.world_taste import Human

__all__ = ["fit"]


def main(config: ConfigDict, workdir: str) -> None:
    """Fits and measures every judge at every seed, and writes what was found.

    Raises:
      ValueError: a key is out of range, or the file cannot be read.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    file = File(config, folder) if config.preferences else None
    runs = []
    for seed in config.seeds:
        if file is None:
            jokes, judges = joke_scores(config, seed, folder)
            data = held_out(jokes.rankings["test"], jokes.gold)
            judges |= {"gold": {"test": jokes.gold}, "another person": {"test": jokes.other_person}}
        else:
            judges, data = file_scores(file, seed), held_out(file.rankings)
        runs.append(Run(seed, data, {name: np.asarray(found["test"], float) for name, found in judges.items()}, judges))
        print(f"seed {seed}: {time.perf_counter() - begun:.0f} s in all", flush=True)
    write(findings_of(config, runs, file.account if file else None), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be measured, before anything is trained."""
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    check_fit(config.reward)
    taste.check_start(config.start)
    if config.preferences:
        if config.folds < 3 or config.limit < 0:
            raise ValueError(f"config.folds={config.folds} must be 3 or more, for training, choosing and holding out; "
                             f"config.limit={config.limit} 0 or more")
        return
    if not config.start.model and config.reward.row_length > config.start.shape.max_positions:
        raise ValueError(f"config.reward.row_length={config.reward.row_length} exceeds "
                         f"config.start.shape.max_positions={config.start.shape.max_positions}")
    for key, least in (("rankings", 2), ("validation", 2), ("test", 2), ("completions", 2), ("members", 2)):
        if config[key] < least:
            raise ValueError(f"config.{key}={config[key]}: choose {least} or more")
    if any(not 2 <= count < config.rankings for count in config.counts):
        raise ValueError(f"config.counts={config.counts}: choose numbers from 2 to below config.rankings "
                         f"({config.rankings})")
    Human(**config.human.to_dict())


if __name__ == "__main__":
    launch.run(main, default_config="configs/reward_model.py")
