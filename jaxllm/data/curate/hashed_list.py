"""A set of millions of strings as one sorted array of 64-bit hashes, mapped into memory and shared by all processes.

The 4.6 million hosts of datatrove's block list take 743 MB as a Python set in every worker, and 37 MB so. Two of them
collide with probability 6e-7 (n^2 / 2^65), and a host that is not listed is taken for one with 2.5e-13 (n / 2^64).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

import numpy as np
import xxhash

_BATCH = 1 << 18


class HashedList:
    """`in` on a file that `write` made.

    Args:
      path: the .npy file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = str(path)
        self._hashes = np.load(self.path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, text: str) -> bool:
        wanted = np.uint64(xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass")))
        found = int(np.searchsorted(self._hashes, wanted))
        return found < len(self._hashes) and self._hashes[found] == wanted

    def __reduce__(self):
        return HashedList, (self.path,)  # a worker maps the same file


def write(texts: Iterable[str], path: str | os.PathLike) -> None:
    """Hashes and sorts the texts into a .npy file of uint64, under its name only when complete."""
    parts, batch = [], []
    for text in texts:
        batch.append(xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass")))
        if len(batch) == _BATCH:
            parts.append(np.array(batch, np.uint64))
            batch = []
    hashes = np.unique(np.concatenate([*parts, np.array(batch, np.uint64)]))
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with open(unfinished, "wb") as file:
        np.save(file, hashes)
    os.replace(unfinished, path)
