"""One run of a sweep, in a process of its own.

    python -m experiments.sweep_run runs/points/pretrain-0123456789ab

The folder says what to run (`sweep_plan.Point.write`). A sweep starts this command for every point; by hand it goes on
with a point that was stopped or has failed, on the terminal.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from absl import logging

from experiments import lab, launch
from experiments.sweep_plan import module_of, read, settings


def run(folder: str) -> None:
    """Runs the point of this folder unless it is done; one that another process runs is waited for.

    Raises:
      ValueError, OSError: what the experiment says of its config.
      SystemExit: it was asked to stop before its end.
    """
    path = pathlib.Path(folder)
    experiment, config = read(path)
    logging.set_verbosity(logging.WARNING)
    launch.set_up_process()

    def make(made: pathlib.Path) -> None:
        if module_of(experiment).main(config, str(made)) is False:
            sys.exit("stopped before its end; the sweep's command goes on with it")

    lab.stage(path.parent, experiment, settings(experiment, config), make)


class Requeued:
    """`run` for a cluster: a job that is preempted or out of time is queued again, and goes on where it was."""

    def __call__(self, folder: str) -> None:
        run(folder)

    def checkpoint(self, folder: str) -> Any:
        """What submitit queues in place of a job that the cluster is about to end."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        run(sys.argv[1])
    except launch.BAD_INPUT as error:
        sys.exit(f"{type(error).__name__}: {error}")
