"""Two processes joined over loopback train as one does; their checkpoint and their model are one process's too."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import distributed_worker as worker
import jax
import numpy as np
import pytest

from jaxllm.train.checkpoint import Checkpoints, load_model

HERE = pathlib.Path(__file__).parent
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """(what each printed, the folder they wrote)"""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(HERE / "distributed_worker.py"), f"127.0.0.1:{free_port()}"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    children = [subprocess.Popen([*command, str(process), str(folder)], env=environment, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE) for process in range(2)]
    try:
        said = [child.communicate(timeout=150) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, err) in zip(children, said, strict=True):
        assert child.returncode == 0, err[-4000:]
    return [json.loads(out.strip().split("\n")[-1]) for out, _ in said], folder


@pytest.fixture(scope="module")
def one_process():
    """(losses, state after STEPS) of the same run in this process, without a mesh."""
    step, state = jax.jit(worker.train_step(), compiler_options=worker.QUICK), jax.device_put(worker.first_state())
    losses, kept = [], None
    for number in range(worker.STEPS + 10):
        state, metrics = step(state, worker.rows_at(number))
        losses.append(float(metrics["loss"]))
        if number + 1 == worker.STEPS:
            kept = jax.device_get(state)
    return losses, kept


def test_two_processes_train_as_one(two_processes, one_process):
    """Each reads only its half of every batch; both see the loss of the whole."""
    first, second = two_processes[0]
    assert (first["rows"], second["rows"]) == ([0, 2], [1, 2])
    assert first["losses"] == second["losses"]
    count = len(first["losses"])
    assert count > worker.STEPS
    np.testing.assert_allclose(first["losses"], one_process[0][:count], rtol=0, atol=1e-5)
    assert first["losses"][4] < first["losses"][0]


def test_a_stop_asked_of_one_process_stops_both_at_the_same_step(two_processes):
    first, second = two_processes[0]
    assert first["stopped"] == second["stopped"] == len(first["losses"])
    # Process 1 heard it while it made the batch of step 9, voted with that step, and both read the vote while
    # step 10 ran.
    assert first["stopped"] == worker.STEPS + 5
    assert first["requested"] and second["requested"]


def test_a_checkpoint_of_two_processes_restores_in_one(two_processes, one_process):
    store = Checkpoints(two_processes[1] / "checkpoints")
    expected = one_process[1]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = store.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), expected),
                          step=worker.STEPS)
    store.close()
    assert int(found.step) == worker.STEPS
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_model_folder_written_by_two_processes(two_processes):
    said, folder = two_processes
    assert [one["same"] for one in said] == [True, True]
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "model"]
    params, config, _ = load_model(folder / "model")
    assert config == worker.CONFIG
    assert {one["alone"] for one in said} == {float(params["final_norm"]["scale"][0])}
