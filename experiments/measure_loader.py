"""Measures the data path on a synthetic corpus: tokens/s into host batches, and memory.

    python -m experiments.measure_loader                     # 50M tokens, batches of 32 x 1,024
    python -m experiments.measure_loader --tokens=5_000_000 --tokens=500_000_000

Prints one row per corpus and reading mode, as in docs/data.md. "quiet" is tokens per second of
processor time: what the same code reaches when nothing else runs.
"""

import argparse
import itertools
import pathlib
import tempfile
import time

import numpy as np

from jaxllm.data.loader import Mixture, Windows
from jaxllm.data.shards import ShardWriter, open_shards

END_OF_TEXT = 50256


def write_corpus(folder: pathlib.Path, tokens: int) -> None:
    """Writes random documents of 200 tokens on average, a million tokens at a time."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, vocab_size=50257, fingerprint="synthetic",
                     end_of_text=END_OF_TEXT) as writer:
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


def measure(source, batch_size: int, seconds: float) -> tuple[float, float]:
    """Returns millions of tokens per second of wall time and of processor time."""
    source.batch_at(0, batch_size=batch_size)
    wall, processor = time.perf_counter(), time.process_time()
    for step in itertools.count():
        source.batch_at(step, batch_size=batch_size)
        if time.perf_counter() - wall > seconds:
            break
    millions = (step + 1) * batch_size * source.length / 1e6
    return millions / (time.perf_counter() - wall), millions / (time.process_time() - processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, action="append", help="size of a corpus")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=5.0, help="per row of the table")
    args = parser.parse_args()
    print("| corpus, tokens | read as | Mtok/s | Mtok/s, quiet | resident memory grew by |")
    print("|---|---|---|---|---|")
    for tokens in args.tokens or [50_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            write_corpus(pathlib.Path(folder) / "corpus", tokens)
            shards = open_shards(pathlib.Path(folder) / "corpus")
            one = Windows(shards, args.length, documents="concatenate")
            two = Windows(shards, args.length, documents="separate")
            mixture = Mixture([(one, 0.7), (one, 0.3)])
            for name, source in [("concatenate", one), ("separate", two),
                                 ("mixture of two, concatenate", mixture)]:
                before = resident_megabytes()
                wall, quiet = measure(source, args.batch_size, args.seconds)
                grown = resident_megabytes() - before
                print(f"| {tokens:,} | {name} | {wall:.0f} | {quiet:.0f} | {grown:.1f} MB |",
                      flush=True)


if __name__ == "__main__":
    main()
