"""When to stop RL against a reward model: rules that read only what a user has, and how they are scored.

A user has the run so far, looked at every few steps: the KL from the start, the score of the reward model (the proxy),
what other reward models say, and, where he pays for them, choices of people between replies to the same prompts. The
true score he never has; it is for scoring the rules (`score`), after the fact.

A rule is a function of the history up to now. It answers None to go on, or the look whose checkpoint to keep. That it
cannot see ahead holds by construction: `run` hands it one prefix after the other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy.special import betainc, betaln

from jaxllm.rl.overoptimization import ChoiceFit, fit_choices


@dataclasses.dataclass(frozen=True)
class History:
    """What is known of a run at its looks; look 0 is the start.

    Attributes:
      step: int [K], updates made.
      kl: [K], nats per reply from the start.
      proxy: [K], mean score of replies by the reward model that the policy is trained on.
      committee: [K], mean score of the same replies by reward models that it is not trained on.
      disagreement: [K], standard deviation of all models' scores of one reply, mean over replies.
      wins: [K, K, M]; wins[i, j, m] for j < i is 1 when a person preferred look i's reply to look j's on prompt m, 0
        when not and 0.5 for a tie. It holds what could be asked; `labels` of a rule says how much is.
      budget: nats of KL that best-of-n on the start model allows by people's choices; infinite when it found no limit.
      looks: how many were planned.
    """

    step: np.ndarray
    kl: np.ndarray
    proxy: np.ndarray
    committee: np.ndarray
    disagreement: np.ndarray
    wins: np.ndarray
    budget: float
    looks: int

    def until(self, count: int) -> History:
        """The first `count` looks."""
        return dataclasses.replace(
            self, step=self.step[:count], kl=self.kl[:count], proxy=self.proxy[:count],
            committee=self.committee[:count], disagreement=self.disagreement[:count],
            wins=self.wins[:count, :count])


Rule = Callable[[History], "int | None"]


@dataclasses.dataclass(frozen=True)
class Stop:
    """Where a rule ended a run.

    Attributes:
      look: the last one that was made.
      keep: the one whose checkpoint is kept, at most `look`.
      warned: False when the run came to its end without a word from the rule; the last checkpoint is kept then.
    """

    look: int
    keep: int
    warned: bool


def run(rule: Rule, history: History) -> Stop:
    """Shows a rule the run look by look until it stops it."""
    for count in range(1, len(history.step) + 1):
        keep = rule(history.until(count))
        if keep is not None:
            return Stop(count - 1, keep, True)
    return Stop(len(history.step) - 1, len(history.step) - 1, False)


# ---------------------------------------------------------------- rules that do not look at the replies


def fixed_step(step: float) -> Rule:
    """Stops at the first look at or after a step."""
    return lambda history: _last(history) if history.step[-1] >= step else None


def fixed_kl(nats: float) -> Rule:
    """Stops at the first look at or beyond a KL."""
    return lambda history: _last(history) if history.kl[-1] >= nats else None


def kl_budget(factor: float) -> Rule:
    """Stops at `factor` times the KL at which best-of-n on the start model ceased to please people.

    RL and best-of-n do not spend KL alike (Gao et al., 2022), so the factor is to be found on other runs.
    """
    return lambda history: _last(history) if history.kl[-1] >= factor * history.budget else None


# ---------------------------------------------------------------- rules that ask other reward models


def disagreement(ratio: float) -> Rule:
    """Stops when reward models disagree `ratio` times as much on a reply as they did at the start.

    References: Coste et al., Reward model ensembles help mitigate overoptimization, 2023,
    https://arxiv.org/abs/2310.02743; Eisenstein et al., Helping or herding?, 2023, https://arxiv.org/abs/2312.09244
    (why an ensemble from one pretrained model may be fooled together).
    """
    return lambda history: _last(history) if history.disagreement[-1] >= ratio * history.disagreement[0] else None


def committee_drop(margin: float) -> Rule:
    """Stops when the models that the policy is not trained on score it `margin` below its best; keeps that best."""
    def rule(history: History) -> int | None:
        best = int(np.argmax(history.committee))
        return best if history.committee[-1] < history.committee[best] - margin else None
    return rule


# ---------------------------------------------------------------- rules that ask people


def win_rate_drop(margin: float, labels: int) -> Rule:
    """Stops when the share of wins over the start is `margin` below its highest so far; keeps that highest.

    The obvious rule. But the highest of many noisy shares is high by luck, and each look may fall below it by chance.

    Args:
      margin: of shares.
      labels: choices asked for at each look.
    """
    def rule(history: History) -> int | None:
        share_K = _shares_over_start(history, labels)
        best = int(np.argmax(share_K))
        return best if share_K[-1] < share_K[best] - margin else None
    return rule


def sequential_test(alpha: float, labels: int, promote: float = 0.55) -> Rule:
    """Stops when fresh choices prove that the current policy is worse than the best before it.

    At each look the policy meets the champion, which is the start until a policy wins at least `promote` of its
    choices against it and takes its place. Each look gives an e-value against "it wins half or more": the likelihood
    ratio of the choices, averaged over shares of wins uniform in [0, 1/2]. Products of e-values from look s on,
    averaged over s, do not grow in the mean under that hypothesis, whatever the champion, so that the probability of
    EVER stopping a run that never falls behind its champion is at most alpha (Ville), however often one looks.

    Args:
      alpha: of false alarms in a whole run.
      labels: choices asked for at each look.
      promote: share of wins that makes a champion.

    References: Ville, 1939; Ramdas et al., Game-theoretic statistics and safe anytime-valid inference, 2023,
    https://arxiv.org/abs/2210.01948; Shin, Ramdas, Rinaldo, E-detectors, 2022, https://arxiv.org/abs/2203.03532 (sums
    over the moment of change; ours is an average over the planned looks, which keeps the level).
    """
    def rule(history: History) -> int | None:
        champion, log_products = 0, np.empty(0)
        for look in range(1, len(history.step)):
            wins_M = history.wins[look, champion, :labels]
            won, lost = int((wins_M > 0.5).sum()), int((wins_M < 0.5).sum())  # a tie says nothing either way
            log_products = np.append(log_products, 0.0) + log_e_value(won, lost)
            not_yet = history.looks - 1 - look  # products that begin later are still 1
            if np.logaddexp.reduce([*log_products, *[0.0] * not_yet]) >= math.log((history.looks - 1) / alpha):
                return champion
            if won >= promote * max(won + lost, 1):
                champion = look
        return None
    return rule


def log_e_value(won: int, lost: int) -> float:
    """log of the likelihood of the choices, averaged over p uniform in [0, 1/2], over their likelihood at p = 1/2.

    2 B(won + 1, lost + 1) I_{1/2}(won + 1, lost + 1) 2^(won + lost); at most 1 in the mean when p >= 1/2.
    """
    with np.errstate(divide="ignore"):  # a thousand wins and no loss: the value is 0
        below = np.log(betainc(won + 1, lost + 1, 0.5))
    return float(math.log(2) + betaln(won + 1, lost + 1) + below + (won + lost) * math.log(2))


def trend(confidence: float, labels: int, against: str = "earlier") -> Rule:
    """Stops when all choices so far, read together, say that the peak is behind; keeps the look with the best fit.

    The choices of all looks are fitted by one law, R(d) = d (alpha - beta log d), see `overoptimization.fit_choices`:
    two numbers from everything that people have said, instead of a share for each look from what they said there. The
    warning may come when the fall is well under way; what is kept does not depend on it.

    Args:
      confidence: probability that R falls at the current distance from which on it stops.
      labels: choices asked for at each look.
      against: whom the current policy meets: "earlier" spreads its choices evenly over all looks before, which tells
        more of the later part of the road than meeting the "start" each time.

    Raises:
      ValueError: an unknown `against`.
    """
    if against not in ("start", "earlier"):
        raise ValueError(f"against={against!r}: choose start or earlier")

    def rule(history: History) -> int | None:
        d_K = np.sqrt(history.kl)
        if len(d_K) < 3 or d_K[-1] == 0:
            return None
        fit = choice_law(history, labels, against)
        return int(np.argmax(fit.law.gain(d_K))) if fit.falling(d_K[-1]) >= confidence else None
    return rule


def choice_law(history: History, labels: int, against: str) -> ChoiceFit:
    """The law of RL, fitted to the choices of all looks so far."""
    d, other, wins, counts = [], [], [], []
    for look in range(1, len(history.step)):
        for opponent in range(look if against == "earlier" else 1):
            said = history.wins[look, opponent, opponent:labels:look if against == "earlier" else 1]
            d.append(math.sqrt(history.kl[look]))
            other.append(math.sqrt(history.kl[opponent]))
            wins.append(float(said.sum()))
            counts.append(len(said))
    return fit_choices("rl", d, other, wins, counts)


def _shares_over_start(history: History, labels: int) -> np.ndarray:
    return np.array([0.5, *(history.wins[look, 0, :labels].mean() for look in range(1, len(history.step)))])


def _last(history: History) -> int:
    return len(history.step) - 1


# ---------------------------------------------------------------- scoring, with the true score


@dataclasses.dataclass(frozen=True)
class Score:
    """How a stop did in one run.

    Attributes:
      regret: true score at the oracle's look less that of the checkpoint kept.
      regret_at_stop: the same of the policy as it was when the rule stopped the run.
      too_early: warned before the oracle's look, with more than the tolerance still to gain.
      lead: steps from the warning to the look at which the true score has fallen from its peak by the stated amount;
        negative when the warning came after it; None when it never fell or nothing was warned of.
      missed: the true score fell by that amount, and there was no warning up to the end of the run.
    """

    regret: float
    regret_at_stop: float
    too_early: bool
    lead: int | None
    missed: bool


def score(stop: Stop, step: np.ndarray, gold_HK: np.ndarray, *, tolerance: float, fall: float) -> Score:
    """Scores a stop against the oracle, which knows the true score, see `oracle`.

    Args:
      stop: of `run`.
      step: int [K].
      gold_HK: true score at each look, mean over the replies of one half; H = 2 halves.
      tolerance: what may be left to gain for a stop to count as in time.
      fall: what must be lost from the peak for the run to count as fallen.
    """
    gold_K, best = gold_HK.mean(0), oracle(gold_HK)
    peak = int(gold_K.argmax())
    fallen = [look for look in range(peak, len(step)) if gold_K[look] < best - fall]
    early = stop.warned and stop.look < peak and best - float(gold_K[stop.look]) > tolerance
    return Score(best - float(gold_K[stop.keep]), best - float(gold_K[stop.look]), early,
                 int(step[fallen[0]] - step[stop.look]) if fallen and stop.warned else None,
                 bool(fallen) and not stop.warned)


def oracle(gold_HK: np.ndarray) -> float:
    """The true score of the best look.

    The highest of K noisy means is high by luck, and an oracle read on its own sample would charge every rule for that
    luck. Here the look is chosen on one half of the replies and read on the other, both ways.

    Args:
      gold_HK: true score at each look, mean over the replies of one half; H = 2 halves.
    """
    first, second = gold_HK.argmax(1)
    return float((gold_HK[1, first] + gold_HK[0, second]) / 2)
