"""How the arms of experiments.distill that have a teacher learn: by which loss, from which rows, at what cost."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import practice
from experiments.distill_traces import Pair, Traces, conversations, draw
from jaxllm.data.conversations import conversation_rows
from jaxllm.data.packing import Batch
from jaxllm.data.permutation import shuffled
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.rl.distill_step import TopBatch, distill_objective, rollout_rows, top_batch, top_objective
from jaxllm.rl.rollout import stack
from jaxllm.train.objective import next_token_objective
from jaxllm.train.optimizer import make_optimizer
from jaxllm.train.step import LossFn, init_state, make_train_step

# (updates made, weights of the moment, which are lent) -> the rows of the next update
RowsAt = Callable[[int, Params], Batch | TopBatch]


@dataclasses.dataclass(frozen=True)
class Loss:
    """What is minimised, and how; arms and seeds of equal losses share one compiled step.

    Attributes:
      targets: "text": the tokens themselves. "top": a teacher's likeliest tokens, stored. "teacher": all its logits.
      student, teacher: architectures.
      execution, chunks, microbatches: of both, as `Execution`, the losses and `make_train_step` take them.
      vocab: tokens of the tokenizer.
      divergence, beta, temperature: as `rl.distill.distill_loss` takes them; not of "text".
      optimizer: (name, value) of the arguments of `make_optimizer`, sorted.
      rate, warmup_steps: the learning rate, and the updates in which it is reached; it stays there, so that what is
        seen after n updates is a run of n updates.
    """

    targets: str
    student: ModelConfig
    teacher: ModelConfig
    execution: Execution
    chunks: int
    microbatches: int
    vocab: int
    divergence: str
    beta: float
    temperature: float
    optimizer: tuple[tuple[str, Any], ...]
    rate: float
    warmup_steps: int

    def of(self, teacher_params: Params) -> LossFn:
        """The loss of a batch."""
        if self.targets == "text":
            return next_token_objective(self.student, self.execution, chunks=self.chunks)
        choices = {"beta": self.beta, "temperature": self.temperature, "vocab": self.vocab, "chunks": self.chunks}
        if self.targets == "top":
            return top_objective(self.student, self.execution, self.divergence, **choices)
        return distill_objective(self.student, self.teacher, teacher_params, self.execution, self.divergence, **choices)


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What an arm learns from.

    Attributes:
      loss: see `Loss`.
      rows_at: see `RowsAt`.
      before: FLOPs of the teacher before the first update.
      by_teacher, by_student: FLOPs of one update.
    """

    loss: Loss
    rows_at: RowsAt
    before: float
    by_teacher: float
    by_student: float

    def updates(self, budget: float) -> int:
        """How many updates the FLOPs can pay."""
        return max(0, int((budget - self.before) / (self.by_teacher + self.by_student)))


def from_traces(config: ConfigDict, pair: Pair, traces: Traces, arm: str, seed: int) -> Lessons:
    """Rows of packed conversations about solved problems; for "logits" with what the teacher says of every token."""
    shown = conversations(arm, pair.train, traces.kept, config.answer)
    batch = conversation_rows(shown, pair.student.tokenizer, config.row_length).batch
    count, teacher, length = len(batch.tokens), pair.teacher.model, config.row_length
    before = practice.flops(teacher, pair.width, read=traces.drawn * pair.width)
    by_teacher, targets, settings = 0.0, "text", config.logits
    if arm == "logits" and settings.top_k:
        targets, batch = "top", _read(config, pair, batch)
        before += practice.flops(teacher, length, read=count * length)
    elif arm == "logits":
        targets = "teacher"
        by_teacher = practice.flops(teacher, length, read=config.batch_size * length)

    def rows_at(number: int, params: Params) -> Batch | TopBatch:
        del params
        first = number * config.batch_size
        return _take(batch, shuffled(np.arange(first, first + config.batch_size), count, seed))

    rate = config.rates.logits if arm == "logits" else config.rates.text
    return Lessons(_loss(config, pair, targets, settings, rate), rows_at, before, by_teacher,
                   practice.flops(pair.student.model, length, learnt=config.batch_size * length))


