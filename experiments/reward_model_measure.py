"""What scores of held-out completions say about a judge: agreement, margins, calibration, disagreement, length.

Everything takes scores of all completions end to end, and pairs (better, worse) as indices of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau, rankdata, spearmanr

from jaxllm.data.curate.quality import auc
from jaxllm.data.preferences import Ranking
from jaxllm.evals.calibration import (
    brier,
    calibration_error,
    calibration_floor,
    choices,
    log_loss,
    reliability,
)

BINS = 5


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Rankings that no judge has seen, flat.

    Attributes:
      starts: int [R + 1]; completions starts[r] .. starts[r + 1] are those of ranking r.
      tiers: int [N], 0 is best.
      pairs: int [P, 2], (better, worse) by the person who ranked.
      length: float [N], words.
      gold: float [N] of the hidden judge, or None where there is none.
      gold_pairs: int [P', 2], (better, worse) by gold among the completions of a ranking, or None.
    """

    starts: np.ndarray
    tiers: np.ndarray
    pairs: np.ndarray
    length: np.ndarray
    gold: np.ndarray | None = None
    gold_pairs: np.ndarray | None = None

    @property
    def groups(self) -> np.ndarray:
        """int [P], the ranking of each pair."""
        return np.searchsorted(self.starts, self.pairs[:, 0], side="right") - 1


def held_out(rankings: Sequence[Ranking], gold: np.ndarray | None = None) -> HeldOut:
    """The record of some rankings; gold is [N], of their completions end to end."""
    starts = np.concatenate([[0], np.cumsum([len(ranking.completions) for ranking in rankings])])
    pairs = [np.array(ranking.pairs(), int).reshape(-1, 2) + starts[i] for i, ranking in enumerate(rankings)]
    length = np.array([len(text.split()) for ranking in rankings for text in ranking.completions], float)
    by_gold = None if gold is None else np.array(
        [(a, b) for i in range(len(rankings)) for a in range(starts[i], starts[i + 1])
         for b in range(starts[i], starts[i + 1]) if gold[a] > gold[b]], int).reshape(-1, 2)
    return HeldOut(starts, np.concatenate([ranking.tiers for ranking in rankings]), np.concatenate(pairs), length, gold,
                   by_gold)


def hits(scores: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """1 for each pair that the scores order right, 0 for wrong, 1/2 where they are equal: float [P]."""
    lead = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    return (np.sign(lead) + 1) / 2


def agreement(scores: np.ndarray, data: HeldOut) -> dict[str, float]:
    """"accuracy" on pairs, "gold accuracy" on gold's pairs, "tau": Kendall's tau-b, mean over rankings."""
    taus = [kendalltau(scores[a:b], -data.tiers[a:b]).statistic
            for a, b in zip(data.starts[:-1], data.starts[1:], strict=True)
            if len(set(data.tiers[a:b])) > 1 and len(set(scores[a:b])) > 1]
    found = {"accuracy": float(hits(scores, data.pairs).mean()), "tau": float(np.mean(taus)) if taus else 0.0}
    if data.gold is not None:
        found["gold accuracy"] = float(hits(scores, data.gold_pairs).mean())
        found["gold correlation"] = correlation(scores, data.gold)
    return found


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def calibration(raw: np.ndarray, calibrated: np.ndarray, data: HeldOut) -> dict[str, float]:
    """Calibration error with its floor, Brier score and log loss of raw scores ("before") and of those divided by the
    temperature ("after")."""
    found: dict[str, float] = {}
    for name, scores in (("before", raw), ("after", calibrated)):
        lead = scores[data.pairs[:, 0]] - scores[data.pairs[:, 1]]
        sure, right = choices(lead)
        found |= {f"ece {name}": calibration_error(sure, right), f"floor {name}": calibration_floor(sure),
                  f"brier {name}": brier(sure, right), f"log loss {name}": log_loss(lead)}
    return found


def by_margin(calibrated: np.ndarray, data: HeldOut) -> list[list[float]]:
    """[said, true, pairs] of BINS bins of rising confidence, as many pairs in each."""
    sure, right = choices(calibrated[data.pairs[:, 0]] - calibrated[data.pairs[:, 1]])
    return [[row.said, row.true, row.count] for row in reliability(sure, right, BINS)]


def by_gold_margin(scores: np.ndarray, data: HeldOut) -> list[float]:
    """Accuracy on gold's pairs in thirds by how far gold holds them apart, the close ones first."""
    apart = data.gold[data.gold_pairs[:, 0]] - data.gold[data.gold_pairs[:, 1]]
    right = hits(scores, data.gold_pairs)
    return [float(right[part].mean()) for part in np.array_split(np.argsort(apart, kind="stable"), 3)]


def length_bias(scores: np.ndarray, data: HeldOut) -> dict[str, float]:
    """How far length moves the score beyond what it should.

    Returns:
      "correlation" of score and words; with gold also "given gold", their correlation when what a straight line in gold
      explains is taken out of both, and "gold's own" with words; "longer better" and "longer worse": accuracy on
      pairs in which the better one, by gold or else by the person, is the longer and the shorter (0.5 without such).
    """
    pairs = data.pairs if data.gold is None else data.gold_pairs
    right, more = hits(scores, pairs), data.length[pairs[:, 0]] - data.length[pairs[:, 1]]
    found = {"correlation": correlation(scores, data.length)}
    for name, chosen in (("longer better", more > 0), ("longer worse", more < 0)):
        found[name] = float(right[chosen].mean()) if chosen.any() else 0.5
    if data.gold is not None:
        rest = [values - np.polyval(np.polyfit(data.gold, values, 1), data.gold) for values in (scores, data.length)]
        found |= {"given gold": correlation(*rest), "gold's own": correlation(data.gold, data.length)}
    return found


def disagreement(members: Mapping[str, np.ndarray], data: HeldOut, seed: int) -> dict[str, float]:
    """Does the spread of an ensemble's members foretell where their mean is wrong?

    Args:
      members: scores [N] of each, in units of its own spread.
      data: the held-out rankings.
      seed: of the shuffled control.

    Returns:
      "mean accuracy" of the ensemble and "member accuracy" of one. AUC for telling wrongly from rightly ordered pairs
      by: "sd" of the members' leads; "lead", the smallness of the mean lead; "sd within lead", the sd among pairs of
      the same tenth by lead; "shuffled", the sd of some other pair. And "sd and error": Spearman's correlation of a
      completion's sd with how far the mean's rank is from gold's, with gold.
    """
    scores_MN = np.stack(list(members.values()))
    leads_MP = scores_MN[:, data.pairs[:, 0]] - scores_MN[:, data.pairs[:, 1]]
    lead_P, sd_P = leads_MP.mean(axis=0), leads_MP.std(axis=0, ddof=1)
    wrong = lead_P <= 0
    tenths = (rankdata(np.abs(lead_P), method="ordinal") - 1) * 10 // len(lead_P)
    found = {"mean accuracy": float(hits(scores_MN.mean(axis=0), data.pairs).mean()),
             "member accuracy": float(np.mean([hits(scores, data.pairs).mean() for scores in scores_MN])),
             "sd": auc(sd_P, wrong), "lead": auc(-np.abs(lead_P), wrong),
             "sd within lead": auc(sd_P, wrong, tenths.astype(int)),
             "shuffled": auc(np.random.default_rng(seed).permutation(sd_P), wrong)}
    if data.gold is not None:
        error = np.abs(rankdata(scores_MN.mean(axis=0)) - rankdata(data.gold))
        found["sd and error"] = float(spearmanr(scores_MN.std(axis=0, ddof=1), error).statistic)
    return found
