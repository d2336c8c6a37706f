"""Runs a curation here, on Slurm or on Ray; resumes it task by task; refuses a result that lost pages unseen.

A run lives in `folder/<recipe>-<hash>`; the hash covers recipe, inputs and number of tasks, so that changed settings
never find the finished tasks of old ones (datatrove would silently do nothing).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from loguru import logger
from tqdm import tqdm

from jaxllm.data.curate import funnel
from jaxllm.data.curate.pages import page_files
from jaxllm.data.curate.recipe import Recipe
from jaxllm.data.curate.stages import Inputs, Job, jobs
from jaxllm.data.curate.steps import prepare_lists

ON = ("local", "slurm", "ray")


@dataclasses.dataclass(frozen=True)
class Where:
    """The machines of a run.

    Attributes:
      on: "local", "slurm" or "ray" (a cluster that `ray.init` finds, else this machine).
      workers: tasks at once; 0 = one per core here, no limit on a cluster.
      tasks: into how many tasks the files are dealt; 0 = one per file, at most 1,000.
      memory_gb: of one task, for Slurm and Ray.
      slurm: further keywords of datatrove's SlurmPipelineExecutor; `time` and `partition` are required there.
    """

    on: str = "local"
    workers: int = 0
    tasks: int = 0
    memory_gb: int = 2
    slurm: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on not in ON:
            raise ValueError(f"where.on is {self.on!r}; choose from {', '.join(map(repr, ON))}")
        if self.on == "slurm" and not (self.slurm.get("time") and self.slurm.get("partition")):
            raise ValueError("where.slurm needs `time` and `partition`, as sbatch takes them")


def curate(recipe: Recipe, inputs: Inputs, folder: str | os.PathLike, where: Where = Where(), *,
           cache: str | os.PathLike = "~/.cache/jaxllm/curate", tokenizer: str = "",
           progress: bool = True) -> pathlib.Path:
    """Curates the inputs and returns the folder of the run, with `documents/*.jsonl.gz` and `funnel.json` in it.

    Called again it goes on where it was stopped or killed: finished tasks stay, unfinished ones begin anew. On Slurm it
    submits all jobs, each waiting for the one before; called again when they are done, it checks and finishes.

    Args:
      recipe: what to do.
      inputs: where pages are.
      folder: on a disk that all machines share; the run makes its own folder in it.
      where: which machines.
      cache: for the hashed block lists, made once.
      tokenizer: counts tokens in the funnel; "" for none.
      progress: shows finished tasks.

    Raises:
      FileNotFoundError: no input, or the language model is missing.
      ValueError: no page came through a stage, or too many ran out of time.
    """
    files = page_files(inputs.folder, inputs.paths_file, inputs.pattern)
    tasks = min(where.tasks or 1000, len(files))
    run = pathlib.Path(folder) / f"{recipe.name}-{_fingerprint(recipe, inputs, files, tasks, tokenizer)}"
    if (run / "funnel.json").exists():
        return run
    run.mkdir(parents=True, exist_ok=True)
    _write_json(run / "recipe.json", dataclasses.asdict(recipe))
    lists = prepare_lists(cache) if recipe.url.on and recipe.url.integrated_lists else ""
    todo = jobs(recipe, inputs, str(run), tasks, lists, tokenizer)
    with _quiet_environment():
        if where.on == "slurm":
            if any(not _finished(run, job) for job in todo):
                _submit(todo, run, where)
                return run
        for job in todo:
            if not _finished(run, job):
                executor = _executor(job, run, where)
                with _progress(run, job, progress), _log_to(run / "logs" / f"{job.name}.log"):
                    executor.run()
            if job.name == "pages":
                _check_pages(recipe, run)
    check(recipe, funnel.read(run, recipe))
    # A run that was killed between these two lines left the documents in place.
    if not (run / "documents").exists():
        os.rename(run / "work" / "documents", run / "documents")
    _write_json(run / "funnel.json", dataclasses.asdict(funnel.read(run, recipe)))
    return run


def check(recipe: Recipe, rows: funnel.Funnel) -> None:
    """Refuses a run that kept nothing or lost more than the recipe allows to the time limit.

    The exit status of a task tells neither: a stage that fails on every page is a success to datatrove.
    """
    for stage in rows.stages:
        if stage.documents == 0:
            before = f"; {stage.dropped:,} were dropped ({', '.join(stage.reasons) or 'no reason given'})"
            raise ValueError(f"no page came through {stage.name}{before if stage.dropped else ''}: look at "
                             f"dropped/{stage.name} and switch the stage off or move its thresholds")
        if stage.name == "extract":
            seen, late = stage.documents + stage.dropped, stage.reasons.get("timeout", 0)
            if late > recipe.extract.max_timeout_share * seen:
                raise ValueError(f"{late:,} of {seen:,} pages ran into extract.seconds={recipe.extract.seconds}, more "
                                 f"than extract.max_timeout_share={recipe.extract.max_timeout_share}: allow more "
                                 "seconds, or run fewer workers at once")


def _check_pages(recipe: Recipe, run: pathlib.Path) -> None:
    """`check`, after whose refusal the pages are read anew when called again: a busy machine may be a free one then."""
    try:
        check(recipe, funnel.read(run, recipe))
    except ValueError:
        shutil.rmtree(run / "logs" / "pages")
        raise


def _fingerprint(recipe: Recipe, inputs: Inputs, files: list[str], tasks: int, tokenizer: str) -> str:
    state = [recipe.fingerprint, dataclasses.asdict(inputs), files, tasks, tokenizer]
    if "://" not in inputs.folder:
        state.append([os.path.getsize(os.path.join(inputs.folder, file)) for file in files])
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]


class _Local(LocalPipelineExecutor):
    """Its tasks write their logs to files alone."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1):
        try:
            return super()._run_for_rank(rank, local_rank=1, node_rank=node_rank)
        finally:
            logger.remove()  # closing the task's log has put the terminal back


