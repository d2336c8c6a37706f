"""What a run does, told without doing it: a flipped key must change it, or be refused by a sentence that names the key.

An experiment's own code runs on the host as ever. Its programs are traced and not compiled, its checkpoints, models and
samples are noted and not made: every one is a fact of the run. A run with a flipped key is compared fact by fact with
the run as it is, and ends at the first that differs. A config as a whole, as it is kept and hashed, is no fact.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from ml_collections import ConfigDict


class Different(BaseException):
    """A fact differs: the run need not go on. No handler of errors in the code under test stops it."""


class Facts:
    """The facts of a run, in order; with others to compare with, `add` raises Different at the first that differs."""

    def __init__(self, others: Facts | None = None) -> None:
        self.told: list[str] = []
        self.others = others

    def add(self, *fact: Any) -> None:
        text = re.sub(r"0x[0-9a-f]+", "", " ".join(part if isinstance(part, str) else repr(part) for part in fact))
        here = len(self.told)
        self.told.append(text)
        if self.others is not None and (here == len(self.others.told) or self.others.told[here] != text):
            raise Different(text)


class TracedJax:
    """Stands in for a module's `jax`: what it jits is traced when it is called, and answered with zeros.

    Attributes:
      facts: where the traced programs are told.
      answers: name of a function -> what is answered in its place; it is traced by `trace_rest`, after all else.
    """

    def __init__(self, facts: Facts, **answers: Callable) -> None:
        self.facts, self.answers = facts, answers
        self._rest: list[tuple[str, Callable, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)

    def jit(self, function: Callable, **options: Any) -> Callable:
        name, called = getattr(function, "func", function).__name__, []  # of a partial, or its own
        self.facts.add("jit", name, digest(str(options.get("out_shardings"))))
        static = options.get("static_argnums", ())

        def call(*args: Any) -> Any:
            if name not in self.answers:
                return zeros(self.trace(name, function, args, static))
            if not called:
                called.append(True)
                self._rest.append((name, function, jax.tree.map(jax.typeof, args)))
            return self.answers[name](*args)
        return call

    def trace(self, name: str, function: Callable, args: Any, static: Any = ()) -> Any:
        """Tells the program; returns the shapes of what it gives."""
        traced = jax.jit(function, static_argnums=static).trace(*args)
        self.facts.add("program", name, _parameter(traced.jaxpr))
        return traced.out_info

    def begun(self, name: str) -> bool:
        """Whether a function that is answered was called."""
        return any(name == one for one, _, _ in self._rest)

    def trace_rest(self) -> None:
        for name, function, args in self._rest:
            self.trace(name, function, args)


class NotedCheckpoints:
    """The checkpoints of a run, none of which is written."""

    latest = None

    def __init__(self, facts: Facts, folder: pathlib.Path, *, keep_last: int) -> None:
        self.facts, self.folder = facts, folder
        facts.add("checkpoints", keep_last)

    def save(self, number: int, state, values=None) -> None:
        self.facts.add("save", number, sorted(values or ()))

    def wait(self) -> None:
        pass

    close = wait


@functools.lru_cache(maxsize=512)
def _program(jaxpr: Jaxpr) -> str:
    """Stands for a program: its operations, their parameters, and what goes from where to where. Those that many share
    are told once, where printing would print them every time.
    """
    numbers: dict[Any, int] = {}

    def told(atom: Any) -> str:
        return f"{atom.val!r}" if isinstance(atom, Literal) else f"%{numbers.setdefault(atom, len(numbers))}"
    lines = [" ".join(f"{told(atom)}:{atom.aval}" for atom in (*jaxpr.constvars, *jaxpr.invars))]
    for equation in jaxpr.eqns:
        parameters = " ".join(f"{key}={_parameter(value)}" for key, value in equation.params.items())
        lines.append(f"{equation.primitive} {parameters} {' '.join(map(told, equation.invars))} -> "
                     + " ".join(f"{told(atom)}:{atom.aval}" for atom in equation.outvars))
    return digest("\n".join([*lines, " ".join(map(told, jaxpr.outvars))]))


def _parameter(value: Any) -> str:
    if isinstance(value, ClosedJaxpr):
        return _program(value.jaxpr) + digest(value.consts)
    if isinstance(value, Jaxpr):
        return _program(value)
    if isinstance(value, (tuple, list)):
        return f"({' '.join(map(_parameter, value))})"
    return getattr(value, "__name__", None) or repr(value)


def zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def digest(*trees: Any) -> str:
    """Twelve digits that stand for texts and arrays, their shapes and where they lie."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, str):
            found.update(re.sub(r"0x[0-9a-f]+", "", leaf).encode())
        else:
            keys = jax.numpy.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
            array = np.asarray(jax.random.key_data(leaf) if keys else leaf)
            found.update(f"{array.shape} {array.dtype} {getattr(leaf, 'sharding', None)}".encode())
            found.update(np.ascontiguousarray(array))
    return found.hexdigest()[:12]


def leaves(config: ConfigDict) -> list[str]:
    """The dotted names of all keys that hold no further keys."""
    return [key for key, _ in _flat(config)]


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy with other values, of whatever type."""
    made = ConfigDict(copy.deepcopy(config.to_dict()))
    with made.ignore_type():
        made.update_from_flattened_dict(changes)
    return made


def other(value: Any) -> Any:
    """Another value of the same type, where any will do."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.5
    if isinstance(value, tuple) and len(value) > 1:
        return value[:-1]
    raise ValueError(f"say what {value!r} is to be flipped to")


@dataclasses.dataclass
class Flips:
    """The flips of one config.

    Attributes:
      config: as it is.
      run: does what the config says and tells the facts.
      values: key -> what it is flipped to, where `other` does not know.
      among: key -> the settings among which it is flipped, where it has no effect in the config as it is.
    """

    config: ConfigDict
    run: Callable[[ConfigDict, Facts], None]
    values: Mapping[str, Any]
    among: Mapping[str, Mapping[str, Any]]
    _as_it_is: dict[str, Facts] = dataclasses.field(default_factory=dict)

    def check(self, key: str) -> None:
        """Fails unless the flip of a key changes a fact, or is refused by name."""
        config = changed(self.config, self.among.get(key, {}))
        name = repr(self.among.get(key, {}))
        if name not in self._as_it_is:
            facts = Facts()
            self.run(config, facts)
            if not self._as_it_is:
                self.run(config, Facts(facts))  # the same once more, or every flip would seem to change something
            self._as_it_is[name] = facts
        before = dict(_flat(config))
        value = self.values[key] if key in self.values else other(before[key])
        assert value != before[key], f"{key} is not flipped: it is {value!r}"
        facts = Facts(self._as_it_is[name])
        try:
            self.run(changed(config, {key: value}), facts)
        except Different:
            return
        except (ValueError, OSError) as refused:
            assert key.rpartition(".")[2] in str(refused), f"{key}={value!r} is refused without its name: {refused}"
            return
        assert len(facts.told) < len(self._as_it_is[name].told), f"{key}={value!r} changes nothing"


def _flat(config: ConfigDict, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield path + key, value
