"""The one seam through which a model attends: XLA anywhere, cuDNN flash on NVIDIA, splash on TPU.

`attend` serves whole rows (training, scoring); `attend_cached` serves a few new positions against a KV cache.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.model.axes import partition_spec

# Under this many positions one block of queries is quickest; above, blocks skip the keys that causality hides.
QUERY_BLOCK = 128


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
    if backend == "gpu" and dtype == jnp.bfloat16 and not softcap and head_dim % 8 == 0:
        if "nvidia" in jax.devices()[0].device_kind.lower():
            return "cudnn"
    if backend == "tpu" and length % 128 == 0 and head_dim % 128 == 0:
        return "splash"
    return "xla"


def _same_segment(segment_ids: jax.Array) -> jax.Array:
    return (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])


def _attend_xla(q, k, v, scale, segment_ids, window, softcap):
    """Blocks of queries, each against only the keys that causality and the window leave it.

    Half the products and half the memory of the full square; the blocks are few and unrolled, and every one is
    recomputed in the backward pass, so that no probabilities are kept.
    """
    T = q.shape[1]
    if T <= 2 * QUERY_BLOCK:
        return _query_block(q, k, v, segment_ids, 0, 0, scale=scale, window=window, softcap=softcap)
    outputs = []
    for start in range(0, T, _block_length(T)):
        stop = min(start + _block_length(T), T)
        first = max(0, start - window + 1) if window else 0
        block = jax.checkpoint(functools.partial(
            _query_block, query_start=start, key_start=first, scale=scale, window=window, softcap=softcap))
        segments = None if segment_ids is None else segment_ids[:, first:stop]
        outputs.append(block(q[:, start:stop], k[:, first:stop], v[:, first:stop], segments))
    return jnp.concatenate(outputs, axis=1)


def _block_length(length: int) -> int:
    """At most 16 blocks a row, so that compile time stays flat as rows grow."""
    return max(QUERY_BLOCK, -(-length // 16))


def _query_block(q, k, v, segment_ids, query_start, key_start, *, scale, window, softcap):
    queries = jnp.arange(q.shape[1])[:, None] + query_start
    keys = jnp.arange(k.shape[1])[None, :] + key_start
    mask = keys <= queries
    if window:
        mask &= keys > queries - window
    mask = mask[None, None]
    if segment_ids is not None:
        mine = segment_ids[:, segment_ids.shape[1] - q.shape[1]:]
        mask = mask & (mine[:, None, :, None] == segment_ids[:, None, None, :])
    return weigh(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask, scale=scale, softcap=softcap)


def attend_cached(q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, positions: jax.Array, *,
                  scale: float, window: int = 0, softcap: float = 0.0) -> jax.Array:
    """Attention of new positions to a cache whose slot s holds the key of position s.

    Args:
      q_BTNH: queries of the new positions [B, T, N, H].
      k_BKSH, v_BKSH: the cache, with the new positions already in it [B, K, S, H].
      positions: int32 [B, T], the slot of each query; it sees slots up to its own.
      scale, window, softcap: as in `attend`.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    slots = jnp.arange(k_BKSH.shape[2])[None, None, :]
    mask = slots <= positions[:, :, None]
    if window:
        mask &= slots > positions[:, :, None] - window
    return weigh(q_BTNH, k_BKSH.astype(q_BTNH.dtype), v_BKSH.astype(q_BTNH.dtype), mask[:, None],
                 scale=scale, softcap=softcap)


def weigh(q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask: jax.Array, *, scale: float,
          softcap: float = 0.0) -> jax.Array:
    """softmax(softcap(scale q k'), where mask) v, with the softmax in float32: the reference for every kernel.

    Args:
      q_BTNH: queries; the G = N / K heads of a group share a head of keys.
      k_BKSH, v_BKSH: keys and values, heads first.
      mask: bool, broadcastable to [B, 1, T, S]; True = attend. Every query must see at least one key.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    # All queries of a group as the rows of one matrix: a product that every backend has a quick routine for.
    q_BKRH = jnp.swapaxes(q_BTNH, 1, 2).reshape(B, K, N // K * T, H)
    logits_BKRS = jnp.einsum("bkrh,bksh->bkrs", q_BKRH, k_BKSH, preferred_element_type=jnp.float32) * scale
    if softcap:
        logits_BKRS = softcap * jnp.tanh(logits_BKRS / softcap)
    logits_BKGTS = jnp.where(mask[:, :, None], logits_BKRS.reshape(B, K, N // K, T, S), -1e30)
    weights_BKRS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(q_BTNH.dtype).reshape(B, K, N // K * T, S)
    out_BKRH = jnp.einsum("bkrs,bksh->bkrh", weights_BKRS, v_BKSH)
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
