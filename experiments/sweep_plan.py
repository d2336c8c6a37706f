"""What a sweep will run: every point and seed with its whole config, checked before anything is started.

The folder of a run bears a hash of its experiment and its whole config. So a run that any sweep has made is found by
all, whatever they call their points.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import importlib.util
import inspect
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments import lab, report
from experiments.sweep_points import Overrides

DONE = "done.json"  # of `lab.stage`
_POINT = "point.txt"


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """One run of an experiment.

    Attributes:
      experiment: a module of experiments/.
      overrides: what sets the point apart from the config, dotted keys and typed values, the seed left out.
      seed: of the run; None where no seed was asked for.
      config: the whole config of the run.
      folder: of the run; its name bears a hash of the experiment and the config.
    """

    experiment: str
    overrides: Mapping[str, Any]
    seed: int | None
    config: ConfigDict
    folder: pathlib.Path

    @property
    def done(self) -> bool:
        """Whether the run has ended well, in this sweep or in another."""
        return (self.folder / DONE).exists()

    @property
    def label(self) -> str:
        """The point and its seed in one line."""
        seed = [] if self.seed is None else [f"seed={self.seed}"]
        return " ".join([f"{key}={value}" for key, value in self.overrides.items()] + seed) or "the config as it is"

    def write(self) -> None:
        """Puts into the folder what `read` needs to run the point, in another process or on another machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        report.write_text(self.folder / _POINT, repr((self.experiment, self.config.to_dict())) + "\n")


def read(folder: pathlib.Path) -> tuple[str, ConfigDict]:
    """The experiment and the config of a point that was written.

    They stand there as a Python literal, in which a tuple stays a tuple; it is parsed, never executed.
    """
    experiment, config = ast.literal_eval((folder / _POINT).read_text(encoding="utf-8"))
    return experiment, ConfigDict(config).lock()


def settings(experiment: str, config: ConfigDict) -> dict[str, Any]:
    """All that a run depends on, for its hash."""
    return {"experiment": experiment, "config": config.to_dict()}


def plan(experiment: str, config: ConfigDict, points: Sequence[Overrides], seeds: Sequence[int],
         store: pathlib.Path) -> list[Point]:
    """The runs of a sweep, in order: the seeds of the first point, then those of the second.

    Args:
      experiment: a module of experiments/ with `main(config, workdir)`; its `check(config)` is asked too.
      config: what all points share.
      points: overrides of it.
      seeds: each point is run with all of them, by its key "seed", or "seeds" where runs have several; () leaves the
        seed to config and points.
      store: the folder of the runs.

    Raises:
      ValueError: an unknown experiment, an unknown key, a value of the wrong type or one that the experiment refuses,
        or a point that is there twice; names the point.
    """
    module = module_of(experiment)
    if not points:
        raise ValueError("there is no point to run; give --over, --points, or a config whose sweep() has some")
    found: list[Point] = []
    seen: dict[pathlib.Path, str] = {}
    for overrides in points:
        for seed in seeds or (None,):
            point = _point(experiment, config, overrides, seed, store)
            if point.folder in seen:
                raise ValueError(f"two points are one and the same run: {seen[point.folder]} and {point.label}")
            seen[point.folder] = point.label
            _check(module, point)
            found.append(point)
    return found


def module_of(experiment: str) -> ModuleType:
    """The module of an experiment that can be swept.

    Raises:
      ValueError: there is none of that name.
    """
    if re.fullmatch("[a-z][a-z0-9_]*", experiment) and importlib.util.find_spec(f"experiments.{experiment}"):
        module = importlib.import_module(f"experiments.{experiment}")
        main = getattr(module, "main", None)
        if callable(main) and [*inspect.signature(main).parameters] == ["config", "workdir"]:
            return module
    here = pathlib.Path(__file__).parent
    known = sorted(path.stem for path in here.glob("*.py") if "launch.run(" in path.read_text(encoding="utf-8"))
    near = difflib.get_close_matches(experiment, known, 3)
    raise ValueError(f"--experiment={experiment}: there is no such experiment to sweep; "
                     f"{'did you mean ' + ' or '.join(near) if near else 'choose one of ' + ', '.join(known)}")


def _point(experiment: str, config: ConfigDict, overrides: Overrides, seed: int | None, store: pathlib.Path) -> Point:
    resolved = copy.deepcopy(config).lock()
    for key, value in overrides.items():
        _set(resolved, key, value)
    if seed is not None:
        key = "seed" if "seed" in config else "seeds"
        if key not in config:
            raise ValueError(f"the config of {experiment} has neither seed nor seeds; leave --seeds out")
        if key in overrides:
            raise ValueError(f"--seeds={seed}: the points set {key} already; leave one of the two out")
        _set(resolved, key, seed if key == "seed" else (seed,))
    flat = flatten_dict(resolved.to_dict(), sep=".")
    kept = {key: flat.get(key, value) for key, value in overrides.items()}  # as the config holds it: 1 became 1.0
    seed = kept.pop("seed", seed)
    folder = store / f"{experiment}-{lab.key_of(settings(experiment, resolved))}"
    return Point(experiment, kept, seed, resolved, folder)


def _set(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key that is there to a value of its type.

    Raises:
      ValueError: names the key, and near ones where it is unknown.
    """
    *parents, last = key.split(".")
    part: Any = config
    for name in parents:
        part = part[name] if isinstance(part, ConfigDict) and name in part else None
    if not isinstance(part, ConfigDict) or last not in part:
        near = difflib.get_close_matches(key, flatten_dict(config.to_dict(), sep="."), 3)
        raise ValueError(f"the config has no key {key!r}{'; did you mean ' + ' or '.join(near) if near else ''}")
    old = part[last]
    wrong = isinstance(value, bool) != isinstance(old, bool) and old is not None  # to Python a bool is an int
    try:
        part.update({last: value})
    except (TypeError, KeyError, ValueError, AttributeError):
        wrong = True
    if wrong:
        raise ValueError(f"{key}={value!r}: the config has {old!r} there, of type {type(old).__name__}")


def _check(module: ModuleType, point: Point) -> None:
    """Asks the experiment itself, where it can be asked with a config alone."""
    check: Callable | None = getattr(module, "check", None)
    if check is None or len(inspect.signature(check).parameters) != 1:
        return
    try:
        check(copy.deepcopy(point.config))
    except ValueError as error:
        raise ValueError(f"{point.label}: {error}") from None
