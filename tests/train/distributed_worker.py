"""One of two processes that train together: python distributed_worker.py ADDRESS PROCESS FOLDER, run by a test.

Prints one line of json: its losses, which rows it read, the step at which it stopped.
"""

import json
import os
import pathlib
import signal
import sys

import jax
import numpy as np

from jaxllm.data.packing import Batch
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.model.config import ModelConfig, preset
from jaxllm.model.params import abstract_params
from jaxllm.train.checkpoint import Checkpoints, load_model, save_model
from jaxllm.train.loop import Clock, StopRequest, train
from jaxllm.train.objective import next_token_objective
from jaxllm.train.optimizer import make_optimizer
from jaxllm.train.sharding import host_rows, make_mesh, put_batch, state_shardings
from jaxllm.train.step import TrainState, init_state, make_train_step

CONFIG: ModelConfig = preset("nano", layers=1)
OPTIMIZER = make_optimizer("adamw", 1e-2)
ROWS, LENGTH, STEPS = 8, 8, 5
QUICK = {"xla_backend_optimization_level": 0}  # to compile, that is


def rows_at(step: int, host: int = 0, hosts: int = 1) -> Batch:
    """This host's rows of batch `step`, with unequal numbers of counted tokens."""
    rng = np.random.default_rng(step % 2)
    ids = rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    counted = np.arange(LENGTH)[None] < rng.integers(0, LENGTH + 1, (ROWS, 1))
    mine = slice(host * ROWS // hosts, (host + 1) * ROWS // hosts)
    return Batch(ids[mine, :-1], ids[mine, 1:], counted[mine].astype(np.float32))


def first_state() -> TrainState:
    """Drawn by numpy, so that every process and every mesh begins with the same bits."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(x.dtype), abstract_params(CONFIG))
    shapes = jax.eval_shape(lambda params: init_state(params, OPTIMIZER), params)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes).replace(params=params)


def train_step():
    return make_train_step(next_token_objective(CONFIG), OPTIMIZER, microbatches=2)


def main(address: str, process: int, folder: pathlib.Path) -> None:
    jax.distributed.initialize(address, 2, process, initialization_timeout=60)
    mesh = make_mesh((2, 2, 1))
    host, hosts = host_rows(ROWS, mesh)
    losses: list[float] = []

    def batches(start):
        step = start
        while True:
            yield put_batch(rows_at(step, host, hosts), mesh)
            step += 1
            if process == 1 and step == STEPS + 3:
                os.kill(os.getpid(), signal.SIGTERM)  # one of the two is asked to stop

    with jax.set_mesh(mesh), StopRequest() as stop:
        state = first_state()
        places = state_shardings(state, CONFIG, mesh)
        state = jax.tree.map(lambda x, place: jax.make_array_from_callback(x.shape, place, lambda i: x[i]),
                             state, places)
        step = jax.jit(train_step(), donate_argnums=0, out_shardings=(places, None), compiler_options=QUICK)
        store = Checkpoints(folder / "checkpoints")
        state = train(state, step, batches(0), steps=1000, clock=Clock(1), stop=stop,
                      report=lambda number, metrics: losses.append(metrics["loss"]),
                      every=((STEPS, store.save),))
        store.wait()
        store.close()
        save_model(folder / "model", state.params, CONFIG, train_tokenizer(["a b"], vocab_size=263))
        params, _, _ = load_model(folder / "model", shardings=places.params)
        same = all(np.array_equal(a.addressable_shards[0].data, b.addressable_shards[0].data)
                   for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True))
        alone, _, _ = load_model(folder / "model")
        print(json.dumps({"losses": losses, "rows": [host, hosts], "stopped": int(state.step),
                          "requested": stop.requested, "same": same,
                          "alone": float(np.asarray(alone["final_norm"]["scale"])[0])}), flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
