"""Votes as arrays: who met whom, who was preferred, and what differed between their replies."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Votes:
    """V votes between two of N players.

    Attributes:
      players: N names.
      first, second: int [V], who met.
      points: float [V], of the first: 1, 1/2 for a tie, 0.
      groups: int [V]; votes with the same number may depend on each other, as those on one prompt do. None: each vote
        is its own.
      covariates: float [V, C], of the first's reply less the second's; None is none.
      names: of the C covariates.

    Raises:
      ValueError: for what no such votes can be.
    """

    players: tuple[str, ...]
    first: np.ndarray
    second: np.ndarray
    points: np.ndarray
    groups: np.ndarray | None = None
    covariates: np.ndarray | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count, players = len(self.points), len(self.players)
        default = {"groups": np.arange(count), "covariates": np.zeros((count, 0))}
        for name, value in default.items():
            object.__setattr__(self, name, value if getattr(self, name) is None else np.asarray(getattr(self, name)))
        ends = np.concatenate([self.first, self.second])
        if not count or players < 2 or len(set(self.players)) < players:
            raise ValueError(f"{count} votes and {players} players: an arena needs a vote, and players of two names or "
                             f"more")
        if np.any(np.equal(self.first, self.second)) or ends.min() < 0 or ends.max() >= players:
            raise ValueError(f"a vote is between two different players, numbered 0 to {players - 1}")
        if not np.isin(self.points, (0.0, 0.5, 1.0)).all():
            raise ValueError("a vote's points are 1, 0.5 or 0")
        if self.covariates.shape != (count, len(self.names)) or len(self.groups) != count:
            raise ValueError(f"covariates {self.covariates.shape} and groups {self.groups.shape} do not fit {count} "
                             f"votes and {len(self.names)} names")
