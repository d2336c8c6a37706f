"""Our parameters to a GGUF file that llama.cpp runs, tensor by tensor: F32, F16, Q8_0 or Q4_0.

Written by the package `gguf` (extra `gguf`), llama.cpp's own. Vectors, and GPT-2's positions, are F32 in every scheme,
as llama.cpp asks for. In Q4_0 the embedding and the head are Q8_0: they are small beside what rounding them costs.

References: https://github.com/ggml-org/llama.cpp (convert_hf_to_gguf.py).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.model.config import ModelConfig
from jaxllm.model.convert import HuggingFaceState
from jaxllm.model.convert_config import family
from jaxllm.model.gguf_file import TYPES, import_quants, type_number
from jaxllm.model.gguf_names import (
    ROPE_FACTORS,
    config_to_metadata,
    gguf_name,
    gguf_shape,
    rope_factors_of,
    to_gguf,
)
from jaxllm.model.hub import Progress
from jaxllm.model.params import Params

SCHEMES = ("F32", "F16", "Q8_0", "Q4_0")
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}  # llama.cpp's general.file_type
_LARGEST_F16 = float(np.finfo(np.float16).max)


def write_gguf(path: str | os.PathLike, params: Params, config: ModelConfig, tokenizer: Mapping[str, Any], *,
               scheme: str = "F16", name: str = "model", progress: Progress | None = None) -> None:
    """Writes a GGUF file under a temporary name, which it gets when it is whole.

    Args:
      path: the file.
      params: the parameters.
      config: the architecture.
      tokenizer: the metadata that `jaxllm.data.tokenizer_gguf.tokenizer_to_gguf` makes; llama.cpp reads no model
        without.
      scheme: of the matrices, one of SCHEMES; rows that 32 does not divide are F16 in the quantised ones.
      name: general.name in the file.
      progress: called with the bytes of each tensor, as float32, written.

    Raises:
      ValueError: for an unknown scheme, an architecture that llama.cpp lacks, or weights too large for F16.
      FileExistsError: when there is such a file.
      ImportError: without the package `gguf`.
    """
    _check(path, scheme)
    from gguf import GGUFWriter
    kind = family(config)
    metadata = config_to_metadata(config) | dict(tokenizer)
    state = HuggingFaceState(params, config)
    types = {key: _type(gguf_name(key, kind), gguf_shape(key, state.shapes[key], kind), scheme) for key in state}
    logging.getLogger("gguf").setLevel(logging.WARNING)
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    writer = GGUFWriter(temporary, kind)
    try:
        _add_metadata(writer, metadata | {"general.name": name, "general.file_type": _FILE_TYPES[scheme],
                                          "general.quantization_version": 2})
        factors = rope_factors_of(config)
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for key in state:
            _add_tensor(writer, gguf_name(key, kind), gguf_shape(key, state.shapes[key], kind), types[key])
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
            write()
        if factors is not None:
            writer.write_tensor_data(factors)
        for key in state:
            array = to_gguf(key, state[key].astype(np.float32, copy=False), config, kind)
            writer.write_tensor_data(_encode(key, array, types[key]))
            if progress:
                progress(array.nbytes)
        writer.close()
        os.replace(temporary, path)
    finally:
        writer.close()
        if os.path.exists(temporary):
            os.remove(temporary)


def _check(path: str | os.PathLike, scheme: str) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"the GGUF scheme {scheme!r} is unknown; choose one of {', '.join(SCHEMES)}")
    if os.path.exists(path):
        raise FileExistsError(f"{os.fspath(path)} is there already; choose another name or remove it first")
    import_quants()


def _type(name: str, shape: tuple[int, ...], scheme: str) -> str:
    """The type of a tensor in the file."""
    if len(shape) == 1 or name == "position_embd.weight":
        return "F32"
    if scheme == "Q4_0" and name in ("token_embd.weight", "output.weight"):
        scheme = "Q8_0"
    return "F16" if shape[-1] % TYPES[type_number(scheme)][1] else scheme


def _add_metadata(writer: Any, metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if key == "general.architecture":  # the writer has put it there
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _add_tensor(writer: Any, name: str, shape: tuple[int, ...], type_name: str) -> None:
    from gguf import GGMLQuantizationType
    number = type_number(type_name)
    _, block, block_bytes = TYPES[number]
    row_bytes = shape[-1] // block * block_bytes
    if type_name in ("F32", "F16"):
        writer.add_tensor_info(name, shape, np.dtype(np.float32 if type_name == "F32" else np.float16),
                               math.prod(shape[:-1]) * row_bytes)
    else:
        writer.add_tensor_info(name, (*shape[:-1], row_bytes), np.dtype(np.uint8), math.prod(shape[:-1]) * row_bytes,
                               raw_dtype=GGMLQuantizationType(number))


def _encode(name: str, array: np.ndarray, type_name: str) -> np.ndarray:
    if type_name == "F32":
        return np.ascontiguousarray(array)
    if max(array.max(initial=0.0), -array.min(initial=0.0)) > _LARGEST_F16:
        raise ValueError(f"{name} holds {np.abs(array).max():.3g}, which {type_name} cannot; write F32")
    if type_name == "F16":
        return array.astype(np.float16)
    from gguf import GGMLQuantizationType
    return import_quants().quantize(np.ascontiguousarray(array), GGMLQuantizationType(type_number(type_name)))
