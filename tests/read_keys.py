"""Which keys of the configs the experiments read while the tests run them, each by its own name.

A key that nothing reads does nothing. So every function of configs/ that returns a config marks it with its own name,
but for parts that another has made, and a mark stays with what is copied out of the tree: a block that many experiments
embed has its keys read once for all. Noted is what code of `experiments` and `jaxllm` asks for by name: `config.steps`,
`config["steps"]`, `f(**config.optimizer)`, a walk over `config.policy.items()`, all of it also on what `to_dict` gives.
Not noted is what reads everything alike, to keep, copy or hash it (`to_dict` itself, `{**settings}`, json), nor what a
function named check... that returns nothing reads: a key that can only be refused is as dead. ruff finds a name that is
read and not used.

`pytest` keeps what it has seen read, and `pytest -m slow` after it fails when both leave a key unread. Keys of training
and of much else are flipped besides (flip_keys.py).
"""

from __future__ import annotations

import ast
import copy
import dis
import functools
import importlib
import inspect
import pathlib
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import pytest
from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parent.parent
MARK = "_read_keys_mark"  # (the function that made it, path of the node) in a node's __dict__
_MERGE, _UPDATE = dis.opmap["DICT_MERGE"], dis.opmap["DICT_UPDATE"]  # of f(**mapping) and of {**mapping}
_IN_CODE = ("experiments.", "jaxllm.")
CACHED = "read_keys/quick"  # what the tests that are not slow have read, for the slow ones after them
read: set[str] = set()
_copied: tuple[CodeType, int] | None = None  # the instruction that is unpacking a mapping


class Marked(dict):
    """What `to_dict` gives of a marked node. `__iter__` keeps the interpreter from copying it behind our back."""

    def __getitem__(self, key: str) -> Any:
        _note(self, key, sys._getframe(1))
        return dict.__getitem__(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        _note(self, key, sys._getframe(1))
        return dict.get(self, key, default)

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self)

    def keys(self):
        _unpacked(self, sys._getframe(1))
        return dict.keys(self)

    def items(self):
        _note_all(self, sys._getframe(1))
        return dict.items(self)

    def values(self):
        _note_all(self, sys._getframe(1))
        return dict.values(self)

    def pop(self, key: str, *default: Any) -> Any:
        _note(self, key, sys._getframe(1))
        return dict.pop(self, key, *default)

    def __deepcopy__(self, memo: dict) -> Marked:
        return _marked_like(self, {key: copy.deepcopy(value, memo) for key, value in dict.items(self)})

    def __reduce__(self):
        return dict, (dict(dict.items(self)),)


def _marked_like(node: Any, fields: dict[str, Any]) -> Marked:
    made = Marked(fields)
    if MARK in node.__dict__:
        made.__dict__[MARK] = node.__dict__[MARK]
    return made


def _fields(node: Any) -> Mapping[str, Any]:
    """The children of a config or of a dict, unseen."""
    return node._fields if isinstance(node, ConfigDict) else dict(dict.items(node))


def _is_node(value: Any) -> bool:
    return isinstance(value, (ConfigDict, dict))


def _reads(frame: FrameType) -> bool:
    """Whether a frame is the project's own code, and not one that only checks."""
    if not frame.f_globals.get("__name__", "").startswith(_IN_CODE):
        return False
    function = frame.f_code.co_qualname.partition(".")[0]
    returned = getattr(frame.f_globals.get(function), "__annotations__", {}).get("return")
    return not (function.lstrip("_").startswith("check") and returned in ("None", None))


def _note(node: Any, key: str, frame: FrameType) -> None:
    mark = node.__dict__.get(MARK)
    if mark is not None and _reads(frame) and _copied != (frame.f_code, frame.f_lasti) and not _is_node(
            _fields(node).get(key)):
        read.add(f"{mark[0]}: {mark[1]}{key}")


def _note_all(node: Any, frame: FrameType) -> None:
    for key in _fields(node):
        _note(node, key, frame)


def _unpacked(node: Any, frame: FrameType) -> None:
    """A mapping's keys are asked for, its values by the same instruction: a call's ** names them, a copy does not."""
    global _copied
    _copied = None
    instruction = frame.f_code.co_code[frame.f_lasti]
    if instruction == _MERGE or instruction == _UPDATE and _reads(frame) and _place(frame) in _called_with(
            frame.f_code.co_filename):
        _note_all(node, frame)
    _copied = frame.f_code, frame.f_lasti


