"""What a run would need on a described mesh, worked out on this machine with no accelerator.

    python -m experiments.pretrain --config=configs/pretrain_llama3.py:8b --config.mesh="(1,64,4)" --dry_run

The step is compiled for as many virtual CPU devices as the mesh has; parameters, optimizer and arguments are exact
for any device, XLA's temporary memory is the CPU compiler's (an accelerator's fuses more and attends in tiles).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxllm.data.packing import Batch
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.model.params import abstract_params, count_params, flops_per_token, init
from jaxllm.train import sharding
from jaxllm.train.step import init_state


def run(config: ConfigDict, plan: Callable[[Mesh, int], Any]) -> None:
    """Prints sizes, FLOPs and memory of the run that `config` describes.

    Args:
      config: of an experiment like configs/pretrain_tiny.py.
      plan: (mesh, tokenizer's vocabulary) -> the experiment's Plan.
    """
    devices = math.prod(max(size, 1) for size in config.mesh)  # "the rest" of no devices at hand is 1
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = sharding.make_mesh([max(size, 1) for size in config.mesh])
    sharding.check_batch(config.batch_size, config.microbatches, mesh)
    name = config.data.tokenizer.name
    vocab = config.data.tokenizer.vocab_size if name == "train" else load_tokenizer(name).vocab_size
    made = plan(mesh, vocab)
    model = made.model

    def new_state():
        return init_state(init(model, jax.random.key(0)), made.optimizer, ema=config.ema_decay > 0)

    state = jax.eval_shape(new_state)
    shardings = sharding.state_shardings(state, model, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    print(f"mesh {dict(mesh.shape)}, {devices} devices; batch {config.batch_size} x {config.row_length} tokens")
    print(f"parameters             {count_params(model):,}")
    print(f"FLOPs per token        {flops_per_token(model, config.row_length):.4g} (training)")
    print(f"parameter bytes        {_gigabytes(_bytes_per_device(state.params))} per device")
    print(f"optimizer bytes        {_gigabytes(_bytes_per_device((state.opt_state, state.ema)))} per device")
    print(f"largest parameter      {_largest(model)}")
    begun = time.perf_counter()
    with jax.set_mesh(mesh):
        step = jax.jit(made.step, donate_argnums=0, out_shardings=(shardings, None))
        compiled = step.lower(state, _batch(config, mesh)).compile()
    memory = compiled.memory_analysis()
    print(f"XLA arguments          {_gigabytes(memory.argument_size_in_bytes)} per device")
    print(f"XLA temporaries        {_gigabytes(memory.temp_size_in_bytes)} per device (compiled for CPU in "
          f"{time.perf_counter() - begun:.0f} s; see experiments/dry_run.py)")


def _batch(config: ConfigDict, mesh: Mesh) -> Batch:
    def rows(dtype):
        return jax.ShapeDtypeStruct((config.batch_size, config.row_length), dtype,
                                    sharding=sharding.batch_sharding(mesh))
    separate = config.data.documents == "separate"
    return Batch(rows(jnp.int32), rows(jnp.int32), rows(jnp.float32),
                 *((rows(jnp.int32),) * 2 if separate else (None, None)))


def _bytes_per_device(tree: Any) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.3f} GiB"


def _largest(model) -> str:
    leaves = jax.tree_util.tree_flatten_with_path(abstract_params(model))[0]
    path, leaf = max(leaves, key=lambda item: math.prod(item[1].shape))
    return f"{'/'.join(entry.key for entry in path)} {leaf.shape}"
