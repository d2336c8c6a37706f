"""The data path of the benchmark: tokens/s into host batches from a synthetic corpus, and memory."""

from __future__ import annotations

import itertools
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from jaxllm.data.loader import Mixture, Windows
from jaxllm.data.shards import ShardWriter, open_shards

END_OF_TEXT = 50256


def write_corpus(folder: pathlib.Path, tokens: int) -> None:
    """Writes random documents of 200 tokens on average, a million tokens at a time."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, vocab_size=50257, fingerprint="synthetic", end_of_text=END_OF_TEXT) as writer:
        for start in range(0, tokens, 1_000_000):
            count = min(1_000_000, tokens - start)
            ends = np.unique(np.append(rng.integers(1, count, count // 200), count))
            chunk = rng.integers(0, END_OF_TEXT, count)
            chunk[ends - 1] = END_OF_TEXT
            writer.add_many(chunk, ends, 4 * count)


def resident_megabytes() -> float:
    """Resident memory of this process, mapped files included (Linux)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def rate(source, batch_size: int, seconds: float) -> tuple[float, float]:
    """Returns millions of tokens per second of wall time and of processor time."""
    source.batch_at(0, batch_size=batch_size)
    wall, processor = time.perf_counter(), time.process_time()
    for step in itertools.count():
        source.batch_at(step, batch_size=batch_size)
        if time.perf_counter() - wall > seconds:
            break
    millions = (step + 1) * batch_size * source.length / 1e6
    return millions / (time.perf_counter() - wall), millions / (time.process_time() - processor)


def measure(tokens: int, batch: int, length: int, seconds: float) -> list[dict[str, Any]]:
    """Measures each way of reading a corpus of `tokens` tokens (two bytes each), written to a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(pathlib.Path(folder) / "corpus", tokens)
        shards = open_shards(pathlib.Path(folder) / "corpus")
        one = Windows(shards, length, documents="concatenate")
        rows = []
        for name, source in (("concatenate", one), ("separate", Windows(shards, length, documents="separate")),
                             ("mixture of two", Mixture([(one, 0.7), (one, 0.3)]))):
            before = resident_megabytes()
            wall, quiet = rate(source, batch, seconds)
            rows.append({"corpus_tokens": tokens, "read_as": name, "mtok_per_second": wall,
                         "mtok_per_processor_second": quiet, "resident_mb": resident_megabytes(),
                         "resident_grew_mb": resident_megabytes() - before})
        return rows
