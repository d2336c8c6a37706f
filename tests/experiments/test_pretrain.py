"""The main job at a size of seconds: it runs, resumes exactly, survives signals, and refuses bad input early."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from absl import flags

from configs import pretrain_gpt2, pretrain_llama3, pretrain_tiny
from experiments import launch as commands
from experiments import pretrain
from jaxllm.train.checkpoint import load_model
from jaxllm.train.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent.parent

SMALL = {
    "steps": 12, "batch_size": 8, "row_length": 32, "vocab_multiple": 64, "log_steps": 1, "validation_steps": 6,
    "validation_batches": 2, "sample_steps": 12, "sample_tokens": 4, "checkpoint_steps": 4,
    "data.sources": ("world:0:tiny",), "data.processes": 1, "data.tokenizer.vocab_size": 400,
    "data.validation_fraction": 0.1, "optimizer.warmup_steps": 3,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def small(cache, **changes):
    config = pretrain_tiny.get_config("nano")
    config.lock()
    config.update_from_flattened_dict(SMALL | {"data.cache": cache} | changes)
    return config


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """A run of 12 steps on the eight virtual devices."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    pretrain.main(small(cache), str(folder))
    return folder


def losses(folder):
    return {record["step"]: record["loss"] for record in read_metrics(folder) if "loss" in record}


def test_run_folder_holds_everything(finished):
    records = read_metrics(finished)
    assert sorted(losses(finished)) == list(range(1, 13))
    first = next(record for record in records if record["step"] == 2)
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu", "data_wait", "skipped"} <= first.keys()
    assert losses(finished)[12] < losses(finished)[1]
    checks = [record for record in records if "validation_loss" in record]
    assert [record["step"] for record in checks] == [6, 12]
    assert 0 < checks[-1]["validation_bits_per_byte"] < 8
    assert json.loads((finished / "config.json").read_text())["batch_size"] == 8
    assert list((finished / "events").glob("events.*"))
    page = (finished / "report.html").read_text()
    assert page.count("<svg") >= 4 and "Once upon a time" in page
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert {sample["prompt"] for sample in samples} == {"", "Once upon a time"}


def test_model_folder_loads_and_is_the_last_state(finished):
    params, config, tokenizer = load_model(finished)
    assert config.vocab_size == 448 and tokenizer.vocab_size == 400  # rounded up to a multiple of 64
    from jaxllm.train.checkpoint import Checkpoints
    checkpoints = Checkpoints(finished / "checkpoints")
    assert checkpoints.latest == 12
    checkpoints.close()
    assert params["embedding"]["tokens"].shape == (448, 32)


def test_same_command_again_does_nothing_but_report(finished, cache, capsys):
    before = read_metrics(finished)
    pretrain.main(small(cache), str(finished))
    assert "resumed at step 12 of 12" in capsys.readouterr().out
    assert losses(finished) == {record["step"]: record["loss"] for record in before if "loss" in record}


def test_other_settings_in_the_same_folder_are_refused(finished, cache):
    with pytest.raises(ValueError, match=r"optimizer.learning_rate \(0.004 there, 0.1 now\)"):
        pretrain.main(small(cache, **{"optimizer.learning_rate": 0.1}), str(finished))


def launch(folder, cache, *flags, devices=8):
    """The command line, in a process of its own, as a user starts it; what this process compiled is not compiled again.
    """
    settings = SMALL | {"data.cache": cache}
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.pretrain", "--config=configs/pretrain_tiny.py:nano", *arguments,
         f"--workdir={folder}", *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)


def read_until(process, pattern, seconds=120):
    """Lines until one matches; the process's whole output so far on failure."""
    seen, end = [], time.monotonic() + seconds
    for line in process.stdout:
        seen.append(line)
        if re.search(pattern, line):
            return "".join(seen)
        if time.monotonic() > end:
            break
    process.kill()
    raise AssertionError(f"no line matched {pattern!r} in:\n{''.join(seen)}")


@pytest.mark.slow
def test_killed_and_stopped_runs_resume_bit_for_bit(finished, cache, tmp_path, capsys):
    """A process is killed, the next is stopped, and the run ends in this one: the bits of the run that was left alone.
    """
    folder = tmp_path / "broken"
    broken = launch(folder, cache)
    read_until(broken, r"^step 6/12")
    broken.kill()  # no handler runs: at most the steps since the last whole checkpoint are lost
    broken.communicate()
    stopped = launch(folder, cache)
    read_until(stopped, r"^step 8/12|^resumed at step [4-8]")
    stopped.send_signal(signal.SIGTERM)
    rest = stopped.communicate(timeout=120)[0]
    assert stopped.returncode == 0, rest
    if "done in" not in rest:
        assert "the same command resumes" in rest
    pretrain.main(small(cache), str(folder))
    assert "resumed at step" in capsys.readouterr().out

    assert losses(folder) == losses(finished)  # every step once, and equal to the last bit
    params, _, _ = load_model(folder)
    expected, _, _ = load_model(finished)
    for leaf, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert (leaf == other).all()


