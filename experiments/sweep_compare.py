"""Two sweeps compared: the same points before and after a change, or with one thing different.

Points are matched by the values of the config keys that both sweeps set, runs by their seed. Where a point has at least
two seeds in both sweeps the test is paired; otherwise Welch's. P-values are corrected by Holm's method over the points
of a metric. The mean over points is tested too: seed by seed, a seed's runs of all matched points taken together.
"""

from __future__ import annotations

import dataclasses
import html
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments import findings, report
from experiments import sweep_table as tables
from experiments.sweep_report import chosen, short
from experiments.sweep_table import Row

_DRAWS = 9_999


@dataclasses.dataclass(frozen=True)
class Difference:
    """The second sweep less the first at one point, or over all of them.

    Attributes:
      label: of the point.
      test: "paired" or "Welch".
      counts: runs of the first and of the second that were used; pairs count once on either side.
      means: of the first and the second.
      difference: with its 95% interval by Student's t, paired or Welch.
      interval: 95%, by the bootstrap (BCa); None below three pairs or runs a side, which it cannot resolve.
      p: two-sided, of the t test; NaN where all differences are equal.
      permuted: two-sided, of the exact permutation test (signs of the differences, or labels of the runs); random
        permutations where there are more than 9,999.
      holm: p after Holm's correction over the points; NaN for the mean over points.
    """

    label: str
    test: str
    counts: tuple[int, int]
    means: tuple[float, float]
    difference: tuple[float, float, float]
    interval: tuple[float, float] | None
    p: float
    permuted: float
    holm: float = float("nan")


def write(first: pathlib.Path, second: pathlib.Path, folder: pathlib.Path, metrics: Sequence[str]) -> None:
    """Compares two sweeps and writes report.md and report.html; prints the tables.

    Raises:
      ValueError: a folder holds no table, or nothing of the two can be compared.
    """
    a, b = (_done(place) for place in (first, second))
    both = [name for name in chosen(a, metrics) if any(name in row for row in b)]
    if not both:
        raise ValueError(f"{first} and {second} have no metric in common; name one with --metrics")
    title = f"{second.name} against {first.name}"
    text, sections = f"# {title}\n", []
    for metric in both:
        points, mean, left_out = compare(a, b, metric)
        table = findings.Table(f"{short(metric)}: {second.name} less {first.name}", _table([*points, *mean]),
                               _note(left_out))
        text += "\n" + findings.markdown(table)
        sections.append((table.title, _picture([*points, *mean], short(metric)) + findings.html_table(table.rows)
                         + f'<p class="dim">{html.escape(table.note)}</p>'))
    folder.mkdir(parents=True, exist_ok=True)
    report.write_text(folder / "report.md", text)
    report.write_text(folder / "report.html", report.page(title, f"{first}, {second}", sections))
    print(f"{text}\nwritten: {folder}/report.html, report.md", flush=True)


def _done(folder: pathlib.Path) -> list[Row]:
    rows = [row for row in tables.read(folder) if row["state"] == "done"]
    if not rows:
        raise ValueError(f"{folder}: no run of this sweep is done")
    return rows


def compare(first: Sequence[Row], second: Sequence[Row], metric: str
            ) -> tuple[list[Difference], list[Difference], list[str]]:
    """The points in both sweeps, their mean over points where there is one, and the points that could not be tested.

    Without a point in both, all runs of one are compared with all of the other.

    Args:
      first, second: rows of done runs.
      metric: a column.
    """
    keys = sorted({key for key in first[0] if key.startswith("config.")} & set(second[0]))
    varied = [key for key in keys if len({repr(row[key]) for row in (*first, *second)}) > 1]

    def grouped(rows: Sequence[Row]) -> dict[str, list[tuple[int | None, float]]]:
        found: dict[str, list[tuple[int | None, float]]] = {}
        for row in rows:
            if metric in row:
                label = ", ".join(f"{short(key)} {row[key]}" for key in varied) or "all runs"
                found.setdefault(label, []).append((row["seed"], row[metric]))
        return found

    a, b = grouped(first), grouped(second)
    common = [label for label in a if label in b]
    left_out = [label for label in {**a, **b} if label not in common]
    if not common:
        a, b, common = {"all runs": sum(a.values(), [])}, {"all runs": sum(b.values(), [])}, ["all runs"]
    tested = []
    for label in common:
        point = difference(label, a[label], b[label])
        tested.append(point) if point else left_out.append(label)
    corrected = holm([point.p for point in tested])
    points = [dataclasses.replace(point, holm=p) for point, p in zip(tested, corrected, strict=True)]
    mean = _over_points(a, b, common) if len(common) > 1 else None
    return points, [mean] if mean else [], left_out


