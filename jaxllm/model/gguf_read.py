"""A GGUF file, as llama.cpp runs it, to our parameters, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.model.config import ModelConfig
from jaxllm.model.convert import from_hugging_face, hugging_face_shapes
from jaxllm.model.convert_config import FAMILIES, family
from jaxllm.model.gguf_file import GgufFile, GgufTensor, read_gguf_file
from jaxllm.model.gguf_names import ROPE_FACTORS, config_from_metadata, from_gguf, gguf_name, gguf_shape
from jaxllm.model.hub import LazyState, Progress
from jaxllm.model.params import Params


def read_gguf(source: str | os.PathLike | GgufFile, *, dtype: Any = np.float32, progress: Progress | None = None
              ) -> tuple[Params, ModelConfig]:
    """Reads the weights and the architecture of a GGUF file.

    Args:
      source: a path, or what `read_gguf_file` returned; its metadata hold the tokenizer too
        (`jaxllm.data.tokenizer_gguf`).
      dtype: of the parameters; quantised weights are dequantised.
      progress: called with the bytes of each tensor read.

    Returns:
      (parameters as numpy arrays, configuration).

    Raises:
      ValueError: when the file is damaged, the architecture unknown, or tensors are missing, unknown or of another
        shape: all are listed.
    """
    file = source if isinstance(source, GgufFile) else read_gguf_file(source)
    try:
        config = read_gguf_config(file)
        kind = family(config)
        names = _match(file, config, kind)
        return from_hugging_face(_GgufState(names, config, kind, np.dtype(dtype), progress), config), config
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{file.path}: {error}") from error


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """The architecture that a GGUF file describes.

    Raises:
      ValueError: naming what is missing or not supported.
    """
    kind = file.metadata.get("general.architecture")
    if kind not in FAMILIES:
        raise ValueError(f"the architecture {str(kind)[:80]!r} is not supported; choose one of {', '.join(FAMILIES)}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError("token_embd.weight is missing or no matrix")
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None and (len(factors.shape) != 1 or factors.type != "F32"):
        raise ValueError(f"{ROPE_FACTORS} is not a vector of F32")
    return config_from_metadata(file.metadata, embedding.shape[0], "output.weight" not in file.tensors,
                                None if factors is None else factors.read())


def _match(file: GgufFile, config: ModelConfig, kind: str) -> dict[str, GgufTensor]:
    """Hugging Face's name -> tensor of the file, or ValueError with all that does not fit."""
    if config.layers > len(file.tensors):  # before a list as long as a damaged file says is made
        raise ValueError(f"it has {config.layers} layers, but only {len(file.tensors)} tensors")
    names, problems = {}, []
    unknown = dict(file.tensors)
    unknown.pop(ROPE_FACTORS, None)
    for name, shape in hugging_face_shapes(config).items():
        theirs = gguf_name(name, kind)
        tensor = unknown.pop(theirs, None)
        if tensor is None:
            problems.append(f"{theirs} is missing")
        elif tensor.shape != gguf_shape(name, shape, kind):
            problems.append(f"{theirs} has shape {tensor.shape}, not {gguf_shape(name, shape, kind)}")
        else:
            names[name] = tensor
    problems += [f"{name} is unknown" for name in unknown]
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"its tensors do not fit its architecture: {'; '.join(problems[:20])}{more}")
    return names


class _GgufState(LazyState):
    """Hugging Face's names -> arrays as there, each read and dequantised when it is asked for."""

    def __init__(self, tensors: Mapping[str, GgufTensor], config: ModelConfig, kind: str, dtype: np.dtype,
                 progress: Progress | None) -> None:
        super().__init__(tensors, dtype, progress)
        self._config, self._kind = config, kind

    def _read(self, name: str) -> np.ndarray:
        return from_gguf(name, super()._read(name), self._config, self._kind)
