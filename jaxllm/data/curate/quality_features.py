"""What a quality classifier sees of a document: hashed words, or the mean of a language model's hidden states.

Both depend on the text alone: not on the process, the Python version, or the documents around it. No JAX here, so that
a worker that scores by hashed words does not load it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_WORD = re.compile(r"\w+")
_PAIR = np.uint64(0xD6E8FEB86659FD93)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_SMALLEST_WIDTH = 16


@dataclasses.dataclass(frozen=True)
class SparseRows:
    """A matrix [N, dim] by its entries: those of row i are starts[i] .. starts[i + 1].

    Attributes:
      columns: int32 [Z].
      values: float32 [Z].
      starts: int64 [N + 1].
      dim: columns of the matrix.
    """

    columns: np.ndarray
    values: np.ndarray
    starts: np.ndarray
    dim: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def rows(self) -> np.ndarray:
        """int32 [Z], the row of each entry."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.starts))


Features = SparseRows | np.ndarray  # the latter float32 [N, D]


def product(features: Features, weights: np.ndarray) -> np.ndarray:
    """Returns features @ weights, float64 [N]."""
    if isinstance(features, SparseRows):
        return np.bincount(features.rows, features.values * weights[features.columns].astype(np.float64),
                           minlength=len(features))
    return features.astype(np.float64) @ weights.astype(np.float64)


@dataclasses.dataclass(frozen=True)
class HashedWords:
    """Counts of words and of pairs of neighbours in 2^bits buckets, each document scaled to length 1.

    bucket(w) = crc32(w) * SPREAD mod 2^64, its highest `bits` bits; a pair v w has crc32(v) * PAIR + crc32(w) in place
    of crc32(w). Words are runs of letters, digits and underscores, in lower case, as UTF-8.

    Args:
      bits: 1 to 31; 18 gives 262,144 buckets.
      max_characters: the rest of a longer text is not looked at.

    Raises:
      ValueError: when one is out of range.

    >>> features = HashedWords(bits=10)(["A cat, a mat.", ""])
    >>> len(features), features.dim, round(float((features.values ** 2).sum()), 5)
    (2, 1024, 1.0)
    """

    bits: int = 18
    max_characters: int = 20_000

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 31 or self.max_characters < 1:
            raise ValueError(f"bits={self.bits}, max_characters={self.max_characters}: choose bits from 1 to 31 and "
                             f"at least 1 character")

    def __call__(self, texts: Sequence[str]) -> SparseRows:
        """Returns the features of each text; a text without words is a row without entries."""
        columns, values, starts = [], [], [0]
        for text in texts:
            where, counts = np.unique(self._buckets(text), return_counts=True)
            columns.append(where.astype(np.int32))
            values.append((counts / np.sqrt(np.sum(counts * counts) or 1)).astype(np.float32))
            starts.append(starts[-1] + len(where))
        return SparseRows(np.concatenate([np.zeros(0, np.int32), *columns]),
                          np.concatenate([np.zeros(0, np.float32), *values]), np.array(starts, np.int64),
                          1 << self.bits)

    def _buckets(self, text: str) -> np.ndarray:
        found = [_crc32(word) for word in _WORD.findall(text[:self.max_characters].lower())]
        words = np.array(found, np.uint64)
        hashes = np.concatenate([words, words[:-1] * _PAIR + words[1:]]) * _SPREAD
        return (hashes >> np.uint64(64 - self.bits)).astype(np.int64)

    def settings(self) -> dict[str, Any]:
        """What a folder states about them."""
        return {"kind": "hashed_words", **dataclasses.asdict(self)}


@functools.lru_cache(maxsize=1 << 18)
def _crc32(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


@dataclasses.dataclass(frozen=True)
class PooledStates:
    """The mean of a frozen language model's last hidden states over a document's first tokens.

    A document is preceded by end-of-text, as in pretraining. Rows have widths of powers of two and batches one size, so
    that few shapes are compiled.

    Args:
      pool: (tokens int32 [B, T], counts int32 [B]) -> float [B, D], the mean over each row's first `counts`
        positions; `jaxllm.data.curate.quality_head.mean_pool` makes one of hidden states.
      tokenizer: with `encode` and `end_of_text`, the model's.
      model: the name by which the classifier's folder remembers the model, usually its path.
      max_tokens: of a document, end-of-text included; at least 2.
      batch_size: rows per call of `pool`.
      max_characters: the rest of a longer text is not encoded.
    """

    pool: Callable[[np.ndarray, np.ndarray], Any] = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(repr=False)
    model: str = ""
    max_tokens: int = 512
    batch_size: int = 16
    max_characters: int = 20_000

    def __post_init__(self) -> None:
        if self.max_tokens < 2 or self.batch_size < 1 or self.max_characters < 1:
            raise ValueError(f"max_tokens={self.max_tokens}, batch_size={self.batch_size}, max_characters="
                             f"{self.max_characters}: choose at least 2 tokens, 1 row and 1 character")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [N, D]."""
        head = [self.tokenizer.end_of_text]
        rows = [(head + self.tokenizer.encode(text[:self.max_characters]))[:self.max_tokens] for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        pooled: dict[int, np.ndarray] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start:start + self.batch_size]
            width = min(self.max_tokens, max(_SMALLEST_WIDTH, 1 << (len(rows[chosen[-1]]) - 1).bit_length()))
            tokens, counts = np.zeros((self.batch_size, width), np.int32), np.ones(self.batch_size, np.int32)
            for row, i in enumerate(chosen):
                tokens[row, :len(rows[i])], counts[row] = rows[i], len(rows[i])
            pooled.update(zip(chosen, np.asarray(self.pool(tokens, counts), np.float32), strict=False))
        return np.stack([pooled[i] for i in range(len(rows))]) if rows else np.zeros((0, 0), np.float32)

    def settings(self) -> dict[str, Any]:
        """What a folder states about them: all but the model itself."""
        names = ("model", "max_tokens", "batch_size", "max_characters")
        return {"kind": "pooled_states", **{name: getattr(self, name) for name in names}}
