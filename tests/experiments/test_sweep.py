"""Sweeps: points and what they refuse, runs in processes of their own, resuming, the table, the comparison.

The runs are of made-up experiments: one that takes no time, in this process, and one in processes that can be stopped.
"""

import json
import os
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict
from scipy import stats

import experiments
from configs import pretrain_tiny
from experiments import sweep, sweep_compare, sweep_plan, sweep_report, sweep_run, sweep_table
from experiments.sweep_points import chain, from_file, from_text, product, seeds, values, zipped
from experiments.sweep_pool import Cluster, Here, _shares

ROOT = pathlib.Path(__file__).parent.parent.parent


def config():
    return ConfigDict({"seed": 0, "rate": 0.1, "name": "a", "on": True, "sizes": (1, 2), "deep": {"steps": 10}}).lock()


class Inline:
    """A pool that runs a point at once, in this process; some fail."""

    def __init__(self, broken=()):
        self.ran, self.broken = [], broken

    def start(self, waiting):
        point = waiting[0] if waiting else None
        if point is None:
            return []
        self.ran.append(point.label)
        (point.folder / "log.txt").write_text("tried\nValueError: broken on purpose\n\n")
        if point.label not in self.broken:
            loss = point.config.rate + 0.01 * point.config.seed
            lines = [{"step": step, "loss": loss + 1 / step} for step in (1, 2, 4)]
            (point.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (point.folder / "results.json").write_text(json.dumps({"a": {"b": [loss, 2]}, "long": list(range(9))}))
            (point.folder / sweep_plan.DONE).write_text("{}")
        return [Ended(point)]


class Ended:
    def __init__(self, point):
        self.point, self.log = point, point.folder / "log.txt"

    def running(self):
        return False


@pytest.fixture
def made(monkeypatch):
    """plan() of the made-up config, under the name of a real experiment whose check is left out."""
    monkeypatch.setattr(sweep_plan, "_check", lambda module, point: None)
    return lambda points, store, over=(), of=None: sweep_plan.plan("pretrain", of or config(), points, over, store)


def test_points_combine():
    grid = product(values("a", (1, 2)), zipped(values("b", "xy"), values("c.d", (3, 4))))
    assert grid[1] == {"a": 1, "b": "y", "c.d": 4} and len(grid) == 4
    assert chain(grid, seeds(2, first=5))[4:] == [{"seed": 5}, {"seed": 6}]
    with pytest.raises(ValueError, match="equally long"):
        zipped(seeds(2), seeds(3))
    with pytest.raises(ValueError, match="two of the combined sweeps set seed"):
        product(seeds(2), seeds(2))


def test_points_from_command_line_and_file(tmp_path):
    assert from_text("on=True,False") == [{"on": True}, {"on": False}]
    assert from_text("name=adamw,'x,y'")[0] == {"name": "adamw"}
    with pytest.raises(ValueError, match="KEY=VALUE"):
        from_text("rate")
    path = tmp_path / "points.jsonl"
    path.write_text('{"rate": 1}\n\n[2]\n')
    with pytest.raises(ValueError, match=r"points.jsonl:3: write an object"):
        from_file(path)


@pytest.mark.parametrize("points, over, says", [
    ([{"rat": 1.0}], (), "no key 'rat'; did you mean rate"), ([{"deep.step": 1}], (), "did you mean deep.steps"),
    ([{"rate": "fast"}], (), "of type float"), ([{"seed": True}], (), "of type int"), ([{"deep": 1}], (), "deep=1"),
    ([{"rate": 1}, {"rate": 1.0}], (), "one and the same run"), ([{"seed": 1}], (0, 1), "set seed already"),
    ([], (), "no point to run")])
def test_bad_points_are_refused_before_anything_runs(made, tmp_path, points, over, says):
    with pytest.raises(ValueError, match=says):
        made(points, tmp_path, over)
    assert not list(tmp_path.iterdir())


def test_what_the_experiment_refuses_and_unknown_experiments(tmp_path):
    with pytest.raises(ValueError, match="steps=0: steps is 0"):
        sweep_plan.plan("pretrain", pretrain_tiny.get_config().lock(), [{"steps": 0}], (), tmp_path)
    for name in ("pretran", "lab", "../x"):
        with pytest.raises(ValueError, match="no such experiment"):
            sweep_plan.plan(name, config(), [{}], (), tmp_path)


def test_a_run_is_known_by_its_content(made, tmp_path):
    one = made([{"rate": 1}, {"rate": 2}], tmp_path, (0, 1))
    assert [(point.overrides, point.seed) for point in one[:3]] == [({"rate": 1.0}, 0), ({"rate": 1.0}, 1),
                                                                    ({"rate": 2.0}, 0)]
    other = config()
    other.rate = 2.0
    same = made([{"seed": 1}], tmp_path, of=other)
    assert same[0].folder == one[3].folder and same[0].seed == 1 and same[0].overrides == {}
    assert len({point.folder for point in one}) == 4
    one[0].write()
    experiment, resolved = sweep_plan.read(one[0].folder)
    assert experiment == "pretrain" and resolved == one[0].config and resolved.sizes == (1, 2)  # a tuple still
    several = ConfigDict({"seeds": (0, 1, 2), "rate": 1.0}).lock()
    assert made([{}], tmp_path, (7,), of=several)[0].config.seeds == (7,)


def test_a_sweep_fails_in_part_goes_on_and_shares_runs(made, tmp_path, capsys):
    folder, store = tmp_path / "one", tmp_path / "points"
    points = made([{"rate": 0.1}, {"rate": 0.4}], store, (0, 1, 2))
    broken = Inline(broken=("rate=0.1 seed=1",))
    failed = sweep.run(points, broken, folder, config())
    assert [point.label for point in failed] == ["rate=0.1 seed=1"] and len(broken.ran) == 6
    out = capsys.readouterr().out
    assert "FAILED: ValueError: broken on purpose" in out and "log.txt" in out and "left" in out
    rows = sweep_table.read(folder)
    assert [row["state"] for row in rows] == ["done", "failed", *["done"] * 4]
    table = pq.read_table(folder / "table.parquet")
    assert str(table.schema.field("config.rate").type) == "double" and str(table.schema.field("seed").type) == "int64"
    assert rows[2]["metrics.loss"] == 0.1 + 0.02 + 0.25 and rows[2]["results.a.b.0"] == 0.1 + 0.02
    assert "results.long.0" not in rows[2] and "metrics.loss" not in rows[1]
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 and "1 failed" in page and "../points/pretrain-" in page

    again = Inline()
    assert not sweep.run(points, again, folder, config()) and again.ran == ["rate=0.1 seed=1"]
    other = made([{"rate": 0.4}, {"rate": 0.8}], store, (0, 1, 2))
    another = Inline()
    sweep.run(other, another, tmp_path / "two", config(), metrics=("nothing",))  # told, and no run is lost by it
    assert "no page yet: metric 'nothing'" in capsys.readouterr().out
    assert another.ran == [f"rate=0.8 seed={seed}" for seed in range(3)]


def test_numbers_are_named_by_their_end():
    rows = [{"metrics.loss": 1.0, "metrics.validation_loss": 2.0, "results.a.loss": 3.0, "state": "done"}]
    assert sweep_table.column(rows, "validation_loss") == "metrics.validation_loss"
    assert sweep_report.chosen(rows, ()) == ["metrics.validation_loss"]
    with pytest.raises(ValueError, match="more than one column"):
        sweep_table.column(rows, "loss")
    with pytest.raises(ValueError, match="choose one of metrics.loss"):
        sweep_table.column(rows, "nothing")


def rows_of(values_by_point, key="config.rate", start=0):
    return [{key: rate, "seed": seed, "state": "done", "metrics.loss": value}
            for rate, found in values_by_point.items() for seed, value in enumerate(found, start)]


def test_comparison_is_paired_where_seeds_match_and_equals_scipy():
    rng = np.random.default_rng(0)
    a = {0.1: rng.normal(1, 0.1, 6), 0.2: rng.normal(1, 0.1, 6), 0.3: rng.normal(1, 0.1, 6)}
    b = {0.1: a[0.1] + rng.normal(0.05, 0.01, 6), 0.2: rng.normal(1, 0.1, 6), 0.9: rng.normal(1, 0.1, 6)}
    points, (mean,), left_out = sweep_compare.compare(rows_of(a), rows_of(b), "metrics.loss")
    assert [point.test for point in points] == ["paired", "paired"] and left_out == ["rate 0.3", "rate 0.9"]
    expected = stats.ttest_rel(b[0.1], a[0.1])
    assert np.isclose(points[0].p, expected.pvalue) and np.isclose(
        points[0].difference[1], expected.confidence_interval(0.95).low)
    assert points[0].permuted == 2 / 2**6  # all six signs agree: two of 64 arrangements are as extreme
    assert points[0].interval[0] < points[0].difference[0] < points[0].interval[1]
    assert np.isclose(points[0].holm, 2 * points[0].p) and points[1].holm == points[1].p
    each = [np.mean([b[rate][seed] - a[rate][seed] for rate in (0.1, 0.2)]) for seed in range(6)]
    assert np.isclose(mean.p, stats.ttest_1samp(each, 0).pvalue)

    (welch, *_), _, _ = sweep_compare.compare(rows_of(a), rows_of(b, start=6), "metrics.loss")
    assert welch.test == "Welch" and np.isclose(welch.p, stats.ttest_ind(b[0.1], a[0.1], equal_var=False).pvalue)
    (whole,), none, left = sweep_compare.compare(rows_of({0.1: a[0.1]}), rows_of({0.9: b[0.9]}), "metrics.loss")
    assert whole.label == "all runs" and whole.test == "paired" and not none and left == ["rate 0.1", "rate 0.9"]


def test_holm_keeps_order_and_counts_what_has_no_p():
    assert np.allclose(sweep_compare.holm([0.01, 0.02, 0.03, 0.04]), [0.04, 0.06, 0.06, 0.06])
    found = sweep_compare.holm([0.02, float("nan"), 0.5])
    assert np.allclose(found, [0.06, np.nan, 1.0], equal_nan=True)


def test_two_sweeps_are_compared_by_one_command(tmp_path, capsys):
    for name, base in (("a", 0.1), ("b", 0.2)):
        found = [base + 0.01 * seed for seed in range(3)]
        sweep_table.write([{"point": "", "experiment": "x", "path": "", **row} for row in rows_of({1.0: found})],
                          tmp_path / name)
    sweep_compare.write(tmp_path / "a", tmp_path / "b", tmp_path / "both", ("loss",))
    assert "+0.1000" in capsys.readouterr().out and "3 pairs" in (tmp_path / "both" / "report.md").read_text()
    with pytest.raises(ValueError, match="holds no table.parquet"):
        sweep_compare.write(tmp_path, tmp_path / "b", tmp_path / "both", ())


def test_shares_of_cores():
    assert _shares([0, 1, 2, 3, 4], 2) == [[0, 2, 4], [1, 3]] and _shares([0, 1], 3) == [[0, 1]] * 3


# An experiment that takes a second a step, can be stopped, and goes on where it was.
SLOW = """
import pathlib, signal, time
def main(config, workdir):
    if config.rate < 0:
        raise ValueError("rate is below 0; raise it")
    asked = []
    signal.signal(signal.SIGINT, lambda *args: asked.append(1))
    path = pathlib.Path(workdir) / "metrics.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    for step in range(done, config.deep.steps):
        with open(path, "a") as file:
            file.write('{"step": %d, "loss": %f}\\n' % (step, config.rate))
        time.sleep(config.rate)
        if asked:
            return False
"""


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """`slow_steps` among the experiments of this process and of those that it starts."""
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "slow_steps.py").write_text(SLOW)
    (extra / "sitecustomize.py").write_text(
        f"import experiments\nexperiments.__path__.append({str(extra)!r})\n")
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(extra)])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(extra), str(ROOT)]))
    return lambda points: sweep_plan.plan("slow_steps", config(), points, (), tmp_path / "points")


