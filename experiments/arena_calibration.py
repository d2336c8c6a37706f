"""Can an arena be trusted? Simulated players of known strength, voters of known bias, and what the arena makes of them.

    python -m experiments.arena_calibration --workdir=runs/arena_calibration

Measured: how often a 95% interval holds the true strength, by votes, with dependent votes too; how far ranks are right;
what voters who like length do to the ranking, and how much of it style control takes away; how many votes a player
needs that writes longer and no better until it is first. Control: players who are all equal, of whom no arena should
place one above another.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import kendalltau

from experiments import findings, lab, launch
from experiments.arena_calibration_report import findings_of
from experiments.arena_calibration_simulate import SHAPES, World, first_votes, simulate, without_style
from jaxllm.evals import arena
from jaxllm.evals.votes import Votes

GAMED = 3  # the fourth best is the one that writes longer
Numbers = dict[str, Any]


def main(config: ConfigDict, workdir: str) -> None:
    """Simulates all arenas and writes what they show; a part that is done is kept.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    settings, found = {**config.to_dict()}, {}
    for name, measure in (("coverage", coverage), ("dependent", dependent), ("equal", equal), ("verbosity", verbosity),
                          ("gamed", gamed)):
        found[name] = lab.kept(folder / "kept", name, settings, functools.partial(measure, config))
        print(f"{name}: {time.perf_counter() - begun:.0f} s in all", flush=True)
    findings.write(findings_of(config, found), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be simulated."""
    for key, least in (("players", GAMED + 1), ("arenas", 2), ("styled_arenas", 2), ("samples", 100), ("voters", 2),
                       ("styled_votes", 100), ("most_votes", 100)):
        if config[key] < least:
            raise ValueError(f"config.{key}={config[key]}: choose {least} or more")
    if not config.votes or min(config.votes) < 10 or sorted(config.votes) != list(config.votes):
        raise ValueError(f"config.votes={config.votes}: name numbers of votes, 10 or more, the smallest first")
    if not config.step > 0 or not all(0 <= config[key] <= 1 for key in ("tie", "repeat", "reliability")):
        raise ValueError(f"config.step={config.step} must be above 0; tie {config.tie}, repeat {config.repeat} and "
                         f"reliability {config.reliability} lie in 0 to 1")
    if not config.biases or not config.longer or max(config.biases) <= 0:
        raise ValueError(f"config.biases={config.biases} and config.longer={config.longer}: name some, and a bias "
                         f"above 0")


def strengths_of(config: ConfigDict) -> tuple[float, ...]:
    """N true strengths, the best first, of mean 0."""
    return tuple((np.arange(config.players)[::-1] - (config.players - 1) / 2) * config.step)


def coverage(config: ConfigDict) -> list[Numbers]:
    """For each number of votes: intervals, their coverage, and ranks; votes are independent."""
    strengths = strengths_of(config)
    worlds = [("half", count, World(strengths, config.tie)) for count in config.votes]
    # Ties by Davidson's law, fitted as such and as half wins, which they are not.
    worlds += [(ties, config.votes[-1], World(strengths, nu=0.5)) for ties in ("davidson", "half")]
    return [_many(config, world, count, ties, f"coverage/{i}") for i, (ties, count, world) in enumerate(worlds)]


def dependent(config: ConfigDict) -> list[Numbers]:
    """Battles with several votes each, once with every vote for itself, once with the votes of a battle as a group."""
    world = World(strengths_of(config), config.tie, voters=config.voters, repeat=config.repeat)
    count = config.voters * config.votes[len(config.votes) // 2]
    return [{"grouped": grouped, **_many(config, world, count, "half", "dependent", grouped)}
            for grouped in (False, True)]


def equal(config: ConfigDict) -> list[Numbers]:
    """Arenas of equal players."""
    return [_many(config, World((0.0,) * config.players, config.tie), count, "half", f"equal/{count}")
            for count in config.votes[1:]]


def _many(config: ConfigDict, world: World, count: int, ties: str, name: str, grouped: bool = True) -> Numbers:
    """Many arenas of one world: per arena, whether each interval held, what was claimed, and how ranks came out."""
    true_N, rows, refused = np.array(world.strengths), [], 0
    for number in range(config.arenas):
        rng = _rng(config, name, number)
        votes = without_style(simulate(world, count, rng))
        if not grouped:
            votes = Votes(votes.players, votes.first, votes.second, votes.points)
        try:
            fitted = arena.fit(votes, ties=ties)
        except ValueError:
            refused += 1
            continue
        draws_SN = arena.bootstrap(votes, fitted, config.samples, int(rng.integers(2**31)))[:, :len(true_N)]
        rows.append(_one(true_N, fitted, draws_SN))
    return {"votes": count, "ties": ties, "davidson": world.nu > 0, "arenas": config.arenas, "refused": refused,
            **{key: [row[key] for row in rows] for key in (rows[0] if rows else ())}}


def _one(true_N: np.ndarray, fitted: arena.Fit, draws_SN: np.ndarray) -> Mapping[str, float]:
    """One arena against the truth.

    Returns:
      "sandwich", "bootstrap": share of the true strengths that the interval holds; "width": mean, nats, of the latter;
      "apart", "pair", "joint": whether some pair of players is said to be different that is not, or the other way
      round, by intervals that do not overlap, by 1.96 standard deviations for each pair, by all pairs jointly;
      "power": share of the pairs that differ which the last places rightly; "tau": Kendall's; "first": whether the best
      player has the highest score.
    """
    count = len(true_N)
    ends = {"sandwich": fitted.interval()[:count], "bootstrap": arena.quantiles(draws_SN)}
    held = {name: float(np.mean((low <= true_N) & (true_N <= high))) for name, (low, high) in
            ((name, ends_N2.T) for name, ends_N2 in ends.items())}
    low_N, high_N = ends["bootstrap"].T
    pair, joint = (arena.separated(fitted.strengths, draws_SN, joint=together) for together in (False, True))
    above = {"apart": low_N[:, None] > high_N[None, :], "pair": pair, "joint": joint}
    truly_NN = true_N[:, None] > true_N[None, :] + 1e-9
    wrong = {name: float((found_NN & ~truly_NN).any()) for name, found_NN in above.items()}
    some = truly_NN.sum()
    return {**held, **wrong, "width": float((high_N - low_N).mean()),
            "power": float((above["joint"] & truly_NN).sum() / some) if some else 0.0,
            "tau": float(kendalltau(true_N, fitted.strengths).statistic) if some else 0.0,
            "first": float(fitted.strengths.argmax() == true_N.argmax())}


def verbosity(config: ConfigDict) -> list[Numbers]:
    """The gamed player's score and rank before voters of each bias, as voted and at equal style, for each shape."""
    strengths, longer = strengths_of(config), config.longer[len(config.longer) // 2]
    arms = [(bias, "linear") for bias in config.biases] + [(max(config.biases), shape) for shape in SHAPES[1:]]
    found = []
    for bias, shape in arms:
        world = World(strengths, config.tie, lengths=_longer(config, longer), bias=bias, shape=shape,
                      reliability=config.reliability if shape == "measured badly" else 1.0)
        rows: dict[str, list[list[float]]] = {"plain": [], "styled": []}
        for number in range(config.styled_arenas):
            votes = simulate(world, config.styled_votes, _rng(config, f"verbosity/{bias}/{shape}", number))
            for name, some in (("plain", without_style(votes)), ("styled", votes)):
                fitted = arena.fit(some)
                error_N = fitted.strengths - strengths
                low, high = fitted.interval()[GAMED]
                rank = 1 + int((fitted.strengths > fitted.strengths[GAMED]).sum())
                rows[name].append([float(error_N[GAMED]), rank, float(np.sqrt(np.square(error_N).mean())),
                                   float(low <= strengths[GAMED] <= high),
                                   float(fitted.coefficients[0]) if len(fitted.coefficients) else 0.0])
        found.append({"bias": bias, "shape": shape, "longer": longer, **rows})
    return found


def gamed(config: ConfigDict) -> list[Numbers]:
    """Whether the gamed player is first by score, and without doubt, at each number of votes; and at equal style."""
    sizes = [100]
    while sizes[-1] * 2 <= config.most_votes:
        sizes.append(sizes[-1] * 2)
    found = []
    for longer in config.longer:
        world = World(strengths_of(config), config.tie, lengths=_longer(config, longer), bias=max(config.biases))
        rows: dict[str, list[Any]] = {"first": [], "surely": [], "styled": []}
        for number in range(config.styled_arenas):
            votes = simulate(world, sizes[-1], _rng(config, f"gamed/{longer}", number))
            first, surely = zip(*(_leads(first_votes(without_style(votes), size)) for size in sizes), strict=True)
            rows["first"].append(first)
            rows["surely"].append(surely)
            rows["styled"].append(int(arena.fit(votes).strengths.argmax() == GAMED))
        found.append({"longer": longer, "sizes": sizes, **rows})
    return found


def _leads(votes: Votes) -> tuple[int, int]:
    """Whether the gamed player has the highest score, and whether it is above all others, all pairs jointly at 95%."""
    try:
        fitted = arena.fit(votes)
    except ValueError:  # so few votes that somebody has won or lost everything
        return 0, 0
    better_NN = arena.separated(fitted.strengths, fitted.draws(500))
    return int(fitted.strengths.argmax() == GAMED), int(better_NN[GAMED].sum() == len(votes.players) - 1)


def _longer(config: ConfigDict, longer: float) -> tuple[float, ...]:
    return tuple(longer if i == GAMED else 0.0 for i in range(config.players))


def _rng(config: ConfigDict, name: str, number: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, number, *name.encode()])


if __name__ == "__main__":
    launch.run(main, default_config="configs/arena_calibration.py")
