"""Main text out of HTML in a child process, so that a page that hangs or kills the extractor costs only itself.

The child sets its own alarm before each page; the system ends it whatever it is doing, in C code too, and the parent
sees the pipe close. It lives until its input closes, so that it never outlives the parent.

    python -m jaxllm.data.curate.extractor SETTINGS     # the child: lengths and pages in, lengths and texts out
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

_LENGTH = struct.Struct("<q")  # of what follows; negative: an error's message
_START_SECONDS = 120  # importing the extractor on a busy machine has nothing to do with the limit of a page


class ExtractionError(Exception):
    """A page without text: `reason` is "timeout", "crash" or "error"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Extractor:
    """The parent's end; use as a context. The child starts with the first page and again after a bad one.

    Args:
      extractor: "trafilatura" or "resiliparse".
      options: keywords of the extractor.
      seconds: limit for one page.
    """

    def __init__(self, extractor: str, options: dict[str, Any], seconds: float) -> None:
        self._settings = json.dumps({"extractor": extractor, "options": options, "seconds": seconds})
        self._child: subprocess.Popen | None = None

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *exception) -> None:
        self._stop()

    def extract(self, html: str) -> str:
        """The main text of a page; "" when there is none.

        Raises:
          ExtractionError: no text because of the page.
          RuntimeError: the extractor itself cannot start.
        """
        child = self._child or self._start()
        try:
            _write(child.stdin, html.encode("utf-8", "surrogatepass"))
            answer = _read(child.stdout)
        except (BrokenPipeError, EOFError):
            code = self._stop()
            reason = "timeout" if code == -signal.SIGALRM else "crash"
            raise ExtractionError(reason, f"the extractor ended with {code}") from None
        if isinstance(answer, Exception):
            raise ExtractionError("error", str(answer))
        return answer

    def _start(self) -> subprocess.Popen:
        self._child = subprocess.Popen([sys.executable, "-m", "jaxllm.data.curate.extractor", self._settings],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            _read(self._child.stdout)  # it is ready: what follows is timed
        except EOFError:
            raise RuntimeError(f"the extractor does not start (exit code {self._stop()}): see its message above; "
                               "`pip install -e '.[curate]'` installs what it needs") from None
        return self._child

    def _stop(self) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        child.stdin.close()
        child.stdout.close()
        return child.wait()


def load(extractor: str, options: dict[str, Any]) -> Callable[[str], str]:
    """The extractor as a function of a page, in this process and without a limit."""
    if extractor == "trafilatura":
        import trafilatura

        return lambda html: trafilatura.extract(html, include_comments=False, **options) or ""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    return lambda html: extract_plain_text(HTMLTree.parse(html), main_content=True, **options)


def _write(stream, data: bytes, sign: int = 1) -> None:
    stream.write(_LENGTH.pack(sign * len(data)))
    stream.write(data)
    stream.flush()


def _read(stream) -> str | Exception:
    size = _LENGTH.unpack(_exactly(stream, _LENGTH.size))[0]
    text = _exactly(stream, abs(size)).decode("utf-8", "surrogatepass")
    return text if size >= 0 else Exception(text)


def _exactly(stream, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _serve(settings: dict[str, Any]) -> None:
    # What the extractor prints must not get between the answers.
    answers, pages = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    if os.path.exists("/proc/self/oom_score_adj"):
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # when memory ends, this process goes first and the page is counted
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.setitimer(signal.ITIMER_REAL, _START_SECONDS)
    extract = load(settings["extractor"], settings["options"])
    extract("<html><body><main><p>The first page loads what is loaded late.</p></main></body></html>")
    signal.setitimer(signal.ITIMER_REAL, 0)
    _write(answers, b"ready")
    while True:
        try:
            page = _read(pages)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, settings["seconds"])
        try:
            text, sign = extract(page), 1
        except Exception as error:  # any page may raise anything; it is counted by the parent
            text, sign = f"{type(error).__name__}: {error}" or "error", -1
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answers, text.encode("utf-8", "surrogatepass"), sign)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
