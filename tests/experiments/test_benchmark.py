"""The benchmark at toy sizes: every section, the choice of finalists, the processes of rivals, what it refuses."""

import functools
import importlib
import json
import os
import pathlib
import time

import pytest
from ml_collections import ConfigDict

from configs import benchmark as config_file
from experiments import benchmark, benchmark_contest, benchmark_decode, benchmark_decode_sides
from experiments.benchmark_contest import Rival, contest
from experiments.benchmark_worker import Worker


class InProcess:
    """A stand-in for Worker that calls the same functions here: importing JAX ten times is not what is tested.

    What was set up once is called again, whatever the environment asked for.
    """

    def __init__(self, function, spec, environment=None):
        self.run, self.about = set_up(function, json.dumps(spec))

    def close(self):
        pass

    @classmethod
    def answer_of(cls, function, spec, environment=None):
        return cls(function, spec).about


@functools.cache
def set_up(function, spec):
    module, name = function.split(":")
    small = {"megabytes": 4, "seconds": 0.01} if name == "bandwidth" else {}
    return getattr(importlib.import_module(module), name)(**json.loads(spec), **small)


def toy_config() -> ConfigDict:
    config = config_file.get_config()
    config.update({"rounds": 2, "finalists": 1, "seconds": 0.01, "threads": 1})
    toy = config_file.case("toy", 65, 16, 1, 2, 8, batch=2)
    config.train_cpu.cases = ConfigDict({"a": toy})
    config.train_cpu.ours = ("unrolled float32", "scan bfloat16")
    config.train_cpu.peers = ("plain eager float32", "transformers eager bfloat16")
    config.generate.update({"models": ("nano",), "ours": ("float32", "int8_dynamic"), "transformers": ("float32",),
                            "llama_cpp": (), "batches": (2,), "prompt": 4, "new": 4, "rounds": 2, "finalists": 1})
    config.sections = tuple(name for name in config.sections if name != "engine")
    config.loader.update({"tokens": (20_000,), "batch": 2, "length": 64, "seconds": 0.01})
    config.startup.case = toy
    return config


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(benchmark, "Worker", InProcess)
    monkeypatch.setattr(benchmark_contest, "Worker", InProcess)
    monkeypatch.setattr(benchmark_decode, "Worker", InProcess)
    monkeypatch.setattr("experiments.benchmark_ours.set_up_process", lambda: None)
    monkeypatch.setattr(benchmark_decode_sides, "set_up_process", lambda: None)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
@pytest.mark.slow
@pytest.mark.parametrize("interop", [True, False])
def test_the_whole_command(interop, in_process, tmp_path, monkeypatch):
    if interop and not benchmark.has_peers():
        pytest.skip("the extra interop (torch, transformers) is not installed")
    monkeypatch.setattr(benchmark, "has_peers", lambda: interop)
    config = toy_config()
    if not interop:  # the other sections have no peers to miss
        config.sections = ("train_cpu", "generate")
    benchmark.main(config, str(tmp_path))
    results = json.loads((tmp_path / "benchmark.json").read_text())
    text = (tmp_path / "benchmark.md").read_text()
    train, generated = results["train_cpu"], results["generate"]
    assert not [row["failure"] for row in train + generated if row["failure"]]
    assert {row["side"] for row in train} == ({"ours", "PyTorch"} if interop else {"ours"})
    assert len(train) == (6 if interop else 2) and len(generated) == (3 if interop else 2)
    assert sum(row["rounds"] > 0 for row in train) == (2 if interop else 1)
    assert all(row["rate"] > 0 and 0 < row["mfu"] < 1 for row in train)
    assert all(row["share"] > 0 for row in generated)
    assert generated[1]["weight_bytes"] < generated[0]["weight_bytes"] / 3
    assert text.count("x** of the best") == (1 if interop else 0)
    assert text.count("x** of transformers (float32)") == (1 if interop else 0)
    assert ("`interop`" in text) == (not interop)
    if not interop:
        return
    assert [row["read_as"] for row in results["loader"]] == ["concatenate", "separate", "mixture of two"]
    assert [row["cache"] for row in results["startup"]] == ["off", "on, empty", "on, filled"]
    assert results["train_gpu"] is None and results["generate_gpu"] is None and text.count("Not run") == 2


