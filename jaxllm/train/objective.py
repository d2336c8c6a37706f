"""The language-modelling objective: our model and a batch of rows put together into a `LossFn`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.data.packing import Batch
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.transformer import head_matrix, hidden_states
from jaxllm.train.losses import linear_cross_entropy
from jaxllm.train.metrics import Mean, Metrics, bits_per_byte
from jaxllm.train.step import LossFn


def next_token_objective(config: ModelConfig, execution: Execution = Execution(), *, z_loss: float = 0.0,
                         chunks: int = 1, token_bytes: np.ndarray | None = None) -> LossFn:
    """Returns loss_fn(params, batch) -> (loss, metrics) for next-token prediction; among the metrics is `context`.

    Args:
      config, execution: as `forward` takes them.
      z_loss, chunks: see `linear_cross_entropy`.
      token_bytes: int32 [V']; when given, "bits_per_byte" is among the metrics. Ids from V' on stand for no bytes.
    """
    if token_bytes is not None:
        token_bytes = np.pad(token_bytes, (0, config.vocab_size - len(token_bytes)))

    def loss_fn(params: Any, batch: Batch) -> tuple[Mean, Metrics]:
        hidden = hidden_states(params, config, batch.tokens, segment_ids=batch.segment_ids,
                               positions=batch.positions, execution=execution)
        loss, cross_entropy = linear_cross_entropy(
            hidden, head_matrix(params, config), batch.targets, batch.weights, z_loss=z_loss,
            softcap=config.logit_softcap, chunks=chunks)
        metrics = {"cross_entropy": cross_entropy, "context": context(batch)}
        if token_bytes is not None:
            metrics["bits_per_byte"] = bits_per_byte(cross_entropy, batch.targets, batch.weights,
                                                     jnp.asarray(token_bytes))
        return loss, metrics
    return loss_fn


def context(batch: Batch) -> Mean:
    """How many tokens of its own segment stand before a counted target's token, on average.

    What packing leaves of the text: cut documents have less of it, and rows whose segments were lost have more.
    """
    weights_BT = batch.weights.astype(jnp.float32)
    positions_BT = jnp.arange(batch.tokens.shape[1])[None] if batch.positions is None else batch.positions
    return Mean(jnp.sum(weights_BT * positions_BT.astype(jnp.float32)), jnp.sum(weights_BT))


def evaluate(eval_step: Any, params: Any, batches: Any) -> dict[str, float]:
    """Sums a compiled loss_fn over batches and divides once: {"loss": ..., and every metric}."""
    total: tuple[Mean, Metrics] | None = None
    for batch in batches:
        sums = eval_step(params, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    if total is None:
        raise ValueError("there is no validation batch to evaluate on")
    loss, metrics = total
    return {"loss": float(loss.value)} | {name: float(mean.value) for name, mean in metrics.items()}
