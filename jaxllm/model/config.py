"""What a model is (`ModelConfig`) and how it is run (`Execution`): two frozen, hashable records.

`ModelConfig` describes an architecture and nothing else, so that it can be a static argument of `jax.jit`, be
written to `config.json` and be compared. Everything that changes speed or memory and not the function computed
(dtype of the activations, scan over layers, rematerialisation, attention kernel) is in `Execution`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

NORMS = ("layer", "rms", "rms_plus_one")
MLPS = ("gelu", "swiglu", "geglu")
POSITIONS = ("rotary", "learned")
BIASES = ("none", "qkv", "all")
REMATS = ("none", "dots", "full")
ATTENTIONS = ("auto", "xla", "cudnn", "splash")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3's stretching of rotary wavelengths to contexts longer than the pretrained one.

    Frequencies with wavelength under `original_positions / high_frequency_factor` stay, those above
    `original_positions / low_frequency_factor` are divided by `factor`, and between them it is interpolated.

    References: Grattafiori et al., The Llama 3 Herd of Models, 2024. https://arxiv.org/abs/2407.21783
    """

    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of a decoder-only transformer; the letters are those of docs/ARCHITECTURE.md.

    Attributes:
      vocab_size: V, rows of the embedding. May exceed the tokenizer's (padding to a friendlier multiple).
      dim, layers, heads, kv_heads, head_dim, mlp_dim: D, L, N, K, H and F.
      max_positions: longest row, in tokens, that the model is meant for.
      norm: "layer" (with bias), "rms", or "rms_plus_one" (scale stored as its difference from one, Gemma).
      norm_eps: added to the variance inside the normalisation.
      mlp: "gelu" (two matrices), "swiglu" or "geglu" (three, gated); GELU is the tanh form.
      positions: "rotary" or "learned".
      rope_theta, rope_scaling: base of the rotary wavelengths and how they are stretched.
      bias: which projections have one: "none", "qkv" or "all".
      qk_norm: RMS norm of every query and key head (Qwen3).
      post_norms: also normalise what attention and MLP return, before the residual sum (Gemma-2).
      windows: sliding windows in tokens, repeated over the layers; 0 is full attention. Gemma-2: (4096, 0).
      attention_softcap, logit_softcap: c in c tanh(x / c); 0 is off.
      query_scale: factor on queries; None is H ** -0.5.
      scale_embedding: multiply embeddings by sqrt(D) (Gemma).
      tied_embedding: the output head is the transposed embedding.

    Raises:
      ValueError: when the fields cannot describe a model; the sentence says which to change.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    max_positions: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    mlp: str = "swiglu"
    positions: str = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    bias: str = "none"
    qk_norm: bool = False
    post_norms: bool = False
    windows: tuple[int, ...] = (0,)
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    query_scale: float | None = None
    scale_embedding: bool = False
    tied_embedding: bool = True

    def __post_init__(self) -> None:
        for field in ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "mlp_dim",
                      "max_positions"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"model.{field} must be a positive integer, not {value!r}")
        for field, allowed in (("norm", NORMS), ("mlp", MLPS), ("positions", POSITIONS),
                               ("bias", BIASES)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"model.{field} is {getattr(self, field)!r}; choose one of {allowed}")
        if not isinstance(self.windows, (tuple, list)) or not all(isinstance(w, int) for w in self.windows):
            raise ValueError(f"model.windows is {self.windows!r}; give a tuple of integers, such as (0,)")
        object.__setattr__(self, "windows", tuple(self.windows))
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        if self.heads % self.kv_heads:
            raise ValueError(f"model.heads ({self.heads}) must be a multiple of model.kv_heads "
                             f"({self.kv_heads}): each key/value head serves a whole group of queries")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"model.head_dim ({self.head_dim}) must be even: rotary positions turn pairs")
        if not self.windows or self.layers % len(self.windows) or min(self.windows) < 0:
            raise ValueError(f"model.windows {self.windows} must hold one or more sizes >= 0 whose number "
                             f"divides model.layers ({self.layers})")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is run; none of it changes the function computed, beyond rounding.

    Attributes:
      dtype: of activations and of the weights as they enter products; the weights themselves keep theirs.
      scan: run the layers by `lax.scan` (one compiled block) or unrolled (faster on a CPU for small models).
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
      attention: "auto", "xla", "cudnn" (NVIDIA, bfloat16) or "splash" (TPU). "auto" takes cuDNN on an NVIDIA
        GPU in bfloat16 where it can express the mask, splash on a TPU, XLA elsewhere.
    """

    dtype: str = "float32"
    scan: bool = True
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self) -> None:
        for field, allowed in (("dtype", DTYPES), ("remat", REMATS), ("attention", ATTENTIONS)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"execution.{field} is {getattr(self, field)!r}; choose one of {allowed}")


def _gpt2(dim: int, layers: int, heads: int) -> ModelConfig:
    """GPT-2: Radford et al., Language Models are Unsupervised Multitask Learners, 2019."""
    return ModelConfig(
        vocab_size=50257, dim=dim, layers=layers, heads=heads, kv_heads=heads, head_dim=dim // heads,
        mlp_dim=4 * dim, max_positions=1024, norm="layer", mlp="gelu", positions="learned", bias="all")


def _llama3(dim: int, layers: int, heads: int, mlp_dim: int, *, head_dim: int = 128, tied: bool = False,
            factor: float = 8.0) -> ModelConfig:
    """Llama 3.1 (8B, 70B, 405B) and 3.2 (1B, 3B): https://arxiv.org/abs/2407.21783."""
    return ModelConfig(
        vocab_size=128256, dim=dim, layers=layers, heads=heads, kv_heads=8, head_dim=head_dim,
        mlp_dim=mlp_dim, max_positions=131072, rope_theta=500_000.0, rope_scaling=RopeScaling(factor),
        tied_embedding=tied)


