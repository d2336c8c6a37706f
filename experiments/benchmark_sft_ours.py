"""Our side of the fine-tuning benchmark: packed rows and the step of experiments/sft.py, timed in their own process."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from experiments.launch import set_up_process
from jaxllm.data.loader import Rows, prefetch
from jaxllm.data.packing import pack
from jaxllm.model.config import Execution
from jaxllm.train.checkpoint import load_model
from jaxllm.train.objective import evaluate, next_token_objective
from jaxllm.train.optimizer import make_optimizer
from jaxllm.train.step import init_state, make_train_step


def train(folder: str, row_length: int, batch: int, scan: bool) -> tuple[Callable[[int], float], dict[str, Any]]:
    """run(count) reads all conversations `count` times, an update every `batch` rows; see `Worker`."""
    set_up_process()
    params, model, _ = load_model(pathlib.Path(folder) / "model")
    talks = json.loads((pathlib.Path(folder) / "talks.json").read_text(encoding="utf-8"))
    packed = pack([talk["input_ids"] for talk in talks], row_length, [talk["assistant_masks"] for talk in talks])
    rows = Rows(packed.batch, sequential=True)
    updates = rows.steps(batch)
    objective = next_token_objective(model, Execution(scan=scan))
    loss = evaluate(jax.jit(objective), params, [rows.batch_at(i, batch_size=batch) for i in range(updates)])["loss"]
    optimizer = make_optimizer("adamw", 2e-5, weight_decay=0.0)
    step = jax.jit(make_train_step(objective, optimizer), donate_argnums=0)
    state = init_state(params, optimizer)

    def run(count: int) -> float:
        nonlocal state
        begun = time.perf_counter()
        for _ in range(count):
            for rows_of_update in prefetch(lambda i: rows.batch_at(i, batch_size=batch), 0, stop_step=updates):
                state, metrics = step(state, rows_of_update)
        float(metrics["loss"])
        return time.perf_counter() - begun

    run(1)
    return run, {"places": updates * batch * row_length, "updates": updates, "loss": loss}
