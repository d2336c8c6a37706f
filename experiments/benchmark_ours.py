"""Our side of the benchmark: training steps of the GPT-2 architecture, timed in their own process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.launch import set_up_process
from jaxllm.data.packing import Batch
from jaxllm.model.config import Execution, ModelConfig, preset
from jaxllm.model.params import init
from jaxllm.train.objective import next_token_objective
from jaxllm.train.optimizer import make_optimizer
from jaxllm.train.peaks import peak_flops
from jaxllm.train.step import init_state, make_train_step

Run = Callable[[int], float]


def gpt(vocab_size: int, dim: int, layers: int, heads: int, length: int) -> ModelConfig:
    """GPT-2's architecture at any size: layer norm, GELU, learned positions, biases, tied head."""
    return preset("gpt2_124m", vocab_size=vocab_size, dim=dim, layers=layers, heads=heads, kv_heads=heads,
                  head_dim=dim // heads, mlp_dim=4 * dim, max_positions=length)


def train(model: dict[str, int], batch: int, dtype: str, scan: bool, remat: str = "none", chunks: int = 1,
          warm: int = 3) -> tuple[Run, dict[str, Any]]:
    """Training steps as `experiments.pretrain` takes them: clipping to norm 1 and AdamW included."""
    set_up_process()
    config, execution = gpt(**model), Execution(dtype=dtype, scan=scan, remat=remat)
    optimizer = make_optimizer("adamw", 1e-3)
    step = jax.jit(make_train_step(next_token_objective(config, execution, chunks=chunks), optimizer),
                   donate_argnums=0)
    state = jax.jit(lambda: init_state(init(config, jax.random.key(0)), optimizer))()
    tokens = np.random.default_rng(0).integers(model["vocab_size"], size=(batch, model["length"] + 1), dtype=np.int32)
    ones = np.ones((batch, model["length"]), np.float32)
    rows = jax.device_put(Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=ones, segment_ids=None,
                                positions=None))
    metrics: dict[str, jax.Array] = {}

    def run(count: int) -> float:
        nonlocal state, metrics
        begun = time.perf_counter()
        for _ in range(count):
            state, metrics = step(state, rows)
        float(metrics["loss"])
        return time.perf_counter() - begun

    run(warm)
    attention = "XLA"
    if jax.default_backend() == "gpu" and "fmha" in step.lower(state, rows).compile().as_text():
        attention = "cuDNN flash"
    return run, {"version": jax.__version__, "loss": float(metrics["loss"]), "attention": attention}


def limit() -> tuple[Run, dict[str, Any]]:
    """What the device could do: operations per second of a matrix product (published, for an accelerator)."""
    set_up_process()
    device = jax.devices()[0]
    flops = {dtype: peak_flops(dtype=dtype) for dtype in ("float32", "bfloat16")}
    return lambda count: 0.0, {"platform": device.platform, "device": device.device_kind, "flops": flops}
