"""Runs an experiment at many settings and seeds: here, in parallel, or on a cluster; one table and one page.

    python -m experiments.sweep --experiment=pretrain --config=configs/pretrain_tiny.py --workdir=runs/sweep
    python -m experiments.sweep --over=optimizer.learning_rate=1e-3,2e-3 --over=steps=600,1200 --seeds=0,1 --parallel=2
    python -m experiments.sweep --config=configs/pretrain_gpt2.py --cluster=slurm --parallel=8 --job=timeout_min=240
    python -m experiments.sweep --compare=runs/before,runs/after --workdir=runs/compared

Every point is checked before the first is run. A run that is done, in this sweep or in another, is not run again; one
that was stopped goes on; one that fails does not stop the others. docs/sweep.md has the rest.
"""

from __future__ import annotations

import contextlib
import pathlib
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import launch, sweep_compare, sweep_points, sweep_report, sweep_table
from experiments.sweep_plan import Point, plan
from experiments.sweep_pool import Cluster, Here, Job, Pool

_LOOK_SECONDS, _TELL_SECONDS, _PAGE_SECONDS = 0.2, 60.0, 20.0


def main(config: ConfigDict, workdir: str) -> None:
    """Runs or goes on with the sweep that the flags describe; or compares two.

    Raises:
      ValueError: a flag or a point cannot be used.
    """
    folder = pathlib.Path(workdir)
    metrics = tuple(FLAGS.metrics)
    if FLAGS.compare:
        if len(FLAGS.compare) != 2:
            raise ValueError(f"--compare={','.join(FLAGS.compare)}: name the folders of two sweeps")
        sweep_compare.write(*map(pathlib.Path, FLAGS.compare), folder, metrics)
        return
    seeds = [int(seed) for seed in FLAGS.seeds]
    store = pathlib.Path(FLAGS.runs) if FLAGS.runs else folder.parent / "points"
    points = plan(FLAGS.experiment, config, asked_points(), seeds, store)
    if FLAGS.list:
        print("\n".join(f"{'done' if point.done else 'open'}  {point.folder}  {point.label}" for point in points))
        return
    pool = Cluster(FLAGS.cluster, folder / "jobs", FLAGS.parallel, job_parameters()) if FLAGS.cluster else Here(
        FLAGS.parallel)
    failed = run(points, pool, folder, config, metrics)
    if failed:
        sys.exit(f"{len(failed)} of {len(points)} runs failed; the same command tries them again")


def asked_points() -> list[sweep_points.Overrides]:
    """The points of --over and --points, or of the config's own sweep()."""
    listed = sweep_points.from_file(FLAGS.points) if FLAGS.points else []
    crossed = sweep_points.product(*map(sweep_points.from_text, FLAGS.over)) if FLAGS.over else []
    if listed and crossed:
        return sweep_points.product(listed, crossed)
    if listed or crossed:
        return [*listed, *crossed]
    path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    sweep = runpy.run_path(path).get("sweep")
    if sweep is None:
        raise ValueError(f"{path} has no sweep(); give --over or --points")
    return sweep()


def job_parameters() -> dict[str, object]:
    """What --job says of a cluster's jobs."""
    return {key: value for text in FLAGS.job for key, value in sweep_points.from_text(text)[0].items()}


