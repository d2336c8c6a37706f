"""The attention seam: literal masks, a naive reference in numpy, blocks, kernels and the choice."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.model import attention
from jaxllm.model.attention import attend, attend_cached, weigh

SEGMENTS = np.array([[1] * 9 + [2] * 8 + [0] * 3, [3] * 5 + [4] * 15], np.int32)
CASES = {
    "causal": {}, "window": dict(window=5), "segments": dict(segment_ids=SEGMENTS),
    "softcap": dict(softcap=0.7),
    "all": dict(window=5, softcap=0.7, segment_ids=SEGMENTS),
}


def heads(B=2, T=20, N=6, K=2, H=4):
    generator = np.random.default_rng(0)
    return [jnp.asarray(2 * generator.normal(size=(B, T, n, H)), jnp.float32) for n in (N, K, K)]


def naive(q, k, v, *, scale, segment_ids=None, window=0, softcap=0.0):
    """Attention as one would explain it: a loop over rows, heads, queries and keys."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, H = q.shape
    out = np.zeros(q.shape)
    for b in range(B):
        for n in range(N):
            group = n // (N // k.shape[2])
            for t in range(T):
                keys = [s for s in range(t + 1) if not window or t - s < window]
                if segment_ids is not None:
                    keys = [s for s in keys if segment_ids[b, s] == segment_ids[b, t]]
                logits = np.array([scale * q[b, t, n] @ k[b, s, group] for s in keys])
                logits = softcap * np.tanh(logits / softcap) if softcap else logits
                weights = np.exp(logits - logits.max())
                out[b, t, n] = weights / weights.sum() @ v[b, keys, group]
    return out


@pytest.mark.parametrize("case, query_block", [
    *((case, 6) for case in CASES), ("causal", 128), ("all", 128)])
