"""The GGUF format: header and metadata read with every count and length checked against the file, tensors on demand.

References: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import struct
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxllm.model.tensor_file import read_into

MAGIC = b"GGUF"
MOST_KEYS, MOST_TENSORS, MOST_ITEMS = 2**16, 2**20, 2**24
LONGEST_TEXT, LONGEST_NAME = 2**24, 2**10  # bytes
LARGEST_METADATA = 2**29  # bytes before the tensors
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
# ggml's number of a type -> name, numbers in a block, bytes of a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2)}
_PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: type by name, shape (outermost first), first byte and bytes."""

    path: pathlib.Path
    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> np.ndarray:
        """The tensor as float32; quantised ones by the dequantisers of the package `gguf`.

        Raises:
          ValueError: when the file has become shorter.
          ImportError: for a quantised tensor without that package.
        """
        if self.type in _PLAIN:
            out = np.empty(self.shape, _PLAIN[self.type])
            read_into(self.path, self.start, out)
            return out.astype(np.float32, copy=False)
        quants, kind = import_quants(), type_number(self.type)
        _, block, block_bytes = TYPES[kind]
        raw = np.empty((*self.shape[:-1], self.shape[-1] // block * block_bytes), np.uint8)
        read_into(self.path, self.start, raw)
        with np.errstate(all="ignore"):  # scales of a damaged file may be infinite
            return quants.dequantize(raw, kind).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """The metadata (key -> int, float, bool, str, list of str or array) and tensors of a GGUF file."""

    path: pathlib.Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def import_quants() -> Any:
    """The module `gguf.quants`."""
    try:
        from gguf import quants
    except ImportError as error:
        raise ImportError("writing a GGUF, or reading a quantised one, needs the package gguf: pip install -e '.[gguf]'"
                          ) from error
    return quants


def type_number(name: str) -> int:
    """ggml's number of a type."""
    return next(number for number, (other, _, _) in TYPES.items() if other == name)


def read_gguf_file(path: str | os.PathLike) -> GgufFile:
    """Reads the metadata and finds the tensors, none of which is read.

    Raises:
      ValueError: when this is no GGUF, is damaged or cut short, or has a tensor of a type that is not read.
    """
    path = pathlib.Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        source = _Source(file, path, size)
        if size < 24 or source.take(4) != MAGIC:
            raise ValueError(f"{path} is no GGUF file")
        version, tensor_count, key_count = source.number("<I"), source.number("<Q"), source.number("<Q")
        if version not in (2, 3):
            raise source.error(f"GGUF version {version} is not read (only 2 and 3, little-endian)")
        if key_count > MOST_KEYS or tensor_count > MOST_TENSORS:
            raise source.error(f"it claims {key_count} keys and {tensor_count} tensors")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = source.text(LONGEST_NAME)
            if key in metadata:
                raise source.error(f"the key {key!r} stands in it twice")
            metadata[key] = source.value(source.number("<I"))
        entries = [_entry(source) for _ in range(tensor_count)]
        start = source.at
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in [2**i for i in range(3, 17)]:
        raise source.error(f"its alignment is {alignment!r}")
    tensors = _place(source, entries, -(-start // alignment) * alignment, alignment)
    return GgufFile(path, metadata, tensors)


def _entry(source: _Source) -> tuple[str, int, tuple[int, ...], int]:
    """(name, type, shape outermost first, place in the data) of the next tensor."""
    name, dimensions = source.text(LONGEST_NAME), source.number("<I")
    if not 1 <= dimensions <= 4:
        raise source.error(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(source.number("<Q") for _ in range(dimensions))[::-1]
    if not all(0 < width < 2**48 for width in shape):
        raise source.error(f"tensor {name!r} has shape {shape}")
    return name, source.number("<I"), shape, source.number("<Q")


def _place(source: _Source, entries: list, data: int, alignment: int) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    end = data
    for name, kind, shape, offset in sorted(entries, key=lambda entry: entry[3]):
        if kind not in TYPES:
            raise source.error(f"tensor {name!r} is of ggml's type {kind}; read are "
                               f"{', '.join(other for other, _, _ in TYPES.values())}")
        type_name, block, block_bytes = TYPES[kind]
        start, size = data + offset, math.prod(shape) // block * block_bytes
        if shape[-1] % block or offset % alignment or start < end or start + size > source.size or name in tensors:
            raise source.error(f"tensor {name!r} ({type_name} {shape} at {offset}) does not fit into the file, or "
                               f"overlaps another")
        tensors[name] = GgufTensor(source.path, name, type_name, shape, start, size)
        end = start + size
    return tensors


class _Source:
    """A file read from the front, never beyond its end and never more than is there."""

    def __init__(self, file: BinaryIO, path: pathlib.Path, size: int) -> None:
        self.file, self.path, self.size, self.at = file, path, size, 0

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path} is damaged or cut short: {reason}")

    def take(self, count: int) -> bytes:
        if count > min(self.size, LARGEST_METADATA) - self.at:
            raise self.error(f"at byte {self.at} it claims {count} more bytes")
        self.at += count
        data = self.file.read(count)
        if len(data) != count:
            raise self.error(f"it ended at byte {self.at}")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, longest: int = LONGEST_TEXT) -> str:
        length = self.number("<Q")
        if length > longest:
            raise self.error(f"at byte {self.at} it claims a text of {length} bytes")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise self.error(f"at byte {self.at} it has a value of the unknown kind {kind}")
        kind, count = self.number("<I"), self.number("<Q")
        if count > MOST_ITEMS:
            raise self.error(f"at byte {self.at} it claims a list of {count} items")
        if kind == _TEXT:
            if 8 * count > self.size - self.at:
                raise self.error(f"at byte {self.at} it claims {count} texts")
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.error(f"at byte {self.at} it has a list of the kind {kind}")
        form = np.dtype(_SCALARS[kind].replace("?", "B").replace("<q", "<i8").replace("<Q", "<u8"))
        return np.frombuffer(self.take(form.itemsize * count), form).tolist()
