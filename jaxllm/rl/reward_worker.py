"""Libraries that grade, each in a child process that can be killed.

math-verify and the scorers of reasoning-gym run sympy on what a model wrote, which may take minutes or gigabytes
(`9^{9^9}`), and bound it with signals, which only a main thread can use. In a child both work: it ends by itself after
`seconds`, is killed when it does not, and is replaced at the next call. Any thread may call; calls wait for each other.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from typing import Any

MEMORY_BYTES = 4 << 30  # of a child's address space
START_SECONDS = 120.0  # for its imports, on a busy machine
PATIENCE = 10.0  # times `seconds` by the clock, before it is killed
PACKAGES = {"math": "math_verify", "reasoning_gym": "reasoning_gym"}


class Refused(ValueError):
    """The library gave no verdict on a text: it raised, or ran out of time or memory."""


class Worker:
    """A child process that answers one kind of request.

    Args:
      kind: "math" or "reasoning_gym".
      seconds: of processor time for one request; PATIENCE times as long by the clock.

    Raises:
      ImportError: when the library is not installed.
    """

    def __init__(self, kind: str, seconds: float = 3.0) -> None:
        if kind not in PACKAGES:
            raise ValueError(f"unknown kind of worker {kind!r}: use one of {', '.join(PACKAGES)}")
        if seconds <= 0:
            raise ValueError(f"seconds is {seconds}; it must be above 0")
        if importlib.util.find_spec(PACKAGES[kind]) is None:
            raise ImportError(f"the verifier {kind!r} needs {PACKAGES[kind].replace('_', '-')}: "
                              f"pip install -e '.[verify]'")
        self.kind, self.seconds, self.replaced = kind, seconds, 0
        self._lock, self._child = threading.Lock(), None
        atexit.register(self.close)

    def call(self, **request: Any) -> Any:
        """The library's answer to a request of JSON values.

        Raises:
          Refused: for a request that it raised on, or that took too long.
        """
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._start()
            try:
                self._child.stdin.write(json.dumps(request).encode() + b"\n")
                self._child.stdin.flush()
                reply = self._read(PATIENCE * self.seconds)
            except (TimeoutError, OSError) as error:  # an OSError: the child died, as of memory
                self._end()
                self.replaced += 1
                raise Refused("it took too long or too much memory") from error
        if "error" in reply:
            raise Refused(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """Ends the child; a later call would start another."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        self._end()
        environment = {name: value for name, value in os.environ.items()
                       if name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "jaxllm.rl.reward_child", self.kind, str(self.seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        try:
            self._read(START_SECONDS)
        except (TimeoutError, OSError) as error:
            self._child.kill()
            complaint = self._child.stderr.read().decode(errors="replace").strip()[-500:]
            self._end()
            raise RuntimeError(f"the child process for {self.kind!r} did not start: {complaint or error}") from error
        self._bound(self._child.pid)

    @staticmethod
    def _bound(pid: int) -> None:
        """The kernel's limits on the child, once it has imported all: on Linux, where one process may set another's."""
        try:
            import resource
        except ImportError:
            return
        if hasattr(resource, "prlimit"):
            for limit, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0),
                                (resource.RLIMIT_CORE, 0)):
                resource.prlimit(pid, limit, (most, most))

    def _read(self, seconds: float) -> dict[str, Any]:
        """One line of the child, as JSON; TimeoutError or EOFError, an OSError, where none comes."""
        end, line, out = time.monotonic() + seconds, b"", self._child.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError
                piece = os.read(out, 1 << 16)
                if not piece:
                    raise ConnectionError("the child ended")
                line += piece
        return json.loads(line)

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


@functools.cache
def shared(kind: str) -> Worker:
    """The process's one worker of a kind, with the default limits."""
    return Worker(kind)
