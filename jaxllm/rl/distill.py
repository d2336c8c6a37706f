"""Losses of distillation, functions of arrays: how far a student's distributions are from its teacher's.

    distill_loss   from the logits of both
    top_loss       against the teacher's k likeliest tokens, which is what one can afford to store
    linear_...     each from hidden states, a piece of the positions at a time: B T V logits never stand in memory

P is the teacher's distribution, Q the student's:

    forward  KL(P || Q)                                    Q must cover all that P does
    reverse  KL(Q || P)                                    Q must leave out what P does
    jsd      beta KL(P || M) + (1 - beta) KL(Q || M)       M = beta P + (1 - beta) Q; between the two

On text of the teacher this is logit distillation, on text of the student itself generalised knowledge distillation
(GKD); nothing flows through the drawing of the text.

References:
  Hinton et al., Distilling the knowledge in a neural network, 2015. https://arxiv.org/abs/1503.02531
  Agarwal et al., On-policy distillation of language models (GKD), 2023, equations 1 and 4.
    https://arxiv.org/abs/2306.13649
  Gu et al., MiniLLM, 2023 (reverse KL). https://arxiv.org/abs/2306.08543
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxllm.train.metrics import Mean, Metrics

DIVERGENCES = ("forward", "reverse", "jsd")
_NEVER = -1e30  # log-probability of what cannot occur: finite, so that 0 times it is 0


def divergence(student_logp: jax.Array, teacher_logp: jax.Array, kind: str = "forward", beta: float = 0.5) -> jax.Array:
    """One number for every position; see the head of this file.

    Args:
      student_logp, teacher_logp: float [..., V], normalised over V, nats. What cannot occur has -1e30, not -inf.
      kind: one of DIVERGENCES.
      beta: in (0, 1), of jsd alone. jsd / beta tends to forward as beta falls to 0, jsd / (1 - beta) to reverse as it
        rises to 1; TRL gives the names 0 and 1 to those two.

    Returns:
      float32 [...], nats, not negative but for rounding.

    Raises:
      ValueError: for an unknown kind, or a beta out of range.

    >>> fair, coin = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> [round(divergence(fair, coin, kind).item(), 4) for kind in DIVERGENCES]
    [0.3681, 0.5108, 0.1017]
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"divergence {kind!r} is unknown; take one of {', '.join(DIVERGENCES)}")
    q, p = student_logp.astype(jnp.float32), teacher_logp.astype(jnp.float32)
    if kind == "forward":
        return _kl(p, q)
    if kind == "reverse":
        return _kl(q, p)
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta is {beta}; jsd takes one between 0 and 1, and its ends are forward and reverse")
    mixture = jnp.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return beta * _kl(p, mixture) + (1.0 - beta) * _kl(q, mixture)


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def distill_loss(student_logits: jax.Array, teacher_logits: jax.Array, weights: jax.Array, kind: str = "forward", *,
                 beta: float = 0.5, temperature: float = 1.0) -> tuple[Mean, Metrics]:
    """Sum over positions of w_t D(teacher_t, student_t).

    Args:
      student_logits, teacher_logits: float [B, T, V]; cut off a padded vocabulary first.
      weights: float or bool [B, T]; 0 = not counted.
      kind, beta: as `divergence` takes them.
      temperature: > 0, divides the logits of both. Gradients shrink with its square, which Hinton et al. multiply back
        in; GKD and TRL do not, nor is it done here.

    Returns:
      (loss, metrics): nats per counted position; "agreement", the share of positions where both have the same
      likeliest token.

    Raises:
      ValueError: as `divergence`, and for a temperature that is not above 0.

    >>> loss, _ = distill_loss(jnp.zeros((1, 2, 4)), jnp.zeros((1, 2, 4)), jnp.ones((1, 2)))
    >>> float(loss.value)
    0.0
    """
    return _loss(_full(student_logits, teacher_logits, _checked(temperature)), weights, kind, beta)


