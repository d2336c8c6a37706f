"""safetensors files: a header that is checked before anything is believed, tensors read and written one at a time.

A file is a little-endian uint64 (bytes of the header), the header (json: name -> dtype, shape, place in the data) and
the data. Tensors are read by position and not mapped: mapped pages count as memory of the process, and a file cut short
under it would end it.

References: https://github.com/huggingface/safetensors (the format, and what its own reader refuses).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np

LARGEST_HEADER = 100_000_000  # bytes; the limit of the format's own reader
MOST_DIMENSIONS = 8
FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_NAMES = {dtype: name for name, dtype in FLOATS.items()}
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
          "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: file, dtype by its name there, shape, first byte and bytes."""

    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> np.ndarray:
        """The tensor, in the file's dtype.

        Raises:
          ValueError: when it holds no floats, or the file has become shorter.
        """
        if self.dtype not in FLOATS:
            raise ValueError(f"{self.path} holds a tensor of {self.dtype}; only {', '.join(FLOATS)} are weights here")
        out = np.empty(self.shape, FLOATS[self.dtype])
        read_into(self.path, self.start, out)
        return out


def read_into(path: str | os.PathLike, start: int, out: np.ndarray) -> None:
    """Fills the contiguous array `out` with the bytes of a file from `start` on.

    Raises:
      ValueError: when the file ends before.
    """
    view = memoryview(out.reshape(-1).view(np.uint8))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while view:
            count = file.readinto(view)
            if not count:
                raise ValueError(f"{os.fspath(path)} ends inside a tensor; it is cut short")
            view = view[count:]


def read_header(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name, none of them read.

    Raises:
      ValueError: when the header is damaged, or says of sizes and places what cannot be.
    """
    path = pathlib.Path(path)
    whole = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if whole < 8 or length > min(whole - 8, LARGEST_HEADER):
            raise ValueError(f"{path} is no safetensors file: {whole} bytes, with a header of {length}")
        header = file.read(length)
    try:
        entries = json.loads(header, object_pairs_hook=_no_twins)
        if not isinstance(entries, dict):
            raise ValueError("not an object")
        entries.pop("__metadata__", None)
        tensors = {name: _tensor(path, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header: {error}") from error
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != end:
            raise ValueError(f"{path} has a damaged header: {name} does not begin where the tensor before it ends")
        end += tensor.size
    if end != whole:
        raise ValueError(f"{path} has {whole} bytes, its header asks for {end}; it is cut short or damaged")
    return tensors


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands in it twice")
    return dict(pairs)


def _tensor(path: pathlib.Path, entry: Any, data: int) -> Tensor:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _SIZES:
        raise ValueError(f"dtype {dtype!r} is unknown")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{str(shape)[:80]} is no shape")
    for number in (*shape, begin, end):
        if type(number) is not int or not 0 <= number < 2**48:
            raise ValueError(f"{str(number)[:80]} is no size")
    if math.prod(shape) * _SIZES[dtype] != end - begin:
        raise ValueError(f"a tensor {shape} of {dtype} cannot have {end - begin} bytes")
    return Tensor(path, dtype, tuple(shape), data + begin, end - begin)


@dataclasses.dataclass(frozen=True)
class Pending:
    """A tensor to be written: its dtype and shape are known before `make` makes it."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: str | os.PathLike, tensors: Iterable[Pending]) -> None:
    """Writes a safetensors file, each tensor made only when its turn has come.

    Raises:
      ValueError: for a dtype that is not one of FLOATS.
    """
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)  # so that each stays aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for tensor in tensors:
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{tensor.name} is of {tensor.dtype}; only {', '.join(FLOATS)} can be written")
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape),
                               "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        write_all(file, len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = tensor.make()
            if array.dtype != tensor.dtype or array.shape != tensor.shape:
                raise ValueError(f"{tensor.name} is {array.dtype}{array.shape}, not {tensor.dtype}{tensor.shape}")
            write_all(file, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        os.fsync(file.fileno())


def write_all(file: Any, data: Any) -> None:
    """Writes all of `data` to an unbuffered file, which may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[file.write(view):]
