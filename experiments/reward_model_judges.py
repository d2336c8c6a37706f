"""Judges that read less than a model does: the length of a text, and its words without their order."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

import numpy as np

from experiments.reward_model_head import fit_pairs
from jaxllm.data.curate.quality_features import SparseRows, product
from jaxllm.evals.calibration import fit_temperature, log_loss

_WORD = re.compile(r"\w+|[^\w\s]")
# Words seen in fewer completions of the training side are left out.
_LEAST_TEXTS = 2


def length_scores(train: Sequence[str], pairs: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Scores of texts by their number of words, more or fewer, whichever the training pairs like: float64 [N].

    Args:
      train: completions to learn from.
      pairs: int [P, 2], (better, worse) among them.
      texts: to score.
    """
    words = np.array([[len(text.split())] for text in train], np.float32)
    weight = fit_pairs(words, pairs[:, 0], pairs[:, 1], 0.0)
    return weight[0] * np.array([len(text.split()) for text in texts], np.float64)


def unigram_scores(train: Sequence[str], pairs: np.ndarray, validation: Sequence[str], validation_pairs: np.ndarray,
                   texts: Sequence[str], l2s: Sequence[float]) -> np.ndarray:
    """Scores of texts by a weight for each word and punctuation mark, times its count: float64 [N].

    Args:
      train, pairs: as `length_scores`.
      validation, validation_pairs: others, by whose log loss the pull to zero is chosen.
      texts: to score.
      l2s: pulls to choose from.
    """
    seen = collections.Counter(word for text in train for word in set(_words(text)))
    vocabulary = {word: i for i, word in enumerate(sorted(w for w, count in seen.items() if count >= _LEAST_TEXTS))}
    features, other = _counts(train, vocabulary), _counts(validation, vocabulary)
    best = (np.inf, np.zeros(len(vocabulary)))
    for l2 in l2s:
        weights = fit_pairs(features, pairs[:, 0], pairs[:, 1], l2)
        scores = product(other, weights)
        lead = scores[validation_pairs[:, 0]] - scores[validation_pairs[:, 1]]
        best = min(best, (log_loss(lead, fit_temperature(lead)), weights), key=lambda found: found[0])
    return product(_counts(texts, vocabulary), best[1])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _counts(texts: Sequence[str], vocabulary: dict[str, int]) -> SparseRows:
    counts = [collections.Counter(vocabulary[word] for word in _words(text) if word in vocabulary) for text in texts]
    return SparseRows(np.array([column for some in counts for column in some], np.int32),
                      np.array([value for some in counts for value in some.values()], np.float32),
                      np.concatenate([[0], np.cumsum([len(some) for some in counts])]).astype(np.int64),
                      max(len(vocabulary), 1))