def linear_distill_loss(hidden: jax.Array, head: jax.Array, teacher_hidden: jax.Array, teacher_head: jax.Array,
                        weights: jax.Array, kind: str = "forward", *, beta: float = 0.5, temperature: float = 1.0,
                        softcap: float = 0.0, teacher_softcap: float = 0.0, chunks: int = 1) -> tuple[Mean, Metrics]:
    """`distill_loss` of hidden @ head.T and teacher_hidden @ teacher_head.T, whose logits never all stand in memory.

    The positions are gone through in `chunks` pieces, whose logits are formed again in the backward pass: 2 B T V /
    chunks of them stand at a time.

    Args:
      hidden, teacher_hidden: float [B, T, D] and [B, T, E], after the last norm.
      head, teacher_head: float [V, D] and [V, E].
      weights, kind, beta, temperature: as `distill_loss` takes them.
      softcap, teacher_softcap: c in c tanh(logit / c); 0 is off.
      chunks: number of pieces; divides T.

    Raises:
      ValueError: as `distill_loss`, and when `chunks` does not divide T.
    """
    _checked(temperature)

    def piece(hidden: jax.Array, teacher_hidden: jax.Array, weights: jax.Array) -> tuple[Mean, Metrics]:
        student, teacher = _logits(hidden, head, softcap), _logits(teacher_hidden, teacher_head, teacher_softcap)
        return _loss(_full(student, teacher, temperature), weights, kind, beta)

    return _in_pieces(piece, (hidden, teacher_hidden, weights), chunks)


@struct.dataclass
class Top:
    """The k likeliest tokens of a teacher at every position, and what all others have together.

    Attributes:
      ids: int32 [..., K], likeliest first.
      logp: float [..., K], nats, at the temperature they were taken at.
      rest: float [...], log-probability of all other tokens together, nats.
    """

    ids: Any
    logp: Any
    rest: Any


def top_of(teacher_logits: jax.Array, k: int, temperature: float = 1.0) -> Top:
    """What to store of a teacher's logits [..., V].

    Raises:
      ValueError: when k is not in [1, V], or the temperature not above 0.

    >>> found = top_of(jnp.log(jnp.array([0.1, 0.6, 0.3])), 1)
    >>> found.ids.tolist(), round(float(jnp.exp(found.rest)), 4)
    ([1], 0.4)
    """
    V = teacher_logits.shape[-1]
    if not 1 <= k <= V:
        raise ValueError(f"the {k} likeliest of a vocabulary of {V}: take 1 to {V}")
    scores = teacher_logits.astype(jnp.float32) / _checked(temperature)
    _, ids = jax.lax.top_k(scores, k)
    chosen, rest = _apart(scores, ids)
    return Top(ids, chosen, rest)


def linear_top_of(teacher_hidden: jax.Array, teacher_head: jax.Array, k: int, *, temperature: float = 1.0,
                  softcap: float = 0.0, chunks: int = 1) -> Top:
    """`top_of` of teacher_hidden [B, T, E] @ teacher_head.T, the logits of one piece of T at a time."""
    def piece(hidden: jax.Array) -> Top:
        return top_of(_logits(hidden, teacher_head, softcap), k, temperature)

    B, T = teacher_hidden.shape[:2]
    found = jax.lax.map(piece, _cut(teacher_hidden, chunks))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(B, T, *x.shape[3:]), found)


def top_loss(student_logits: jax.Array, top: Top, weights: jax.Array, kind: str = "forward", *, beta: float = 0.5,
             temperature: float = 1.0) -> tuple[Mean, Metrics]:
    """`distill_loss` where a position has K + 1 outcomes: the teacher's K likeliest tokens, and any other.

    Lumping outcomes together can only lower a divergence, so this is a lower bound of the whole one, exact for K = V,
    and as there 0 for a student that equals its teacher. Renormalising the K instead would teach the student to give
    all others nothing.

    Args:
      student_logits: float [B, T, V].
      top: of the teacher, [B, T, K], taken at this temperature.
      weights, kind, beta, temperature: as `distill_loss` takes them.
    """
    return _loss(_lumped(student_logits, top, _checked(temperature)), weights, kind, beta)


