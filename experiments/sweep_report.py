"""The page of a sweep: every metric against every swept key, the way there, and the tables."""

from __future__ import annotations

import html
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments import findings, report
from experiments import sweep_table as tables
from experiments.sweep_table import Row
from jaxllm.evals.intervals import spread, t_interval
from jaxllm.train.metrics import read_metrics

_MOST_LINES = 8
_COLOURS = ("#2a6fdb", "#d1495b", "#2e8b57", "#b8860b", "#7b5ea7", "#c06c2b", "#3a8fb7", "#6b6b74")
# (label, x, y of every seed at every x [X, S]; NaN where a seed is missing)
Line = tuple[str, list[Any], np.ndarray]


def write(rows: Sequence[Row], folder: pathlib.Path, config: ConfigDict, title: str, metrics: Sequence[str]) -> None:
    """Writes report.html and report.md into the sweep's folder.

    Args:
      rows: of the table.
      folder: of the sweep.
      config: what all points share.
      title: of the page.
      metrics: columns to show, or what they end in; () shows the validation loss where there is one, else the loss,
        else the first three that differ between runs.
    """
    done = [row for row in rows if row["state"] == "done"]
    shown = chosen(done, metrics) if done else []
    failed = sum(row["state"] == "failed" for row in rows)
    about = (f"{len(tables.by_point(rows))} points, {len(done)} of {len(rows)} runs done"
             + (f", {failed} failed" if failed else "") + "; bands and brackets: 95% over seeds, Student's t")
    sections = []
    for key in tables.swept(rows) or [None]:
        for metric in shown if key else ():
            sections.append((f"{short(metric)} against {short(key)}", _against(done, key, metric)))
        for metric in (name for name in shown if name.startswith("metrics.")):
            lines = _on_the_way(done, key, metric)
            if lines:
                by = f", by {short(key)}" if key else ""
                sections.append((f"{short(metric)} on the way{by}", _picture(lines, "step", short(metric))))
    summary = _summary(rows, shown)
    sections += [("Points", findings.html_table(summary)), ("Runs", _runs(rows, shown, folder)),
                 ("What all points share", _shared(config, rows))]
    report.write_text(folder / "report.html", report.page(title, about, sections))
    report.write_text(folder / "report.md", f"# {title}\n\n{about}\n\n{findings.markdown_table(summary)}\n")


