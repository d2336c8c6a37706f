"""pass@k and maj@k: what k tries are worth, from n samples of each problem, without bias and without sampling again.

References: Chen et al., Evaluating Large Language Models Trained on Code, 2021, section 2.1.
  https://arxiv.org/abs/2107.03374
  Wang et al., Self-Consistency Improves Chain of Thought Reasoning, 2022. https://arxiv.org/abs/2203.11171
"""

from __future__ import annotations

import collections
import math
from collections.abc import Collection, Hashable, Sequence

import numpy as np

from jaxllm.evals.intervals import bootstrap

MAX_SAMPLES = 1_000  # of a problem in maj@k: beyond, the binomials leave the range of float64


def pass_at_k(right: Sequence[int] | np.ndarray, samples: Sequence[int] | np.ndarray | int, k: int) -> np.ndarray:
    """The chance that at least one of k samples, drawn without replacement from the n at hand, is right.

    1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1}^{n} (1 - k/i), summed as logarithms, so that a chance of 1e-12 is
    exact to the last digits as one near 1 is. It is an unbiased estimate of pass@k of the model, which
    1 - (1 - c/n)^k is not.

    Args:
      right: int [Q], c, the right samples of each problem.
      samples: int [Q] or one number, n.
      k: in [1, min n].

    Returns:
      float64 [Q].

    Raises:
      ValueError: for counts out of range.

    >>> [round(float(x), 4) for x in pass_at_k([0, 1, 9], 10, 2)]
    [0.0, 0.2, 1.0]
    """
    right = np.asarray(right)
    samples = np.broadcast_to(np.asarray(samples), right.shape)
    if right.ndim != 1 or not len(right) or (right < 0).any() or (right > samples).any():
        raise ValueError("the right samples must be counts in [0, samples], one for each problem, at least one")
    if not 1 <= k <= samples.min():
        raise ValueError(f"k is {k}; it must lie in [1, {samples.min()}], the fewest samples of a problem")
    return np.array([_pass(int(c), int(n), k) for c, n in zip(right, samples, strict=True)])


def _pass(c: int, n: int, k: int) -> float:
    if n - c < k:
        return 1.0
    return 0.0 - math.expm1(math.fsum(math.log1p(-k / i) for i in range(n - c + 1, n + 1)))


def majority_at_k(answers: Sequence[Hashable | None], right: Collection[Hashable], k: int) -> float:
    """The chance that the commonest answer of k samples, drawn without replacement from the n at hand, is right.

    Equally common answers share the vote: each is chosen with the same chance. A sample without an answer is drawn like
    any other and has no vote; where nobody votes the choice is wrong. The mean over all C(n, k) subsets is computed
    exactly, by how often each answer may stand among the k, and not estimated.

    Args:
      answers: of one problem's n samples, n <= MAX_SAMPLES; equal answers must be equal values, None is no answer.
      right: the answers that are right.
      k: in [1, n].

    Raises:
      ValueError: for k or n out of range.

    >>> round(majority_at_k(["7", "7", "8", "9"], {"7"}, 3), 4), majority_at_k(["7", "8"], {"7"}, 2)
    (0.6667, 0.5)
    """
    n = len(answers)
    if not 1 <= k <= n or n > MAX_SAMPLES:
        raise ValueError(f"k is {k} of {n} samples; k must lie in [1, samples], and samples at or below {MAX_SAMPLES}")
    counts = collections.Counter(answers)
    silent = counts.pop(None, 0)
    ways = 0.0
    for answer in set(right) & set(counts):
        others = [count for other, count in counts.items() if other != answer]
        for times in range(1, min(counts[answer], k) + 1):
            ways += math.comb(counts[answer], times) * _beaten(others, silent, times, k - times)
    return min(1.0, ways / math.comb(n, k))


def _beaten(others: Sequence[int], silent: int, times: int, rest: int) -> float:
    """sum over draws of `rest` from the others in which none stands more than `times` times, of 1 / (1 + ties).

    A polynomial's coefficients: rows are draws so far, columns are answers that stand exactly `times` times.
    """
    ties = min(rest // times, sum(count >= times for count in others))
    table = np.zeros((rest + 1, ties + 1))
    table[0, 0] = 1.0
    for count in others:
        grown = np.zeros_like(table)
        for drawn in range(min(count, times, rest) + 1):
            weight = float(math.comb(count, drawn))
            if drawn == times:
                grown[drawn:, 1:] += weight * table[:rest + 1 - drawn, :-1]
            else:
                grown[drawn:] += weight * table[:rest + 1 - drawn]
        table = grown
    without_vote = np.array([float(math.comb(silent, rest - drawn)) for drawn in range(rest + 1)])
    return float((without_vote @ table) @ (1.0 / np.arange(1, ties + 2)))


def over_problems(values: np.ndarray, draws: int = 2_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean over problems with its 95% interval by drawing problems anew.

    The interval says how much other problems of the kind would change the number; n samples a problem leave an error of
    their own in each value, which the draws hold as well.

    Args:
      values: float [Q], of `pass_at_k` or `majority_at_k`.
      draws: of the bootstrap.
      seed: of the draws.
    """
    return bootstrap(np.asarray(values, float), lambda rows: float(rows.mean()), draws, seed)
