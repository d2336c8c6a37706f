"""The one seam through which a model attends: XLA anywhere, cuDNN flash on NVIDIA, splash on TPU.

`attend` serves whole rows (training, scoring); `attend_cached` serves a few new positions against a KV cache.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.model.axes import partition_spec
from jaxllm.model.cache import Int8Slots, Slots

# Queries in a block. Smaller ones skip more of the keys that causality hides, larger ones make better products.
QUERY_BLOCK = 64


def attend(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, *, scale: float,
           segment_ids: jax.Array | None = None, window: int = 0, softcap: float = 0.0,
           implementation: str = "auto") -> jax.Array:
    """Causal attention of whole rows to themselves.

    softmax(scale q k' , over the keys that are not later, in the same segment, within the window) v

    Args:
      q_BTNH: queries [B, T, N, H].
      k_BTKH, v_BTKH: keys and values [B, T, K, H]; N is a multiple of K.
      scale: factor on q k'.
      segment_ids: int32 [B, T]; a query sees only keys of its own segment. None: one segment a row.
      window: a query sees itself and the window - 1 keys before it; 0 is all of them.
      softcap: c in c tanh(logit / c); 0 is off.
      implementation: see `Execution.attention`.

    Returns:
      [B, T, N, H] in the dtype of q.

    Raises:
      ValueError: when "cudnn" or "splash" is asked for and cannot do it.
    """
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    window = 0 if window >= T else window
    if implementation == "auto":
        implementation = _choose(q_BTNH.dtype, T, H, softcap)
    if implementation == "cudnn":
        if softcap or q_BTNH.dtype != jnp.bfloat16:
            raise ValueError("cuDNN attention takes bfloat16 and no soft-cap; set execution.attention=xla "
                             "or execution.dtype=bfloat16")
        mask = None if segment_ids is None else _same_segment(segment_ids)
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, mask=mask, scale=scale, is_causal=True,
            local_window_size=(window - 1, 0) if window else None, implementation="cudnn")
    if implementation == "splash":
        return _splash(q_BTNH * jnp.asarray(scale, q_BTNH.dtype), k_BTKH, v_BTKH, segment_ids, window, softcap)
    return _attend_xla(q_BTNH, k_BTKH, v_BTKH, scale, segment_ids, window, softcap)


def _choose(dtype, length: int, head_dim: int, softcap: float) -> str:
    """The quickest implementation that can express the request on the default backend."""
    backend = jax.default_backend()
    # cuDNN takes no mask of odd length, and wider heads only from Hopper on.
    if backend == "gpu" and dtype == jnp.bfloat16 and not softcap and head_dim % 8 == 0 and length % 2 == 0 \
            and head_dim <= 128:
        if "nvidia" in jax.devices()[0].device_kind.lower():
            return "cudnn"
    if backend == "tpu" and length % 128 == 0 and head_dim % 128 == 0:
        return "splash"
    return "xla"


def _same_segment(segment_ids: jax.Array) -> jax.Array:
    return (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])


def _attend_xla(q, k, v, scale, segment_ids, window, softcap):
    """Blocks of queries, each against only the keys that causality and the window leave it.

    Half the products and half the memory of the full square. The blocks are few and unrolled, and their probabilities
    are formed again in the backward pass from the log of their sums.

    References: Dao et al., FlashAttention, 2022, algorithms 1 and 4. https://arxiv.org/abs/2205.14135
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q_BKGTH = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    out_BKGTH = _blockwise(q_BKGTH, k_BKSH, v_BKSH, segment_ids, (scale, window, softcap))
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(q, k, v, segment_ids, static):
    return _blockwise_forward(q, k, v, segment_ids, static)[0]


def _blockwise_forward(q, k, v, segment_ids, static):
    outs, log_sums = [], []
    for block in _blocks(q.shape[3], static[1]):
        logits = _block_logits(q, k, segment_ids, block, static)
        highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        powers = jnp.exp(logits - highest)
        sums = jnp.sum(powers, axis=-1, keepdims=True)
        start, stop, first = block
        out = jnp.einsum("bkgts,bksh->bkgth", powers.astype(q.dtype), v[:, :, first:stop],
                         preferred_element_type=jnp.float32)
        outs.append((out / sums).astype(q.dtype))
        log_sums.append(highest + jnp.log(sums))
    out, log_sum = jnp.concatenate(outs, axis=3), jnp.concatenate(log_sums, axis=3)
    return out, (q, k, v, segment_ids, out, log_sum)


def _blockwise_backward(static, residuals, d_out):
    q, k, v, segment_ids, out, log_sum = residuals
    scale, window, softcap = static
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    dq, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for start, stop, first in _blocks(q.shape[3], window):
        logits = _block_logits(q, k, segment_ids, (start, stop, first), static)
        weights = jnp.exp(logits - log_sum[:, :, :, start:stop])
        d_o = d_out[:, :, :, start:stop]
        d_weights = jnp.einsum("bkgth,bksh->bkgts", d_o, v[:, :, first:stop], preferred_element_type=jnp.float32)
        d_logits = weights * (d_weights - inner[:, :, :, start:stop])
        if softcap:
            d_logits = d_logits * (1.0 - jnp.square(jnp.maximum(logits, -softcap) / softcap))  # masked ones are -1e30
        d_logits = (d_logits * scale).astype(q.dtype)
        dq.append(jnp.einsum("bkgts,bksh->bkgth", d_logits, k[:, :, first:stop]))
        dk = dk.at[:, :, first:stop].add(jnp.einsum(
            "bkgts,bkgth->bksh", d_logits, q[:, :, :, start:stop], preferred_element_type=jnp.float32))
        dv = dv.at[:, :, first:stop].add(jnp.einsum(
            "bkgts,bkgth->bksh", weights.astype(q.dtype), d_o, preferred_element_type=jnp.float32))
    return jnp.concatenate(dq, axis=3), dk.astype(k.dtype), dv.astype(v.dtype), None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _blocks(length: int, window: int) -> list[tuple[int, int, int]]:
    """(first query, end, first key) of every block: at most 16 a row, so that compile time stays flat."""
    size = max(QUERY_BLOCK, -(-length // 16))
    return [(start, min(start + size, length), max(0, start - window + 1) if window else 0)
            for start in range(0, length, size)]


def _block_logits(q, k, segment_ids, block, static):
    """float32 [B, K, G, t, s], with -1e30 where a query does not see a key."""
    start, stop, first = block
    scale, window, softcap = static
    logits = jnp.einsum("bkgth,bksh->bkgts", q[:, :, :, start:stop], k[:, :, first:stop],
                        preferred_element_type=jnp.float32) * scale
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    queries, keys = jnp.arange(start, stop)[:, None], jnp.arange(first, stop)[None, :]
    mask = keys <= queries
    if window:
        mask &= keys > queries - window
    mask = mask[None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, start:stop, None] == segment_ids[:, None, first:stop])
    return jnp.where(mask[:, None, None], logits, -1e30)


def attend_cached(q_BTNH: jax.Array, keys: Slots, values: Slots, positions: jax.Array, *,
                  scale: float, window: int = 0, softcap: float = 0.0) -> jax.Array:
    """Attention of new positions to a cache whose slot s holds the key of position s.

    Args:
      q_BTNH: queries of the new positions [B, T, N, H].
      keys, values: the cache, with the new positions already in it [B, K, S, H], as arrays or `Int8Slots`.
      positions: int32 [B, T], the slot of each query; it sees slots up to its own.
      scale, window, softcap: as in `attend`.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    slots = jnp.arange(keys.shape[2])[None, None, :]
    mask = slots <= positions[:, :, None]
    if window:
        mask &= slots > positions[:, :, None] - window
    key_scale = value_scale = None
    if isinstance(keys, Int8Slots):
        keys, values, key_scale, value_scale = keys.values, values.values, keys.scale, values.scale
    return weigh(q_BTNH, keys.astype(q_BTNH.dtype), values.astype(q_BTNH.dtype), mask[:, None],
                 scale=scale, softcap=softcap, key_scale=key_scale, value_scale=value_scale)


def weigh(q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask: jax.Array, *, scale: float,
          softcap: float = 0.0, key_scale: jax.Array | None = None, value_scale: jax.Array | None = None
          ) -> jax.Array:
    """softmax(softcap(scale q k'), where mask) v, with the softmax in float32: the reference for every kernel.

    Args:
      q_BTNH: queries; the G = N / K heads of a group share a head of keys.
      k_BKSH, v_BKSH: keys and values, heads first.
      mask: bool, broadcastable to [B, 1, T, S]; True = attend. Every query must see at least one key.
      key_scale, value_scale: float32 [B, K, S], factors of the key and the value of a slot; None is 1. They are
        applied to the scores and the weights, which are smaller than what they scale.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    # All queries of a group as the rows of one matrix: a product that every backend has a quick routine for.
    q_BKRH = jnp.swapaxes(q_BTNH, 1, 2).reshape(B, K, N // K * T, H)
    logits_BKRS = jnp.einsum("bkrh,bksh->bkrs", q_BKRH, k_BKSH, preferred_element_type=jnp.float32) * scale
    if key_scale is not None:
        logits_BKRS = logits_BKRS * key_scale[:, :, None]
    if softcap:
        logits_BKRS = softcap * jnp.tanh(logits_BKRS / softcap)
    logits_BKGTS = jnp.where(mask[:, :, None], logits_BKRS.reshape(B, K, N // K, T, S), -1e30)
    weights_BKRS = jax.nn.softmax(logits_BKGTS, axis=-1).reshape(B, K, N // K * T, S)
    if value_scale is not None:
        weights_BKRS = weights_BKRS * value_scale[:, :, None]
    out_BKRH = jnp.einsum("bkrs,bksh->bkrh", weights_BKRS.astype(q_BTNH.dtype), v_BKSH)
    return jnp.swapaxes(out_BKRH.reshape(B, N, T, H), 1, 2)


def _splash(q, k, v, segment_ids, window, softcap, interpret: bool = False):
    """TPU's block-sparse flash kernel, mapped over the mesh by hand as every Pallas kernel must be."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T = q.shape[1]

    def local(q, k, v, segments):
        one = masks.LocalMask((T, T), (window - 1, 0), 0) if window else masks.CausalMask((T, T))
        attention = kernel.make_splash_mha(
            mask=masks.MultiHeadMask([one] * q.shape[2]), head_shards=1, q_seq_shards=1,
            attn_logits_soft_cap=softcap or None, interpret=interpret)
        ids = kernel.SegmentIds(q=segments, kv=segments)
        heads_first = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
        return jnp.swapaxes(jax.vmap(attention)(*heads_first, ids), 1, 2)

    if segment_ids is None:
        segment_ids = jnp.zeros(q.shape[:2], jnp.int32)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, segment_ids)
    heads: PartitionSpec = partition_spec(("batch", None, "heads", None), mesh.axis_names)
    rows = partition_spec(("batch", None), mesh.axis_names)
    return jax.shard_map(local, in_specs=(heads, heads, heads, rows), out_specs=heads,
                         check_vma=False)(q, k, v, segment_ids)
