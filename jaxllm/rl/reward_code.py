"""Code by unit tests, in the sandbox of the Python tool: never on the host, bounded in time, memory and output.

The answer is a JSON object that says how to test:

    {"entry_point": "add", "prefix": "from typing import List\\n...", "tests": ["assert candidate(2, 3) == 5", ...]}

A test is Python that raises where the code is wrong; it calls the function `candidate`. The solution stands first, the
tests behind it, and last a line that prints a number drawn for this one run: right is what prints it. Three things keep
a solution from passing by other means: it must be whole Python by itself, it may not bind a name that the tests use
(`def abs(x): return 0`) nor run text as code, and `candidate` returns plain values alone, so that no object of its own
kind answers every comparison with True.

References: Chen et al., Evaluating Large Language Models Trained on Code (HumanEval), 2021.
  https://arxiv.org/abs/2107.03374
"""

from __future__ import annotations

import ast
import functools
import json
import re
import secrets
import symtable
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.infer.tool_python import MAX_CODE, Sandbox
from jaxllm.infer.tools import ToolError
from jaxllm.rl.reward_extract import Grade, after_thinking

SECONDS = 5.0  # of one run in the shared sandbox
_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_RUNS_TEXT = ("eval", "exec", "compile", "__import__", "locals", "globals")
_HARNESS = """
def {plain}(value):
    kind = type(value)
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        for item in value:
            {plain}(item)
    elif kind is dict:
        for key in value:
            {plain}(key)
            {plain}(value[key])
    elif not (value is None or kind is bool or kind is int or kind is float or kind is str or kind is bytes
              or kind is complex or kind is range):
        raise TypeError('an object that is no plain value was returned')
    return value

def candidate(*arguments, **named):
    return {plain}({entry_point}(*arguments, **named))
"""


@functools.cache
def shared_sandbox() -> Sandbox:
    """The process's one sandbox; its time is the clock's, so it is ample for a busy machine."""
    return Sandbox(seconds=SECONDS)


def code(completion: str, answer: str, *, partial: bool = False, sandbox: Sandbox | None = None) -> Grade:
    """1 where the reply's code passes every test.

    The code is the last fenced block that defines the entry point, else the last block, else the reply as it is. Code
    that does not define the entry point is taken for the rest of the prefix, as HumanEval asks for.

    Args:
      completion: the reply.
      answer: see the module.
      partial: the share of the tests that pass, each run by itself, instead of all or nothing.
      sandbox: where it runs; None is the one that this process shares.

    Raises:
      ImportError: without the extra `tools`.
      ValueError: for an answer of another shape.
    """
    task = read_answer(answer)
    solution = _solution(completion, task)
    problem = _refuse(solution, task)
    if problem:
        return Grade(0.0, solution, problem)
    sandbox = sandbox or shared_sandbox()
    runs = [[test] for test in task["tests"]] if partial else [task["tests"]]
    problems = [_run(solution, task, tests, sandbox) for tests in runs]
    failed = list(filter(None, problems))
    return Grade(1 - len(failed) / len(runs), solution, failed[0] if failed else f"{len(task['tests'])} tests pass")


def read_answer(answer: str) -> Mapping[str, Any]:
    """The tests that an answer holds; ValueError where it is of another shape."""
    try:
        task = json.loads(answer)
        good = (isinstance(task["entry_point"], str) and task["entry_point"].isidentifier()
                and isinstance(task["prefix"], str) and isinstance(task["tests"], list) and task["tests"]
                and all(isinstance(test, str) for test in task["tests"]))
        context = ast.unparse([node for node in ast.parse(task["prefix"]).body
                               if getattr(node, "name", None) != task["entry_point"]]) if good else ""
        tests = "\n".join(task["tests"]) if good else ""
        used = (_used(_scopes(tests)) | _used(_scopes(_HARNESS.format(plain="plain", entry_point="plain"))))
        made = _bound(_scopes(f"{context}\n{tests}"), inside=False)
    except (ValueError, TypeError, KeyError, SyntaxError) as error:
        raise ValueError(f"the answer is no tests ({error!r}): {answer[:80]!r}") from error
    if not good:
        raise ValueError(f"the answer must be a JSON object with entry_point, prefix and tests: {answer[:80]!r}")
    return {**task, "context": context, "used": used - {task["entry_point"]}, "made": made}


def _scopes(source: str) -> symtable.SymbolTable:
    return symtable.symtable(source, "source", "exec")


def _used(scope: symtable.SymbolTable) -> set[str]:
    """The global names that a program reads."""
    names = {symbol.get_name() for symbol in scope.get_symbols()
             if symbol.is_referenced() and (symbol.is_global() or scope.get_type() == "module")}
    return names.union(*map(_used, scope.get_children()))


def _solution(completion: str, task: Mapping[str, Any]) -> str:
    said = after_thinking(completion)
    blocks = _FENCE.findall(said)
    defines = re.compile(rf"^(?:async\s+)?def\s+{task['entry_point']}\b|^{task['entry_point']}\s*=", re.MULTILINE)
    chosen = next((block for block in reversed(blocks) if defines.search(block)), blocks[-1] if blocks else said)
    return f"{task['context']}\n{chosen}" if defines.search(chosen) else task["prefix"] + chosen


def _refuse(solution: str, task: Mapping[str, Any]) -> str:
    """Why a solution is not run, or ""."""
    if len(solution) > MAX_CODE:
        return f"the code has more than {MAX_CODE} characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree, scopes = ast.parse(solution), _scopes(solution)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"the code is no Python ({type(error).__name__})"
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if running := names.intersection(_RUNS_TEXT):
        return f"the code uses {min(running)}: it could change what tests it"
    # What prefix and tests make stands behind the solution and wins, unless a function of it binds it later on.
    bound = ((_bound(scopes, inside=False) - task["made"]) | _bound(scopes, inside=True)) & task["used"]
    return f"the code binds {min(bound)}, which its tests use" if bound else ""


def _bound(scope: symtable.SymbolTable, *, inside: bool) -> set[str]:
    """The global names that a program binds: at its top level, or inside its functions by `global`."""
    names = {symbol.get_name() for symbol in scope.get_symbols()
             if (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace())
             and (not inside if scope.get_type() == "module" else symbol.is_declared_global())}
    return names.union(*(_bound(child, inside=True) for child in scope.get_children())) if inside else names


def _run(solution: str, task: Mapping[str, Any], tests: Sequence[str], sandbox: Sandbox) -> str:
    """Why the tests do not pass, or ""."""
    proof = secrets.token_hex(16)
    harness = _HARNESS.format(plain=f"plain_{proof}", entry_point=task["entry_point"])
    # The prefix's own functions once more behind the solution: tests that use them get them as they were.
    program = "\n".join([solution, task["context"], harness, *tests, f"print('{proof}')"])
    try:
        printed = sandbox.run(program)
    except ToolError as error:
        return str(error)
    last = printed.rpartition("\n")[2]
    return "" if last == proof else f"a test fails: {last[:200]}"
