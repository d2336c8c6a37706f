"""A folder of named arrays and one JSON file: how a classifier's head and an index of n-grams lie on disk.

Arrays are memory-mapped on reading, so that the processes of one machine share them. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

RECORD = "folder.json"


def write_arrays(folder: str | os.PathLike, kind: str, record: Mapping[str, Any],
                 arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a folder whole or not at all; one of the same kind that is already there is replaced.

    Args:
      folder: where.
      kind: what the folder is, in words; `read_arrays` refuses another kind.
      record: whatever JSON can hold.
      arrays: by name; each becomes `<name>.npy`.

    Raises:
      FileExistsError: when something else stands there.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not (folder / RECORD).exists():
        raise FileExistsError(f"{folder} exists and is not a {kind}; choose another folder or remove it")
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
        text = json.dumps({"kind": kind, **record, "arrays": shapes}, indent=1, ensure_ascii=False)
        (temporary / RECORD).write_text(text + "\n", encoding="utf-8", errors="surrogatepass")
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def read_arrays(folder: str | os.PathLike, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads what `write_arrays` wrote.

    Returns:
      the record, and the arrays by name, memory-mapped and read-only.

    Raises:
      FileNotFoundError: when the folder or a file of it is missing.
      ValueError: when it is of another kind or damaged; names the file.
    """
    path = pathlib.Path(folder) / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a {kind}: it has no {RECORD}; give the folder that was written")
    try:
        record = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        shapes = record.pop("arrays")
        found = record.pop("kind")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); write the folder again") from error
    if found != kind:
        raise ValueError(f"{folder} is a {found}, not a {kind}; give another folder")
    return record, {name: _read(path.with_name(f"{name}.npy"), *shape) for name, shape in shapes.items()}


def _read(path: pathlib.Path, dtype: str, shape: list[int]) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; write the folder again")
    try:
        # An empty file cannot be mapped.
        array = np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); write the folder again") from error
    if array.dtype.str != dtype or list(array.shape) != shape:
        raise ValueError(f"{path} holds {array.dtype.str}{list(array.shape)} where {RECORD} says {dtype}{shape}; "
                         f"write the folder again")
    return array
