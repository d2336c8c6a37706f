"""The parts of a block: normalisation, rotary positions, projections and the MLP."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.model.axes import constrain
from jaxllm.model.config import ModelConfig, RopeScaling
from jaxllm.model.overlay import Overlay

Params = dict[str, Any]


def dense(equation: str, x: jax.Array, weight: jax.Array | Overlay, bias: jax.Array | None = None) -> jax.Array:
    """`einsum(equation, x, weight) + bias` in the dtype of `x`: where the weights of a block meet activations."""
    # Written as a product of two matrices, so that the gradient of a weight is one too: of three dimensions, XLA on a
    # CPU would first copy the activations transposed, which can cost as much as the product.
    inputs, out = equation.split("->")
    x_axes, weight_axes = inputs.split(",")
    rows = sum(axis in out for axis in x_axes)
    columns = len(weight_axes) - (len(x_axes) - rows)
    batch = x.shape[:rows]
    x_RI = x.reshape(math.prod(batch), -1)
    if isinstance(weight, Overlay):
        features, y = weight.out, weight.product(x_RI).astype(x.dtype)
    else:
        features = weight.shape[weight.ndim - columns:]
        y = x_RI @ weight.astype(x.dtype).reshape(-1, math.prod(features))
    y = y.reshape(*batch, *features)
    if bias is None:
        return y
    return y + jnp.expand_dims(bias.astype(x.dtype), tuple(range(y.ndim - bias.ndim)))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, computed in float32, returned in x's dtype.

    References: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019. https://arxiv.org/abs/1910.07467
    """
    x32 = x.astype(jnp.float32)
    y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (y * _broadcast(scale, x)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis, in float32, returned in x's dtype.

    References: Ba et al., Layer Normalization, 2016. https://arxiv.org/abs/1607.06450
    """
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (y * _broadcast(scale, x) + _broadcast(bias, x)).astype(x.dtype)


def norm(x: jax.Array, params: Params, config: ModelConfig) -> jax.Array:
    """The normalisation that `config` names, over the last axis of `x`."""
    if config.norm == "layer":
        return layer_norm(x, params["scale"], params["bias"], config.norm_eps)
    scale = params["scale"].astype(jnp.float32)
    return rms_norm(x, scale + 1.0 if config.norm == "rms_plus_one" else scale, config.norm_eps)


def _broadcast(vector: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.expand_dims(vector.astype(jnp.float32), tuple(range(like.ndim - 1)))


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> jax.Array:
    """Angular frequency, in radians per position, of each of the H/2 pairs: theta^(-2i/H), stretched if asked.

    References: Su et al., RoFormer, 2021. https://arxiv.org/abs/2104.09864
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequency
    turns = scaling.original_positions * frequency / (2 * jnp.pi)  # full turns in the original context
    keep = jnp.clip((turns - scaling.low_frequency_factor)
                    / (scaling.high_frequency_factor - scaling.low_frequency_factor), 0.0, 1.0)
    return frequency * (keep + (1.0 - keep) / scaling.factor)


def rotary_tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for `positions`, computed once and used by every layer.

    Args:
      config: gives H, theta and the scaling.
      positions: int32 [B or 1, T].

    Returns:
      (cos, sin): float32 [B or 1, T, 1, H/2].
    """
    frequency = rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency[None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each pair (i, i + H/2) of a head by its angle; the half-split pairing of Hugging Face's Llama."""
    cos, sin = tables
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def query_key_value(h_BTD: jax.Array, params: Params, config: ModelConfig,
                    rotary: tuple[jax.Array, jax.Array] | None
                    ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Projects to heads, normalises them (QK-norm) and turns them: q [B, T, N, H], k and v [B, T, K, H]."""
    q = dense("btd,dnh->btnh", h_BTD, params["query"], params.get("query_bias"))
    k = dense("btd,dkh->btkh", h_BTD, params["key"], params.get("key_bias"))
    v = dense("btd,dkh->btkh", h_BTD, params["value"], params.get("value_bias"))
    if config.qk_norm:
        q = norm(q, params["query_norm"], config)
        k = norm(k, params["key_norm"], config)
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    q = constrain(q, ("batch", None, "heads", None))
    k = constrain(k, ("batch", None, "kv_heads", None))
    return q, k, constrain(v, ("batch", None, "kv_heads", None))


def mlp(h_BTD: jax.Array, params: Params, config: ModelConfig) -> jax.Array:
    """Two matrices around a tanh-GELU, or three with a gate: act(x gate) * (x up) down.

    References: Shazeer, GLU Variants Improve Transformer, 2020. https://arxiv.org/abs/2002.05202
    """
    up = dense("btd,df->btf", h_BTD, params["up"], params.get("up_bias"))
    if config.mlp == "gelu":
        up = jax.nn.gelu(up, approximate=True)
    else:
        gate = dense("btd,df->btf", h_BTD, params["gate"])
        up = up * (jax.nn.silu(gate) if config.mlp == "swiglu" else jax.nn.gelu(gate, approximate=True))
    up = constrain(up, ("batch", None, "mlp"))
    return dense("btf,fd->btd", up, params["down"], params.get("down_bias"))
