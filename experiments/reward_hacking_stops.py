"""Stop rules over recorded runs: what a user would have seen, thresholds chosen on other seeds, and the scores."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.reward_hacking_runs import Record
from jaxllm.rl import stopping
from jaxllm.rl.kl import best_of_n_kl
from jaxllm.rl.overoptimization import fit_choices
from jaxllm.rl.stopping import History, Rule, Score


@dataclasses.dataclass(frozen=True)
class Family:
    """Rules that differ in a threshold.

    Attributes:
      make: (threshold, labels at a look) -> the rule.
      thresholds: to choose from, from the one that stops first to the one that stops last.
      needs: what a user must have for it, in words; "labels" when people are asked at every look.
    """

    make: Callable[[float, int], Rule]
    thresholds: tuple[float, ...]
    needs: str


NEVER = math.inf


def families(config: ConfigDict) -> dict[str, Family]:
    """All rules that are compared."""
    sure = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
    return {
        "fixed step": Family(lambda t, _: stopping.fixed_step(t),
                             (*range(0, config.rl.steps + 1, config.look_steps), NEVER), "other runs"),
        "fixed KL": Family(lambda t, _: stopping.fixed_kl(t), (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, NEVER),
                           "other runs"),
        "KL budget from best-of-n": Family(lambda t, _: stopping.kl_budget(t), (0.1, 0.25, 0.5, 1, 2, 4, 8, NEVER),
                                           "choices once"),
        "ensemble disagreement": Family(lambda t, _: stopping.disagreement(t),
                                        (1.02, 1.05, 1.1, 1.2, 1.4, 1.7, 2, 3, NEVER), "reward models"),
        "other reward models": Family(lambda t, _: stopping.committee_drop(t), (0, 0.05, 0.1, 0.2, 0.4, 0.8, NEVER),
                                      "reward models"),
        "highest win rate": Family(stopping.win_rate_drop, (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, NEVER), "labels"),
        "sequential test": Family(stopping.sequential_test, (0.5, 0.2, 0.1, 0.05, 0.01), "labels"),
        "law of choices": Family(stopping.trend, sure, "labels"),
        "law, against the start": Family(functools.partial(stopping.trend, against="start"), sure, "labels"),
    }


@dataclasses.dataclass(frozen=True)
class Watched:
    """A run as rules are scored on it: a history for each time that people are asked anew, and the truth."""

    histories: list[History]
    gold_HK: np.ndarray


def watched(config: ConfigDict, record: Record, pool: Record, seed: int) -> Watched:
    """What a user would know of a recorded run.

    Args:
      pool: of the same split, see `reward_hacking_runs.pool_of`.
      seed: of the people's choices.
    """
    looks = record["looks"]
    step, kl = (np.array([look[key] for look in looks]) for key in ("step", "kl"))
    # Row r is about thing r mod Q, so that the first rows, which people are asked about, are of all things.
    proxy_KR, gold_KR, taste_KR = (np.array([look[key] for look in looks]).swapaxes(1, 2).reshape(len(looks), -1)
                                   for key in ("proxy", "gold", "taste"))
    members_KMR = np.array([look["members"] for look in looks]).swapaxes(-1, -2).reshape(*proxy_KR.shape[:1], -1,
                                                                                         proxy_KR.shape[1])
    models_KMR = np.concatenate([members_KMR, proxy_KR[:, None]], 1) if "pool" in record else members_KMR
    committee, disagreement = members_KMR.mean((1, 2)), models_KMR.std(1).mean(1)
    histories = []
    for draw in range(config.label_draws):
        rng = np.random.default_rng((seed, draw))
        histories.append(History(step, kl, proxy_KR.mean(1), committee, disagreement,
                                 choices(config, taste_KR[:, :max(config.labels)], rng),
                                 kl_limit(config, record, pool, rng), len(looks)))
    return Watched(histories, np.stack([gold_KR[:, half::2].mean(1) for half in (0, 1)]))


def choices(config: ConfigDict, taste_KM: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """People's choices between replies of all pairs of looks, the m-th reply of one against the m-th of the other.

    What `jaxllm.data.world_taste.rank` does with two replies: each is felt as its taste and noise of its own; 1 for the
    first, 0.5 for a tie. Row r of a look is a reply to the same thing at every look.

    Returns:
      [K, K, M]
    """
    K, M = taste_KM.shape
    lead = taste_KM[:, None] - taste_KM[None] + rng.normal(0, math.sqrt(2) * config.human.noise, (K, K, M))
    return np.where(np.abs(lead) < config.human.tie, 0.5, lead > 0)


def kl_limit(config: ConfigDict, record: Record, pool: Record, rng: np.random.Generator) -> float:
    """The KL at which best-of-n by the proxy ceases to please people, from their choices against one reply by chance.

    Returns:
      Nats, by the law of best-of-n fitted to config.pool_labels choices; infinite when they show no limit, or when the
      run has no proxy.
    """
    if "pool" not in record:
        return math.inf
    proxy_QN, taste_QN = np.array(record["pool"]), np.array(pool["taste"])
    counts = [2**i for i in range(1, int(math.log2(proxy_QN.shape[1])) + 1)]
    each, wins = config.pool_labels // len(counts), []
    for n in counts:
        asked = rng.integers(0, len(proxy_QN), each)
        among = np.array([rng.choice(proxy_QN.shape[1], n, replace=False) for _ in range(each)])
        best = among[np.arange(each), proxy_QN[asked[:, None], among].argmax(1)]
        other = rng.integers(0, proxy_QN.shape[1], each)
        lead = taste_QN[asked, best] - taste_QN[asked, other]
        felt = lead + rng.normal(0, math.sqrt(2) * config.human.noise, each)
        wins.append(float(np.where(np.abs(felt) < config.human.tie, 0.5, felt > 0).sum()))
    d = [math.sqrt(best_of_n_kl(n)) for n in counts]
    return fit_choices("best_of_n", d, [0.0] * len(d), wins, [each] * len(d)).law.peak()[0]**2


def scores(config: ConfigDict, rule: Rule, run: Watched) -> list[Score]:
    """A rule on a run, once for each time that people are asked anew."""
    return [stopping.score(stopping.run(rule, history), history.step, run.gold_HK, tolerance=config.tolerance,
                           fall=config.fall) for history in run.histories]


def regret(config: ConfigDict, rule: Rule, runs: Sequence[Watched]) -> float:
    """Mean over runs."""
    return float(np.mean([[score.regret for score in scores(config, rule, run)] for run in runs]))


def choose(config: ConfigDict, family: Family, labels: int, gamed: Sequence[Watched], honest: Sequence[Watched]
           ) -> float:
    """The threshold with the least regret on validation runs: gamed ones, and honest ones (of the gold judge itself).

    The two kinds weigh the same. Without honest runs, it is chosen for gamed ones alone.
    """
    def loss(threshold: float) -> float:
        rule = family.make(threshold, labels)
        return regret(config, rule, gamed) + (regret(config, rule, honest) if honest else 0.0)
    return min(family.thresholds, key=loss)
