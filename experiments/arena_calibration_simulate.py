"""Simulated votes: players of known strength before voters of known bias."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.special import expit

from jaxllm.evals.arena_newton import davidson
from jaxllm.evals.votes import Votes

SHAPES = ("linear", "longer", "measured badly")


@dataclasses.dataclass(frozen=True)
class World:
    """Players, and how voters judge them.

    A reply of player i has length z ~ N(length_i, 1) in standard deviations. In a battle x = (z_i - z_j) / sqrt(2), and
    the expected points of i are sigma(s_i - s_j + bias x).

    Attributes:
      strengths: N, nats.
      tie: ties have probability tie 2 p (1 - p), p the expected points, so that a tie as half a win is the truth.
      nu: Davidson's nu instead of that, where above 0.
      lengths: N, mean of z; () is 0 for all.
      bias: nats for one unit of x.
      shape: "linear"; "longer": voters see only which is longer, bias sign(x); "measured badly": what is recorded
        correlates with x by `reliability`.
      voters: votes on each battle; the first is drawn, and each other repeats it with probability `repeat`.
    """

    strengths: tuple[float, ...]
    tie: float = 0.0
    nu: float = 0.0
    lengths: tuple[float, ...] = ()
    bias: float = 0.0
    shape: str = "linear"
    reliability: float = 1.0
    voters: int = 1
    repeat: float = 0.0


def simulate(world: World, count: int, rng: np.random.Generator) -> Votes:
    """`count` votes (a multiple of the voters of a battle) with the covariate "length"."""
    strengths_N = np.array(world.strengths)
    players, battles = len(strengths_N), count // world.voters
    first_B = rng.integers(players, size=battles)
    second_B = (first_B + rng.integers(1, players, size=battles)) % players
    lengths_N = np.array(world.lengths or (0.0,) * players)
    x_B = (lengths_N[first_B] - lengths_N[second_B] + rng.normal(size=(2, battles)).T @ [1.0, -1.0]) / np.sqrt(2)
    seen_B = np.sign(x_B) if world.shape == "longer" else x_B
    margin_B = strengths_N[first_B] - strengths_N[second_B] + world.bias * seen_B
    if world.nu:
        win_B, tie_B, _ = davidson(margin_B, np.log(world.nu))
    else:
        expected_B = expit(margin_B)
        tie_B = world.tie * 2 * expected_B * (1 - expected_B)
        win_B = expected_B - tie_B / 2
    draw_BK = rng.random((battles, world.voters))
    repeats_BK = rng.random(draw_BK.shape) < world.repeat
    draw_BK = np.where(repeats_BK, draw_BK[:, :1], draw_BK)
    points_BK = np.where(draw_BK < win_B[:, None], 1.0, np.where(draw_BK < (win_B + tie_B)[:, None], 0.5, 0.0))
    noise = np.sqrt(1 - world.reliability**2)
    recorded_B = world.reliability * x_B + noise * rng.normal(size=battles)
    return Votes(tuple(f"player {i + 1}" for i in range(players)), np.repeat(first_B, world.voters),
                 np.repeat(second_B, world.voters), points_BK.ravel(), np.repeat(np.arange(battles), world.voters),
                 np.repeat(recorded_B, world.voters)[:, None], ("length",))


def without_style(votes: Votes) -> Votes:
    """The same votes with no covariate."""
    return dataclasses.replace(votes, covariates=None, names=())


def first_votes(votes: Votes, count: int) -> Votes:
    """The first of the votes."""
    return dataclasses.replace(votes, **{name: getattr(votes, name)[:count] for name in (
        "first", "second", "points", "groups", "covariates")})