def chosen(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """The columns that the page shows."""
    if metrics:
        return [tables.column(rows, name) for name in metrics]
    known = sorted({key for row in rows for key in row if key.startswith(("metrics.", "results."))})
    usual = [name for name in ("metrics.validation_loss", "metrics.loss") if name in known]
    differing = [key for key in known if len({row.get(key) for row in rows}) > 1]
    return usual[:1] or differing[:3] or known[:3]


def short(name: str) -> str:
    """A column's name without its first part."""
    return name.partition(".")[2]


def _against(rows: Sequence[Row], key: str, metric: str) -> str:
    """A metric at the end against one key: a line for every value of the other keys, or where those are many, one of
    the mean over them.
    """
    others = [name for name in tables.swept(rows) if name != key]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(", ".join(f"{short(name)} {row[name]}" for name in others), []).append(row)
    if len(groups) > _MOST_LINES:
        groups = {"mean over the other keys": list(rows)}
    lines = []
    for label, group in groups.items():
        x = sorted({row[key] for row in group}, key=lambda value: (isinstance(value, str), value is None, value))
        at = [[row for row in group if row[key] == value] for value in x]
        lines.append((label, x, _seeds(at, metric)))
    return _picture(lines, short(key), short(metric), points=True)


def _seeds(groups: Sequence[Sequence[Row]], metric: str) -> np.ndarray:
    """A metric of every group of rows for every seed, the mean where a seed has several: [groups, seeds]."""
    seeds = sorted({row["seed"] for rows in groups for row in rows}, key=lambda seed: (seed is None, seed))
    found = np.full((len(groups), len(seeds)), np.nan)
    for i, rows in enumerate(groups):
        for j, seed in enumerate(seeds):
            values = [row[metric] for row in rows if row["seed"] == seed and metric in row]
            if values:
                found[i, j] = np.mean(values)
    return found


def _on_the_way(rows: Sequence[Row], key: str | None, metric: str) -> list[Line]:
    """A metric against the step for every value of a key, or for all runs: the steps that all of them have written."""
    lines = []
    for value in dict.fromkeys(row.get(key) for row in rows):
        group = [row for row in rows if row.get(key) == value]
        runs = [{r["step"]: r[short(metric)] for r in read_metrics(row["path"]) if r.get(short(metric)) is not None}
                for row in group]
        steps = sorted(set.intersection(*map(set, runs)))
        if len(steps) > 1:
            at = [[{**row, metric: run[step]} for row, run in zip(group, runs, strict=True)] for step in steps]
            lines.append((f"{short(key)} {value}" if key else "", steps, _seeds(at, metric)))
    return lines if len(lines) <= _MOST_LINES else lines[:: math.ceil(len(lines) / _MOST_LINES)]


def _picture(lines: Sequence[Line], x_label: str, y_label: str, points: bool = False) -> str:
    """Means over seeds with bands; the axis shows what the means span, and bands are cut where they leave it."""
    def draw(axes: Any) -> None:
        every = list(dict.fromkeys(value for _, x, _ in lines for value in x))
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in every)
        low, high = math.inf, -math.inf
        for i, ((label, x, y_XS), colour) in enumerate(zip(lines, _COLOURS, strict=False)):
            mean, lower, upper = np.array([t_interval(row[~np.isnan(row)]) if (~np.isnan(row)).any() else [np.nan] * 3
                                           for row in y_XS]).T
            beside = 0.06 * (i - (len(lines) - 1) / 2)  # kinds have no order: marks beside each other, and no line
            at = np.array(x) if numeric else np.array([every.index(value) for value in x]) + beside
            kind = "-" if not points else "o-" if numeric else "o"
            axes.plot(at, mean, kind, color=colour, linewidth=1.6, markersize=5, label=label)
            if np.isfinite(lower).all() and numeric:
                axes.fill_between(at, lower, upper, color=colour, alpha=0.14, linewidth=0)
            elif np.isfinite(lower).all():
                axes.vlines(at, lower, upper, color=colour, linewidth=1.4)
            if points:
                axes.plot(np.repeat(at, y_XS.shape[1]), y_XS.ravel(), ".", color=colour, alpha=0.45, markersize=4)
            low, high = np.nanmin([low, *y_XS.ravel()]), np.nanmax([high, *y_XS.ravel()])
        room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(low - room, high + room))
        if not numeric:
            axes.set_xticks(range(len(every)), [str(value) for value in every])
            axes.set_xlim(-0.5, len(every) - 0.5)
        elif points and len(every) > 1 and min(every) > 0 and max(every) >= 4 * min(every):
            axes.set_xscale("log")
            axes.set_xticks(every, [f"{value:g}" for value in every])
            axes.minorticks_off()
        if len(lines) > 1 or lines[0][0]:
            axes.legend(frameon=False, fontsize=8, ncols=1 if len(lines) < 5 else 2)

    return report.picture(draw)


def _summary(rows: Sequence[Row], metrics: Sequence[str]) -> list[list[str]]:
    """A row for every point: what sets it apart, its runs, and the metrics over its seeds."""
    keys = tables.swept(rows)
    table = [[*map(short, keys), "runs done", *map(short, metrics)]]
    for group in tables.by_point(rows).values():
        done = [row for row in group if row["state"] == "done"]
        cells = [[row[metric] for row in done if metric in row] for metric in metrics]
        table.append([*(_text(group[0][key]) for key in keys), f"{len(done)} of {len(group)}",
                      *(spread(t_interval(values), 4) if values else "" for values in cells)])
    return table


def _runs(rows: Sequence[Row], metrics: Sequence[str], folder: pathlib.Path) -> str:
    """A row for every run, with a way to its own page or log."""
    keys = tables.swept(rows)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*map(short, keys), "seed", "state",
                                                                  *map(short, metrics), ""))
    body = []
    for row in rows:
        run = pathlib.Path(row["path"])
        found = next((run / name for name in ("report.html", "log.txt") if (run / name).exists()), None)
        link = "" if found is None else (
            f'<a href="{html.escape(os.path.relpath(found, folder))}">{found.stem}</a>')
        cells = [*(_text(row[key]) for key in keys), _text(row["seed"]), row["state"],
                 *(f"{row[metric]:.4f}" if metric in row else "" for metric in metrics)]
        body.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}<td>{link}</td></tr>")
    return f'<table class="wide"><tr>{head}</tr>{"".join(body)}</table>'


def _shared(config: ConfigDict, rows: Sequence[Row]) -> str:
    """The settings that no point changes."""
    changed = {short(key) for key in rows[0] if key.startswith("config.")}
    if any(row["seed"] is not None for row in rows):
        changed |= {"seed", "seeds"}
    flat = flatten_dict(config.to_dict(), sep=".")
    return report.table(sorted((key, value) for key, value in flat.items() if key not in changed))


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
