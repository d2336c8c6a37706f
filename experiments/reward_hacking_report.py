"""The report of the over-optimisation experiment: reward models, laws, samples and rounds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import reward_hacking_plots as plots
from experiments.findings import Findings, Table
from experiments.reward_hacking_claims import claims
from experiments.reward_hacking_rules import stop_rules
from experiments.reward_hacking_runs import Record, Records, Run
from jaxllm.data.world_taste import funny_words, repetitions, things, words_of
from jaxllm.evals.intervals import spread, t_interval
from jaxllm.rl import overoptimization, stopping

NAMES = {"best_of_n": "best of n", "rl": "RL"}
FORMULAS = {"best_of_n": "d (alpha - beta d)", "rl": "d (alpha - beta log d)"}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Gains over the start of one run: d [P], gold [P], proxy [P]."""

    d: list[float]
    gold: list[float]
    proxy: list[float]


def findings_of(config: ConfigDict, found: Records) -> Findings:
    """All tables and pictures."""
    curves = {proxy: {"rl": rl_curves(found, proxy), "best_of_n": best_of_n_curves(found, proxy)}
              for proxy in (tuple(config.proxy), *map(tuple, config.other_proxies))}
    curves = {proxy: both for proxy, both in curves.items() if both["rl"]}
    main = curves[tuple(config.proxy)]
    rules, numbers = stop_rules(config, found)
    tables = [proxies(config, found, curves), laws(main), laws_by_proxy(curves), samples(config, found)]
    if found.chains:
        tables.append(rounds(found))
    pictures = [("Proxy and gold against the square root of KL", plots.against_distance(main)),
                ("Other reward models: gold of RL", plots.by_proxy({one: both["rl"] for one, both in curves.items()})),
                ("Where the rules stop", plots.stops(config, found.runs, numbers["stops"]))]
    if found.chains:
        pictures.insert(2, ("Rounds: what gamed the reward model, ranked and added", plots.rounds(found.chains)))
    numbers |= {"curves": {f"{size} blocks, {count} rankings": {kind: list(map(dataclasses.asdict, some))
                                                                for kind, some in both.items()}
                           for (size, count), both in curves.items()}}
    return Findings("Over-optimisation of a reward model", [*tables, *rules], pictures, numbers,
                    claims(config, found, numbers["stops"]))


# ---------------------------------------------------------------- curves


def _mean(look: Record, key: str) -> float:
    return float(np.mean(look[key]))


def _of(found: Records, proxy: tuple[int, int] | None, split: str = "test") -> dict[int, Record]:
    return {run.seed: one for run, one in found.runs.items() if run.reward == proxy and run.split == split}


def start_gold(found: Records, split: str = "test") -> float:
    """Gold score of the start model: all runs' first looks together, since they are of one model."""
    return float(np.mean([one["looks"][0]["gold"] for run, one in found.runs.items() if run.split == split]))


def rl_curves(found: Records, proxy: tuple[int, int]) -> list[Curve]:
    """Of each seed."""
    start = start_gold(found)
    return [Curve([math.sqrt(look["kl"]) for look in looks], [_mean(look, "gold") - start for look in looks],
                  [_mean(look, "proxy") - _mean(looks[0], "proxy") for look in looks])
            for looks in (one["looks"] for one in _of(found, proxy).values())]


def best_of_n_curves(found: Records, proxy: tuple[int, int]) -> list[Curve]:
    """Of each seed: n = 1, 2, 4, ... of the pool by its proxy."""
    gold_QN, curves = np.array(found.pools["test"]["gold"]), []
    for one in _of(found, proxy).values():
        proxy_QN = np.array(one["pool"])
        counts = [2**i for i in range(int(math.log2(proxy_QN.shape[1])) + 1)]
        d, gold = overoptimization.best_of_n_curve(proxy_QN, gold_QN, counts)
        _, score = overoptimization.best_of_n_curve(proxy_QN, proxy_QN, counts)
        curves.append(Curve(d, [x - gold[0] for x in gold], [x - score[0] for x in score]))
    return curves


def halves(one: Record) -> np.ndarray:
    """Mean gold of two halves of the replies at each look, [2, K]."""
    gold_KR = np.array([look["gold"] for look in one["looks"]]).reshape(len(one["looks"]), -1)
    return np.stack([gold_KR[:, half::2].mean(1) for half in (0, 1)])


# ---------------------------------------------------------------- tables


def proxies(config: ConfigDict, found: Records, curves: dict[tuple[int, int], Any]) -> Table:
    """What each reward model is, and what RL against it came to; the gold judge itself as the control."""
    rows = [["reward model", "parameters", "seeds", "agrees with people", "gold at the start", "at its peak",
             "at the end", "proxy at the end", "KL at the end"]]
    for proxy in (*curves, None):
        some = list(_of(found, proxy).values())
        if not some:
            continue
        name = "gold judge (control)" if proxy is None else f"{proxy[0]} blocks, {proxy[1]} rankings"
        rows.append([name, "-" if proxy is None else f"{some[0]['parameters']:,}", str(len(some)),
                     "-" if proxy is None else spread(t_interval([one["accuracy"] for one in some])),
                     f"{start_gold(found):.2f}", spread(t_interval([stopping.oracle(halves(one)) for one in some]), 2),
                     spread(t_interval([_mean(one["looks"][-1], "gold") for one in some]), 2),
                     spread(t_interval([_mean(one["looks"][-1], "proxy") for one in some]), 2),
                     f"{statistics.fmean(one['looks'][-1]['kl'] for one in some):.1f}"])
    ceiling = [one["ceiling"] for run, one in found.runs.items() if run.reward is not None]
    return Table("Reward models, and RL against each", rows,
                 f"Mean [95%, t over seeds]. Gold in standard deviations of people's jokes, proxy in those of the "
                 f"replies that were ranked. Agreement: share of people's choices in {config.held_out} held-out "
                 f"rankings; the gold judge's own is {statistics.fmean(ceiling):.3f}. The peak is chosen on one half "
                 f"of the replies and read on the other.")