class Stopped(Here):
    """Ctrl-C as soon as a run has taken a step."""

    def start(self, waiting):
        if list(self.store.glob("*/metrics.jsonl")):
            raise KeyboardInterrupt
        return super().start(waiting)


@pytest.mark.slow
def test_processes_are_stopped_and_go_on_and_fail_alone(slow, tmp_path, capsys):
    points = slow([{"rate": 1.0, "deep.steps": 2}, {"rate": -1.0}])
    pool = Stopped(1)
    pool.store = tmp_path / "points"
    with pytest.raises(SystemExit, match="the same command goes on"):
        sweep.run(points[:1], pool, tmp_path / "sweep", config())
    assert not points[0].done and len(sweep_table.read_metrics(points[0].folder)) == 1
    failed = sweep.run(points, Here(2), tmp_path / "sweep", config())
    assert [point.label for point in failed] == ["rate=-1.0"]
    assert "FAILED: ValueError: rate is below 0; raise it" in capsys.readouterr().out
    assert [record["step"] for record in sweep_table.read_metrics(points[0].folder)] == [0, 1]


@pytest.mark.slow
def test_jobs_through_submitit(slow, tmp_path):
    pytest.importorskip("submitit", reason="needs the extra `sweep`")
    points = slow([{"rate": 0.01, "deep.steps": 3}])
    pool = Cluster("local", tmp_path / "jobs", 1, {"timeout_min": 5})
    assert not sweep.run(points, pool, tmp_path / "sweep", config()) and points[0].done
    assert sweep_table.read(tmp_path / "sweep")[0]["metrics.loss"] == 0.01
    submission = sweep_run.Requeued().checkpoint(str(points[0].folder))  # what a preempted job leaves in its place
    assert submission.args == (str(points[0].folder),) and submission.result() is None  # done: nothing is run
    with pytest.raises(ValueError, match="--cluster=local"):
        Cluster("local", tmp_path / "jobs", 1, {"no_such_parameter": 5})
