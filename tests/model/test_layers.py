"""The parts of a block, against numpy in float64 and formulas written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.model import layers
from jaxllm.model.config import RopeScaling, preset

# Compiled whole: an operation at a time each is a program of its own, for every shape.
layer_norm, rms_norm, rotate = map(jax.jit, (layers.layer_norm, layers.rms_norm, layers.rotate))
norm, mlp, query_key_value = (jax.jit(function, static_argnums=2)
                              for function in (layers.norm, layers.mlp, layers.query_key_value))
dense, rotary_tables = (jax.jit(function, static_argnums=0) for function in (layers.dense, layers.rotary_tables))
rotary_frequencies = jax.jit(layers.rotary_frequencies, static_argnums=(0, 1, 2))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_layer_norm_by_numpy():
    x, scale, bias = 3 * normal(0, 2, 3, 8) + 5, normal(1, 8), normal(2, 8)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(layer_norm(x, scale, bias, 0.1), expected * scale + bias, atol=1e-5)


def test_rms_norm_by_numpy():
    x, scale = 3 * normal(0, 2, 3, 8) + 5, normal(1, 8)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(rms_norm(x, scale, 0.1), expected, atol=1e-5)
    params = {"scale": scale}
    np.testing.assert_allclose(
        norm(x, params, preset("nano", norm="rms_plus_one", norm_eps=0.1)),
        expected / scale * (1 + scale), atol=1e-5)


@pytest.mark.parametrize("function", [
    lambda x, scale: rms_norm(x, scale, 1e-6), lambda x, scale: layer_norm(x, scale, scale, 1e-6)])
def test_norms_compute_in_float32_and_return_the_dtype_given(function):
    x, scale = normal(0, 4, 64).astype(jnp.bfloat16), normal(1, 64)
    out = function(x, scale)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, np.asarray(function(x.astype(np.float32), scale)).astype(jnp.bfloat16))


def test_a_zero_row_has_a_finite_norm_and_gradient():
    gradient = jax.jit(jax.grad(lambda x: rms_norm(x, jnp.ones(4), 1e-6).sum()))(np.zeros(4, np.float32))
    assert np.isfinite(gradient).all()


def test_a_rotated_product_depends_on_the_distance_alone():
    config = preset("nano", head_dim=16, rope_theta=100.0)
    q, k = normal(0, 1, 1, 1, 16), normal(1, 1, 1, 1, 16)

    def product(at, to):
        turned = [np.asarray(rotate(x, rotary_tables(config, np.array([[p]], np.int32)))) for x, p in
                  ((q, at), (k, to))]
        return float((turned[0] * turned[1]).sum())

    assert product(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-5)
    assert product(5, 2) == pytest.approx(product(33, 30), abs=1e-5)
    assert abs(product(5, 2) - product(5, 3)) > 0.1
    assert abs(product(5, 2) - product(2, 5)) > 0.1


def test_each_pair_turns_by_its_own_angle():
    """Head of 4 with theta 100: pair (0, 2) turns by 1 radian a position, pair (1, 3) by 0.1."""
    tables = rotary_tables(preset("nano", head_dim=4, rope_theta=100.0), np.array([[3]], np.int32))
    turned = np.asarray(rotate(np.array([1, 0, 0, 1], np.float32).reshape(1, 1, 1, 4), tables))
    expected = [math.cos(3), -math.sin(0.3), math.sin(3), math.cos(0.3)]
    np.testing.assert_allclose(turned.ravel(), expected, atol=1e-6)


def test_rotation_in_bfloat16_is_that_of_float32_rounded():
    tables = rotary_tables(preset("nano"), np.arange(50, dtype=np.int32)[None])
    x = normal(0, 1, 50, 4, 8).astype(jnp.bfloat16)
    np.testing.assert_array_equal(rotate(x, tables),
                                  np.asarray(rotate(x.astype(np.float32), tables)).astype(jnp.bfloat16))


@pytest.mark.parametrize("head_dim, theta, scaling", [
    (128, 500_000.0, RopeScaling(8.0)), (64, 500_000.0, RopeScaling(32.0)),
    (16, 500.0, RopeScaling(4.0, 0.5, 3.0, 64))])
def test_llama3_scaling_by_the_rule_written_out(head_dim, theta, scaling):
    """Wavelength by wavelength: kept, divided, or blended in between."""
    expected, kinds = [], set()
    for i in range(0, head_dim, 2):
        frequency = theta ** (-i / head_dim)
        wavelength = 2 * math.pi / frequency
        if wavelength < scaling.original_positions / scaling.high_frequency_factor:
            expected.append(frequency)
            kinds.add("kept")
        elif wavelength > scaling.original_positions / scaling.low_frequency_factor:
            expected.append(frequency / scaling.factor)
            kinds.add("divided")
        else:
            smooth = ((scaling.original_positions / wavelength - scaling.low_frequency_factor)
                      / (scaling.high_frequency_factor - scaling.low_frequency_factor))
            expected.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
            kinds.add("blended")
    assert kinds == {"kept", "divided", "blended"}
    np.testing.assert_allclose(rotary_frequencies(head_dim, theta, scaling), expected, rtol=2e-5)


@pytest.mark.parametrize("kind, activation", [
    ("gelu", None), ("swiglu", lambda x: x / (1 + np.exp(-x))), ("geglu", "tanh")])
def test_mlp_by_numpy(kind, activation):
    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))

    x, up, gate, down = normal(0, 1, 2, 4), normal(1, 4, 6), normal(2, 4, 6), normal(3, 6, 4)
    params = {"up": up, "gate": gate, "down": down, "down_bias": normal(4, 4)}
    inner = gelu(x @ up) if kind == "gelu" else (
        gelu if activation == "tanh" else activation)(x @ gate) * (x @ up)
    ours = mlp(jnp.asarray(x), params, preset("nano", mlp=kind))
    np.testing.assert_allclose(ours, inner @ down + params["down_bias"], atol=1e-5)


def test_dense_computes_in_the_dtype_of_the_activations():
    x, weight = np.ones((2, 3, 4), jnp.bfloat16), normal(0, 4, 2, 5)
    out = dense("btd,dnh->btnh", x, weight, np.ones((2, 5), np.float32))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32)[0, 0], weight.sum(0) + 1, atol=0.05)


def test_queries_and_keys_are_normalised_and_then_turned():
    """QK-norm leaves each head an RMS of one, which turning keeps; values stay as projected."""
    config = preset("nano", qk_norm=True, norm_eps=1e-12)
    ones = np.ones(8, np.float32)
    params = {"query": normal(0, 32, 4, 8), "key": normal(1, 32, 2, 8), "value": normal(2, 32, 2, 8),
              "query_norm": {"scale": ones}, "key_norm": {"scale": 2 * ones}}
    h = normal(3, 1, 5, 32)
    tables = rotary_tables(config, np.arange(5, dtype=np.int32)[None])
    q, k, v = map(np.asarray, query_key_value(h, params, config, tables))
    np.testing.assert_allclose((q ** 2).mean(-1), np.ones((1, 5, 4)), atol=1e-5)
    np.testing.assert_allclose((k ** 2).mean(-1), 4 * np.ones((1, 5, 2)), atol=1e-5)
    np.testing.assert_allclose(v, np.einsum("btd,dkh->btkh", h, params["value"]), atol=1e-4)
    assert np.abs(q[:, 1:] - np.asarray(query_key_value(h, params, config, None)[0])[:, 1:]).max() > 0.1