def run(points: Sequence[Point], pool: Pool, folder: pathlib.Path, config: ConfigDict, metrics: Sequence[str] = (),
        title: str = "Sweep") -> list[Point]:
    """Carries out what is not done yet, and keeps table and page of the sweep up to date.

    Args:
      points: of `plan`.
      pool: where they run.
      folder: of the sweep: table.parquet, report.html, report.md.
      config: what all points share, for the page.
      metrics: that page and progress lines show; () lets the page choose.
      title: of the page.

    Returns:
      The points that failed.

    Raises:
      SystemExit: on Ctrl-C or SIGTERM, after the runs have saved and ended.
    """
    waiting = [point for point in points if not point.done]
    failed: list[Point] = []
    name = f"{title}: {points[0].experiment}"
    begun = shown = time.perf_counter()
    print(f"{len(points)} runs, {len(points) - len(waiting)} of them done before; {folder / 'report.html'}", flush=True)

    def update(page: bool) -> None:
        rows = sweep_table.rows_of(points, failed)
        sweep_table.write(rows, folder)
        try:
            if page:
                sweep_report.write(rows, folder, config, name, metrics)
        except ValueError as error:  # a metric that no run has: known only now, and no reason to lose the runs
            print(f"no page yet: {error}", flush=True)

    def ended(job: Job, left: int, seconds_left: float) -> None:
        nonlocal shown
        said = _numbers(job.point, metrics)
        if not job.point.done:
            failed.append(job.point)
            said = f"FAILED: {_last_line(job.log)} ({job.log})"
        minutes, rest = divmod(round(seconds_left), 60)
        print(f"[{len(points) - left}/{len(points)}] {job.point.label}: {said}; {time.perf_counter() - begun:.0f} s, "
              f"about {minutes}:{rest:02d} left", flush=True)
        page = not left or time.perf_counter() - shown > _PAGE_SECONDS
        update(page)
        shown = time.perf_counter() if page else shown

    for point in waiting:
        point.write()
    update(page=True)
    _carry_out(waiting, pool, ended)
    return failed


def _carry_out(waiting: list[Point], pool: Pool, ended: Callable[[Job, int, float], None]) -> None:
    """Starts points as there is room and waits for all of them; asked to stop, it stops them and exits.

    Args:
      waiting: points that are not done.
      pool: where they run.
      ended: called as ended(job, runs left, seconds left) after every run: so many at a time, as long as those so far.
    """
    todo, running, took = list(waiting), [], []
    told, begun = time.perf_counter(), {}
    with _interrupted_by_sigterm():
        try:
            while todo or running:
                started = pool.start(todo)
                running, todo = running + started, todo[len(started):]
                begun |= {id(job): time.perf_counter() for job in started}
                time.sleep(_LOOK_SECONDS)
                over = [job for job in running if not job.running()]
                for job in over:
                    took.append(time.perf_counter() - begun[id(job)])
                    at_a_time = len(running)
                    running.remove(job)
                    left = len(todo) + len(running)
                    ended(job, left, sum(took) / len(took) * left / at_a_time)
                if time.perf_counter() - told > _TELL_SECONDS:
                    told = time.perf_counter()
                    for job in running[:4]:
                        print(f"  {job.point.label}: {_last_line(job.log)}", flush=True)
        except KeyboardInterrupt:
            print(f"stopping {len(running)} runs; they save first", flush=True)
            for job in running:
                job.stop()
            while any(job.running() for job in running):
                time.sleep(_LOOK_SECONDS)
            sys.exit("stopped; the same command goes on")


@contextlib.contextmanager
def _interrupted_by_sigterm():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _numbers(point: Point, metrics: Sequence[str]) -> str:
    """The first metrics of a run, for a progress line."""
    row = {"state": "done", **sweep_table.numbers(point.folder)}
    try:
        names = sweep_report.chosen([row], metrics)
    except ValueError as error:
        return str(error)
    return ", ".join(f"{sweep_report.short(name)} {row[name]:.4f}" for name in names) or "done; it left no numbers"


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it has printed nothing")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("experiment", "pretrain", "A module of experiments/ that takes the config.")
    flags.DEFINE_multi_string("over", [], "KEY=VALUE,VALUE: values of a config key; several of them are multiplied.")
    flags.DEFINE_string("points", "", "A jsonl file of points; with neither, the config's sweep() has them.")
    flags.DEFINE_list("seeds", [], "Every point is run with each of these.")
    flags.DEFINE_string("runs", "", "Folder of the runs, which sweeps share; `points` beside the workdir unless given.")
    flags.DEFINE_integer("parallel", 1, "Runs at a time.")
    flags.DEFINE_enum("cluster", "", ["", "slurm", "local"], "Through submitit; local is its stand-in on this machine.")
    flags.DEFINE_multi_string("job", [], "KEY=VALUE of a cluster's jobs: timeout_min, slurm_partition ...")
    flags.DEFINE_list("metrics", [], "Columns of the table to show or to compare, or what they end in.")
    flags.DEFINE_bool("list", False, "Print the points and their folders; run nothing.")
    flags.DEFINE_list("compare", [], "Folders of two sweeps to compare; runs nothing.")
    launch.run(main, default_config="configs/pretrain_tiny.py", default_workdir="runs/sweep")
