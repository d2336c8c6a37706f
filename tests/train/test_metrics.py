"""Means that add exactly, bits per byte by hand, and the files that a run writes."""

import json
import math
import pathlib
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxllm.train.metrics import Mean, MetricsWriter, bits_per_byte, norms, read_metrics
from jaxllm.train.peaks import measure_matmul, peak_flops


def events(folder) -> list[Event]:
    """Every event under `folder`, by TFRecord's framing: length, its checksum, data, its checksum."""
    found = []
    for path in sorted((pathlib.Path(folder) / "events").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length, = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12:at + 12 + length]))
            at += 12 + length + 4
        assert at == len(data)
    return found


def scalars(folder) -> list[tuple[str, int, float]]:
    return [(value.tag, event.step, value.simple_value) for event in events(folder) for value in event.summary.value]


def test_norms_are_of_all_leaves_of_a_name():
    rng = np.random.default_rng(0)
    tree = {"blocks": {"norm": {"scale": rng.normal(size=(2, 3))}, "query": rng.normal(size=4)},
            "last": {"scale": jnp.bfloat16(rng.normal(size=5))}}
    found = norms(jax.tree.map(jnp.asarray, tree))
    scales = np.concatenate([tree["blocks"]["norm"]["scale"].ravel(), np.float32(tree["last"]["scale"])])
    assert found.keys() == {"query", "scale"} and all(norm.dtype == jnp.float32 for norm in found.values())
    np.testing.assert_allclose([found["query"], found["scale"]],
                               [np.linalg.norm(tree["blocks"]["query"]), np.linalg.norm(scales)], rtol=1e-6)


def test_means_of_unequal_parts_add_to_the_mean_of_the_whole():
    values, weights = np.float32([1, 2, 4, 8]), np.float32([1, 0, 3, 0.5])
    parts = [Mean(jnp.sum(values[s] * weights[s]), jnp.sum(weights[s])) for s in (slice(0, 2), slice(2, 4))]
    assert float((parts[0] + parts[1]).value) == np.average(values, weights=weights)
    assert float(jax.tree.map(jnp.add, *parts).value) == np.average(values, weights=weights)


def test_a_mean_of_nothing_is_zero_with_a_finite_gradient():
    assert float(Mean(jnp.zeros(()), jnp.zeros(())).value) == 0.0
    assert float(jax.grad(lambda x: Mean(x, jnp.zeros(())).value)(0.0)) == 0.0


def test_bits_per_byte_by_hand():
    """Tokens of 1, 3 and 0 bytes; the uncounted one gives no bytes, the special one gives its nats."""
    nats = Mean(jnp.float32(6.0), jnp.float32(3.0))
    targets, weights = jnp.array([[0, 1, 2, 1]]), jnp.array([[1.0, 1.0, 1.0, 0.0]])
    result = bits_per_byte(nats, targets, weights, jnp.array([1, 3, 0]))
    assert float(result.weight) == 4.0
    np.testing.assert_allclose(result.value, 6.0 / math.log(2) / 4.0, rtol=1e-6)


def test_lines_and_events(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": np.float32(2.5), "rate": 1})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5, "rate": 1.0}]  # before it is closed
    writer.write(2, {"loss": 1.5})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5, "rate": 1.0}, {"step": 2, "loss": 1.5}]
    assert scalars(tmp_path) == [("loss", 1, 2.5), ("rate", 1, 1.0), ("loss", 2, 1.5)]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": float("nan"), "norm": float("inf"), "rate": 1.0})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not json")) == {
        "step": 1, "loss": None, "norm": None, "rate": 1.0}


def test_a_resumed_run_repeats_no_step(tmp_path):
    """In the lines and in TensorBoard: the resumed file purges from the first repeated step, not from the last kept."""
    first = MetricsWriter(tmp_path)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    again = MetricsWriter(tmp_path, resume_step=2)
    again.write(3, {"loss": 30.0})
    again.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 30.0}]
    assert [event.step for event in events(tmp_path) if event.session_log.status][-1:] == [3]


def test_a_run_that_starts_anew_in_its_folder_forgets_the_old_lines(tmp_path):
    """Killed before its first checkpoint, a run begins at step 0 again."""
    for value in (1.0, 2.0):
        writer = MetricsWriter(tmp_path)
        writer.write(1, {"loss": value})
        writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert [event.step for event in events(tmp_path) if event.session_log.status][-1:] == [1]


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path) == []


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb is missing: pip install 'jaxllm\\[wandb\\]'"):
        MetricsWriter(tmp_path / "run", wandb_project="x")
    assert not (tmp_path / "run").exists()


def test_wandb_gets_every_step_when_asked(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    class Wandb:
        @staticmethod
        def init(**settings):
            calls.append(settings)
            return Run()
    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    writer = MetricsWriter(tmp_path / "run", wandb_project="p", config={"a": 1})
    writer.write(3, {"loss": 1.0})
    writer.close()
    assert calls == [{"project": "p", "dir": str(tmp_path / "run"), "config": {"a": 1}, "id": "run",
                      "resume": "allow"}, (3, {"loss": 1.0}), "finish"]


class Device:
    def __init__(self, kind):
        self.device_kind, self.platform = kind, "gpu"


def test_peaks_of_accelerators_add_up_and_an_unknown_one_is_zero():
    assert peak_flops([Device("NVIDIA H100 80GB HBM3")] * 8) == 8 * 989e12
    assert peak_flops([Device("NVIDIA H100 PCIe")]) == 756e12
    assert peak_flops([Device("NVIDIA L4")]) == 121e12
    assert peak_flops([Device("TPU v5 lite")]) == 197e12
    assert peak_flops([Device("TPU v5p")]) == 459e12
    assert peak_flops([Device("something else")]) == 0.0


def test_the_peak_of_a_cpu_is_measured():
    """Eight virtual devices are one processor: its peak is not multiplied. Any that runs jax does 1e8 to 1e14."""
    assert 1e8 < measure_matmul(size=128, seconds=0.01) < 1e14
