"""The update step: a pure function (state, batch) -> (state, metrics), over any loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxllm.model.axes import constrain
from jaxllm.train.metrics import Mean, Metrics, norms

# loss_fn(params, batch) -> (the Mean whose value is minimised, other Means to report)
LossFn = Callable[[Any, Any], tuple[Mean, Metrics]]


@struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32, batches taken; batch number `step` is the next.
      params: the weights.
      opt_state: the optimizer's.
      ema: exponential moving average of the weights, or None.
      skipped: int32, steps left out because loss or gradient was not finite.
      skipped_in_a_row: int32, the same since the last good step.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def init_state(params: Any, optimizer: optax.GradientTransformation, ema: bool = False) -> TrainState:
    """The state of a run that has taken no step. The average starts from the weights, in buffers of its own."""
    def zero():  # an array of its own each time: a donated buffer must not stand in two places
        return jnp.zeros((), jnp.int32)

    return TrainState(step=zero(), params=params, opt_state=optimizer.init(params),
                      ema=jax.tree.map(jnp.copy, params) if ema else None, skipped=zero(), skipped_in_a_row=zero())


def accumulate_gradients(loss_fn: LossFn, params: Any, batch: Any, microbatches: int = 1
                         ) -> tuple[Any, Mean, Metrics]:
    """Gradient of the mean loss over the whole batch, computed in `microbatches` pieces of it.

    Sums of gradients and of weights are carried, and divided once: exact however unevenly the counted tokens fall.

    Args:
      loss_fn: see `LossFn`.
      params: the weights.
      batch: tree of arrays with the same leading dimension B, a multiple of `microbatches`.
      microbatches: pieces.

    Returns:
      (gradients of loss.value, loss, metrics).
    """
    def total(params, piece):
        loss, metrics = loss_fn(params, piece)
        return loss.total, (loss, metrics)

    gradient = jax.grad(total, has_aux=True)
    if microbatches == 1:
        grads, (loss, metrics) = gradient(params, batch)
    else:
        def add(sums, piece):
            return jax.tree.map(jnp.add, sums, gradient(params, piece)), None
        pieces = jax.tree.map(lambda x: _deal(x, microbatches), batch)
        shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], pieces))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (grads, (loss, metrics)), _ = jax.lax.scan(add, zeros, pieces)
    scale = 1.0 / jnp.where(loss.weight > 0, loss.weight, 1.0)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), loss, metrics


def _deal(x: jax.Array, microbatches: int) -> jax.Array:
    """[B, ...] -> [microbatches, B / microbatches, ...], each device's rows spread over all micro-batches."""
    if x.shape[0] % microbatches:
        raise ValueError(f"a batch of {x.shape[0]} rows cannot be cut into {microbatches} micro-batches; change "
                         f"batch_size or microbatches")
    dealt = jnp.swapaxes(x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]), 0, 1)
    return constrain(dealt, (None, "batch") + (None,) * (x.ndim - 1))


def make_train_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, *, microbatches: int = 1,
                    ema_decay: float = 0.0, learning_rate: optax.Schedule | None = None, by_name: bool = False
                    ) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step; the caller jits it (`jax.jit(step, donate_argnums=0, out_shardings=...)`).

    A step whose loss or gradient is not finite changes nothing but the counters: the weights, the averages and the
    optimizer stay, and the next batch is tried.

    Args:
      loss_fn: see `LossFn`; any model, ours or not.
      optimizer: an optax transformation.
      microbatches: see `accumulate_gradients`.
      ema_decay: of the averaged weights, in [0, 1); 0 keeps none.
      learning_rate: the schedule, only to report it.
      by_name: report norms of each kind of parameter: what goes wrong in one part hardly moves the norm of all.

    Returns:
      step(state, batch) -> (new state, metrics): scalars "loss", "grad_norm", "tokens" (counted targets), "skipped",
      "skipped_in_a_row", "learning_rate" when given, and the value of every Mean of loss_fn. With `by_name` also
      "update_norm", and "grad_norm/NAME" and "param_norm/NAME" (of the new weights), see `metrics.norms`.
    """
    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, loss, extra = accumulate_gradients(loss_fn, state.params, batch, microbatches)
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss.total) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            ema = jax.tree.map(lambda old, new: old + (1.0 - ema_decay) * (new - old).astype(old.dtype),
                               state.ema, params)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        bad = 1 - good.astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1, params=keep(params, state.params), opt_state=keep(opt_state, state.opt_state),
            ema=keep(ema, state.ema), skipped=state.skipped + bad,
            skipped_in_a_row=(state.skipped_in_a_row + bad) * bad)
        metrics = {"loss": loss.value, "grad_norm": grad_norm, "tokens": loss.weight,
                   "skipped": new_state.skipped, "skipped_in_a_row": new_state.skipped_in_a_row}
        if learning_rate is not None:
            # The optimizer counts the steps that it took, not those that were skipped.
            metrics["learning_rate"] = jnp.asarray(learning_rate(state.step - state.skipped), jnp.float32)
        if by_name:
            metrics["update_norm"] = optax.tree.norm(updates)
            metrics |= {f"grad_norm/{name}": norm for name, norm in norms(grads).items()}
            metrics |= {f"param_norm/{name}": norm for name, norm in norms(new_state.params).items()}
        return new_state, metrics | {name: mean.value for name, mean in extra.items()}
    return step
