"""The talk in one command: from a made-up web to a reasoning assistant, and what the numbers say of each chapter.

    pip install -e '.[speedrun]' && python -m experiments.speedrun

Stages are made once, each in a folder named by all that it depends on, side by side where they do not need each other.
The report has a chapter for each: the claim, what was measured, the control that could refute it, the verdict that the
numbers give, a picture. One seed is one draw: the experiments' own commands run several.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib.util
import multiprocessing
import pathlib
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments import lab, launch, speedrun_report
from experiments.speedrun_road import Road
from experiments.speedrun_stages import EXTRAS, STAGES
from jaxllm.data.world import SIZES

Told = Mapping[str, Mapping[str, Any]]  # stage -> what it told


def main(config: ConfigDict, workdir: str) -> None:
    """Runs the stages that are not done yet and writes the report after each.

    Raises:
      ValueError: an unknown stage or size, a missing extra, or what a stage's own experiment refuses.
      SystemExit: a stage failed; all that do not need it were run.
    """
    check(config)
    road, begun = Road(config, pathlib.Path(workdir)), time.perf_counter()
    told: dict[str, Mapping[str, Any]] = {}
    for name, found in run(road):
        told[name] = found
        speedrun_report.write(road, {stage: told[stage] for stage in config.stages if stage in told},
                              time.perf_counter() - begun)
        print("\n".join(speedrun_report.lines(name, found)), flush=True)
    print(f"{len(told)} stages in {(time.perf_counter() - begun) / 60:.1f} min: {road.folder}/report.html", flush=True)


def check(config: ConfigDict) -> None:
    """Refuses what no stage could work with."""
    if unknown := [name for name in config.stages if name not in STAGES]:
        raise ValueError(f"config.stages names {', '.join(unknown)}; choose from {', '.join(STAGES)}")
    if not config.stages or len(set(config.stages)) < len(config.stages):
        raise ValueError(f"config.stages={config.stages}: name at least one stage, each once")
    road = Road(config, pathlib.Path())
    for name in config.stages:
        if lacking := [other for other in road.needs(name) if other not in config.stages]:
            raise ValueError(f"config.stages lacks {', '.join(lacking)}, which {name} reads")
    if config.size not in SIZES:
        raise ValueError(f"config.size is {config.size!r}; choose one of {', '.join(SIZES)}")
    if asking := [name for name in ("recall", "arena") if name in config.stages and not road.of_world]:
        raise ValueError(f"{', '.join(asking)} ask about the made-up world: run crawl too, or leave them out")
    for key in config.required:
        value = functools.reduce(lambda part, name: part[name], key.split("."), config)
        if key.partition(".")[0] in config.stages and not (any(value) if isinstance(value, tuple) else value):
            raise ValueError(f"config.{key} is empty: set it (configs/speedrun.py says to what)")
    if config.processes < 1:
        raise ValueError(f"config.processes={config.processes}: choose 1 or more")
    missing = {extra: [name for name in config.stages if name in stages and not importlib.util.find_spec(module)]
               for extra, (module, stages) in EXTRAS.items()}
    for extra, names in missing.items():
        if names:
            raise ValueError(f"{', '.join(names)} cannot run: pip install -e '.[{extra}]' (or '.[speedrun]' for all), "
                             f"or leave them out of config.stages")


def run(road: Road) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Makes or finds every stage and yields its name and what it told, in the order in which they finish.

    A stage begins when those that it needs are done and one of `config.processes` is free. When one fails, those that
    do not need it are still run.

    Raises:
      SystemExit: at the end, when a stage failed; says which, and where its output is.
    """
    waiting, done, failed = list(road.config.stages), set(), {}
    running: dict[concurrent.futures.Future, str] = {}
    with pool(road.config.processes) as executor:
        while True:
            ready = [name for name in waiting if done.issuperset(road.needs(name))]
            for name in ready[:road.config.processes - len(running)]:
                waiting.remove(name)
                print(f"speedrun: {name}", flush=True)
                where = (road.config.to_dict(), str(road.folder), name, road.config.processes > 1)
                running[executor.submit(make, *where)] = name
            if not running:
                break
            for future in concurrent.futures.wait(running, return_when="FIRST_COMPLETED").done:
                name = running.pop(future)
                if (error := future.exception()) is not None:
                    failed[name] = f"{name}: {type(error).__name__}: {error}"
                    print(f"speedrun: {failed[name]}", file=sys.stderr, flush=True)
                    continue
                done.add(name)
                yield name, future.result()
    if failed:
        sys.exit(f"{'; '.join(failed.values())}. Not run for want of it: {', '.join(waiting) or 'none'}. "
                 f"What they said stands above or in {road.folder}/logs; the same command goes on")


def make(config: Mapping[str, Any], folder: str, name: str, logged: bool) -> dict[str, Any]:
    """A stage, made or found: what it told, with the seconds that it took. Runs in a process of its own.

    Args:
      config: as a dict.
      folder: of the run.
      name: of the stage.
      logged: write what it prints to logs/NAME.txt instead of the terminal.
    """
    road = Road(ConfigDict(config), pathlib.Path(folder))

    def compute() -> dict[str, Any]:
        begun = time.perf_counter()
        try:
            found = STAGES[name](road)
        except Exception:
            traceback.print_exc()  # here, where the stage's own output goes; the caller gets one line of it
            raise
        return {**found, "seconds": time.perf_counter() - begun}

    with contextlib.ExitStack() as stack:
        if logged:
            (road.folder / "logs").mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(open(road.folder / "logs" / f"{name}.txt", "a", encoding="utf-8", buffering=1))
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
        return lab.kept(road.folder / "done", name, road.key(name), compute)


def pool(processes: int) -> concurrent.futures.Executor:
    """Processes that were started anew, since JAX does not survive a fork; one alone is this one."""
    if processes == 1:
        return _Here()
    return concurrent.futures.ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"),
                                                  initializer=launch.set_up_process)


class _Here(concurrent.futures.Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, function, /, *args, **kwargs):
        future: concurrent.futures.Future = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # what an experiment refuses, or a fault of it: told beside the others' results
            future.set_exception(error)
        return future


if __name__ == "__main__":
    launch.run(main, default_config="configs/speedrun.py")
