"""Where the runs of a sweep are carried out: processes on this machine, or jobs of a cluster through submitit."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from experiments.sweep_plan import Point
from experiments.sweep_run import Requeued

_ROOT = pathlib.Path(__file__).parent.parent


class Job(Protocol):
    """A run on its way."""

    point: Point

    @property
    def log(self) -> pathlib.Path:
        """Where what it prints is found."""

    def running(self) -> bool:
        """Whether it has not ended, well or badly."""

    def stop(self) -> None:
        """Asks it to save and end."""


class Pool(Protocol):
    """What starts runs."""

    def start(self, waiting: Sequence[Point]) -> list[Job]:
        """Starts the first of those that wait, as many as there is room for."""


class Here:
    """Processes on this machine, each with its share of the cores, and of CUDA_VISIBLE_DEVICES where that is set.

    Args:
      parallel: processes at a time.
    """

    def __init__(self, parallel: int) -> None:
        if parallel < 1:
            raise ValueError(f"--parallel={parallel}: run at least one point at a time")
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        self._cores, self._devices = _shares(cores, parallel), _shares(devices, parallel)
        self._slots: list[_Process | None] = [None] * parallel

    def start(self, waiting: Sequence[Point]) -> list[Job]:
        started: list[Job] = []
        for i, busy in enumerate(self._slots):
            if len(started) < len(waiting) and (busy is None or not busy.running()):
                self._slots[i] = job = _Process(waiting[len(started)], self._cores[i], self._devices[i])
                started.append(job)
        return started


def _shares(things: Sequence[Any], parts: int) -> list[list[Any]]:
    """Things dealt to so many parts; where there are fewer things than parts, every part has all."""
    if len(things) < parts:
        return [list(things)] * parts
    return [list(things[i::parts]) for i in range(parts)]


class _Process:
    def __init__(self, point: Point, cores: Sequence[int], devices: Sequence[str]) -> None:
        self.point, self.log = point, point.folder / "log.txt"
        environment = dict(os.environ)
        if cores:
            environment["OMP_NUM_THREADS"] = str(len(cores))  # numpy's BLAS; XLA counts the cores it may run on
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        with open(self.log, "ab") as log:
            # In a session of its own: Ctrl-C is for the sweep, which asks every process once.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "experiments.sweep_run", str(point.folder.resolve())], stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=_ROOT, env=environment, start_new_session=True)
        if cores:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(self._process.pid, cores)  # before Python is up; its threads inherit it

    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)


class Cluster:
    """Jobs through submitit, all of them submitted as one array.

    Args:
      kind: "slurm"; or "local", submitit's stand-in for a cluster, which starts all jobs at once on this machine.
      folder: where submitit keeps its files and the jobs' logs; on a cluster a disk that all nodes share.
      parallel: jobs that run at a time.
      parameters: of a job, as submitit's `update_parameters` takes them: timeout_min, slurm_partition ...
    """

    def __init__(self, kind: str, folder: pathlib.Path, parallel: int, parameters: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ValueError(f"--cluster={kind} needs submitit: pip install 'jaxllm[sweep]'") from error
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=kind)
            limit = {"slurm_array_parallelism": parallel} if kind == "slurm" else {}
            self._executor.update_parameters(**limit, **parameters)
        except (ValueError, NameError, TypeError, RuntimeError) as error:
            raise ValueError(f"--cluster={kind}: {error}") from error

    def start(self, waiting: Sequence[Point]) -> list[Job]:
        if not waiting:
            return []
        jobs = self._executor.map_array(Requeued(), [str(point.folder.resolve()) for point in waiting])
        return [_ClusterJob(point, job) for point, job in zip(waiting, jobs, strict=True)]


class _ClusterJob:
    def __init__(self, point: Point, job: Any) -> None:
        self.point, self._job = point, job

    @property
    def log(self) -> pathlib.Path:
        return self._job.paths.stdout

    def running(self) -> bool:
        return not self._job.done()

    def stop(self) -> None:
        self._job.cancel()
