"""Divergences against scipy, pieces against the whole, stored teachers against full ones, and objectives of models."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from random_weights import random_weights
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, rel_entr, softmax

from jaxllm.data.packing import Batch
from jaxllm.model.config import preset
from jaxllm.rl import distill
from jaxllm.rl.distill_step import check_vocabularies, distill_objective, rollout_rows, top_batch, top_objective
from jaxllm.rl.rollout import Drawn, stack
from jaxllm.train.step import accumulate_gradients

B, T, V, D, E = 2, 8, 12, 4, 6
RNG = np.random.default_rng(0)
HIDDEN, TEACHER_HIDDEN = (RNG.normal(size=(B, T, n)).astype(np.float32) for n in (D, E))
HEAD, TEACHER_HEAD = (2.0 * RNG.normal(size=(V, n)).astype(np.float32) for n in (D, E))
STUDENT, TEACHER = HIDDEN @ HEAD.T, TEACHER_HIDDEN @ TEACHER_HEAD.T
WEIGHTS = np.array([[0, 1, 1, 0, 2, 1, 0.5, 0], [1] * T], np.float32)


@pytest.mark.parametrize("kind, beta", [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.2)])
def test_losses_are_scipys_sums(kind, beta):
    loss, metrics = jax.jit(functools.partial(distill.distill_loss, kind=kind, beta=beta, temperature=1.7))(
        STUDENT, TEACHER, WEIGHTS)
    q, p = (softmax(x.astype(np.float64) / 1.7, axis=-1) for x in (STUDENT, TEACHER))
    m = beta * p + (1 - beta) * q
    expected = {"forward": rel_entr(p, q), "reverse": rel_entr(q, p),
                "jsd": beta * rel_entr(p, m) + (1 - beta) * rel_entr(q, m)}[kind].sum(-1)
    np.testing.assert_allclose(loss.total, (WEIGHTS * expected).sum(), rtol=1e-5)
    assert loss.weight == WEIGHTS.sum()
    agree = (WEIGHTS * (p.argmax(-1) == q.argmax(-1))).sum() / WEIGHTS.sum()
    np.testing.assert_allclose(metrics["agreement"].value, agree, rtol=1e-6)
    if (kind, beta) == ("jsd", 0.5):
        np.testing.assert_allclose(expected, jensenshannon(p, q, axis=-1)**2, rtol=1e-9)


def test_pieces_are_the_whole_in_less_memory():
    vocab = 4096  # so many that logits outweigh all else
    head, teacher_head = (RNG.normal(size=(vocab, n)).astype(np.float32) for n in (D, E))

    def gradient(chunks, hidden, head):
        return jax.value_and_grad(lambda *x: distill.linear_distill_loss(
            *x, TEACHER_HIDDEN, teacher_head, WEIGHTS, "reverse", softcap=5.0, teacher_softcap=9.0, chunks=chunks
            )[0].total, argnums=(0, 1))(hidden, head)

    whole, pieces = (jax.jit(functools.partial(gradient, chunks)).lower(HIDDEN, head).compile() for chunks in (1, 8))
    for a, b in zip(jax.tree.leaves(whole(HIDDEN, head)), jax.tree.leaves(pieces(HIDDEN, head)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    logits = [5.0 * np.tanh(HIDDEN @ head.T / 5.0), 9.0 * np.tanh(TEACHER_HIDDEN @ teacher_head.T / 9.0)]
    q, p = (log_softmax(x.astype(np.float64), axis=-1) for x in logits)
    expected = (WEIGHTS * (np.exp(q) * (q - p)).sum(-1)).sum()
    np.testing.assert_allclose(whole(HIDDEN, head)[0], expected, rtol=1e-4)
    kept = [made.memory_analysis().temp_size_in_bytes for made in (whole, pieces)]
    assert kept[1] < B * T * vocab * 4 < kept[0] and kept[1] < kept[0] / 3, kept


@pytest.mark.parametrize("kind", ["forward", "jsd"])
def test_a_stored_teacher_is_a_lower_bound_and_exact_when_whole(kind):
    @functools.partial(jax.jit, static_argnums=1)
    def stored(student, k):
        top = distill.linear_top_of(TEACHER_HIDDEN, TEACHER_HEAD, k, temperature=2.0, chunks=4)
        return jax.value_and_grad(
            lambda x: distill.top_loss(x, top, WEIGHTS, kind, temperature=2.0)[0].total)(student)

    full = jax.jit(jax.value_and_grad(
        lambda x: distill.distill_loss(x, TEACHER, WEIGHTS, kind, temperature=2.0)[0].total))(STUDENT)
    for mine, expected in zip(stored(STUDENT, V), full, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
    assert 0.0 < stored(STUDENT, 3)[0] < full[0]
    same, slope = stored(TEACHER, 3)  # what is lumped together pulls a student that is its teacher nowhere
    assert abs(same) < 1e-5 and np.abs(slope).max() < 1e-6


def test_pieces_of_a_stored_teacher_and_one_that_is_all_but_sure():
    sure = TEACHER.copy()
    sure[..., 1] = 40.0

    @jax.jit
    def found(hidden):
        top = distill.top_of(sure, 1)

        def loss(chunks, hidden):
            return distill.linear_top_loss(hidden, HEAD, top, WEIGHTS, "reverse", chunks=chunks)[0].total
        return top.rest, [jax.value_and_grad(functools.partial(loss, chunks))(hidden) for chunks in (1, 4)]

    rest, (whole, pieces) = found(HIDDEN)
    others = np.delete(sure, 1, axis=-1).astype(np.float64)
    np.testing.assert_allclose(rest, np.log(np.exp(others).sum(-1)) - 40.0, rtol=1e-5)  # 1 - p is 0 in float32
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # gradients are sums that cancel, in float32
        assert np.isfinite(a).all()


SMALL = preset("nano", layers=1, vocab_size=24)
BIG = dataclasses.replace(SMALL, mlp_dim=SMALL.mlp_dim // 2, vocab_size=32)
TOKENS = RNG.integers(0, 20, (4, 8)).astype(np.int32)
ROWS = Batch(TOKENS, np.roll(TOKENS, -1, 1), np.array([[1] * 6 + [0, 0], [0, 0, 1, 1, 0, 0, 0, 0]] * 2, np.float32))


def test_objectives_of_models():
    student, teacher = jax.device_put(random_weights(SMALL)), jax.device_put(random_weights(BIG, 1))

    @jax.jit
    def found(student, teacher):
        whole = distill_objective(SMALL, BIG, teacher, vocab=20)
        stored = top_batch(teacher, BIG, ROWS, 20, vocab=20)
        return (accumulate_gradients(whole, student, ROWS)[:2],
                accumulate_gradients(top_objective(SMALL, vocab=20), student, stored)[:2],
                jax.grad(lambda x: distill_objective(SMALL, BIG, x, vocab=20)(student, ROWS)[0].total)(teacher))

    whole, stored, moved = found(student, teacher)
    assert whole[1].weight == ROWS.weights.sum() and whole[1].value > 0
    assert not np.asarray(whole[0]["embedding"]["tokens"])[20:].any()  # no padding of the vocabulary is learned
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(stored), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(moved))  # the teacher stands still


def test_a_rollout_counts_where_the_next_token_was_drawn():
    rows = rollout_rows(stack([Drawn([7, 8, 1, 2], [False, False, True, True], [0.0] * 4, [0.0] * 4, "stop"),
                               Drawn([9, 3, 4, 5, 6], [True] * 5, [0.0] * 5, [0.0] * 5, "length")], 5))
    assert rows.weights.tolist() == [[0, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert rows.targets[rows.weights > 0].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("call, message", [
    (lambda: distill.distill_loss(STUDENT, TEACHER, WEIGHTS, "kl"), "'kl' is unknown; take one of forward"),
    (lambda: distill.distill_loss(STUDENT, TEACHER, WEIGHTS, "jsd", beta=1.0), "beta is 1.0; jsd takes one between"),
    (lambda: distill.distill_loss(STUDENT, TEACHER, WEIGHTS, temperature=0.0), "temperature of distillation is 0.0"),
    (lambda: distill.top_of(TEACHER, V + 1), "the 13 likeliest of a vocabulary of 12"),
    (lambda: distill.linear_top_of(TEACHER_HIDDEN, TEACHER_HEAD, 2, chunks=3), r"\(3\) must divide the 8 positions"),
    (lambda: check_vocabularies(SMALL, BIG, None), "student has 24 tokens and the teacher 32, all of which"),
    (lambda: check_vocabularies(SMALL, BIG, 30), "models of one tokenizer"),
])
def test_wrong_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