def _place(frame: FrameType) -> tuple[int | None, ...]:
    """Line, last line, column and last column of what a frame is at."""
    return list(frame.f_code.co_positions())[frame.f_lasti // 2]


@functools.cache
def _called_with(file: str) -> set[tuple[int | None, ...]]:
    """Where a file has a dict that only names arguments: f(**{**mapping, "more": 1})."""
    found = [keyword.value for node in ast.walk(ast.parse(pathlib.Path(file).read_text(encoding="utf-8")))
             if isinstance(node, ast.Call) for keyword in node.keywords
             if keyword.arg is None and isinstance(keyword.value, ast.Dict)]
    return {(node.lineno, node.end_lineno, node.col_offset, node.end_col_offset) for node in found}


def _mark(node: Any, owner: str, path: str = "") -> None:
    """Marks a tree, but for the parts that another function made."""
    if MARK not in node.__dict__:
        node.__dict__[MARK] = owner, path
    owner, path = node.__dict__[MARK]
    for key, value in _fields(node).items():
        if isinstance(value, ConfigDict):
            _mark(value, owner, f"{path}{key}.")


def _inherit(node: ConfigDict, source: Any) -> None:
    """The marks of what a config was made from."""
    if MARK in getattr(source, "__dict__", {}):
        node.__dict__[MARK] = source.__dict__[MARK]
    for key, value in _fields(source).items():
        if _is_node(value) and isinstance(node._fields.get(key), ConfigDict):
            _inherit(node._fields[key], value)


def leaves(node: ConfigDict) -> Iterator[str]:
    """Every leaf of a marked tree, as `read` names it."""
    owner, path = node.__dict__[MARK]
    for key, value in _fields(node).items():
        if isinstance(value, ConfigDict):
            yield from leaves(value)
        else:
            yield f"{owner}: {path}{key}"


@functools.cache
def watch() -> None:
    """From now on reads are noted."""
    get, get_attribute, begin, plain = (
        ConfigDict.__getitem__, ConfigDict.__getattr__, ConfigDict.__init__, ConfigDict.to_dict)
    keys, items, values, restore = ConfigDict.keys, ConfigDict.items, ConfigDict.values, ConfigDict.__setstate__

    def noting(read_one):
        def read_and_note(self, key, *default):
            _note(self, key, sys._getframe(1))
            return read_one(self, key, *default)
        return read_and_note

    def noting_all(read_all):
        def read_and_note(self, *args, **kwargs):
            _note_all(self, sys._getframe(1))
            return read_all(self, *args, **kwargs)
        return read_and_note

    def named(self):
        _unpacked(self, sys._getframe(1))
        return keys(self)

    def init(self, initial_dictionary=None, *args, **kwargs):
        begin(self, initial_dictionary, *args, **kwargs)
        if initial_dictionary is not None and _is_node(initial_dictionary):
            _inherit(self, initial_dictionary)

    def setstate(self, state):  # of a copy
        restore(self, state)
        if MARK in state:
            self.__dict__[MARK] = state[MARK]

    def to_dict(self, *args, **kwargs):
        if sys._getframe(1).f_globals["__name__"].startswith("ml_collections"):
            return plain(self, *args, **kwargs)  # its own use, such as printing
        return _tree(self)

    def _tree(node: ConfigDict) -> Marked:
        got = {key: get(node, key) for key in node._ordered_fields}
        return _marked_like(node, {key: _tree(value) if isinstance(value, ConfigDict) else value
                                   for key, value in got.items()})

    for name, method in (("__getitem__", noting(get)), ("__getattr__", noting(get_attribute)),
                         ("get", noting(ConfigDict.get)), ("keys", named),
                         ("items", noting_all(items)), ("values", noting_all(values)), ("__init__", init),
                         ("__setstate__", setstate), ("to_dict", to_dict)):
        setattr(ConfigDict, name, method)
    for module in config_files():
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__annotations__.get("return") is ConfigDict:
                setattr(module, name, _marking(value))


@functools.cache
def _marking(make_config):
    """The same function, which marks what it returns: configs/taste.py's `start_config` with "taste.start_config"."""
    owner = f"{make_config.__module__}.{make_config.__name__}".removeprefix("configs.").removesuffix(".get_config")

    @functools.wraps(make_config)
    def marked(*args, **kwargs):
        config = make_config(*args, **kwargs)
        _mark(config, owner)
        return config
    return marked


def config_files() -> list:
    """The modules of configs/."""
    return [importlib.import_module(f"configs.{path.stem}") for path in sorted((ROOT / "configs").glob("[a-z]*.py"))]


class EveryKeyIsRead:
    """Gathers what the workers have read; when the slow tests have followed the others, what is left is a failure."""

    def __init__(self, config: pytest.Config) -> None:
        watch()
        given = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
        self.part = config.option.markexpr
        self.whole = ROOT / "tests" in given and not config.option.keyword and self.part in ("not slow", "slow")
        self.passed_over: list[str] = []
        self.unread: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (report.skipped or report.failed) and report.nodeid.startswith("tests/experiments"):
            self.passed_over.append(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node) -> None:
        read.update(getattr(node, "workeroutput", {}).get("read_keys", ()))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["read_keys"] = sorted(read)
        elif self.whole and (kept := getattr(session.config, "cache", None)) is not None:
            if self.part == "not slow":
                kept.set(CACHED, [] if self.passed_over else sorted(read))
            elif before := kept.get(CACHED, []):
                read.update(before)
                self.unread = [] if self.passed_over else unread()
                if self.unread:
                    session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if self.unread:
            terminalreporter.section("config keys that no experiment reads", red=True)
            terminalreporter.line("\n".join(self.unread))
        elif self.whole and self.passed_over:
            terminalreporter.line(f"whether every config key is read was not looked at: {len(self.passed_over)} tests "
                                  f"of experiments were skipped or failed")


def unread() -> list[str]:
    """The keys of all configs that were not read."""
    return sorted({key for module in config_files() for key in leaves(module.get_config())} - read)
