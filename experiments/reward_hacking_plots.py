"""Pictures of the over-optimisation experiment, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.reward_hacking_runs import Record, Run
from jaxllm.evals.intervals import t_interval
from jaxllm.rl import overoptimization

_GRID = 60


def band(d: Sequence[Sequence[float]], y: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Runs on one axis, as far as all of them go: (d [N], mean and 95% ends [N, 3])."""
    grid = np.linspace(0, min(max(one) for one in d), _GRID)
    order = [np.argsort(one) for one in d]
    lines = np.array([np.interp(grid, np.array(x)[o], np.array(z)[o]) for x, z, o in zip(d, y, order, strict=True)])
    return grid, np.array([t_interval(column.tolist()) for column in lines.T])


def _shade(axes: Any, x: np.ndarray, means: np.ndarray, colour: str, label: str, style: str = "-") -> None:
    axes.plot(x, means[:, 0], style, color=colour, label=label, linewidth=1.6)
    if np.isfinite(means).all():
        axes.fill_between(x, means[:, 1], means[:, 2], color=colour, alpha=0.15, linewidth=0)


def against_distance(curves: Mapping[str, Sequence[Any]]) -> str:
    """Gold and proxy of best-of-n and RL with their bands, gold of single runs of RL, and its own law, dotted.

    A band ends where the shortest run does; what becomes of the others is in their own lines.
    """
    def draw(axes: Any) -> None:
        for kind, name, colour in (("rl", "RL", "#2a6fdb"), ("best_of_n", "best of n", "#d1603d")):
            some = curves[kind]
            for key, style in (("gold", "-"), ("proxy", "--")):
                x, means = band([c.d for c in some], [getattr(c, key) for c in some])
                _shade(axes, x, means, colour, f"{name}, {key}", style)
            for i, c in enumerate(some if kind == "rl" else ()):
                axes.plot(c.d, c.gold, color=colour, linewidth=0.7, alpha=0.45, label="" if i else "RL, gold, a seed")
            x = np.linspace(0, max(max(c.d) for c in some), 200)
            law = overoptimization.fit_law(kind, [(c.d, c.gold) for c in some], draws=1).law
            axes.plot(x, law.gain(x), ":", color=colour, linewidth=1.2, label=f"{name}, law of gold")
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set(xlabel="d: square root of KL from the start (nats a reply)", ylabel="gain over the start, sd")
        axes.legend(frameon=False, fontsize=8, ncols=2)
    return report.picture(draw, height=4.2)


def by_proxy(curves: Mapping[tuple[int, int], Sequence[Any]]) -> str:
    """Gold against d for each reward model."""
    def draw(axes: Any) -> None:
        for i, ((size, count), some) in enumerate(curves.items()):
            x, means = band([c.d for c in some], [c.gold for c in some])
            _shade(axes, x, means, f"C{i}", f"{size} blocks, {count} rankings")
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set(xlabel="d: square root of KL from the start (nats a reply)", ylabel="gold: gain over the start, sd")
        axes.legend(frameon=False, fontsize=8)
    return report.picture(draw)


def rounds(chains: Mapping[tuple[int, str], Sequence[Record]]) -> str:
    """Gold against steps, round by round; the control, to which ordinary rankings were added, dashed."""
    def draw(axes: Any) -> None:
        for arm, style in (("adversarial", "-"), ("ordinary", "--")):
            some = [chain for (_, other), chain in chains.items() if other == arm]
            for number in range(len(some[0]) if some else 0):
                if number == 0 and arm == "ordinary":
                    continue  # the same runs as the other arm's
                steps = [look["step"] for look in some[0][number]["looks"]]
                gold = [[float(np.mean(look["gold"])) for look in chain[number]["looks"]] for chain in some]
                name = f"round {number}, {arm}" if number else "round 0"
                means = np.array([t_interval(list(column)) for column in zip(*gold, strict=True)])
                _shade(axes, np.array(steps), means, f"C{number}", name, style)
        axes.set(xlabel="updates", ylabel="gold, sd")
        axes.legend(frameon=False, fontsize=8)
    return report.picture(draw)


def stops(config: ConfigDict, runs: Mapping[Run, Record], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Gold of each scored seed against steps; where the rule by the law of choices warned, and what it kept."""
    def draw(axes: Any) -> None:
        for i, (seed, stop) in enumerate(zip(config.seeds, found["law of choices"], strict=True)):
            looks = runs[Run(seed, "test", tuple(config.proxy))]["looks"]
            gold = [float(np.mean(look["gold"])) for look in looks]
            steps = [look["step"] for look in looks]
            axes.plot(steps, gold, color="#9aa0a6", linewidth=1)
            best, first = int(np.argmax(gold)), i == 0
            axes.plot(steps[best], gold[best], "*", color="#222222", markersize=9, label="oracle" if first else None)
            axes.plot(steps[stop["look"]], gold[stop["look"]], "v", color="#d1603d", markersize=6,
                      label="law of choices: stopped here" if first else None)
            axes.plot(steps[stop["keep"]], gold[stop["keep"]], "o", color="#2a6fdb", markersize=6,
                      label="law of choices: kept this" if first else None)
        axes.set(xlabel="updates", ylabel="gold, sd")
        axes.legend(frameon=False, fontsize=8)
    return report.picture(draw)