def _qwen2(dim: int, layers: int, heads: int, kv_heads: int, mlp_dim: int, *, tied: bool = True,
           vocab_size: int = 151936) -> ModelConfig:
    """Qwen2.5 Technical Report, 2024: https://arxiv.org/abs/2412.15115."""
    return ModelConfig(
        vocab_size=vocab_size, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=dim // heads, mlp_dim=mlp_dim, max_positions=32768, norm_eps=1e-6, rope_theta=1e6,
        bias="qkv", tied_embedding=tied)


def _qwen3(dim: int, layers: int, heads: int, mlp_dim: int, *, tied: bool = True) -> ModelConfig:
    """Qwen3 Technical Report, 2025: https://arxiv.org/abs/2505.09388."""
    return ModelConfig(
        vocab_size=151936, dim=dim, layers=layers, heads=heads, kv_heads=8, head_dim=128, mlp_dim=mlp_dim,
        max_positions=40960, norm_eps=1e-6, rope_theta=1e6, qk_norm=True, tied_embedding=tied)


def _gemma2(dim: int, layers: int, heads: int, kv_heads: int, mlp_dim: int, *, head_dim: int = 256,
            query_scale: float = 256 ** -0.5) -> ModelConfig:
    """Gemma 2: Improving Open Language Models at a Practical Size, 2024: https://arxiv.org/abs/2408.00118."""
    return ModelConfig(
        vocab_size=256000, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        mlp_dim=mlp_dim, max_positions=8192, norm="rms_plus_one", norm_eps=1e-6, mlp="geglu",
        post_norms=True, windows=(4096, 0), attention_softcap=50.0, logit_softcap=30.0,
        query_scale=query_scale, scale_embedding=True)


