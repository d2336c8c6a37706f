"""The table of a sweep: a row for every point and seed, in parquet.

Columns: `point` (the hash in the folder's name), `experiment`, `config.KEY` for every key that any point sets, `seed`,
`state` (done, failed, open), the numbers that the run left behind, and `path`. The numbers are
    metrics.KEY      the last finite value of KEY in metrics.jsonl;
    results.A.B      the number at results.json's ["A"]["B"]; a list's items go by their places, and a list of more than
                     eight is a curve, no number.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from flax.traverse_util import flatten_dict

from experiments.sweep_plan import Point
from jaxllm.train.metrics import read_metrics

NAME = "table.parquet"
_LONGEST = 8
Row = dict[str, Any]


def rows_of(points: Sequence[Point], failed: Sequence[Point] = ()) -> list[Row]:
    """The rows of a sweep as it stands; runs that are not done have no numbers yet."""
    keys = list(dict.fromkeys(key for point in points for key in point.overrides))
    rows = []
    for point in points:
        flat = flatten_dict(point.config.to_dict(), sep=".")
        set_ = {f"config.{key}": _cell(point.overrides.get(key, flat.get(key))) for key in keys}
        state = "done" if point.done else "failed" if point in failed else "open"
        rows.append({"point": point.folder.name.rpartition("-")[2], "experiment": point.experiment, **set_,
                     "seed": point.seed, "state": state, **(numbers(point.folder) if point.done else {}),
                     "path": str(point.folder)})
    return rows


def _cell(value: Any) -> Any:
    """A value that a column can hold: what is no number, string or None is written out."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def numbers(folder: pathlib.Path) -> dict[str, float]:
    """The numbers that a run left behind, as columns; see the head of this module."""
    found: dict[str, float] = {}
    for record in read_metrics(folder):
        found |= {f"metrics.{key}": float(value) for key, value in record.items() if value is not None}
    results = folder / "results.json"
    if results.exists():
        found |= {f"results.{key}": value for key, value in _leaves(json.loads(results.read_text(encoding="utf-8")))}
    return found


def _leaves(tree: Any, at: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(tree, (bool, int, float)) and math.isfinite(tree):
        yield at, float(tree)
    elif isinstance(tree, (dict, list)) and not (isinstance(tree, list) and len(tree) > _LONGEST):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{at}.{key}" if at else str(key))


def write(rows: Sequence[Row], folder: pathlib.Path) -> None:
    """Writes the table into the sweep's folder, whole or not at all; every column has one type."""
    first = ("point", "experiment", *(key for key in rows[0] if key.startswith("config.")), "seed", "state")
    measured = sorted({key for row in rows for key in row if key.startswith(("metrics.", "results."))})
    columns = {name: _typed([row.get(name) for row in rows]) for name in (*first, *measured, "path")}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{NAME}.tmp"
    pq.write_table(pa.table(columns), temporary)
    os.replace(temporary, folder / NAME)


def _typed(values: list[Any]) -> pa.Array:
    """A column of one type: of its values where they have one, float for whole and broken numbers, else text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values = [None if value is None else float(value) for value in values]
    elif len(kinds) > 1:
        values = [None if value is None else str(value) for value in values]
    return pa.array(values)


def read(folder: pathlib.Path) -> list[Row]:
    """The rows of a sweep's table.

    Raises:
      ValueError: the folder holds none.
    """
    path = folder / NAME
    if not path.exists():
        raise ValueError(f"{folder} holds no {NAME}; name the --workdir of a sweep")
    return [{key: value for key, value in row.items() if value is not None or not key.startswith(("metrics.",
            "results."))} for row in pq.read_table(path).to_pylist()]


def column(rows: Sequence[Row], name: str) -> str:
    """The column that a metric's name means: itself, or the only one that ends in it.

    Raises:
      ValueError: no column does, or several; names some.
    """
    known = sorted({key for row in rows for key in row if key.startswith(("metrics.", "results."))})
    fitting = [name] if name in known else [key for key in known if key.endswith(f".{name}")]
    if len(fitting) == 1:
        return fitting[0]
    raise ValueError(f"metric {name!r}: {'more than one column ends so: ' if fitting else 'choose one of '}"
                     f"{', '.join((fitting or known)[:20]) or 'nothing yet: no run is done'}")


def swept(rows: Sequence[Row]) -> list[str]:
    """The config columns in which rows differ."""
    return [key for key in rows[0] if key.startswith("config.") and len({repr(row[key]) for row in rows}) > 1]


def by_point(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """The rows of each point, all seeds together, under the values of its config columns."""
    keys = [key for key in rows[0] if key.startswith("config.")]
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found
