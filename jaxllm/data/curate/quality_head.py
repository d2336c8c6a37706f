"""Fitting a linear head over frozen features with JAX: Newton's method on all documents at once."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from jaxllm.data.curate.quality import LOSSES
from jaxllm.data.curate.quality_features import Features, SparseRows, product

Params = dict[str, jax.Array]
# Of the conjugate gradients within a step of Newton: relative residual, and products with the Hessian.
CG_TOLERANCE = 1e-3
CG_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Head:
    """A fitted head.

    Attributes:
      weights: float32 [D], on the features as they were given.
      bias: number.
      steps: of Newton's method.
      gradient_norm: where it stopped.
    """

    weights: np.ndarray
    bias: float
    steps: int
    gradient_norm: float


def mean_pool(hidden: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean over the first positions of each row: [B, T, D] and int32 [B] to float32 [B, D]."""
    mask = jnp.arange(hidden.shape[1])[None, :] < counts[:, None]
    total = jnp.sum(jnp.where(mask[..., None], hidden.astype(jnp.float32), 0), axis=1)
    return total / counts[:, None].astype(jnp.float32)


def fit_head(features: Features, targets: np.ndarray, mask: np.ndarray | None = None, *, loss: str = "ridge",
             l2: float = 1e-3, max_steps: int = 30, tolerance: float = 1e-5) -> Head:
    """Minimises mean_i loss(w . x_i + b, y_i) + l2/2 |w|^2 over the documents of the mask.

    Dense features are first scaled to mean 0 and variance 1 over these documents, and w is what stands before the
    scaled ones; sparse ones are taken as they are.

    Args:
      features: SparseRows or float32 [N, D].
      targets: float [N]; 0 and 1 for "logistic".
      mask: bool [N], the documents to learn from; one compiled program serves every mask. None: all.
      loss: "ridge", (z - y)^2 / 2, or "logistic", log(1 + e^z) - y z.
      l2: pull of the weights to zero; the bias is not pulled.
      max_steps: of Newton's method.
      tolerance: it ends when the gradient's norm is below.

    Returns:
      Head.

    Raises:
      ValueError: when an argument is out of range, or no document is left.
    """
    mask = np.ones(len(features), bool) if mask is None else mask
    targets = np.asarray(targets, np.float32)
    if loss not in LOSSES or l2 < 0 or max_steps < 1:
        raise ValueError(f"loss={loss!r}, l2={l2}, max_steps={max_steps}: choose a loss of {', '.join(LOSSES)}, l2 of "
                         f"0 or more, max_steps of 1 or more")
    if not mask.any():
        raise ValueError("there is no document to learn from; give more of them or fewer folds")
    if loss == "logistic" and not np.isin(targets, (0, 1)).all():
        raise ValueError("a logistic head learns from 0 and 1; compare the labels with a threshold first")
    share = (mask / mask.sum()).astype(np.float32)
    if isinstance(features, SparseRows):
        used, columns = np.unique(features.columns, return_inverse=True)
        data = _padded(features.rows, columns.astype(np.int32), features.values, last=len(features) - 1)
        dim, centre, spread = _power_of_two(len(used)), 0.0, 1.0
    else:
        centre, spread = features[mask].mean(0), np.maximum(features[mask].std(0), 1e-6)
        data, dim = ((features - centre) / spread).astype(np.float32), features.shape[1]
    start = {"weights": np.zeros(dim, np.float32), "bias": np.float32(0)}
    fitted, steps, norm = jax.device_get(_minimise(data, targets, share, start, np.float32(l2), np.float32(tolerance),
                                                   np.int32(max_steps), loss=loss))
    weights = fitted["weights"] / spread
    bias = float(fitted["bias"] - np.sum(centre * weights))
    if isinstance(features, SparseRows):
        weights, narrow = np.zeros(features.dim, np.float32), weights
        weights[used] = narrow[:len(used)]
    return Head(weights.astype(np.float32), bias, int(steps), float(norm))


def _padded(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, last: int) -> tuple[np.ndarray, ...]:
    """Entries of value 0 up to a power of two: sets of documents of about one size share a compiled program."""
    more = (0, _power_of_two(len(rows)) - len(rows))
    return np.pad(rows, more, constant_values=last), np.pad(columns, more), np.pad(values, more)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


@functools.partial(jax.jit, static_argnames="loss")
def _minimise(data: Any, targets: jax.Array, share: jax.Array, start: Params, l2: jax.Array, tolerance: jax.Array,
              max_steps: jax.Array, *, loss: str) -> tuple[Params, jax.Array, jax.Array]:
    """Newton's method; each step solves for its direction by conjugate gradients, and is halved until it helps."""
    def objective(head: Params) -> jax.Array:
        if isinstance(data, tuple):
            rows, columns, values = data
            scores = jax.ops.segment_sum(values * head["weights"][columns], rows, num_segments=len(targets),
                                         indices_are_sorted=True)
        else:
            scores = data @ head["weights"]
        scores = scores + head["bias"]
        each = (jax.nn.softplus(scores) - targets * scores if loss == "logistic"
                else 0.5 * jnp.square(scores - targets))
        return jnp.sum(share * each) + 0.5 * l2 * jnp.sum(jnp.square(head["weights"]))

    def moved(head: Params, direction: Params, size: jax.Array) -> Params:
        return jax.tree.map(lambda x, d: x + size * d, head, direction)

    def step(carry):
        head, grad, count = carry
        direction, _ = cg(lambda v: jax.jvp(jax.grad(objective), (head,), (v,))[1], jax.tree.map(jnp.negative, grad),
                          tol=CG_TOLERANCE, maxiter=CG_STEPS)
        value = objective(head)
        ceiling = value + 1e-6 * jnp.abs(value)  # rounding may hide the last gains
        size = jax.lax.while_loop(lambda size: (objective(moved(head, direction, size)) > ceiling) & (size > 1e-6),
                                  lambda size: size / 2, jnp.float32(1))
        head = moved(head, direction, size)
        return head, jax.grad(objective)(head), count + 1

    def goes_on(carry):
        return (carry[2] < max_steps) & (_norm(carry[1]) > tolerance)
    head, grad, count = jax.lax.while_loop(goes_on, step, (start, jax.grad(objective)(start), jnp.int32(0)))
    return head, count, _norm(grad)


def _norm(tree: Params) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def out_of_fold(features: Features, targets: np.ndarray, folds: np.ndarray, **settings: Any) -> np.ndarray:
    """Scores each document by a head that learnt from the other folds (before any logistic function).

    Args:
      features, targets: as `fit_head` takes them.
      folds: int [N], from `fold_of`.
      **settings: of `fit_head`.

    Returns:
      float64 [N].
    """
    scores = np.full(len(targets), np.nan)
    for fold in np.unique(folds):
        held_out = folds == fold
        head = fit_head(features, targets, ~held_out, **settings)
        scores[held_out] = (product(features, head.weights) + head.bias)[held_out]
    return scores
