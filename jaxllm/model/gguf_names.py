"""What llama.cpp calls tensors and sizes, and how it stores those that differ from Hugging Face's.

Llama's queries and keys have their rotary pairs side by side; GPT-2's matrices are [outputs, inputs]; Gemma's norms
have one added. Llama-3's stretched frequencies are a tensor of divisors, `rope_freqs.weight`.

References: https://github.com/ggml-org/llama.cpp (convert_hf_to_gguf.py, src/llama-model.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.model.config import ModelConfig, RopeScaling
from jaxllm.model.convert_config import FAMILIES, config_from_hugging_face, family

ROPE_FACTORS = "rope_freqs.weight"
_GEMMA2_27B_LAYERS = 46  # llama.cpp knows Gemma-2 27B, whose queries have another scale, by its layers
_SCALING_KEYS = {field: f"jaxllm.rope_scaling.{field}"
                 for field in ("factor", "low_frequency_factor", "high_frequency_factor", "original_positions")}

_COMMON = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}
_LLAMA = _COMMON | {"post_attention_layernorm": "ffn_norm"}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "gpt2": {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
             "lm_head": "output", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
             "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
    "llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA,
    "gemma2": _COMMON | {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                         "post_feedforward_layernorm": "post_ffw_norm"}}


def gguf_name(name: str, kind: str) -> str:
    """llama.cpp's name of Hugging Face's tensor `name` in family `kind`.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight", "llama")
    'blk.3.attn_q.weight'
    """
    stem, ending = name.rsplit(".", 1)
    if stem in _NAMES[kind]:
        return f"{_NAMES[kind][stem]}.{ending}"
    _, _, layer, part = stem.split(".", 3)  # model.layers.3.part or transformer.h.3.part
    return f"blk.{layer}.{_NAMES[kind][part]}.{ending}"


def gguf_shape(name: str, shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """The shape in a GGUF of Hugging Face's tensor `name`."""
    return shape[::-1] if _transposed(name, kind) else shape


