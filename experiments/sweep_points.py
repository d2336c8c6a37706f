"""The points of a sweep: ways to combine lists of overrides, and what the command line and files say.

A sweep is a list of points, and a point a dict of dotted config keys and their values. This is what the `sweep()` of a
config file returns; these functions make such lists from smaller ones. The module imports nothing heavy, so that any
config file may use it.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

Overrides = dict[str, Any]


def values(key: str, options: Iterable[Any]) -> list[Overrides]:
    """A point for each value of one key.

    >>> values("batch_size", (4, 8))
    [{'batch_size': 4}, {'batch_size': 8}]
    """
    return [{key: option} for option in options]


def seeds(count: int, first: int = 0) -> list[Overrides]:
    """The seeds first, first + 1, ... as points of the key "seed"."""
    return values("seed", range(first, first + count))


def product(*sweeps: Sequence[Overrides]) -> list[Overrides]:
    """Every point of the first sweep with every point of the others; the last changes fastest.

    >>> product(values("dim", (32, 64)), seeds(2))
    [{'dim': 32, 'seed': 0}, {'dim': 32, 'seed': 1}, {'dim': 64, 'seed': 0}, {'dim': 64, 'seed': 1}]

    Raises:
      ValueError: when two sweeps set one key.
    """
    return [_joined(parts) for parts in itertools.product(*sweeps)]


def zipped(*sweeps: Sequence[Overrides]) -> list[Overrides]:
    """The first point of each sweep together, then the second of each, and so on.

    >>> zipped(values("dim", (32, 64)), values("heads", (2, 4)))
    [{'dim': 32, 'heads': 2}, {'dim': 64, 'heads': 4}]

    Raises:
      ValueError: when the sweeps differ in length or set one key twice.
    """
    lengths = [len(points) for points in sweeps]
    if len(set(lengths)) > 1:
        raise ValueError(f"sweeps of {' and '.join(map(str, lengths))} points cannot be zipped; make them equally long")
    return [_joined(parts) for parts in zip(*sweeps, strict=True)]


def chain(*sweeps: Sequence[Overrides]) -> list[Overrides]:
    """The points of one sweep after those of another.

    >>> chain(values("dim", (32,)), values("layers", (2,)))
    [{'dim': 32}, {'layers': 2}]
    """
    return list(itertools.chain(*sweeps))


def _joined(parts: Sequence[Overrides]) -> Overrides:
    joined: Overrides = {}
    for part in parts:
        if joined.keys() & part.keys():
            raise ValueError(f"two of the combined sweeps set {', '.join(sorted(joined.keys() & part.keys()))}; "
                             f"let only one of them do so")
        joined |= part
    return joined


def from_text(text: str) -> list[Overrides]:
    """The points of one key as the command line has them: KEY=VALUE,VALUE,...

    Values are Python literals; what is none is a string.

    >>> from_text("optimizer.learning_rate=1e-3,2e-3")
    [{'optimizer.learning_rate': 0.001}, {'optimizer.learning_rate': 0.002}]
    >>> from_text("optimizer.name=adamw,muon"), from_text("arms=('a','b'),('a',)")
    ([{'optimizer.name': 'adamw'}, {'optimizer.name': 'muon'}], [{'arms': ('a', 'b')}, {'arms': ('a',)}])
    """
    key, equals, right = text.partition("=")
    if not key or not equals or not right:
        raise ValueError(f"--over={text}: write KEY=VALUE,VALUE")
    try:
        options = ast.literal_eval(f"({right},)")
    except (ValueError, SyntaxError):
        options = [_literal(part) for part in right.split(",")]
    return values(key, options)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def from_file(path: str | os.PathLike) -> list[Overrides]:
    """The points of a jsonl file: one object of dotted keys and values a line.

    Raises:
      ValueError: names the line that holds none.
    """
    points = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                point = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: no JSON: {error}") from None
            if not isinstance(point, dict):
                raise ValueError(f"{path}:{number}: write an object of keys and values, such as "
                                 f'{{"optimizer.learning_rate": 0.001}}')
            points.append(point)
    return points
