"""A quality classifier: a linear head over frozen features of a text, in the manner of FineWeb-Edu.

    head = fit_head(features(texts), labels)                     # jaxllm.data.curate.quality_head
    classifier = QualityClassifier(features, head.weights, head.bias, "ridge")
    classifier.save("classifier"); load_classifier("classifier")(["a text"])

Here: labelled documents, the classifier and its folder, and how well scores order labels. No JAX (quality_head has it).
References: Penedo et al., The FineWeb Datasets, 2024, section 4. https://arxiv.org/abs/2406.17557
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.data import source_files
from jaxllm.data.curate.array_folder import read_arrays, write_arrays
from jaxllm.data.curate.quality_features import HashedWords, PooledStates, product

KIND = "quality classifier"
LOSSES = ("ridge", "logistic")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A text and what somebody said of its quality: 0 to 5, or 0 and 1."""

    text: str
    label: float


def read_labelled(path: str | os.PathLike, text_key: str = "text", label_key: str = "label") -> list[Labelled]:
    """Reads labelled documents: a file, or a folder of them, of .jsonl, .json (also .gz, .xz, .zst) or .parquet.

    Args:
      path: where.
      text_key: the field with the text.
      label_key: the field with the label: a number, or a text that is one.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: a record without one of them, or with a label that is no finite number; names file and line.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder of labelled documents; check the path")
    documents = []
    for file in source_files.files_of(path) if path.is_dir() else [path]:
        for place, record in source_files.reader_for(file)(file, (text_key, label_key)):
            documents.append(_labelled(record, text_key, label_key, f"{file}, {place}"))
    if not documents:
        raise ValueError(f"{path}: there are no labelled documents in it; give at least some of each label")
    return documents


def _labelled(record: Any, text_key: str, label_key: str, where: str) -> Labelled:
    if not isinstance(record, Mapping) or not isinstance(record.get(text_key), str) or label_key not in record:
        found = ", ".join(map(repr, record)) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(f"{where}: expected an object with a text in {text_key!r} and a label in {label_key!r}, found "
                         f"{found}; name the fields or repair the record")
    try:
        label = float(record[label_key])
    except (TypeError, ValueError):
        label = math.nan
    if not math.isfinite(label):
        raise ValueError(f"{where}: the label {record[label_key]!r} is not a finite number; write one, such as 0 to 5")
    return Labelled(record[text_key], label)


@dataclasses.dataclass(frozen=True)
class QualityClassifier:
    """Texts to scores: features @ weights + bias, and for a logistic head the logistic function of it.

    Attributes:
      features: HashedWords or PooledStates.
      weights: float32 [D].
      bias: number.
      loss: "ridge" (scores are on the labels' scale) or "logistic" (probability of a good text).
    """

    features: HashedWords | PooledStates
    weights: np.ndarray
    bias: float
    loss: str = "ridge"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r}: choose one of {', '.join(LOSSES)}")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the scores, float64 [N]."""
        if not len(texts):
            return np.zeros(0)
        scores = product(self.features(texts), self.weights) + self.bias
        return 0.5 * (1 + np.tanh(0.5 * scores)) if self.loss == "logistic" else scores

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the head and the settings of the features, whole or not at all; a language model stays where it is."""
        record = {"loss": self.loss, "bias": float(self.bias), "features": self.features.settings()}
        write_arrays(folder, KIND, record, {"weights": np.asarray(self.weights, np.float32)})


def load_classifier(folder: str | os.PathLike, open_model: Callable[[str], tuple[Callable, Any]] | None = None
                    ) -> QualityClassifier:
    """Reads a classifier's folder.

    Args:
      folder: written by `QualityClassifier.save`.
      open_model: for a classifier over hidden states: the model's name to (pool, tokenizer), as `PooledStates` takes
        them. Not used by one over hashed words.

    Raises:
      FileNotFoundError, ValueError: when it is not there, is something else, is damaged, or needs `open_model`.
    """
    record, arrays = read_arrays(folder, KIND)
    try:
        settings = dict(record["features"])
        kind = settings.pop("kind")
        if kind == "hashed_words":
            features = HashedWords(**settings)
        elif kind == "pooled_states" and open_model is None:
            raise ValueError(f"its features are hidden states of the model {settings['model']!r}: pass open_model, for "
                             f"example experiments.quality_classifier.open_model")
        elif kind == "pooled_states":
            features = PooledStates(*open_model(settings["model"]), **settings)
        else:
            raise ValueError(f"unknown features {kind!r}")
        weights = arrays["weights"]
        if kind == "hashed_words" and weights.shape != (1 << features.bits,):
            raise ValueError(f"{weights.shape} weights do not fit {features}")
        return QualityClassifier(features, weights, float(record["bias"]), record["loss"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be used: {error}") from error


def fold_of(texts: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """Returns int64 [N], the fold of each text by a hash of seed and text: equal texts are never apart.

    >>> fold_of(["a", "b", "a"], 5, seed=0).tolist()
    [4, 3, 4]
    """
    digests = [hashlib.sha256(f"{seed}/{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
    return np.array([int.from_bytes(digest[:8], "little") % folds for digest in digests], np.int64)


def auc(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the chance that a good text scores above a bad one, a tie counting one half.

    sum over pairs (i good, j bad) of [s_i > s_j] + [s_i = s_j] / 2, over the number of pairs (Mann-Whitney's U).

    Args:
      scores: float [N].
      positive: bool [N].
      groups: int [N]; only pairs within a group are counted. Scores of different folds come from different heads and
        need not be comparable. None: one group.

    Returns:
      0 to 1; nan where there is no pair.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))
    0.875
    """
    groups = np.zeros(len(scores), np.int64) if groups is None else groups
    wins, pairs = 0.0, 0
    for group in np.unique(groups):
        chosen, good = scores[groups == group], positive[groups == group]
        _, inverse, counts = np.unique(chosen, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # of 1 .. n, ties share their mean
        count = int(good.sum())
        wins += ranks[good].sum() - count * (count + 1) / 2
        pairs += count * (len(good) - count)
    return float(wins / pairs) if pairs else math.nan


def auc_interval(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray, samples: int = 1000, seed: int = 0,
                 level: float = 0.95) -> tuple[float, float, float]:
    """AUC averaged over repetitions, with an interval by the bootstrap over documents.

    Args:
      scores: float [R, N], of each repetition.
      positive: bool [N].
      groups: int [R, N], as `auc` takes them.
      samples: draws of N documents with replacement, the same for all repetitions.
      seed: of the draws.
      level: of the interval.

    Returns:
      mean, low, high. The interval speaks of the choice of documents to score, not of those to train on.
    """
    rng = np.random.default_rng(seed)
    count = scores.shape[1]

    def mean(draw: np.ndarray) -> float:
        return float(np.mean([auc(s[draw], positive[draw], g[draw]) for s, g in zip(scores, groups, strict=True)]))
    drawn = [mean(rng.integers(0, count, count)) for _ in range(samples)]
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return mean(np.arange(count)), float(low), float(high)