def on_policy(config: ConfigDict, pair: Pair, seed: int) -> Lessons:
    """Rows of what the student writes to training problems, drawn anew for each update."""
    settings, names = config.on_policy, list(pair.train)

    def rows_at(number: int, params: Params) -> Batch:
        first = number * settings.prompts
        chosen = [names[i] for i in shuffled(np.arange(first, first + settings.prompts), len(names), seed)]
        drawn = draw(config, pair, dataclasses.replace(pair.student, params=params), chosen,
                     samples=settings.samples, temperature=config.rl.sampler.temperature, seed=seed, step=number)
        return rollout_rows(stack(drawn, pair.width))

    tokens = settings.prompts * settings.samples * pair.width
    return Lessons(_loss(config, pair, "teacher", settings, config.rates.on_policy), rows_at, 0.0,
                   practice.flops(pair.teacher.model, pair.width, read=tokens),
                   practice.flops(pair.student.model, pair.width, read=tokens, learnt=tokens))


def learn(pair: Pair, lessons: Lessons, updates: int, due: Collection[int],
          look: Callable[[int, Params], None]) -> None:
    """Takes the updates; calls `look` with the number of updates made, where it is due, and the weights.

    Raises:
      ValueError: when a loss or gradient was not finite.
    """
    optimizer, step = _compiled(lessons.loss)
    state = init_state(jax.tree.map(jnp.copy, pair.student.params), optimizer)
    for number in range(1, updates + 1):
        state, metrics = step(state, lessons.rows_at(number - 1, state.params), pair.teacher.params)
        if number in due:
            if int(metrics["skipped"]):
                raise ValueError(f"{int(metrics['skipped'])} of {number} updates were not finite; lower the learning "
                                 f"rate ({lessons.loss.rate})")
            look(number, state.params)


@functools.lru_cache(maxsize=8)
def _compiled(loss: Loss) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    schedule = optax.linear_schedule(loss.rate / max(loss.warmup_steps, 1), loss.rate, max(loss.warmup_steps - 1, 1))
    optimizer = make_optimizer(learning_rate=schedule, **dict(loss.optimizer))

    def step(state: Any, batch: Any, teacher_params: Params) -> Any:
        return make_train_step(loss.of(teacher_params), optimizer, microbatches=loss.microbatches)(state, batch)
    return optimizer, jax.jit(step, donate_argnums=0)


def _loss(config: ConfigDict, pair: Pair, targets: str, settings: ConfigDict, rate: float) -> Loss:
    asked = config.rl.optimizer.to_dict()
    for name in ("schedule", "final_fraction", "learning_rate"):
        del asked[name]
    return Loss(targets, pair.student.model, pair.teacher.model, Execution(**config.rl.execution.to_dict()),
                config.rl.logit_chunks, config.rl.microbatches, pair.student.tokenizer.vocab_size, settings.divergence,
                settings.beta, settings.temperature, warmup_steps=asked.pop("warmup_steps"), rate=rate,
                optimizer=tuple(sorted(asked.items())))


def _read(config: ConfigDict, pair: Pair, batch: Batch) -> TopBatch:
    """Rows with the teacher's likeliest tokens, a batch of the config's size at a time; arrays of the host."""
    read = jax.jit(functools.partial(
        top_batch, teacher=pair.teacher.model, k=config.logits.top_k, temperature=config.logits.temperature,
        execution=Execution(**config.rl.execution.to_dict()), vocab=pair.student.tokenizer.vocab_size,
        chunks=config.rl.logit_chunks))
    count, size = len(batch.tokens), config.batch_size
    parts = [jax.device_get(read(pair.teacher.params, batch=_take(batch, np.arange(first, first + size) % count)))
             for first in range(0, count, size)]
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)


def _take(rows: Batch | TopBatch, index: np.ndarray) -> Batch | TopBatch:
    return jax.tree.map(lambda x: x[index], rows)
