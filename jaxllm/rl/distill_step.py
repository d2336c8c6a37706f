"""Distillation put together with our model: rows of text -> a `LossFn` whose targets are a teacher's distributions."""

from __future__ import annotations

import jax
import numpy as np
from flax import struct

from jaxllm.data.packing import Batch
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.transformer import head_matrix, hidden_states
from jaxllm.rl.distill import Top, linear_distill_loss, linear_top_loss, linear_top_of
from jaxllm.rl.rollout import Rollout
from jaxllm.train.metrics import Mean, Metrics
from jaxllm.train.step import LossFn


@struct.dataclass
class TopBatch:
    """Rows, and what a teacher says of them: `top` is about the targets, [B, T, K]."""

    rows: Batch
    top: Top


def rollout_rows(rollout: Rollout) -> Batch:
    """A student's own text as rows of prediction: what it drew counts, one conversation a row.

    The target of a place is the token behind it; that of the last place wraps around and has weight 0.
    """
    weights = np.roll(rollout.mask, -1, axis=1).astype(np.float32)
    weights[:, -1] = 0.0
    return Batch(rollout.tokens, np.roll(rollout.tokens, -1, axis=1), weights)


def distill_objective(student: ModelConfig, teacher: ModelConfig, teacher_params: Params,
                      execution: Execution = Execution(), kind: str = "forward", *, beta: float = 0.5,
                      temperature: float = 1.0, vocab: int | None = None, chunks: int = 1) -> LossFn:
    """Returns loss_fn(params, Batch) -> (loss, metrics): the teacher reads the same rows, all its logits count.

    Args:
      student, teacher: the architectures; one tokenizer for both.
      teacher_params: frozen. Under jit give them as an argument of the step, not as constants of the program:
        `jit(lambda state, batch, teacher: make_train_step(distill_objective(..., teacher, ...), optimizer)(state,
        batch))`.
      execution: of both.
      kind, beta, temperature, chunks: as `linear_distill_loss` takes them.
      vocab: tokens of the tokenizer; None: the vocabularies are not padded.

    Raises:
      ValueError: when the vocabularies differ.
    """
    check_vocabularies(student, teacher, vocab)

    def loss_fn(params: Params, batch: Batch) -> tuple[Mean, Metrics]:
        return linear_distill_loss(
            _hidden(params, student, batch, execution), head_matrix(params, student)[:vocab],
            jax.lax.stop_gradient(_hidden(teacher_params, teacher, batch, execution)),
            jax.lax.stop_gradient(head_matrix(teacher_params, teacher)[:vocab]), batch.weights, kind, beta=beta,
            temperature=temperature, softcap=student.logit_softcap, teacher_softcap=teacher.logit_softcap,
            chunks=chunks)
    return loss_fn


def top_batch(teacher_params: Params, teacher: ModelConfig, batch: Batch, k: int, execution: Execution = Execution(),
              *, temperature: float = 1.0, vocab: int | None = None, chunks: int = 1) -> TopBatch:
    """Rows with the teacher's k likeliest tokens at each place: read once, learned from often."""
    hidden_BTE = _hidden(teacher_params, teacher, batch, execution)
    return TopBatch(batch, linear_top_of(hidden_BTE, head_matrix(teacher_params, teacher)[:vocab], k, chunks=chunks,
                                         temperature=temperature, softcap=teacher.logit_softcap))


def top_objective(student: ModelConfig, execution: Execution = Execution(), kind: str = "forward", *, beta: float = 0.5,
                  temperature: float = 1.0, vocab: int | None = None, chunks: int = 1) -> LossFn:
    """Returns loss_fn(params, TopBatch) -> (loss, metrics): the teacher itself is not needed any more."""
    def loss_fn(params: Params, batch: TopBatch) -> tuple[Mean, Metrics]:
        return linear_top_loss(
            _hidden(params, student, batch.rows, execution), head_matrix(params, student)[:vocab], batch.top,
            batch.rows.weights, kind, beta=beta, temperature=temperature, softcap=student.logit_softcap, chunks=chunks)
    return loss_fn


def check_vocabularies(student: ModelConfig, teacher: ModelConfig, vocab: int | None) -> None:
    """Raises ValueError for a teacher whose distributions are not over the student's tokens."""
    sizes = student.vocab_size, teacher.vocab_size
    if vocab is None and sizes[0] != sizes[1] or vocab is not None and vocab > min(sizes):
        raise ValueError(f"the student has {sizes[0]} tokens and the teacher {sizes[1]}, {vocab or 'all'} of which are "
                         f"to be compared: logits can be distilled only between models of one tokenizer")


def _hidden(params: Params, config: ModelConfig, batch: Batch, execution: Execution) -> jax.Array:
    return hidden_states(params, config, batch.tokens, segment_ids=batch.segment_ids,
                         positions=batch.positions, execution=execution)