def test_attend_is_the_naive_loop(case, query_block, monkeypatch):
    """20 queries in one block, or in 4 whose last is short and whose windows skip keys."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", query_block)
    arguments = CASES[case]
    ours = jax.jit(functools.partial(attend, scale=0.4, **arguments))(*heads())
    np.testing.assert_allclose(ours, naive(*heads(), scale=0.4, **arguments), atol=1e-5)


def test_gradients_of_blocks_are_those_of_one(monkeypatch):
    def gradients(q, k, v):
        return jax.grad(lambda *x: jnp.sin(attend(*x, scale=0.4, **CASES["all"])).sum(),
                        argnums=(0, 1, 2))(q, k, v)

    whole = jax.jit(gradients)(*heads())
    monkeypatch.setattr(attention, "QUERY_BLOCK", 6)
    blocks = jax.jit(lambda *x: gradients(*x))(*heads())
    for one, other in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("length, blocks", [(64, 1), (257, 5), (4096, 16), (100_000, 16)])
def test_rows_of_any_length_have_few_blocks(length, blocks):
    q = jax.ShapeDtypeStruct((1, length, 1, 1), jnp.float32)
    jaxpr = jax.make_jaxpr(functools.partial(attend, scale=1.0, implementation="xla"))(q, q, q)
    assert str(jaxpr).count(" reduce_max[") == blocks


def reveal(**arguments):
    """Which keys each of 5 queries sees: with all logits alike, v = identity shows the weights."""
    q, v = np.zeros((1, 5, 1, 5), np.float32), np.eye(5, dtype=np.float32)[None, :, None]
    out = jax.jit(functools.partial(attend, scale=1.0, **arguments))(q, q, v)
    return np.asarray(out)[0, :, 0] > 0


def test_masks_by_hand():
    np.testing.assert_array_equal(reveal(), np.array([
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1]], bool))
    np.testing.assert_array_equal(reveal(window=2), np.array([
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1]], bool))
    segments = jnp.array([[1, 1, 1, 2, 2]])
    np.testing.assert_array_equal(reveal(segment_ids=segments, window=2), np.array([
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1]], bool))


def test_masks_of_a_cache_by_hand():
    """Two new positions a row against six slots: at 1 and 2, and at 4 and 5."""
    def seen(window):
        q, k = np.zeros((2, 2, 1, 6), np.float32), np.zeros((2, 1, 6, 6), np.float32)
        v = np.tile(np.eye(6, dtype=np.float32)[None, None], (2, 1, 1, 1))
        positions = np.array([[1, 2], [4, 5]], np.int32)
        attend_positions = jax.jit(functools.partial(attend_cached, scale=1.0, window=window))
        return np.asarray(attend_positions(q, k, v, positions))[:, :, 0] > 0

    np.testing.assert_array_equal(seen(0), np.array([
        [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]], [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]], bool))
    np.testing.assert_array_equal(seen(2), np.array([
        [[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]], [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]], bool))


def test_the_softmax_is_of_float32_whatever_the_dtype():
    """Logits around 300 differ by less than a bfloat16 can hold there, and still count."""
    q = jnp.full((1, 1, 1, 2), 1.0, jnp.bfloat16)
    k = jnp.array([[300.0, 0.0], [300.0, 0.5]], jnp.bfloat16).reshape(1, 1, 2, 2)
    v = jnp.array([0.0, 0.0, 1.0, 1.0], jnp.bfloat16).reshape(1, 1, 2, 2)
    out = jax.jit(functools.partial(weigh, scale=1.0))(q, k, v, jnp.ones((1, 1, 1, 2), bool))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32).ravel(), 1 / (1 + np.exp(-0.5)), atol=3e-3)


@pytest.mark.parametrize("dtype, softcap", [(jnp.float32, 0.0), (jnp.bfloat16, 5.0)])
def test_cudnn_refuses_what_it_cannot_do(dtype, softcap):
    q, k, v = (x.astype(dtype) for x in heads())
    with pytest.raises(ValueError, match="set execution.attention=xla or execution.dtype=bfloat16"):
        attend(q, k, v, scale=1.0, softcap=softcap, implementation="cudnn")


@pytest.mark.parametrize("backend, kind, dtype, length, head_dim, softcap, chosen", [
    ("cpu", "cpu", jnp.bfloat16, 1024, 128, 0.0, "xla"),
    ("gpu", "NVIDIA H100", jnp.bfloat16, 1000, 64, 0.0, "cudnn"),
    ("gpu", "NVIDIA H100", jnp.float32, 1000, 64, 0.0, "xla"),
    ("gpu", "NVIDIA H100", jnp.bfloat16, 1000, 64, 50.0, "xla"),
    ("gpu", "NVIDIA H100", jnp.bfloat16, 1000, 60, 0.0, "xla"),
    ("gpu", "AMD Instinct MI300X", jnp.bfloat16, 1000, 64, 0.0, "xla"),
    ("tpu", "TPU v5", jnp.float32, 1024, 128, 50.0, "splash"),
    ("tpu", "TPU v5", jnp.bfloat16, 1000, 128, 0.0, "xla"),
    ("tpu", "TPU v5", jnp.bfloat16, 1024, 64, 0.0, "xla")])
def test_auto_chooses_by_device_and_request(backend, kind, dtype, length, head_dim, softcap, chosen,
                                            monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)])
    assert attention._choose(dtype, length, head_dim, softcap) == chosen


@pytest.mark.parametrize("arguments", [
    dict(segment_ids=np.repeat([[1, 2, 0]], [50, 60, 18], axis=1).astype(np.int32)),
    dict(window=20, softcap=5.0)], ids=["segments", "window_softcap"])
def test_splash_in_interpret_mode_is_xla(arguments):
    """The TPU kernel's own arithmetic, interpreted on a CPU: not a run on a TPU."""
    q, k, v = heads(B=1, T=128, N=2, K=1, H=128)
    filled = dict(segment_ids=None, window=0, softcap=0.0) | arguments
    splash = jax.jit(lambda q, k, v: attention._splash(q * 0.05, k, v, **filled, interpret=True))
    xla = jax.jit(functools.partial(attend, scale=0.05, implementation="xla", **arguments))
    np.testing.assert_allclose(splash(q, k, v), xla(q, k, v), atol=1e-5)