def linear_top_loss(hidden: jax.Array, head: jax.Array, top: Top, weights: jax.Array, kind: str = "forward", *,
                    beta: float = 0.5, temperature: float = 1.0, softcap: float = 0.0, chunks: int = 1
                    ) -> tuple[Mean, Metrics]:
    """`top_loss` of hidden [B, T, D] @ head.T; see `linear_distill_loss`."""
    _checked(temperature)

    def piece(hidden: jax.Array, top: Top, weights: jax.Array) -> tuple[Mean, Metrics]:
        return _loss(_lumped(_logits(hidden, head, softcap), top, temperature), weights, kind, beta)

    return _in_pieces(piece, (hidden, top, weights), chunks)


def _checked(temperature: float) -> float:
    if not temperature > 0.0:
        raise ValueError(f"the temperature of distillation is {temperature}; it must be above 0")
    return temperature


def _full(student: jax.Array, teacher: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of student and teacher over the vocabulary."""
    teacher = jax.lax.stop_gradient(teacher)
    return tuple(jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (student, teacher))


def _lumped(student: jax.Array, top: Top, temperature: float) -> tuple[jax.Array, jax.Array]:
    """The same over the teacher's K tokens, and last all others together."""
    chosen, rest = _apart(student.astype(jnp.float32) / temperature, top.ids)
    teacher = jnp.concatenate([top.logp.astype(jnp.float32), top.rest.astype(jnp.float32)[..., None]], axis=-1)
    return jnp.concatenate([chosen, rest[..., None]], axis=-1), jax.lax.stop_gradient(teacher)


def _apart(scores: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the tokens `ids` [..., K], and of all others together [...]."""
    log_z = jax.nn.logsumexp(scores, axis=-1)
    chosen = jnp.take_along_axis(scores, ids, axis=-1)
    # Not log(1 - sum of the chosen), whose rounding is all that is left where the chosen have nearly everything.
    others = jnp.put_along_axis(scores, ids, _NEVER, axis=-1, inplace=False)
    return chosen - log_z[..., None], jax.nn.logsumexp(others, axis=-1) - log_z


def _loss(logp: tuple[jax.Array, jax.Array], weights: jax.Array, kind: str, beta: float) -> tuple[Mean, Metrics]:
    student, teacher = logp
    weights = weights.astype(jnp.float32)
    weight = jnp.sum(weights)
    agree = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    return (Mean(jnp.sum(weights * divergence(student, teacher, kind, beta)), weight),
            {"agreement": Mean(jnp.sum(weights * agree), weight)})


def _logits(hidden: jax.Array, head: jax.Array, softcap: float) -> jax.Array:
    out = jnp.einsum("btd,vd->btv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return softcap * jnp.tanh(out / softcap) if softcap else out


def _in_pieces(piece: Callable[..., tuple[Mean, Metrics]], arrays: Any, chunks: int) -> tuple[Mean, Metrics]:
    """Adds up what `piece` says of each cut; only the piece at hand has its logits in memory, forward and back."""
    if chunks == 1:
        return piece(*arrays)
    found = jax.lax.map(jax.checkpoint(lambda cut: piece(*cut)), _cut(arrays, chunks))
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), found)


def _cut(arrays: Any, chunks: int) -> Any:
    """[B, T, ...] -> [chunks, B, T / chunks, ...], for every array of a tree."""
    def cut(x: jax.Array) -> jax.Array:
        B, T = x.shape[:2]
        if T % chunks:
            raise ValueError(f"logit_chunks ({chunks}) must divide the {T} positions of a row")
        return jnp.swapaxes(x.reshape(B, chunks, T // chunks, *x.shape[2:]), 0, 1)
    return jax.tree.map(cut, arrays)
