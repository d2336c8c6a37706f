"""How far annotators agree: raw agreement, Cohen's kappa of two, Fleiss' kappa of all, with bootstrap intervals.

What two annotators agree or disagree about is a pair of completions of one prompt: the first is better, the second is
better, or they are tied. A ranking of K holds K (K - 1) / 2 such pairs, which are not independent; so the bootstrap
draws whole sets of completions anew, not pairs.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxllm.data.preferences import Ranking
from jaxllm.evals.intervals import bootstrap

FIRST, TIED, SECOND = 0, 1, 2
# (prompt with its completions, first completion, second) -> annotator -> FIRST, TIED or SECOND.
Verdicts = Mapping[tuple[str, str, str], Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class PairAgreement:
    """How two annotators agree.

    Attributes:
      annotators: their names.
      sets: sets of completions that both ranked.
      pairs: pairs of completions in them.
      agreed: share of the pairs on which both say the same, with its 95% interval.
      decided: the same share among the `decided_pairs` that neither calls tied; nan without any.
      decided_pairs: how many those are.
      kappa: Cohen's, with its 95% interval; nan where both always say one and the same thing.
    """

    annotators: tuple[str, str]
    sets: int
    pairs: int
    agreed: tuple[float, float, float]
    decided: float
    decided_pairs: int
    kappa: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How all annotators agree.

    Attributes:
      annotators: names, sorted.
      two: every two of them that share something.
      pairs: pairs of completions that all of them judged.
      fleiss: Fleiss' kappa on these, with its 95% interval; None when there are none.
    """

    annotators: tuple[str, ...]
    two: tuple[PairAgreement, ...]
    pairs: int
    fleiss: tuple[float, float, float] | None


def cohen_kappa(confusion: np.ndarray) -> float:
    """(p_o - p_e) / (1 - p_e): p_o is the share on the diagonal, p_e what the two margins would give by chance.

    Args:
      confusion: [C, C], how often the first annotator said i and the second j.

    Returns:
      In [-1, 1]; nan where p_e is 1 or nothing was counted.

    References: Cohen, A coefficient of agreement for nominal scales, 1960.

    >>> round(cohen_kappa(np.array([[20, 5], [10, 15]])), 3)
    0.4
    """
    total = confusion.sum()
    if not total:
        return float("nan")
    return _above_chance(np.trace(confusion) / total, confusion.sum(0) @ confusion.sum(1) / total**2)


def fleiss_kappa(counts: np.ndarray) -> float:
    """Kappa of n annotators who each judged all N items: agreement of two drawn at random, above chance.

    Args:
      counts: [N, C], how many of the n >= 2 annotators put item i into category j; every row adds up to n.

    Returns:
      At most 1; nan where all always say one and the same thing.

    Raises:
      ValueError: when rows differ in their number of annotators, or it is below 2.

    References: Fleiss, Measuring nominal scale agreement among many raters, 1971.
    """
    raters = counts.sum(1)
    if not len(counts) or raters.min() != raters.max() or raters[0] < 2:
        raise ValueError("every item needs judgements by the same annotators, 2 or more")
    return _fleiss_of(_fleiss_sums(counts))


def _fleiss_sums(counts: np.ndarray) -> np.ndarray:
    """[2 + C] of N items: their number, the agreeing shares of two annotators added up, each category's count."""
    raters = counts[0].sum()
    agreeing = (np.square(counts).sum(1) - raters) / (raters * (raters - 1))
    return np.array([len(counts), agreeing.sum(), *counts.sum(0)], np.float64)


def _fleiss_of(sums: np.ndarray) -> float:
    items, agreeing, counts = sums[0], sums[1], sums[2:]
    return _above_chance(agreeing / items, np.square(counts / counts.sum()).sum())


def _above_chance(observed: float, expected: float) -> float:
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def verdicts(rankings: Iterable[Ranking]) -> Verdicts:
    """What every annotator says about every pair of completions.

    Completions shown in another order are the same set; first and second are as in its first ranking. Where a set is
    ranked several times, one annotator's second ranking is held against another's second. Equal completions are no
    pair.
    """
    found: dict[tuple[str, str, str], dict[str, int]] = collections.defaultdict(dict)
    orders: dict[str, list[str]] = {}
    times: collections.Counter[tuple[str, str]] = collections.Counter()
    for ranking in rankings:
        shown = json.dumps([ranking.prompt, sorted(ranking.completions)], sort_keys=True)
        order = orders.setdefault(shown, list(dict.fromkeys(ranking.completions)))
        times[shown, ranking.annotator] += 1
        best: dict[str, int] = {}  # of equal completions the better place counts
        for text, tier in zip(ranking.completions, ranking.tiers, strict=True):
            best[text] = min(tier, best.get(text, tier))
        for first, second in itertools.combinations(order, 2):
            verdict = TIED + (best[first] > best[second]) - (best[first] < best[second])
            found[f"{times[shown, ranking.annotator]} {shown}", first, second][ranking.annotator] = verdict
    return found


def agreement(rankings: Iterable[Ranking], *, samples: int = 1000, seed: int = 0) -> Agreement:
    """Measures every two annotators on what both ranked, and all of them on what all ranked.

    Args:
      rankings: of several annotators, by name.
      samples: draws of the bootstrap.
      seed: of the draws.
    """
    found = verdicts(rankings)
    annotators = tuple(sorted({name for by_name in found.values() for name in by_name}))
    two = []
    for names in itertools.combinations(annotators, 2):
        both = [(item[0], [by_name[name] for name in names]) for item, by_name in found.items()
                if all(name in by_name for name in names)]
        if both:
            two.append(_pair_agreement(names, both, samples, seed))
    of_all = [(item[0], [by_name[name] for name in annotators]) for item, by_name in found.items()
              if len(by_name) == len(annotators)]
    fleiss = None
    if of_all and len(annotators) > 1:
        sets = _by_set((shown, np.bincount(said, minlength=3)) for shown, said in of_all)
        sums = np.array([_fleiss_sums(counts) for counts in sets])
        fleiss = bootstrap(sums, lambda sums: _fleiss_of(sums.sum(0)), samples, seed)
    return Agreement(annotators, tuple(two), len(of_all), fleiss)


def _pair_agreement(names: tuple[str, str], both: Sequence[tuple[str, Sequence[int]]], samples: int, seed: int
                    ) -> PairAgreement:
    cells = []
    for shown, (first, second) in both:
        cell = np.zeros((3, 3), np.int64)
        cell[first, second] = 1
        cells.append((shown, cell))
    tables = np.array([group.sum(0) for group in _by_set(cells)])  # [sets, 3, 3]
    whole = tables.sum(0)
    strict = whole[np.ix_([FIRST, SECOND], [FIRST, SECOND])]
    agreed = bootstrap(tables, lambda tables: np.trace(tables.sum(0)) / tables.sum(), samples, seed)
    kappa = bootstrap(tables, lambda tables: cohen_kappa(tables.sum(0)), samples, seed)
    return PairAgreement(names, len(tables), int(whole.sum()), agreed,
                         float(np.trace(strict) / strict.sum()) if strict.sum() else float("nan"), int(strict.sum()),
                         kappa)


def _by_set(values: Iterable[tuple[str, np.ndarray]]) -> list[np.ndarray]:
    groups: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for shown, value in values:
        groups[shown].append(value)
    return [np.array(group) for group in groups.values()]
