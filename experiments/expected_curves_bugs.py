"""Real bugs of the field, each put into a run from outside: a patch of one function for as long as the run lasts.

Each is a context manager without arguments. The library has no flag for any of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import training
from jaxllm.data import loader
from jaxllm.data.packing import Batch
from jaxllm.model import layers, transformer
from jaxllm.rl import policy_step
from jaxllm.train import optimizer, sharding, step

Bug = Callable[[], contextlib.AbstractContextManager]


def _on_batches(change: Callable[[Batch], Batch]) -> contextlib.AbstractContextManager:
    """Every batch, of training and validation, goes through `change` on its way to the device."""
    put = sharding.put_batch
    return mock.patch.object(sharding, "put_batch", lambda rows, mesh: put(change(rows), mesh))


def off_by_one_target() -> contextlib.AbstractContextManager:
    """The target is the token after the next: shifted once in the data and once more in the loss."""
    return _on_batches(lambda rows: rows.replace(targets=np.roll(rows.targets, -1, axis=1)))


def lost_loss_mask() -> contextlib.AbstractContextManager:
    """Every position counts, also the last of a document, whose target is no part of it."""
    return _on_batches(lambda rows: rows.replace(weights=np.ones_like(rows.weights)))


def segments_lost() -> contextlib.AbstractContextManager:
    """Packed documents see each other: the segment ids are dropped on the way."""
    return _on_batches(lambda rows: rows.replace(segment_ids=None, positions=None))


def positions_not_reset() -> contextlib.AbstractContextManager:
    """Positions run on from one packed document to the next."""
    return _on_batches(lambda rows: rows.replace(positions=np.broadcast_to(
        np.arange(rows.tokens.shape[1], dtype=np.int32), rows.tokens.shape).copy()))


def no_causal_mask() -> contextlib.AbstractContextManager:
    """Attention sees the tokens that it should predict."""
    def attend(q, k, v, *, scale, segment_ids=None, **_):
        mask = None if segment_ids is None else (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale)
    return mock.patch.object(transformer, "attend", attend)


def wrong_rotary_pairs() -> contextlib.AbstractContextManager:
    """Angles laid out for neighbouring pairs, features paired by halves: no rotation any more."""
    def rotate(x_BTNH, tables):
        cos, sin = (jnp.repeat(table, 2, axis=-1) for table in tables)
        first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
        return (x_BTNH * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x_BTNH.dtype)
    return mock.patch.object(layers, "rotate", rotate)


def no_attention_scale() -> contextlib.AbstractContextManager:
    """The logits of attention are not divided by the root of the head's size."""
    return mock.patch.object(transformer, "query_scale", lambda config: 1.0)


def decay_on_norms() -> contextlib.AbstractContextManager:
    """Weight decay pulls at the scales of the norms too."""
    return mock.patch.object(optimizer, "decay_mask", lambda params: jax.tree.map(lambda _: True, params))


def hot_without_warmup() -> contextlib.AbstractContextManager:
    """Ten times the learning rate, at once."""
    real = training.learning_rate_schedule
    return mock.patch.object(training, "learning_rate_schedule", lambda name, peak, *, warmup_steps, **rest: real(
        name, 10 * peak, warmup_steps=0, **rest))


def dropped_microbatch() -> contextlib.AbstractContextManager:
    """Only the first micro-batch reaches the gradient."""
    real = step.accumulate_gradients

    def accumulate(loss_fn, params, batch, microbatches=1):
        return real(loss_fn, params, jax.tree.map(lambda x: x[:x.shape[0] // microbatches], batch))
    return mock.patch.object(step, "accumulate_gradients", accumulate)


def stale_optimizer() -> contextlib.AbstractContextManager:
    """The moments of the optimizer stay those of the first step."""
    real = training.make_optimizer

    def make(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
        made = real(*args, **kwargs)
        return optax.GradientTransformation(made.init, lambda grads, state, params=None: (
            made.update(grads, state, params)[0], state))
    return mock.patch.object(training, "make_optimizer", make)


def repeated_batches() -> contextlib.AbstractContextManager:
    """The loader begins anew after ten batches."""
    real = loader.Source.batch_at
    return mock.patch.object(loader.Source, "batch_at", lambda self, step, **sizes: real(self, step % 10, **sizes))


def double_advantage_normalisation() -> contextlib.AbstractContextManager:
    """Advantages that were normalised within each group are normalised once more, over the batch."""
    real = policy_step.group_advantages

    def twice(rewards_QG: jax.Array, **how: Any) -> jax.Array:
        once_QG = real(rewards_QG, **how)
        return (once_QG - once_QG.mean()) / (once_QG.std() + 1e-4)
    return mock.patch.object(policy_step, "group_advantages", twice)


def mixed_groups() -> contextlib.AbstractContextManager:
    """Rewards lie in the order of samples, then prompts, and are read the other way: a reply gets another's."""
    real = policy_step.group_advantages
    return mock.patch.object(policy_step, "group_advantages", lambda rewards_QG, **how: real(
        rewards_QG.T.reshape(rewards_QG.shape), **how))


@contextlib.contextmanager
def none() -> Iterator[None]:
    """No bug: the control."""
    yield


BUGS: dict[str, Bug] = {bug.__name__: bug for bug in (
    off_by_one_target, lost_loss_mask, no_causal_mask, segments_lost, positions_not_reset, wrong_rotary_pairs,
    no_attention_scale, decay_on_norms, hot_without_warmup, dropped_microbatch, stale_optimizer, repeated_batches,
    double_advantage_normalisation, mixed_groups)}