def _executor(job: Job, run: pathlib.Path, where: Where, **more) -> PipelineExecutor:
    common = {"pipeline": job.steps, "tasks": job.tasks, "logging_dir": str(run / "logs" / job.name)}
    if where.on == "slurm":
        return SlurmPipelineExecutor(**common, workers=where.workers or -1, job_name=f"curate-{job.name}",
                                     mem_per_cpu_gb=where.memory_gb, **where.slurm, **more)
    if where.on == "ray":
        import ray
        from datatrove.executor import RayPipelineExecutor

        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        common["pipeline"] = [_end_when_told, *job.steps]
        return RayPipelineExecutor(**common, workers=where.workers or -1, mem_per_cpu_gb=where.memory_gb)
    return _Local(**common, workers=min(where.workers or os.cpu_count() or 1, job.tasks))


def _end_when_told(data, rank: int, world_size: int):
    """First step on Ray: lets SIGTERM end the process.

    datatrove runs a task in a process forked from a Ray worker and ends it with SIGTERM, which the fork would handle as
    its parent does, so that the task is waited for without end after its work is done.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return data


def _submit(todo: list[Job], run: pathlib.Path, where: Where) -> None:
    """Submits what is left, once: the same task in two queued jobs would write the same file twice at a time."""
    submitted = run / "submitted"
    if submitted.exists():
        left = [job.name for job in todo if not _finished(run, job)]
        raise ValueError(f"the jobs of {run} were submitted and have not finished ({', '.join(left)} left); look at "
                         f"squeue, and when none of them is in it, delete {submitted} to submit what is left")
    before = None
    for job in todo:
        before = _executor(job, run, where, depends=before)
    before.launch_job()  # and with it all that it waits for
    submitted.touch()


def _finished(run: pathlib.Path, job: Job) -> bool:
    done = run / "logs" / job.name / "completions"
    return done.is_dir() and len(os.listdir(done)) == job.tasks


@contextlib.contextmanager
def _progress(run: pathlib.Path, job: Job, shown: bool) -> Iterator[None]:
    """A bar over finished tasks, kept up to date from what they leave on disk."""
    done, stop, terminal = run / "logs" / job.name / "completions", threading.Event(), sys.stderr

    def watch() -> None:
        with tqdm(total=job.tasks, desc=job.name, unit="task", disable=not shown, file=terminal) as bar:
            while not stop.wait(1.0):
                bar.update(len(os.listdir(done)) - bar.n if done.is_dir() else 0)
            bar.update(len(os.listdir(done)) - bar.n if done.is_dir() else 0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def _quiet_environment() -> Iterator[None]:
    """One thread a worker, and nothing fetched behind one's back."""
    wanted = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


@contextlib.contextmanager
def _log_to(path: pathlib.Path) -> Iterator[None]:
    """datatrove sends its log to this process's stderr wherever it likes; here it goes to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.remove()
    with open(path, "a") as file, contextlib.redirect_stderr(file):
        try:
            yield
        finally:
            logger.remove()


def _write_json(path: pathlib.Path, value: Any) -> None:
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    unfinished.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(unfinished, path)
