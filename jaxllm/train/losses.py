"""Losses of arrays: the model is the caller's business. Each returns sums; the division happens once, later."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxllm.train.metrics import Mean


def next_token_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array, *,
                    z_loss: float = 0.0) -> tuple[Mean, Mean]:
    """Cross entropy of the next token, plus z_loss * log(Z)^2.

    sum_t w_t (log Z_t - logit_t[target_t] + z_loss (log Z_t)^2),  Z_t = sum_v exp(logit_t[v])

    Args:
      logits: float [B, T, V].
      targets: int32 [B, T].
      weights: float [B, T]; 0 = not counted.
      z_loss: >= 0; keeps log Z near 0 so that bfloat16 logits do not drift.

    Returns:
      (loss, cross_entropy): Means in nats per counted token; the second leaves the z term out.

    References: Chowdhery et al., PaLM, 2022, section 5 (z-loss). https://arxiv.org/abs/2204.02311

    >>> loss, _ = next_token_loss(jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), int), jnp.ones((1, 2)))
    >>> round(float(loss.value), 4)
    1.3863
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    weights = weights.astype(jnp.float32)
    weight = jnp.sum(weights)
    cross_entropy = jnp.sum(weights * (log_z - target))
    total = cross_entropy + z_loss * jnp.sum(weights * jnp.square(log_z))
    return Mean(total, weight), Mean(jax.lax.stop_gradient(cross_entropy), weight)


def linear_cross_entropy(hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, *,
                         z_loss: float = 0.0, softcap: float = 0.0, chunks: int = 1) -> tuple[Mean, Mean]:
    """`next_token_loss(hidden @ head.T, ...)` without ever holding all the logits.

    The rows are cut into `chunks` pieces along T, and the gradient of a piece is formed in the forward pass while
    its logits are at hand: logits are computed once instead of twice, and B T V / chunks of them stand in memory.

    Args:
      hidden: float [B, T, D], the transformer's last hidden states.
      head: float [V, D]; it enters the products in hidden's dtype, sums are float32.
      targets: int32 [B, T].
      weights: float [B, T]; 0 = not counted.
      z_loss: as in `next_token_loss`.
      softcap: c in c tanh(logit / c); 0 is off.
      chunks: number of pieces; divides T.

    Returns:
      (loss, cross_entropy), as `next_token_loss`. Only the loss carries a gradient.

    Raises:
      ValueError: when `chunks` does not divide T.

    References: the idea of Liger Kernel's fused linear cross entropy, Hsu et al., 2024. https://arxiv.org/abs/2410.10989
    """
    if targets.shape[1] % chunks:
        raise ValueError(f"loss_chunks ({chunks}) must divide the row length ({targets.shape[1]})")
    weights = weights.astype(jnp.float32)
    total, cross_entropy = _linear_sums(hidden, head, targets, weights, (z_loss, softcap, chunks))
    weight = jnp.sum(weights)
    return Mean(total, weight), Mean(jax.lax.stop_gradient(cross_entropy), weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _linear_sums(hidden, head, targets, weights, static):
    """(summed loss, summed cross entropy); this body is what runs when no gradient is asked for."""
    z_loss, softcap, chunks = static

    def piece(sums, chunk):
        _, _, _, loss, cross_entropy = _piece(*chunk, head, z_loss, softcap)
        return (sums[0] + loss, sums[1] + cross_entropy), None

    zero = (jnp.zeros((), jnp.float32),) * 2
    return _fold(piece, zero, _cut((hidden, targets, weights), chunks))[0]


def _linear_sums_forward(hidden, head, targets, weights, static):
    z_loss, softcap, chunks = static

    def piece(carry, chunk):
        sums, d_head = carry
        h, _, _ = chunk
        d_logits, capped, _, loss, cross_entropy = _piece(*chunk, head, z_loss, softcap)
        if softcap:
            d_logits = d_logits * (1.0 - jnp.square(capped / softcap))
        d_logits = d_logits.astype(h.dtype)
        d_h = jnp.einsum("btv,vd->btd", d_logits, head.astype(h.dtype))
        # Two matrices: of three dimensions, XLA on a CPU would first copy all of d_logits transposed.
        tokens = math.prod(targets.shape) // chunks
        new = jnp.einsum("mv,md->vd", d_logits.reshape(tokens, -1), h.reshape(tokens, -1),
                         preferred_element_type=jnp.float32)
        d_head = new if d_head is None else d_head + new
        return ((sums[0] + loss, sums[1] + cross_entropy), d_head), d_h

    zero = (jnp.zeros((), jnp.float32),) * 2
    start = None if chunks == 1 else jnp.zeros(head.shape, jnp.float32)
    (sums, d_head), d_hidden = _fold(piece, (zero, start), _cut((hidden, targets, weights), chunks))
    B, T, D = hidden.shape
    d_hidden = jnp.swapaxes(d_hidden, 0, 1).reshape(B, T, D)
    return sums, (d_hidden, d_head.astype(head.dtype))


def _linear_sums_backward(static, residuals, cotangents):
    d_hidden, d_head = residuals
    scale = cotangents[0]
    return d_hidden * scale.astype(d_hidden.dtype), d_head * scale.astype(d_head.dtype), None, None


_linear_sums.defvjp(_linear_sums_forward, _linear_sums_backward)


def _piece(h, targets, weights, head, z_loss, softcap):
    """One piece's gradient with respect to its (capped) logits, those logits, and its two sums."""
    logits = jnp.einsum("btd,vd->btv", h, head.astype(h.dtype), preferred_element_type=jnp.float32)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    cross_entropy = jnp.sum(weights * (log_z - target))
    loss = cross_entropy + z_loss * jnp.sum(weights * jnp.square(log_z))
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])[None, None]
    probability = jnp.exp(logits - log_z[..., None])
    d_logits = weights[..., None] * (probability * (1.0 + 2.0 * z_loss * log_z[..., None])
                                     - is_target.astype(jnp.float32))
    return d_logits, logits, weights, loss, cross_entropy


def _cut(arrays, chunks: int):
    """[B, T, ...] -> [chunks, B, T / chunks, ...]: pieces along T, so that a batch split over devices stays so."""
    def cut(x):
        return jnp.swapaxes(x.reshape(x.shape[0], chunks, x.shape[1] // chunks, *x.shape[2:]), 0, 1)
    return tuple(cut(x) for x in arrays)


def _fold(function, carry, pieces):
    """`lax.scan`, or one plain call where there is one piece."""
    if pieces[0].shape[0] > 1:
        return jax.lax.scan(function, carry, pieces)
    carry, out = function(carry, tuple(x[0] for x in pieces))
    return carry, None if out is None else out[None]