def difference(label: str, first: Sequence[tuple[int | None, float]], second: Sequence[tuple[int | None, float]]
               ) -> Difference | None:
    """The test of one point, from (seed, value) of its runs; None where neither test has enough runs."""
    a, b = dict(first), dict(second)
    seeds = [seed for seed in a if seed in b and seed is not None]
    if len(seeds) > 1 and len(a) == len(first) and len(b) == len(second):
        return _test(label, "paired", np.array([a[seed] for seed in seeds]), np.array([b[seed] for seed in seeds]))
    if len(first) > 1 and len(second) > 1:
        return _test(label, "Welch", *(np.array([value for _, value in runs]) for runs in (first, second)))
    return None


def _test(label: str, kind: str, a: np.ndarray, b: np.ndarray) -> Difference:
    paired = kind == "paired"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal differences: p is NaN, and shown so
        found = stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a, equal_var=False)
        low, high = found.confidence_interval(0.95)

        def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
            return np.mean(samples[0], axis=axis) - (np.mean(samples[1], axis=axis) if len(samples) > 1 else 0.0)

        data = (b - a,) if paired else (b, a)
        permuted = stats.permutation_test(data, statistic, permutation_type="samples" if paired else "independent",
                                          n_resamples=_DRAWS, vectorized=True, rng=0)
        interval = None
        if min(map(len, data)) > 2 and all(np.ptp(sample) > 0 for sample in data):
            drawn = stats.bootstrap(data, statistic, n_resamples=_DRAWS, vectorized=True, rng=0).confidence_interval
            interval = (float(drawn.low), float(drawn.high))
    return Difference(label, kind, (len(a), len(b)), (float(a.mean()), float(b.mean())),
                      (float(b.mean() - a.mean()), float(low), float(high)), interval, float(found.pvalue),
                      float(permuted.pvalue))


def _over_points(a: Any, b: Any, common: Sequence[str]) -> Difference | None:
    """The test of the mean over points: one value for each seed that every point has in both sweeps."""
    runs = [(dict(a[label]), dict(b[label])) for label in common]
    seeds = set.intersection(*(set(one) & set(two) for one, two in runs)) - {None}
    means = [[(seed, float(np.mean([pair[side][seed] for pair in runs]))) for seed in sorted(seeds)] for side in (0, 1)]
    return difference("mean over points", *means)


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number: the chance of any false alarm among them is kept.

    The i-th smallest of n becomes the largest of (n - j) p_j for j <= i, counted from 0, and at most 1. NaN stays NaN
    and counts.

    References: Holm, A simple sequentially rejective multiple test procedure, 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found, largest = [float("nan")] * len(p), 0.0
    for rank, place in enumerate(np.argsort(p)):  # NaN comes last
        if np.isfinite(p[place]):
            largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
            found[place] = largest
    return found


def _table(points: Sequence[Difference]) -> list[list[str]]:
    table = [["point", "difference [95%, t]", "p", "p, Holm", "p, permuted", "bootstrap 95%", "runs", "first",
              "second"]]
    for point in points:
        a, b = point.counts
        mean, low, high = point.difference
        table.append([
            point.label, f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]",
            *("" if np.isnan(p) else f"{p:.3g}" for p in (point.p, point.holm, point.permuted)),
            "" if point.interval is None else "[{:+.4f}, {:+.4f}]".format(*point.interval),
            f"{a} pairs" if point.test == "paired" else f"{a} and {b}, Welch",
            *(f"{value:.4f}" for value in point.means)])
    return table


def _picture(points: Sequence[Difference], metric: str) -> str:
    """Differences with their intervals, the mean over points last."""
    def draw(axes: Any) -> None:
        for row, point in enumerate(points):
            mean, low, high = point.difference
            colour = "0.35" if np.isnan(point.holm) else "#2a6fdb" if point.holm < 0.05 else "#8aa4cf"
            axes.plot([low, high], [row, row], color=colour, linewidth=1.6)
            axes.plot(mean, row, "s" if np.isnan(point.holm) else "o", color=colour, markersize=5)
        axes.axvline(0, color="0.4", linewidth=1)
        axes.set_yticks(range(len(points)), [point.label for point in points], fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel=f"difference of {metric}; dark: p < 0.05 after Holm's correction")

    return report.picture(draw, 1.2 + 0.28 * len(points), grid="x")


def _note(left_out: Sequence[str]) -> str:
    note = ("With n pairs the permutation test cannot go below 2 / 2^n: 0.25 with three seeds. Holm corrects over the "
            "points of this table.")
    return f"{note} Not tested, in one sweep only or with too few runs: {'; '.join(left_out)}." if left_out else note