def _smollm2(dim: int, layers: int, heads: int, kv_heads: int, mlp_dim: int,
             rope_theta: float = 100_000.0) -> ModelConfig:
    """SmolLM2: When Smol Goes Big, 2025: https://arxiv.org/abs/2502.02737."""
    return ModelConfig(
        vocab_size=49152, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=64,
        mlp_dim=mlp_dim, max_positions=8192, rope_theta=rope_theta)


PRESETS: dict[str, ModelConfig] = {
    # Small ones for a laptop and for tests: Llama's block at the sizes of the small world.
    "nano": ModelConfig(vocab_size=256, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=96,
                        max_positions=64),
    "tiny": ModelConfig(vocab_size=2048, dim=128, layers=4, heads=4, kv_heads=4, head_dim=32, mlp_dim=384,
                        max_positions=256),
    "small": ModelConfig(vocab_size=4096, dim=256, layers=6, heads=8, kv_heads=8, head_dim=32, mlp_dim=704,
                         max_positions=512),
    "gpt2_124m": _gpt2(768, 12, 12),
    "gpt2_355m": _gpt2(1024, 24, 16),
    "gpt2_774m": _gpt2(1280, 36, 20),
    "gpt2_1558m": _gpt2(1600, 48, 25),
    "llama3_1b": _llama3(2048, 16, 32, 8192, head_dim=64, tied=True, factor=32.0),
    "llama3_3b": _llama3(3072, 28, 24, 8192, tied=True, factor=32.0),
    "llama3_8b": _llama3(4096, 32, 32, 14336),
    "llama3_70b": _llama3(8192, 80, 64, 28672),
    "llama3_405b": _llama3(16384, 126, 128, 53248),
    "qwen2_5_0.5b": _qwen2(896, 24, 14, 2, 4864),
    "qwen2_5_1.5b": _qwen2(1536, 28, 12, 2, 8960),
    "qwen2_5_3b": _qwen2(2048, 36, 16, 2, 11008),
    "qwen2_5_7b": _qwen2(3584, 28, 28, 4, 18944, tied=False, vocab_size=152064),
    "qwen3_0.6b": _qwen3(1024, 28, 16, 3072),
    "qwen3_1.7b": _qwen3(2048, 28, 16, 6144),
    "qwen3_4b": _qwen3(2560, 36, 32, 9728),
    "qwen3_8b": _qwen3(4096, 36, 32, 12288, tied=False),
    "gemma2_2b": _gemma2(2304, 26, 8, 4, 9216),
    "gemma2_9b": _gemma2(3584, 42, 16, 8, 14336),
    "gemma2_27b": _gemma2(4608, 46, 32, 16, 36864, head_dim=128, query_scale=144 ** -0.5),
    "smollm2_135m": _smollm2(576, 30, 9, 3, 1536),
    "smollm2_360m": _smollm2(960, 32, 15, 5, 2560),
    "smollm2_1.7b": _smollm2(2048, 24, 32, 32, 8192, rope_theta=130_000.0),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """Returns the preset `name` with some fields changed.

    Raises:
      ValueError: for a name that is not in PRESETS, or a field that ModelConfig lacks.

    >>> preset("gpt2_124m", vocab_size=50304).layers
    12
    """
    if name not in PRESETS:
        raise ValueError(f"model preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    unknown = set(changes) - {field.name for field in dataclasses.fields(ModelConfig)}
    if unknown:
        raise ValueError(f"model has no field {', '.join(sorted(unknown))}")
    return dataclasses.replace(PRESETS[name], **changes)


def save_config(config: ModelConfig, path: str | os.PathLike) -> None:
    """Writes `config` as json, whole or not at all."""
    temporary = f"{os.fspath(path)}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(config), file, indent=2)
    os.replace(temporary, path)


def load_config(path: str | os.PathLike) -> ModelConfig:
    """Reads what `save_config` wrote.

    Raises:
      ValueError: for a file that is not the json of a ModelConfig, naming it and what is wrong.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return ModelConfig(**json.load(file))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} does not hold a model configuration: {error}") from error
