"""A measurement in a process of its own, kept waiting between rounds so that rivals can be measured in turn.

The parent starts `python -m experiments.benchmark_worker MODULE:FUNCTION JSON`; the function sets everything up and
returns `run(count) -> seconds` and what there is to say about it. Each line that comes in is a count, each line that
goes out a json answer. A process that waits for a line uses no processor, so only one of them ever works.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
# glibc keeps the memory that a step frees, as launch.set_up_process asks for: given to PyTorch too.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(256 * 2**20),
               "MALLOC_ARENA_MAX": "1"}


class Worker:
    """The parent's end of one such process.

    Args:
      function: "module:function", called as function(**spec) in the new process.
      spec: its arguments, as json can hold them.
      environment: variables set for the process.

    Raises:
      ChildProcessError: when the process fails; its last line of output is the message.
    """

    def __init__(self, function: str, spec: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        # A file, for nobody reads it while the process runs, and a pipe that is full would hold the process up.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, function, json.dumps(spec)], cwd=ROOT, text=True,
            env={**os.environ, **(environment or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors)
        self.about: dict[str, Any] = self._answer()

    def run(self, count: int) -> float:
        """Seconds that `count` steps took."""
        print(count, file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._errors.close()

    @classmethod
    def answer_of(cls, function: str, spec: dict[str, Any], environment: dict[str, str] | None = None
                  ) -> dict[str, Any]:
        """What the function says of itself, once it has set everything up; then the process ends."""
        worker = cls(function, spec, environment)
        worker.close()
        return worker.about

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._process.communicate()
        with self._errors as file:
            file.seek(0)
            lines = file.read().strip().splitlines()
        raise ChildProcessError(lines[-1] if lines else f"it ended with code {self._process.returncode}")


def main() -> None:
    module, function = sys.argv[1].split(":")
    run, about = getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": run(int(line))}), flush=True)


if __name__ == "__main__":
    main()
