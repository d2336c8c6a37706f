"""Hugging Face's `config.json` to a ModelConfig and back, and the family that a config belongs to.

References: https://github.com/huggingface/transformers (each family's configuration class).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxllm.model.config import ModelConfig, RopeScaling

# What every family but Gemma-2 leaves out, so that a configuration matches one family or none.
_PLAIN = {"qk_norm": False, "post_norms": False, "windows": (0,), "attention_softcap": 0.0,
          "logit_softcap": 0.0, "query_scale": None, "scale_embedding": False}
_LLAMA = {**_PLAIN, "norm": "rms", "mlp": "swiglu", "positions": "rotary", "bias": "none"}

# Hugging Face's model_type -> the fields of ModelConfig that it implies.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {**_PLAIN, "norm": "layer", "mlp": "gelu", "positions": "learned", "bias": "all",
             "rope_scaling": None},
    "llama": _LLAMA,
    "qwen2": {**_LLAMA, "bias": "qkv"},
    "qwen3": {**_LLAMA, "qk_norm": True},
    "gemma2": {"norm": "rms_plus_one", "mlp": "geglu", "positions": "rotary", "bias": "none",
               "qk_norm": False, "post_norms": True, "scale_embedding": True},
}
_CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM"}

# Our field -> their key in config.json.
_SIZES = {"vocab_size": "vocab_size", "dim": "hidden_size", "layers": "num_hidden_layers",
          "heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
          "head_dim": "head_dim", "mlp_dim": "intermediate_size",
          "max_positions": "max_position_embeddings", "norm_eps": "rms_norm_eps"}
_GPT2_SIZES = {"vocab_size": "vocab_size", "dim": "n_embd", "layers": "n_layer", "heads": "n_head",
               "mlp_dim": "n_inner", "max_positions": "n_positions",
               "norm_eps": "layer_norm_epsilon"}
_SOFTCAPS = {"attention_softcap": "attn_logit_softcapping",
             "logit_softcap": "final_logit_softcapping"}
_SCALING = {"factor": "factor", "low_frequency_factor": "low_freq_factor",
            "high_frequency_factor": "high_freq_factor",
            "original_positions": "original_max_position_embeddings"}
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
# Keys that could ask for what we do not compute -> the values under which they do not.
_SUPPORTED = {
    "activation_function": _TANH_GELU, "hidden_activation": _TANH_GELU,
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
    "attention_bias": (False,), "mlp_bias": (False,), "use_sliding_window": (False,),
    "use_bidirectional_attention": (False,), "partial_rotary_factor": (1.0,),
}
_GEMMA2_LAYERS = ("sliding_attention", "full_attention")


def family(config: ModelConfig) -> str:
    """Hugging Face's model_type for `config`.

    Raises:
      ValueError: when no family there computes this function.

    >>> from jaxllm.model.config import preset
    >>> family(preset("smollm2_135m"))
    'llama'
    """
    differences = {
        name: [field for field, value in fields.items() if getattr(config, field) != value]
        for name, fields in FAMILIES.items()}
    if config.kv_heads != config.heads:
        differences["gpt2"].append("kv_heads")
    if config.heads * config.head_dim != config.dim:
        differences["gpt2"].append("head_dim")
    if len(config.windows) != 2 or config.windows[0] == 0 or config.windows[1] != 0:
        differences["gemma2"].append("windows")
    nearest = min(differences, key=lambda name: len(differences[name]))
    if differences[nearest]:
        raise ValueError(f"no Hugging Face family has this architecture; the nearest, {nearest}, "
                         f"differs in {', '.join(differences[nearest])}")
    return nearest


def config_to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """The content of a `config.json` for `config`, in keys that transformers 4 and 5 both read.

    Raises:
      ValueError: when no family there computes this function.
    """
    kind = family(config)
    out: dict[str, Any] = {"model_type": kind, "architectures": [_CLASSES[kind]],
                           "tie_word_embeddings": config.tied_embedding}
    out |= {theirs: getattr(config, ours) for ours, theirs in _sizes(kind).items()}
    if kind == "gpt2":
        return out | {"activation_function": "gelu_new"}
    out |= {"rope_theta": config.rope_theta, "attention_bias": False}
    if config.rope_scaling:
        out["rope_scaling"] = {"rope_type": "llama3"} | {
            theirs: getattr(config.rope_scaling, ours) for ours, theirs in _SCALING.items()}
    if kind != "gemma2":
        return out | {"hidden_act": "silu"}
    out |= {theirs: getattr(config, ours) or None for ours, theirs in _SOFTCAPS.items()}
    scale = config.head_dim ** -0.5 if config.query_scale is None else config.query_scale
    scalar = scale ** -2
    return out | {
        "query_pre_attn_scalar": round(scalar) if math.isclose(scalar, round(scalar)) else scalar,
        "sliding_window": config.windows[0],
        "layer_types": list(_GEMMA2_LAYERS) * (config.layers // 2),
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def config_from_hugging_face(config: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from the content of a `config.json`, as transformers 4 or 5 writes it.

    Raises:
      ValueError: naming a key that is missing, or that asks for what we do not compute.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model_type {kind!r} is not supported; choose one of "
                         f"{', '.join(FAMILIES)}")
    _check_supported(config, kind)
    sizes = _sizes(kind)
    fields: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in sizes.items()}
    if kind == "gpt2" and fields["dim"]:
        fields["mlp_dim"] = fields["mlp_dim"] or 4 * fields["dim"]
    fields["kv_heads"] = fields.get("kv_heads") or fields["heads"]
    if not fields.get("head_dim") and fields["dim"] and fields["heads"]:
        fields["head_dim"] = fields["dim"] // fields["heads"]
    missing = [theirs for ours, theirs in sizes.items() if fields[ours] is None]
    tied = config.get("tie_word_embeddings")
    # transformers leaves the key out where its class takes it for granted
    fields["tied_embedding"] = kind in ("gpt2", "gemma2") if tied is None else tied
    if kind == "gemma2":
        keys = ("query_pre_attn_scalar", "sliding_window")
        missing += [key for key in keys if not config.get(key)]
    if missing:
        raise ValueError(f"config.json of a {kind} model lacks {', '.join(missing)}")
    if kind != "gpt2":
        fields |= _rope(config)
    if kind == "gemma2":
        fields |= {ours: float(config.get(theirs) or 0.0) for ours, theirs in _SOFTCAPS.items()}
        fields |= {"windows": (config["sliding_window"], 0),
                   "query_scale": config["query_pre_attn_scalar"] ** -0.5}
    return ModelConfig(**{**FAMILIES[kind], **fields})


def _sizes(kind: str) -> dict[str, str]:
    return _GPT2_SIZES if kind == "gpt2" else _SIZES


def _check_supported(config: Mapping[str, Any], kind: str) -> None:
    supported: dict[str, tuple] = dict(_SUPPORTED)
    supported["hidden_act"] = _TANH_GELU if kind == "gemma2" else ("silu", "swish")
    for key, allowed in supported.items():
        if config.get(key) is not None and config[key] not in allowed:
            raise ValueError(f"config.json has {key} = {config[key]!r}, which is not supported "
                             f"(only {', '.join(map(str, allowed))})")
    types = config.get("layer_types")
    wanted = _GEMMA2_LAYERS if kind == "gemma2" else ("full_attention",)
    if types and list(types) != (list(wanted) * len(types))[:len(types)]:
        raise ValueError(f"config.json has layer_types other than {' and '.join(wanted)} in turn, "
                         f"which is not supported")


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling: two keys in transformers 4, one `rope_parameters` from 5 on."""
    rope = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    missing = [theirs for theirs in _SCALING.values() if theirs not in rope]
    if kind != "llama3" or missing:
        raise ValueError(f"config.json has rope_type {kind!r}, which is not supported (only llama3)"
                         if kind != "llama3" else
                         f"the llama3 rope scaling of config.json lacks {', '.join(missing)}")
    scaling = RopeScaling(**{ours: rope[theirs] for ours, theirs in _SCALING.items()})
    return {"rope_theta": theta, "rope_scaling": scaling}
