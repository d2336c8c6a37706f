"""One model of a scaling law: its loss at several token budgets, from one run.

The model trains at a constant rate. For every budget a branch leaves this trunk, falls linearly to rate zero and is
judged; the trunk goes on. Each branch is the run of that budget under a warmup-stable-decay schedule, step for step,
and all together cost about 1.2 times the longest (Haegele et al., Scaling laws and compute-optimal training beyond
fixed training durations, 2024. https://arxiv.org/abs/2405.18392). Losses of one run are therefore not independent.
"""

from __future__ import annotations

import functools
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import corpus as corpora
from experiments import report
from jaxllm.data.loader import prefetch
from jaxllm.data.packing import Batch
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import count_params, flops_per_token, init
from jaxllm.train.objective import evaluate, next_token_objective
from jaxllm.train.optimizer import OPTIMIZERS, make_optimizer
from jaxllm.train.step import TrainState, init_state, make_train_step

_EXECUTION = Execution(scan=False)


def main(config: ConfigDict, workdir: str) -> None:
    """Trains one model and writes results.json: params, flops_per_token, tokens and losses of each budget.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = corpora.prepare(config.data, config.row_length, config.seed)
    model = model_config(config, corpus.tokenizer.vocab_size)
    validate = functools.partial(_validate, config, corpus, jax.jit(next_token_objective(model, _EXECUTION)))
    losses = []
    for budget, state in at_budgets(config, model, corpus.training):
        losses.append(validate(state.params))
        print(f"{count_params(model):,} parameters, {budget * config.batch_size * config.row_length:,} tokens: loss "
              f"{losses[-1]:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
    report.write_text(folder / "results.json", json.dumps({
        "params": count_params(model), "flops_per_token": flops_per_token(model, config.row_length),
        "corpus_tokens": corpus.train_tokens, "vocab_size": corpus.tokenizer.vocab_size,
        "losses": dict(zip(map(str, config.budgets), losses, strict=True))}) + "\n")


def check(config: ConfigDict) -> None:
    """Refuses what cannot work, before anything is read or compiled."""
    for key in ("dim", "layers", "heads", "batch_size", "row_length", "warmup_steps", "validation_batches"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    if config.dim % (2 * config.heads):
        raise ValueError(f"dim ({config.dim}) must be a multiple of twice the heads ({config.heads})")
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {config.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
    if not config.budgets or list(config.budgets) != sorted(set(config.budgets)) or not 0 < config.decay_share < 1:
        raise ValueError("budgets must ascend, and decay_share must be between 0 and 1")
    if config.budgets[0] <= config.warmup_steps:
        raise ValueError(f"the first of the budgets ({config.budgets[0]}) must be longer than warmup_steps "
                         f"({config.warmup_steps})")


def model_config(config: ConfigDict, vocab_size: int) -> ModelConfig:
    """A Llama of this width with tied embeddings."""
    return ModelConfig(vocab_size=vocab_size, dim=config.dim, layers=config.layers, heads=config.heads,
                       kv_heads=config.heads, head_dim=config.dim // config.heads, mlp_dim=3 * config.dim,
                       max_positions=config.row_length, tied_embedding=True)


def rate(config: ConfigDict, count: jax.Array, steps: jax.Array | float) -> jax.Array:
    """The learning rate of update `count`, from 0, in a run of so many steps; infinity is the trunk's."""
    rise = jnp.minimum((count + 1) / config.warmup_steps, 1.0)
    fall = jnp.clip((steps - count) / (config.decay_share * steps), 0.0, 1.0)
    return config.learning_rate * rise * jnp.where(jnp.isinf(steps), 1.0, fall)


def at_budgets(config: ConfigDict, model: ModelConfig, source: Any) -> Iterator[tuple[int, TrainState]]:
    """Each budget, in steps, with the state of a run that ends there."""
    def step(state: TrainState, batch: Batch, steps: jax.Array) -> TrainState:
        # Built inside the trace, so that the length of the run is an argument and all branches share one program.
        optimizer = make_optimizer(config.optimizer, lambda count: rate(config, count, steps),
                                   weight_decay=config.weight_decay)
        return make_train_step(next_token_objective(model, _EXECUTION), optimizer)(state, batch)[0]

    compiled = jax.jit(step)  # nothing is donated: a branch leaves the trunk's state as it is
    at = functools.partial(source.batch_at, batch_size=config.batch_size)

    def run(state: TrainState, start: int, stop: int, steps: float) -> TrainState:
        for batch in prefetch(at, start, stop_step=stop):
            state = compiled(state, batch, jnp.float32(steps))
        return state

    trunk, done = init_state(init(model, jax.random.key(config.seed)),
                             make_optimizer(config.optimizer, lambda count: 0.0, weight_decay=config.weight_decay)), 0
    for budget in config.budgets:
        branch = int(budget * (1 - config.decay_share))
        trunk, done = run(trunk, done, branch, jnp.inf), branch
        yield budget, run(trunk, branch, budget, budget)


def _validate(config: ConfigDict, corpus: corpora.Corpus, eval_step: Any, params: Any) -> float:
    """Loss on held-out rows, nats a token."""
    (source,) = corpus.validation.values()
    count = min(source.steps(config.batch_size), config.validation_batches)
    return evaluate(eval_step, params, prefetch(functools.partial(source.batch_at, batch_size=config.batch_size), 0,
                                                stop_step=count))["loss"]

