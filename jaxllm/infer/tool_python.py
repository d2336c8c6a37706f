"""Python in a sandbox made for untrusted code: Monty, an interpreter in Rust that has no way out but its host.

The code runs in a child process of Monty's pool, which starts with an empty environment. Inside, Monty bounds time,
memory, recursion and what it may ask of the host, which answers no question about files, clock or sleep. Around it, the
kernel bounds the child's memory and lets it write no file, and the pool kills it when it does not answer; a child that
died is replaced.

References: Monty. https://github.com/pydantic/monty
"""

from __future__ import annotations

import contextlib
import datetime
import threading
from typing import Any

from jaxllm.infer.tools import Tool, ToolError

MAX_CODE = 20_000  # characters
# Of a child's address space beyond what its code may use: the interpreter, its stack and copies at the edge.
OWN_BYTES = 512 << 20
GRACE_SECONDS = 1.0  # that Monty is given to end the code by itself, before the child is killed


class _Enough(Exception):
    """Raised into the child's printing when it has printed all that anybody will read."""


class Sandbox:
    """Children that run untrusted Python, started once and used again; every run begins with nothing defined.

    The same code gives the same result: the clock stands at 2000-01-01, random numbers start from the seed 0, and a
    sleep ends at once. Close it, or use it in a `with`.

    Args:
      seconds: of execution of one run; > 0.
      memory_bytes: of the values that the code holds.
      max_output: characters printed; what comes after them ends the run.
      processes: children at most, each running one piece of code at a time; further runs wait.

    Raises:
      ImportError: without the extra `tools`.
      ValueError: for a limit that cannot be.
    """

    def __init__(self, *, seconds: float = 2.0, memory_bytes: int = 64 << 20, max_output: int = 2000,
                 processes: int = 2) -> None:
        try:
            import pydantic_monty
        except ImportError as error:
            raise ImportError("the python tool needs pydantic-monty: pip install -e '.[tools]'") from error
        for name, value in (("seconds", seconds), ("memory_bytes", memory_bytes), ("max_output", max_output),
                            ("processes", processes)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        self._monty = pydantic_monty
        self._max_output, self._memory_bytes = max_output, memory_bytes
        self._limits = {"max_feed_duration_secs": seconds, "max_memory": memory_bytes, "max_recursion_depth": 200,
                        "max_suspensions": 100, "max_total_sleep_secs": 0.0}
        # The whole output of a run reaches the host in a few turns, each of which may take as long as a run.
        self._pool_options: dict[str, Any] = {"min_processes": 1, "max_processes": processes,
                                              "request_timeout": seconds + GRACE_SECONDS,
                                              "feed_duration_limit_grace": GRACE_SECONDS}
        self._lock, self._stack, self._pool = threading.Lock(), contextlib.ExitStack(), None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the children; a later run would start new ones."""
        with self._lock:
            self._stack.close()
            self._pool = None

    def run(self, code: str) -> str:
        """Runs code and returns what it printed, and the value of its last line where that is an expression.

        Args:
          code: Python as Monty knows it: no import but of a few modules (math, re, json, ...).

        Returns:
          At most max_output characters, and one line on an error if there was one; "no output" if there is nothing.

        Raises:
          ToolError: for code that is too long, or that ended the child.
        """
        if len(code) > MAX_CODE:
            raise ToolError(f"the code has {len(code)} characters; at most {MAX_CODE} are run")
        printed = _Printed(self._max_output)
        shown = _show_last_line(code)
        try:
            try:
                self._feed(shown or f"{code}\nNone", printed)
            except self._monty.MontySyntaxError:
                if shown is None:
                    raise
                self._feed(f"{code}\nNone", printed)  # nothing has run yet: a syntax error comes before everything
        except self._monty.MontyCrashedError:
            raise ToolError("the code was killed: it went beyond the sandbox's limits") from None
        except self._monty.MontyError as error:  # the pool passes on an exception of ours as one of the code's
            problem = "stopped, the output is too long" if printed.room < 0 else _describe(error)
            return "\n".join(filter(None, (printed.text().removesuffix("\n"), f"error: {problem}")))
        return printed.text().removesuffix("\n") or "no output"

    def _feed(self, code: str, printed: _Printed) -> None:
        if self._pool is None:
            with self._lock:
                self._pool = self._pool or self._stack.enter_context(self._monty.Monty(**self._pool_options))
        policy = {"datetime": datetime.datetime(2000, 1, 1), "sleep": "zero", "random_start": {"seed": 0}}
        with self._pool.checkout(limits=self._limits, os_policy=policy, print_flush_interval=0.0) as session:
            self._bound(session.worker_pid)
            session.feed_run(code, print_callback=printed)

    def _bound(self, pid: int | None) -> None:
        """The kernel's limits on a child: on Linux, where one process may set another's."""
        try:
            import resource
        except ImportError:
            return
        if pid is not None and hasattr(resource, "prlimit"):
            for limit, most in ((resource.RLIMIT_AS, OWN_BYTES + 4 * self._memory_bytes), (resource.RLIMIT_FSIZE, 0),
                                (resource.RLIMIT_CORE, 0)):
                resource.prlimit(pid, limit, (most, most))


class _Printed:
    """What the code printed, up to a number of characters."""

    def __init__(self, most: int) -> None:
        self.parts: list[str] = []
        self.room = most

    def __call__(self, stream: str, text: str) -> None:
        self.parts.append(text[:max(self.room, 0)])
        self.room -= len(text)
        if self.room < 0:
            raise _Enough

    def text(self) -> str:
        return "".join(self.parts)


def _show_last_line(code: str) -> str | None:
    """The code with its last line's value printed, if that line could be an expression; else None.

    The value is spelled inside the sandbox, within its limits, and only text crosses to the host. Where the last line
    is no expression of its own this is a syntax error, and the code is run as it stands.
    """
    before, _, last = code.rstrip().rpartition("\n")
    if not last.strip() or last[0].isspace() or last.startswith(("#", "print(", ")", "]", "}", "@")):
        return None
    value = f"_ = ({last}\n)\nif _ is not None: print(repr(_))"
    return f"{before}\n{value}\nNone" if before else f"{value}\nNone"


def _describe(error: Exception) -> str:
    """The error as the code's author sees it: line, kind and sentence."""
    frames = error.traceback() if hasattr(error, "traceback") else []
    where = f"line {frames[-1].line}: " if frames else ""
    text = error.display("type-msg") if hasattr(error, "traceback") else str(error)
    return where + text[:300]


def python_tool(sandbox: Sandbox, name: str = "python",
                description: str = "Runs Python code and returns what it prints. No files, no network.") -> Tool:
    """The tool `python(code)` over a sandbox, which stays the caller's to close."""
    code = {"type": "string", "description": "the code; print what you want to see"}
    return Tool(name, description, {"type": "object", "properties": {"code": code}, "required": ["code"]},
                sandbox.run, sandbox._max_output + 500)
