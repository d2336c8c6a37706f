"""Pretrains a language model: config -> mesh -> corpus -> state -> loop -> model folder and report.

    python -m experiments.pretrain                                      # the embedded world, minutes on a laptop
    python -m experiments.pretrain --config=configs/pretrain_gpt2.py:124m --workdir=runs/gpt2
    python -m experiments.pretrain --config=configs/pretrain_llama3.py:8b --dry_run

The same command resumes a run that was stopped or killed.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import time

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import corpus as corpora
from experiments import dry_run, expected_curves_band, launch, report
from experiments.training import Run, plan, pretraining
from jaxllm.train import loop, sharding


def main(config: ConfigDict, workdir: str) -> bool:
    """Runs or resumes the experiment in `workdir`; returns whether all its steps are taken."""
    check(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.batch_size, config.microbatches, mesh)
    plan(config, mesh, 1)  # whatever is wrong with the settings shows before the corpus is read
    begun = time.perf_counter()
    folder = pathlib.Path(workdir)
    report.claim_folder(folder, config)
    corpus = corpora.prepare(config.data, config.row_length, config.seed)
    made = plan(config, mesh, corpus.tokenizer.vocab_size)
    with jax.set_mesh(mesh), loop.StopRequest() as stop:
        with contextlib.closing(Run(config, folder, pretraining(config, corpus, made), made, begun)) as run:
            state = run.train(stop)
            finished = int(state.step) == config.steps
            run.finish(state, interrupted=not finished)
            if finished and (said := expected_curves_band.verdict(config, folder)):
                run.say(said)
    return finished


def check(config: ConfigDict) -> None:
    """Refuses numbers that cannot work, before anything is read or compiled."""
    for key in ("steps", "batch_size", "row_length", "microbatches", "vocab_multiple", "loss_chunks", "log_steps",
                "max_skips"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    if config.row_length > config.model.max_positions:
        raise ValueError(f"row_length ({config.row_length}) exceeds model.max_positions "
                         f"({config.model.max_positions}); shorten the rows or raise model.max_positions")
    if config.row_length % config.loss_chunks:
        raise ValueError(f"loss_chunks ({config.loss_chunks}) must divide row_length ({config.row_length})")
    if not 0 < config.data.validation_fraction < 1:
        raise ValueError(f"data.validation_fraction is {config.data.validation_fraction}; choose a number between 0 "
                         f"and 1, both excluded")


if __name__ == "__main__":
    # Here, so that an experiment which pretrains on its way has no such flag.
    DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print sizes, FLOPs and memory of the run on its mesh; no training.")
    launch.run(lambda config, workdir: dry_run.run(config, functools.partial(plan, config)) if DRY_RUN.value
               else main(config, workdir), default_config="configs/pretrain_tiny.py")
