"""The losses against optax and against each other, in value and gradient; strict promotion throughout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.train.losses import linear_cross_entropy, next_token_loss

B, T, D, V = 3, 8, 16, 40
TARGETS = np.random.default_rng(1).integers(0, V, (B, T)).astype(np.int32)
# Row 0 counts in part and unequally, row 1 not at all, row 2 whole: no mean of means can pass.
WEIGHTS = np.array([[1, 0, 2, 0.5, 0, 0, 3, 1], [0] * T, [1] * T], np.float32)


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, scale=1.0, seed=0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def through_logits(hidden, head, weights=WEIGHTS, z_loss=0.0, softcap=0.0):
    """The plain way: all logits, then a loss of them, every product in float32."""
    logits = jnp.einsum("btd,vd->btv", hidden.astype(jnp.float32), head)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    return next_token_loss(logits, TARGETS, weights, z_loss=z_loss)


def test_next_token_loss_is_optax_cross_entropy():
    logits = draw((B, T, V), 3.0)
    loss, cross_entropy = jax.jit(next_token_loss)(logits, TARGETS, WEIGHTS)
    each = np.asarray(jax.jit(optax.softmax_cross_entropy_with_integer_labels)(logits, TARGETS))
    np.testing.assert_allclose(loss.total, np.sum(each * WEIGHTS), rtol=1e-6)
    assert float(loss.weight) == 15.5
    np.testing.assert_allclose(loss.value, np.average(each, weights=WEIGHTS), rtol=1e-6)
    assert float(cross_entropy.total) == float(loss.total)


def test_next_token_loss_gradient_is_optax_gradient():
    logits = draw((B, T, V), 3.0)
    ours = jax.jit(jax.grad(lambda x: next_token_loss(x, TARGETS, WEIGHTS)[0].total))(logits)
    theirs = jax.jit(jax.grad(lambda x: jnp.sum(
        WEIGHTS * optax.softmax_cross_entropy_with_integer_labels(x, TARGETS))))(logits)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_z_loss_is_added_to_the_loss_and_kept_out_of_the_cross_entropy():
    logits, weights = np.full((1, 2, 4), 3.0, np.float32), np.array([[1.0, 0.5]], np.float32)
    loss, cross_entropy = jax.jit(functools.partial(next_token_loss, z_loss=0.1))(
        logits, np.zeros((1, 2), np.int32), weights)
    log_z = 3.0 + np.log(4.0)
    np.testing.assert_allclose(cross_entropy.value, np.log(4.0), rtol=1e-6)
    np.testing.assert_allclose(loss.value, np.log(4.0) + 0.1 * log_z**2, rtol=1e-6)
    assert float(loss.weight) == float(cross_entropy.weight) == 1.5


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("z_loss, softcap", [(0.0, 0.0), (0.01, 5.0)])
def test_linear_cross_entropy_is_the_loss_of_all_logits(chunks, z_loss, softcap):
    """Value and both gradients, under a cotangent that is not 1."""
    hidden, head = draw((B, T, D)), draw((V, D), seed=1)

    def fused(hidden, head):
        loss, cross_entropy = linear_cross_entropy(hidden, head, TARGETS, WEIGHTS, z_loss=z_loss,
                                                   softcap=softcap, chunks=chunks)
        return -2.5 * loss.value, (loss, cross_entropy)

    def plain(hidden, head):
        loss, cross_entropy = through_logits(hidden, head, z_loss=z_loss, softcap=softcap)
        return -2.5 * loss.value, (loss, cross_entropy)

    ours, sums = jax.jit(jax.grad(fused, argnums=(0, 1), has_aux=True))(hidden, head)
    theirs, expected = jax.jit(jax.grad(plain, argnums=(0, 1), has_aux=True))(hidden, head)
    for a, b in zip(jax.tree.leaves(sums), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=1e-6)
    # Without a gradient another body runs.
    _, alone = jax.jit(fused)(hidden, head)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("chunks", [1, 4])
def test_nothing_counted_gives_zero_and_zero_gradients(chunks):
    hidden, head = draw((B, T, D)), draw((V, D), seed=1)

    def value(hidden, head):
        return linear_cross_entropy(hidden, head, TARGETS, jnp.zeros((B, T)), z_loss=0.01, chunks=chunks)[0].value

    loss, grads = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(hidden, head)
    assert float(loss) == 0.0
    for grad in grads:
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


def test_the_reported_cross_entropy_carries_no_gradient():
    hidden, head, logits = draw((B, T, D)), draw((V, D), seed=1), draw((B, T, V))
    through = jax.jit(jax.grad(lambda h, w: linear_cross_entropy(h, w, TARGETS, WEIGHTS)[1].total, argnums=(0, 1)))
    plain = jax.jit(jax.grad(lambda x: next_token_loss(x, TARGETS, WEIGHTS)[1].total))(logits)
    for grad in (*through(hidden, head), plain):
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


def test_bfloat16_hidden_states():
    """Products in bfloat16 with float32 sums: within its rounding (2^-8) of float32; dtypes are the inputs'."""
    hidden, head = draw((B, T, D)).astype(jnp.bfloat16), draw((V, D), seed=1)
    value = lambda f: lambda h, w: f(h, w)[0].value  # noqa: E731
    fused = value(lambda h, w: linear_cross_entropy(h, w, TARGETS, WEIGHTS, chunks=4))
    ours, (d_hidden, d_head) = jax.jit(jax.value_and_grad(fused, argnums=(0, 1)))(hidden, head)
    theirs, expected = jax.jit(jax.value_and_grad(value(through_logits), argnums=(0, 1)))(
        hidden.astype(np.float32), head)
    assert (d_hidden.dtype, d_head.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(ours, theirs, rtol=2**-8)
    for a, b in zip((d_hidden, d_head), expected, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=2**-6 * np.abs(b).max())


def test_chunks_keep_the_logits_out_of_memory():
    """XLA's own account of temporary memory: one piece holds all the logits, eight hold less than half of them."""
    b, t, d, v = 2, 64, 8, 4096
    shapes = (jax.ShapeDtypeStruct((b, t, d), jnp.float32), jax.ShapeDtypeStruct((v, d), jnp.float32))

    def temporary_bytes(chunks: int) -> int:
        def value(hidden, head):
            return linear_cross_entropy(hidden, head, jnp.zeros((b, t), jnp.int32), jnp.ones((b, t)),
                                        chunks=chunks)[0].value
        compiled = jax.jit(jax.grad(value, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * b * t * v
    assert temporary_bytes(1) >= logits
    assert temporary_bytes(8) < logits / 2


def test_chunks_must_divide_the_row():
    with pytest.raises(ValueError, match=r"loss_chunks \(3\) must divide the row length \(8\)"):
        linear_cross_entropy(draw((B, T, D)), draw((V, D)), TARGETS, WEIGHTS, chunks=3)