@pytest.mark.slow
def test_two_processes_train_validate_sample_and_save_as_one(finished, cache, tmp_path):
    """Each with four devices of the eight, joined over loopback: the losses of the one process that had them all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    join = ("--distributed", f"--coordinator=localhost:{port}", "--processes=2")
    pair = [launch(tmp_path / "pair", cache, *join, f"--process={i}", devices=4) for i in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    one, two = losses(finished), losses(tmp_path / "pair")
    assert one.keys() == two.keys()
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, abs=1e-5)
    assert "Once upon a time" in (tmp_path / "pair" / "samples.jsonl").read_text()
    load_model(tmp_path / "pair")


@pytest.fixture
def own_flags():
    """The flags that a command defines in this process are gone after it."""
    before = set(flags.FLAGS)
    yield
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections reads config files so
@pytest.mark.parametrize("flag,named", [
    ("--config.vocab_sise=3", "vocab_sise"),
    ("--config.optimizer.learnin_rate=1", "learning_rate"),
    ("--config.steps=1.5", "steps"),
])
def test_mistyped_keys_and_types_stop_with_one_line(flag, named, own_flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrain", "--config=configs/pretrain_tiny.py:nano", flag])
    with pytest.raises(SystemExit) as stopped:
        commands.run(lambda *_: pytest.fail("the command began"), default_config="configs/pretrain_tiny.py")
    code, said = stopped.value.code, "".join(capsys.readouterr())
    assert code == 1 and named in said or named in code and "\n" not in code  # absl says it, or Python at its end
    assert "Traceback" not in said


@pytest.mark.parametrize("changes,message", [
    ({"batch_size": 12}, r"batch_size \(12\) must be a multiple of data x fsdp x microbatches \(8 x 1 x 1\)"),
    ({"mesh": (3, 1, 1)}, "does not use exactly the 8 devices"),
    ({"row_length": 65}, r"row_length \(65\) exceeds model.max_positions \(64\)"),
    ({"loss_chunks": 5}, r"loss_chunks \(5\) must divide row_length"),
    ({"model.heads": 3}, r"model.heads \(3\) must be a multiple of model.kv_heads"),
    ({"optimizer.name": "sgd"}, "choose one of"),
    ({"optimizer.warmup_steps": 99}, "warmup_steps"),
    ({"execution.remat": "some"}, "choose one of"),
    ({"data.validation_fraction": 0.0}, "validation_fraction"),
    ({"data.weights": (1.0, 2.0)}, "one weight a source"),
    ({"data.sources": ("nowhere.txt",)}, "nowhere.txt"),
    ({"data.tokenizer.name": "no_such_encoding"}, "no_such_encoding"),
    ({"mesh": (1, 1, 8)}, r"cannot be split over 8 devices of mesh axis tensor"),
    ({"wandb_project": "x"}, "wandb"),
])
def test_bad_settings_are_refused_with_a_sentence(cache, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pretrain.main(small(cache, **changes), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints" / "1").exists()


@pytest.mark.parametrize("content,message", [
    (b"", "empty"),
    (b"caf\xe9 au lait", "UTF-8"),
])
def test_bad_corpora_are_refused(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        pretrain.main(small(str(tmp_path / "cache"), **{"data.sources": (str(tmp_path / "bad.txt"),)}),
                      str(tmp_path / "run"))
    assert not list((tmp_path / "cache").rglob("index.json"))


def test_too_many_skipped_steps_stop_the_run_and_name_the_last_good_checkpoint(cache, tmp_path):
    wild = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0, "optimizer.weight_decay": 1e30, "max_skips": 2}
    with pytest.raises(ValueError, match="not finite for 2 steps in a row.*checkpoint"):
        pretrain.main(small(cache, **wild), str(tmp_path / "run"))


@pytest.mark.parametrize("module,sizes", [(pretrain_gpt2, ("124m", "355m", "774m", "1558m")),
                                          (pretrain_llama3, ("1b", "3b", "8b", "70b", "405b"))])
def test_every_large_config_passes_its_own_checks(module, sizes):
    for size in sizes:
        config = module.get_config(size)
        pretrain.check(config)
        assert set(config) == set(pretrain_tiny.get_config())  # no key of its own that code might not read


@pytest.mark.slow
def test_dry_run_prints_sizes(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "experiments.pretrain", "--config=configs/pretrain_tiny.py:nano", "--dry_run",
         "--config.mesh=(1,2,2)", "--config.row_length=32", f"--workdir={tmp_path / 'dry'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr
    numbers = dict(re.findall(r"^([A-Za-z ]+?)  +(.+)$", process.stdout, re.M))
    assert numbers["parameters"] == f"{2048 * 32 + 24_736:,}"
    assert {"parameter bytes", "optimizer bytes", "XLA temporaries", "FLOPs per token"} <= numbers.keys()
    assert not (tmp_path / "dry").exists()