@pytest.mark.slow
def test_llama_cpp_continues_every_row():
    pytest.importorskip("xllamacpp", reason="needs the package xllamacpp (llama.cpp)")
    pytest.importorskip("gguf", reason="needs the extra `gguf`")
    spec = {"model": "tiny", "folder": "", "batch": 3, "prompt": 4, "new": 5, "scheme": "Q8_0", "threads": 1}
    worker = Worker("experiments.benchmark_decode_sides:llama_cpp", spec, {"JAX_PLATFORMS": "cpu"})
    assert worker.run(1) > 0 and 0.9e6 < worker.about["weight_bytes"] < 2e6
    worker.close()


def test_verdicts_of_decoding_name_both_sides():
    rows = [dict(side="ours", name="int8", rate=30.0, rounds=3), dict(side="ours", name="float32", rate=10.0, rounds=3),
            dict(side="transformers", name="float32", rate=20.0, rounds=3),
            dict(side="llama.cpp", name="Q8_0", rate=60.0, rounds=3),
            dict(side="llama.cpp", name="F16", rate=90.0, rounds=0)]  # tried once
    assert benchmark_decode.verdicts(rows) == (
        "Ours in int8 is at **1.50x** of transformers (float32), **0.50x** of llama.cpp (Q8_0). "
        "Ours in float32 is at **0.50x** of transformers (float32), **0.17x** of llama.cpp (Q8_0).")


def slow(seconds, fails=False):
    """A rival whose steps take `seconds`, started in a process of its own."""
    if fails:
        raise ValueError("no such rival")

    def run(count):
        time.sleep(seconds * count)
        return seconds * count * float(os.environ.get("FACTOR", 1))
    return run, {"pid": os.getpid()}


def test_finalists_are_the_best_of_each_side_in_its_best_environment(monkeypatch):
    monkeypatch.setattr(benchmark_contest, "Worker", InProcess)
    here = f"{__name__}:slow"
    rivals = [Rival("ours", "quick", here, {"seconds": 0.001}, {}), Rival("ours", "slow", here, {"seconds": 0.002}, {}),
              Rival("theirs", "broken", here, {"seconds": 0.0, "fails": True}, {})]
    with pytest.raises(ValueError, match="no such rival"):  # here; a process of its own makes it a ChildProcessError
        contest(rivals, toy_config(), 10)
    rows = contest(rivals[:2], toy_config(), 10)
    assert [(row["name"], row["rounds"]) for row in rows] == [("quick", 2), ("slow", 0)]
    assert rows[0]["rate"] == pytest.approx(10_000) and rows[1]["rate"] == pytest.approx(5_000)


@pytest.mark.slow
def test_a_process_of_its_own_answers_and_says_why_it_fails():
    here = f"{__name__}:slow"
    found = {"PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    worker = Worker(here, {"seconds": 0.001}, {"FACTOR": "3", **found})
    assert worker.about["pid"] != os.getpid()
    assert worker.run(4) == pytest.approx(0.012)
    worker.close()
    with pytest.raises(ChildProcessError, match="no such rival"):
        Worker(here, {"seconds": 0.0, "fails": True}, found)


def test_verdict_compares_medians_of_the_contest_and_not_single_tries():
    rows = [dict(side="ours", name="a", rate=30.0, rounds=3), dict(side="ours", name="b", rate=90.0, rounds=0),
            dict(side="PyTorch", name="c", rate=20.0, rounds=3)]
    assert "**1.50x** of the best PyTorch (c)" in benchmark.verdict(rows)
    assert benchmark.verdict(rows[:2]) == ""


@pytest.mark.parametrize("change, message", [
    ({"sections": ("training",)}, "choose from train_cpu"), ({"rounds": 0}, "at least 1")])
def test_what_cannot_be_measured_is_refused(change, message, tmp_path):
    config = toy_config()
    config.update(change)
    with pytest.raises(ValueError, match=message):
        benchmark.main(config, str(tmp_path))


def test_a_finalist_that_dies_is_out_and_its_row_says_why(monkeypatch):
    class Mortal(InProcess):
        started = 0

        def __init__(self, *arguments):
            super().__init__(*arguments)
            Mortal.started += 1
            if Mortal.started == 3:  # ours and theirs were tried; this is ours in its first round
                raise ChildProcessError("it ended with code -9")

    monkeypatch.setattr(benchmark_contest, "Worker", Mortal)
    here = f"{__name__}:slow"
    rivals = [Rival(side, "one", here, {"seconds": 0.001}, {}) for side in ("ours", "theirs")]
    ours, theirs = contest(rivals, toy_config(), 10, together=False)
    assert ours["failure"] == "in round 1: it ended with code -9" and ours["rate"] == 0
    assert theirs["rounds"] == 2 and benchmark.verdict([ours, theirs]) == ""
