"""Does a model know what it does not know? Verdicts on replies, rates over them, and risk against coverage.

A reply is right, wrong or refused. To confabulate is to give a definite wrong answer where the truth could not be
known; what is neither right nor a refusal is wrong, garbled and empty replies included. All rates are functions of
arrays, so that they serve any model and any judge.
"""

from __future__ import annotations

import enum
import math
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np


class Verdict(enum.IntEnum):
    """What a reply is worth."""

    RIGHT = 0
    WRONG = 1
    REFUSED = 2


# (question, truth, reply) -> verdict: a verifier, or a model that is asked.
Judge = Callable[[str, str, str], Verdict]

# A reply with one of these, normalised, does not commit itself.
HEDGES = ("do not know", "dont know", "does not know", "not sure", "unsure", "cannot say", "cant say", "cannot answer",
          "cant answer", "no information", "no record", "never heard", "unable to", "not aware", "not certain")


def normalise(text: str) -> str:
    """Lower case, words and digits alone, no articles, single spaces.

    References: Rajpurkar et al., SQuAD, 2016, the answer normalisation of its evaluation.
      https://arxiv.org/abs/1606.05250

    >>> normalise(" The Silver-Compass, (of 1801).")
    'silver compass of 1801'
    """
    text = re.sub("['\u2019]", "", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(word for word in re.findall(r"\w+", text) if word not in ("a", "an", "the"))


def is_refusal(reply: str, refusals: Sequence[str] = ()) -> bool:
    """Whether a reply declines to answer: it begins with one of `refusals`, or holds one of HEDGES.

    >>> is_refusal("I don't know who that is."), is_refusal("A baker.")
    (True, False)
    """
    said = f" {normalise(reply)} "
    return (any(said.startswith(f" {wording} ") for wording in map(normalise, refusals) if wording)
            or any(f" {hedge} " in said for hedge in HEDGES))


def verifier(refusals: Sequence[str] = (), exact: bool = False) -> Judge:
    """A judge by comparison: REFUSED where `is_refusal`, RIGHT where the reply is or holds the truth, else WRONG.

    Args:
      refusals: wordings that count as refusals besides HEDGES.
      exact: the normalised reply must equal the truth; False: the truth's words must stand in it, next to each other.

    >>> judge = verifier()
    >>> judge("Where does Ada live?", "Redbrook", "She lives in Redbrook.").name
    'RIGHT'
    """
    def judge(question: str, truth: str, reply: str) -> Verdict:
        del question
        said, wanted = normalise(reply), normalise(truth)
        if not wanted:
            raise ValueError(f"the truth {truth!r} has no word or digit to compare with")
        if is_refusal(reply, refusals):
            return Verdict.REFUSED
        right = said == wanted if exact else f" {wanted} " in f" {said} "
        return Verdict.RIGHT if right else Verdict.WRONG
    return judge


def share_of(hits: np.ndarray, among: np.ndarray) -> float:
    """mean of `hits` over the questions of `among`, both bool [N]; nan where there are none."""
    return float(np.mean(hits[among])) if among.any() else math.nan


def confabulation(verdicts: np.ndarray, unknown: np.ndarray) -> float:
    """Share of the unknown questions that get a definite wrong answer.

    Args:
      verdicts: int [N], of Verdict.
      unknown: bool [N], the questions whose answer the model cannot know.
    """
    return share_of(verdicts == Verdict.WRONG, unknown)


def over_refusal(verdicts: np.ndarray, known: np.ndarray) -> float:
    """Share of the known questions (bool [N]) that are refused."""
    return share_of(verdicts == Verdict.REFUSED, known)


def refusal_precision(verdicts: np.ndarray, before: np.ndarray) -> float:
    """Share of the refused questions to which the model had no right answer before; both int [N], of Verdict."""
    return share_of(before != Verdict.RIGHT, verdicts == Verdict.REFUSED)


def refusal_recall(verdicts: np.ndarray, before: np.ndarray) -> float:
    """Share of the questions without a right answer before that are refused; both int [N], of Verdict."""
    return share_of(verdicts == Verdict.REFUSED, before != Verdict.RIGHT)


def accuracy_kept(verdicts: np.ndarray, before: np.ndarray) -> float:
    """Share of the right answers of before that still are right; both int [N], of Verdict."""
    return share_of(verdicts == Verdict.RIGHT, before == Verdict.RIGHT)


def risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Risk among the i most confident answers, at every coverage i/N.

    risk_i = (wrong answers among the i most confident) / i. Of answers with equal confidence those that are let in are
    drawn at random: the risk is the mean over all orders of them.

    Args:
      confidence: float [N], N >= 1; any scale, only the order counts.
      wrong: bool [N], whether the answer is wrong.

    Returns:
      (coverage float [N], rising from 1/N to 1; risk float [N]).

    References: El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification, JMLR 2010.

    >>> [round(float(r), 2) for r in risk_coverage(np.array([.9, .8, .1]), np.array([False, True, True]))[1]]
    [0.0, 0.5, 0.67]
    """
    confidence, wrong = np.asarray(confidence, float), np.asarray(wrong, float)
    if not len(confidence) or confidence.shape != wrong.shape or np.isnan(confidence).any():
        raise ValueError(f"confidence {confidence.shape} and wrong {wrong.shape} must be of one length, at least 1, "
                         f"without nan")
    _, group, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    expected = (np.bincount(group, wrong) / counts)[np.sort(group)]
    place = np.arange(1, len(wrong) + 1)
    return place / len(wrong), np.cumsum(expected) / place


def aurc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the risk-coverage curve, the mean risk over all coverages: 0 is best. Arguments of `risk_coverage`.

    References: Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation, 2019, section 2.
      https://arxiv.org/abs/1805.08206
    """
    return float(np.mean(risk_coverage(confidence, wrong)[1]))


def excess_aurc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """AURC less that of the best order of the same answers, which lets every right one in first (E-AURC, ibidem)."""
    return aurc(confidence, wrong) - aurc(-np.asarray(wrong, float), wrong)


def coverage_at(confidence: np.ndarray, wrong: np.ndarray, risk: float) -> float:
    """The largest coverage at which the risk is at most `risk`; 0 where there is none."""
    coverage, risks = risk_coverage(confidence, wrong)
    return float(np.max(coverage[risks <= risk + 1e-12], initial=0.0))


def distance_to_bar(confabulated: float, refused: float, bar: tuple[float, float]) -> float:
    """How far a point of the trade-off stands from a bar: max(confabulated / bar[0], refused / bar[1]); 1 meets it.

    Points are compared by this one number wherever something has to be chosen. A rate that is nan (no question of that
    kind) counts as met.
    """
    return max(0.0 if math.isnan(x) else x / limit for x, limit in zip((confabulated, refused), bar, strict=True))


def choose_threshold(confidence: np.ndarray, verdicts: np.ndarray, known: np.ndarray, unknown: np.ndarray,
                     bar: tuple[float, float]) -> float:
    """The confidence below which to refuse, so that the point is nearest to the bar.

    Args:
      confidence: float [N], of a model in its own reply.
      verdicts: int [N], of those replies.
      known, unknown: bool [N].
      bar: see `distance_to_bar`.

    Returns:
      One of the confidences, or infinity (refuse everything); the lowest of equally good ones.
    """
    def distance(threshold: float) -> float:
        after = refuse_below(confidence, verdicts, threshold)
        return distance_to_bar(confabulation(after, unknown), over_refusal(after, known), bar)
    return float(min([*np.unique(confidence), math.inf], key=distance))


def refuse_below(confidence: np.ndarray, verdicts: np.ndarray, threshold: float) -> np.ndarray:
    """The verdicts when every reply of which the confidence is below the threshold is replaced by a refusal."""
    return np.where(confidence < threshold, int(Verdict.REFUSED), verdicts)
