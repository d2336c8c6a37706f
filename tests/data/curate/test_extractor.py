"""The extractor in its child process: text out, and a bad page costs only itself."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("trafilatura", reason="needs the extra `curate`")

from jaxllm.data.curate import extractor as module  # noqa: E402
from jaxllm.data.curate.extractor import ExtractionError, Extractor, load  # noqa: E402

PAGE = ("<html><body><nav><a href='/'>Home</a></nav><article><h1>Tea</h1>" + "".join(
    f"<p>Sentence number {i} tells how the tea of the valley is picked and dried.</p>" for i in range(12))
    + "</article><footer>Privacy policy</footer></body></html>")
OPTIONS = {"trafilatura": {"favor_precision": True, "deduplicate": False},
           "resiliparse": {"alt_texts": False, "list_bullets": False}}


@pytest.mark.parametrize("name", OPTIONS)
def test_same_text_as_the_library_itself(name):
    with Extractor(name, OPTIONS[name], seconds=20) as extractor:
        texts = [extractor.extract(PAGE), extractor.extract(""), extractor.extract("<html>\u00e9\x00</html>")]
    assert texts[0] == load(name, OPTIONS[name])(PAGE)
    assert "Sentence number 11" in texts[0] and "Home" not in texts[0] and texts[1] == ""


def serving(tmp_path, body, seconds=1.0):
    """An extractor whose child does what `body` says with each page."""
    script = tmp_path / "child.py"
    script.write_text("import json, sys, os, time, signal\n"
                      "from jaxllm.data.curate import extractor\n"
                      f"def fake(html):\n    if 'The first page' in html: return ''\n    {body}\n"
                      "extractor.load = lambda name, options: fake\n"
                      "extractor._serve(json.loads(sys.argv[1]))\n")
    made = Extractor("trafilatura", {}, seconds)
    start = subprocess.Popen

    class Popen(start):
        def __init__(self, command, **options):
            super().__init__([command[0], str(script), command[3]], **options)

    return made, Popen


@pytest.mark.parametrize("body, reason", [
    ("while 'hang' in html: pass\n    return html", "timeout"),
    ("os._exit(3) if 'hang' in html else None\n    return html", "crash"),
    ("if 'hang' in html: raise RecursionError('deep')\n    return html", "error")])
def test_a_bad_page_costs_itself(tmp_path, monkeypatch, body, reason):
    extractor, popen = serving(tmp_path, body)
    monkeypatch.setattr(module.subprocess, "Popen", popen)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with extractor:
        assert extractor.extract("good") == "good"
        with pytest.raises(ExtractionError) as error:
            extractor.extract("hang")
        assert error.value.reason == reason
        assert extractor.extract("good again") == "good again"


def test_the_limit_is_of_a_page_not_of_the_start(tmp_path, monkeypatch):
    extractor, popen = serving(tmp_path, "return html", seconds=0.5)
    script = tmp_path / "child.py"
    script.write_text("import time; time.sleep(1.5)\n" + script.read_text())
    monkeypatch.setattr(module.subprocess, "Popen", popen)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with extractor:
        assert extractor.extract("good") == "good"


def test_no_orphan_when_the_parent_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", (
        "from jaxllm.data.curate.extractor import Extractor\n"
        "e = Extractor('resiliparse', {}, 30); e.extract('<p>a</p>'); print(e._child.pid, flush=True)\n"
        "import time; time.sleep(60)")], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    for _ in range(100):
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    raise AssertionError("the child outlives its parent")


def test_an_extractor_that_cannot_start_says_so():
    with Extractor("resiliparse", {"no_such_option": 1}, 5) as extractor, pytest.raises(RuntimeError, match="curate"):
        extractor.extract(PAGE)