def to_gguf(name: str, array: np.ndarray, config: ModelConfig, kind: str) -> np.ndarray:
    """Hugging Face's tensor as llama.cpp stores it."""
    if _transposed(name, kind):
        return np.ascontiguousarray(array.T)
    if _rotary(name, kind):
        pairs = array.reshape(-1, 2, config.head_dim // 2, array.shape[-1])
        return pairs.swapaxes(1, 2).reshape(array.shape)
    return array + np.ones((), array.dtype) if _norm_less_one(name, kind) else array


def from_gguf(name: str, array: np.ndarray, config: ModelConfig, kind: str) -> np.ndarray:
    """The inverse of `to_gguf`."""
    if _transposed(name, kind):
        return array.T
    if _rotary(name, kind):
        pairs = array.reshape(-1, config.head_dim // 2, 2, array.shape[-1])
        return pairs.swapaxes(1, 2).reshape(array.shape)
    return array - np.ones((), array.dtype) if _norm_less_one(name, kind) else array


def _transposed(name: str, kind: str) -> bool:
    return kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _rotary(name: str, kind: str) -> bool:
    return kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight"))


def _norm_less_one(name: str, kind: str) -> bool:
    return kind == "gemma2" and name.endswith("norm.weight")


def config_to_metadata(config: ModelConfig) -> dict[str, Any]:
    """llama.cpp's description of an architecture: key -> str, int or float.

    Raises:
      ValueError: when llama.cpp has no such architecture, or would compute another function.
    """
    kind = family(config)
    sizes = {"vocab_size": config.vocab_size, "context_length": config.max_positions, "embedding_length": config.dim,
             "block_count": config.layers, "feed_forward_length": config.mlp_dim,
             "attention.head_count": config.heads, "attention.head_count_kv": config.kv_heads}
    if kind == "gpt2":
        sizes |= {"attention.layer_norm_epsilon": config.norm_eps}
    else:
        sizes |= {"attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": float(config.rope_theta),
                  "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
                  "rope.dimension_count": config.head_dim}
    if kind == "gemma2":
        wanted = 1 / math.sqrt(_query_scalar(config.layers, config.dim, config.heads, config.head_dim))
        scale = config.head_dim ** -0.5 if config.query_scale is None else config.query_scale
        if not math.isclose(scale, wanted, rel_tol=1e-6):
            raise ValueError(f"model.query_scale is {scale}, but llama.cpp would take {wanted} for a Gemma-2 of these "
                             f"sizes; GGUF has no key for it")
        sizes |= {"attn_logit_softcapping": config.attention_softcap, "attention.sliding_window": config.windows[0],
                  "final_logit_softcapping": config.logit_softcap}
    metadata: dict[str, Any] = {"general.architecture": kind} | {f"{kind}.{key}": v for key, v in sizes.items()}
    if config.rope_scaling:
        metadata |= {key: getattr(config.rope_scaling, field) for field, key in _SCALING_KEYS.items()}
    return metadata


def config_from_metadata(metadata: Mapping[str, Any], vocab_size: int, tied: bool,
                         rope_factors: np.ndarray | None) -> ModelConfig:
    """The architecture that a GGUF describes.

    Args:
      metadata: its keys.
      vocab_size: rows of its token embedding.
      tied: whether it lacks a head of its own.
      rope_factors: float32 [H / 2], its `rope_freqs.weight`, or None.

    Raises:
      ValueError: naming a key that is missing, or that asks for what we do not compute.
    """
    kind = metadata.get("general.architecture")
    if kind not in FAMILIES:
        raise ValueError(f"the architecture {str(kind)[:80]!r} is not supported; choose one of {', '.join(FAMILIES)}")
    keys = _Keys(metadata, kind)
    keys.refuse_unsupported()
    layers, dim, heads = (keys.size(key) for key in ("block_count", "embedding_length", "attention.head_count"))
    kv_heads = keys.size("attention.head_count_kv", heads)
    if kind == "gpt2":
        theirs: dict[str, Any] = {"n_layer": layers, "n_embd": dim, "n_head": heads,
                                  "n_inner": keys.size("feed_forward_length"),
                                  "n_positions": keys.size("context_length"),
                                  "layer_norm_epsilon": keys.real("attention.layer_norm_epsilon")}
    else:
        head_dim = keys.size("attention.key_length", dim // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if keys.size(key, head_dim) != head_dim:
                raise ValueError(f"{kind}.{key} is {keys.size(key)}, which is not supported (only the {head_dim} of a "
                                 f"key)")
        theirs = {"num_hidden_layers": layers, "hidden_size": dim, "num_attention_heads": heads,
                  "num_key_value_heads": kv_heads, "head_dim": head_dim,
                  "intermediate_size": keys.size("feed_forward_length"),
                  "max_position_embeddings": keys.size("context_length"),
                  "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
                  "rope_theta": keys.real("rope.freq_base", 10_000.0)}
        if rope_factors is not None:
            theirs["rope_scaling"] = _scaling(metadata, rope_factors, theirs["rope_theta"], head_dim)
    if kind == "gemma2":
        theirs |= {"sliding_window": keys.size("attention.sliding_window", 4096),
                   "query_pre_attn_scalar": _query_scalar(layers, dim, heads, head_dim),
                   "attn_logit_softcapping": keys.real("attn_logit_softcapping", 50.0),
                   "final_logit_softcapping": keys.real("final_logit_softcapping", 30.0)}
    return config_from_hugging_face(
        theirs | {"model_type": kind, "vocab_size": vocab_size, "tie_word_embeddings": tied})


def rope_factors_of(config: ModelConfig) -> np.ndarray | None:
    """float32 [H / 2]: what llama.cpp divides the rotary frequencies by; None where it is nothing."""
    if config.rope_scaling is None:
        return None
    return _factors(config.rope_scaling, config.rope_theta, config.head_dim)


def _factors(scaling: RopeScaling, theta: float, head_dim: int) -> np.ndarray:
    frequency = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = scaling.original_positions * frequency / (2 * math.pi)
    keep = np.clip((turns - scaling.low_frequency_factor)
                   / (scaling.high_frequency_factor - scaling.low_frequency_factor), 0.0, 1.0)
    return (1.0 / (keep + (1.0 - keep) / scaling.factor)).astype(np.float32)


def _scaling(metadata: Mapping[str, Any], factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama-3's scaling that has these factors: as our own keys say, or as Llama-3.1 and 3.2 have it."""
    fields: dict[str, Any] = {field: metadata[key] for field, key in _SCALING_KEYS.items()
                              if type(metadata.get(key)) in (int, float)}
    fields = {"factor": float(round(float(factors.max()), 4)), "original_positions": 8192} | fields
    scaling = RopeScaling(**fields)
    with np.errstate(all="ignore"):
        if not np.allclose(_factors(scaling, theta, head_dim), factors, rtol=1e-4):
            raise ValueError(f"{ROPE_FACTORS} is not Llama-3's scaling of rotary frequencies, the only one supported")
    return {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_positions}


def _query_scalar(layers: int, dim: int, heads: int, head_dim: int) -> float:
    """What llama.cpp divides a Gemma-2's queries by, squared."""
    return dim / heads if layers == _GEMMA2_27B_LAYERS else head_dim


class _Keys:
    """The keys of one architecture, each checked for its kind as it is read."""

    def __init__(self, metadata: Mapping[str, Any], kind: str) -> None:
        self.metadata, self.kind = metadata, kind

    def size(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(f"{self.kind}.{key}", default)
        if type(value) is not int or not 0 < value < 2**31:
            raise ValueError(f"{self.kind}.{key} is {str(value)[:80]}; it must be a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{self.kind}.{key}", default)
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{self.kind}.{key} is {str(value)[:80]}; it must be a number of at least 0")
        return float(str(np.float32(value)))  # 1e-5 is stored as the float32 next to it

    def refuse_unsupported(self) -> None:
        for key, allowed in (("rope.scaling.type", ("none",)), ("expert_count", (0,)), ("attention.causal", (True,)),
                             # a factor without a type scales linearly
                             ("rope.scaling.factor", (1, 0)), ("rope.scale_linear", (1, 0)),
                             ("use_parallel_residual", (True,)),
                             *([] if self.kind == "gemma2" else [("attention.sliding_window", (0,))])):
            value = self.metadata.get(f"{self.kind}.{key}", allowed[0])
            if value not in allowed:
                raise ValueError(f"{self.kind}.{key} is {str(value)[:80]}, which is not supported "
                                 f"(only {' or '.join(map(str, allowed))})")