def _fit(kind: str, curves: Sequence[Curve], key: str) -> overoptimization.LawFit:
    return overoptimization.fit_law(kind, [(curve.d, getattr(curve, key)) for curve in curves])


def peak(fit: overoptimization.LawFit) -> str:
    """Where the fitted law is highest; "none" for a peak that no run could come near."""
    value, low, high = fit.peak
    if value > 10:
        return "none"
    return spread(fit.peak, 2) if high < 10 or math.isinf(low) else f"{value:.2f} [{low:.2f}, none]"


def laws(curves: dict[str, list[Curve]]) -> Table:
    """Both laws on both ways of optimising."""
    rows = [["", "score", "law", "alpha", "beta", "peak at d", "R2", "R2 of single runs"]]
    for method in ("best_of_n", "rl"):
        for key in ("gold", "proxy"):
            for kind in overoptimization.KINDS:
                fit = _fit(kind, curves[method], key)
                rows.append([NAMES[method], key, FORMULAS[kind], spread(fit.alpha), spread(fit.beta),
                             peak(fit), f"{fit.r2:.3f}", f"{statistics.median(fit.r2_of_runs):.3f}"])
    return Table("Laws of over-optimisation, both fitted to both", rows,
                 "d: square root of KL from the start, nats a reply. Intervals: seeds drawn anew. R2 of all points of "
                 "all seeds about their mean; last column: each seed by a law of its own, median.")


def laws_by_proxy(curves: dict[tuple[int, int], dict[str, list[Curve]]]) -> Table:
    """The gold score's own law by reward model."""
    rows = [["reward model", "", "alpha", "beta", "peak at d", "R2"]]
    for (size, count), both in curves.items():
        for kind in overoptimization.KINDS:
            fit = _fit(kind, both[kind], "gold")
            rows.append([f"{size} blocks, {count} rankings", NAMES[kind], spread(fit.alpha), spread(fit.beta),
                         peak(fit), f"{fit.r2:.3f}"])
    return Table("The gold score's law by reward model", rows, "Best of n and RL each by its own law.")


def top(look: Record, count: int) -> list[tuple[str, str, float, float]]:
    """(thing, text, proxy, gold) of the replies with the highest proxy, one a thing."""
    found = []
    for thing, texts, proxy, gold in zip(things("test"), look["texts"], look["proxy"], look["gold"], strict=True):
        i = int(np.argmax(proxy))
        found.append((thing, texts[i], proxy[i], gold[i]))
    return sorted(found, key=lambda one: -one[2])[:count]


def samples(config: ConfigDict, found: Records) -> Table:
    """What the proxy likes best: at the start, at the peak of gold and at the end of the first seed's run."""
    rows = [["", "thing", "proxy", "gold", "reply"]]
    looks = found.runs[Run(config.seeds[0], "test", tuple(config.proxy))]["looks"]
    best = max(looks, key=lambda look: _mean(look, "gold"))
    for name, look in (("start", looks[0]), (f"peak of gold, step {best['step']}", best),
                       (f"end, step {looks[-1]['step']}", looks[-1])):
        rows += [[name, thing, f"{proxy:.2f}", f"{gold:.2f}", text] for thing, text, proxy, gold in top(look, 3)]
    return Table("What the reward model likes best", rows, f"The three highest by proxy, seed {config.seeds[0]}.")


def rounds(found: Records) -> Table:
    """Round by round: peak and end, whether the last hole is closed, and what the new one looks like."""
    rows = [["added", "round", "gold at the peak", "at the end", "KL at the end", "its end by its reward model",
             "the end before by it", "funny words", "repeated", "words", "highest by proxy at the end"]]
    for arm in dict.fromkeys(arm for _, arm in found.chains):
        chains = [chain for (_, other), chain in found.chains.items() if other == arm]
        for number in range(len(chains[0])):
            some = [chain[number] for chain in chains]
            said = [text for one in some for texts in one["looks"][-1]["texts"] for text in texts]
            before = spread(t_interval([one["seen"][number - 1] for one in some]), 2) if number else "-"
            rows.append([
                arm, str(number), spread(t_interval([stopping.oracle(halves(one)) for one in some]), 2),
                spread(t_interval([_mean(one["looks"][-1], "gold") for one in some]), 2),
                f"{statistics.fmean(one['looks'][-1]['kl'] for one in some):.1f}",
                spread(t_interval([one["seen"][number] for one in some]), 2), before,
                *(f"{statistics.fmean(map(count, said)):.1f}" for count in (
                    funny_words, lambda text: repetitions(words_of(text)), lambda text: len(words_of(text)))),
                top(some[0]["looks"][-1], 1)[0][1]])
    return Table("Rounds: what gamed the reward model, ranked and added", rows,
                 "Mean [95%, t over seeds]; a reward model's scores in its own standard deviations over the rankings. "
                 "\"ordinary\" adds as many rankings of the start model's replies: the control.")
