"""A claim, what was measured, the control that could refute it, and the verdict that the numbers give.

The verdict is arithmetic on an interval, so that nobody writes it by hand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxllm.evals.intervals import difference, share_interval, spread, t_interval, wilson

Interval = tuple[float, float, float]  # mean, low, high; infinite ends where there is nothing to say
HOLDS, REFUTED, OPEN = "holds", "refuted", "not settled"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that a number can refute.

    Attributes:
      text: the sentence.
      measure, control: what was measured of the one side and of the other, in a few words.
      measured, controlled: the two numbers with their 95% intervals.
      lead: by how much the measure is ahead of the control in the direction of the claim, with its 95% interval.
      over: what the interval is over, "3 seeds" or "300 and 298 questions".
      digits: decimals that tables show.
    """

    text: str
    measure: str
    control: str
    measured: Interval
    controlled: Interval
    lead: Interval
    over: str
    digits: int = 3

    @property
    def verdict(self) -> str:
        """"holds" where the lead's whole interval is above 0, "refuted" where it is below, else "not settled"."""
        return HOLDS if self.lead[1] > 0 else REFUTED if self.lead[2] < 0 else OPEN

    def as_json(self) -> dict[str, Any]:
        """For results.json; infinite ends become None, which JSON has."""
        fields = dataclasses.asdict(self)
        for name in ("measured", "controlled", "lead"):
            fields[name] = [value if math.isfinite(value) else None for value in fields[name]]
        return {**fields, "verdict": self.verdict}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Claim:
        """What `as_json` made."""
        fields = {name: value for name, value in fields.items() if name != "verdict"}
        for name in ("measured", "controlled", "lead"):
            mean, low, high = fields[name]
            fields[name] = (mean, -math.inf if low is None else low, math.inf if high is None else high)
        return cls(**fields)


def rows(claims: Sequence[Claim]) -> list[list[str]]:
    """A table of claims, its header first."""
    return [["claim", "measured", "control", "ahead by", "verdict"],
            *[[claim.text, f"{claim.measure}: {spread(claim.measured, claim.digits)}",
               f"{claim.control}: {spread(claim.controlled, claim.digits)}",
               f"{spread(claim.lead, claim.digits)}, over {claim.over}", claim.verdict] for claim in claims]]


def of_shares(text: str, measure: str, measured: Sequence[tuple[float, int]], control: str,
              controlled: Sequence[tuple[float, int]], *, of: str = "questions", less: bool = False) -> Claim:
    """A claim about two shares.

    With several seeds the interval is Student's t over the differences within a seed; with one it is Newcombe's for two
    independent shares, which is wide where both sides had the same questions.

    Args:
      text, measure, control: see `Claim`.
      measured, controlled: (hits, of how many) for each seed; parts of a hit where each was tried several times.
      of: what was counted.
      less: whether the claim is that the measure is the smaller one.

    >>> of_shares("tools help", "with", [(90, 100)], "without", [(5, 100)]).verdict
    'holds'
    >>> of_shares("chance", "a", [(5, 10)], "b", [(4, 10)]).verdict
    'not settled'
    """
    if len(measured) != len(controlled) or not measured:
        raise ValueError(f"{len(measured)} and {len(controlled)} seeds: give as many, at least one, of both")
    if len(measured) == 1:
        (hits, all_of), (hits2, all_of2) = measured[0], controlled[0]
        lead = difference(hits2, all_of2, hits, all_of) if less else difference(hits, all_of, hits2, all_of2)
        return Claim(text, measure, control, (hits / max(all_of, 1), *wilson(hits, all_of)),
                     (hits2 / max(all_of2, 1), *wilson(hits2, all_of2)), lead,
                     f"{all_of:,} {of}" if all_of == all_of2 else f"{all_of:,} and {all_of2:,} {of}")
    shares, shares2 = ([hits / max(all_of, 1) for hits, all_of in side] for side in (measured, controlled))
    return Claim(text, measure, control, share_interval(shares), share_interval(shares2),
                 _lead(shares, shares2, less), f"{len(measured)} seeds")


def of_values(text: str, measure: str, measured: Sequence[float], control: str, controlled: Sequence[float], *,
              of: str = "seeds", less: bool = False, digits: int = 3) -> Claim:
    """A claim about two means of values that belong together in pairs: of seeds, documents or problems.

    One pair alone has no interval, and settles nothing.

    >>> of_values("lower loss", "model", [1.0, 1.1, 0.9], "counts", [2.0, 2.2, 1.8], of="documents", less=True).verdict
    'holds'
    """
    return Claim(text, measure, control, t_interval(measured), t_interval(controlled),
                 _lead(measured, controlled, less), f"{len(measured):,} {of}", digits)


def _lead(measured: Sequence[float], controlled: Sequence[float], less: bool) -> Interval:
    pairs = zip(measured, controlled, strict=True)
    return t_interval([(b - a) if less else (a - b) for a, b in pairs])
