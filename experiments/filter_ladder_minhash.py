"""Filter ladder: how often two texts share a MinHash bucket, against the theory 1 - (1 - s^hashes)^buckets."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, triu

from experiments import report
from experiments.findings import Table
from jaxllm.data.curate import recipe, words
from jaxllm.evals.intervals import share, wilson


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of texts: their Jaccard similarity, float [n], and whether they share a bucket, bool [n]."""

    jaccard: np.ndarray
    matched: np.ndarray


def theory(jaccard: np.ndarray | float, settings: recipe.MinHash) -> np.ndarray | float:
    """Probability that at least one bucket agrees: 1 - (1 - s^hashes)^buckets.

    >>> round(theory(0.8, recipe.MinHash()), 3)
    0.924
    """
    return 1 - (1 - jaccard**settings.hashes)**settings.buckets


def read_pairs(run: pathlib.Path, settled: recipe.Recipe, least: float) -> Pairs:
    """Pairs of a run's texts that share a bucket, or are at least so similar.

    Jaccard is over sets of n-grams of the text as datatrove simplifies it, computed on all pairs at once, without any
    hashing; buckets are read from the signatures that the run wrote.

    Args:
      run: folder of a curation with MinHash on.
      settled: its recipe.
      least: pairs below this Jaccard are left out unless they share a bucket.
    """
    texts, numbers = [], {}
    for path in sorted((run / "work" / "pages").glob("*.jsonl.gz")):
        rows = [row["text"] for row in documents_of(path)]
        for i in range(len(rows)):
            numbers[path.name.split(".")[0], i] = len(texts) + i
        texts += rows
    similar = all_jaccards(texts, settled, least)
    for pair in shared_buckets(run / "work" / "minhash" / "signatures", settled.minhash, numbers):
        similar[pair] = (similar[pair][0] if pair in similar else 0.0, True)
    values = list(similar.values())
    return Pairs(np.array([s for s, _ in values]), np.array([m for _, m in values], bool))


def documents_of(path: pathlib.Path) -> list[dict]:
    """The documents of one file, in order."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def all_jaccards(texts: Sequence[str], settled: recipe.Recipe, least: float) -> dict[tuple[int, int], tuple]:
    """(i, j) -> (Jaccard, False) for i < j with at least that similarity: a product of the incidence matrix."""
    from datatrove.utils.text import TextNormConfig, ngrams, simplify_text
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    splitter = words.Blingfire() if settled.words == "blingfire" else load_word_tokenizer("en")
    vocabulary: dict[tuple[str, ...], int] = {}
    columns, starts = [], [0]
    for text in texts:
        cut = splitter.word_tokenize(simplify_text(text, TextNormConfig()))
        columns += sorted({vocabulary.setdefault(tuple(gram), len(vocabulary))
                           for gram in ngrams(cut, settled.minhash.n_gram)})
        starts.append(len(columns))
    incidence = csr_matrix((np.ones(len(columns), np.int32), columns, starts), (len(texts), len(vocabulary)))
    sizes = np.diff(starts)
    both = triu(incidence @ incidence.T, 1).tocoo()
    jaccard = both.data / (sizes[both.row] + sizes[both.col] - both.data)
    return {(int(i), int(j)): (float(s), False)
            for i, j, s in zip(both.row, both.col, jaccard, strict=True) if s >= least}


def shared_buckets(signatures: pathlib.Path, settings: recipe.MinHash,
                   numbers: dict[tuple[str, int], int]) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, whose signatures agree in a bucket: all hashes of it are equal.

    A record is `hashes` unsigned integers of the recipe's precision and the document's number in its file, uint32.
    """
    record = np.dtype([("hashes", f"<u{settings.precision // 8}", settings.hashes), ("document", "<u4")])
    pairs = set()
    for bucket in sorted(signatures.glob("bucket_*")):
        same: dict[bytes, list[int]] = {}
        for path in sorted(bucket.glob("*.minhash.sig")):
            for row in np.fromfile(path, record):
                same.setdefault(row["hashes"].tobytes(), []).append(numbers[path.name.split(".")[0],
                                                                            int(row["document"])])
        for members in same.values():
            members.sort()
            pairs |= {(a, b) for k, a in enumerate(members) for b in members[k + 1:]}
    return pairs


def match_table(name: str, runs: Sequence[Pairs], settings: recipe.MinHash,
                edges: Sequence[float]) -> tuple[Table, list[dict]]:
    """Found and expected rate in bins of similarity."""
    jaccard, matched = (np.concatenate([getattr(run, key) for run in runs]) for key in ("jaccard", "matched"))
    rows, bins = [["Jaccard", "pairs", "share a bucket", "theory", "theory inside the interval"]], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (jaccard >= low) & ((jaccard < high) | (high >= 1.0))
        if not inside.any():
            continue
        hits, of = int(matched[inside].sum()), int(inside.sum())
        expected = float(np.mean(theory(jaccard[inside], settings)))
        first, last = wilson(hits, of)
        bins.append({"low": low, "high": high, "jaccard": float(jaccard[inside].mean()), "pairs": of, "matched": hits,
                     "theory": expected})
        rows.append([f"{low:.2f} to {high:.2f}", f"{of:,}", share(hits, of), f"{expected:.3f}",
                     "yes" if first - 1e-9 <= expected <= last + 1e-9 else "no"])
    return Table(f"MinHash against theory, {name}", rows,
                 f"Theory: mean of 1 - (1 - s^{settings.hashes})^{settings.buckets} over the pairs of the bin. Wilson "
                 "intervals take pairs as independent; pairs of one group are not, so the intervals are too narrow."
                 ), bins


def match_picture(bins: list[dict], settings: recipe.MinHash) -> str:
    """The curve and the bins on it."""
    def draw(axes) -> None:
        x = np.linspace(0, 1, 200)
        axes.plot(x, theory(x, settings), color="#888", label=f"1 - (1 - s^{settings.hashes})^{settings.buckets}")
        at = [b["jaccard"] for b in bins]
        rate = np.array([b["matched"] / b["pairs"] for b in bins])
        ends = np.array([wilson(b["matched"], b["pairs"]) for b in bins]).T
        axes.errorbar(at, rate, yerr=np.abs(ends - rate), fmt="o", markersize=4, capsize=3, color="#2a6fdb",
                      label="found, 95%")
        axes.set(xlabel="Jaccard similarity of 5-grams", ylabel="share of pairs in one bucket")
        axes.legend(frameon=False)

    return report.picture(draw)
