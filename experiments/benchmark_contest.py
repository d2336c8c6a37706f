"""Rivals measured in turn: each tried once, the best of each side then round by round, and medians compared."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmark_worker import Worker


@dataclasses.dataclass(frozen=True, eq=False)
class Rival:
    """One way of doing the work.

    Attributes:
      side: "ours" or the peer's name; finalists are chosen within a side.
      name: of this way.
      function, spec, environment: as `Worker` takes them.
      alternatives: other environments by name; the best rival of the side is tried in each.
    """

    side: str
    name: str
    function: str
    spec: dict[str, Any]
    environment: dict[str, str]
    alternatives: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)


def contest(rivals: list[Rival], config: ConfigDict, tokens: int, together: bool = True) -> list[dict[str, Any]]:
    """Measures all rivals.

    Args:
      rivals: of all sides.
      config: finalists, rounds, seconds.
      tokens: processed in one step.
      together: hold the finalists' processes at once and go round them; else start them anew in every round.

    Returns:
      A row for each rival: side, name, rate (median tokens/s), lowest, highest, rounds (0: tried once, for the choice
      of the finalists), failure (empty, or why it could not run), attention.
    """
    rows = {rival: _try(rival, config.seconds, tokens) for rival in rivals}
    for side in dict.fromkeys(rival.side for rival in rivals):
        best = max((r for r in rivals if r.side == side), key=lambda r: rows[r]["rate"])
        for name, environment in best.alternatives.items() if not rows[best]["failure"] else ():
            other = dataclasses.replace(best, name=f"{best.name}, {name}", environment=environment)
            rows[other] = _try(other, config.seconds, tokens)
    finalists = []
    for side in dict.fromkeys(rival.side for rival in rows):
        able = [rival for rival in rows if rival.side == side and not rows[rival]["failure"]]
        finalists += sorted(able, key=lambda rival: -rows[rival]["rate"])[:config.finalists]
    for rival, rates in _rounds(finalists, rows, config, tokens, together).items():
        rows[rival] |= {"rate": statistics.median(rates), "lowest": min(rates), "highest": max(rates),
                        "rounds": len(rates)}
    return list(rows.values())


def _try(rival: Rival, seconds: float, tokens: int) -> dict[str, Any]:
    row = {"side": rival.side, "name": rival.name, "rate": 0.0, "rounds": 0, "failure": "", "attention": ""}
    try:
        worker = _start(rival)
        row |= {name: worker.about[name] for name in ("attention", "weight_bytes") if name in worker.about}
        count = _count(worker.run(1), seconds)
        row |= {"rate": count * tokens / worker.run(count), "count": count}
        worker.close()
    except OSError as error:
        row["failure"] = str(error)
    print(f"  {rival.side} {rival.name}: {row['failure'] or format(row['rate'], ',.0f') + ' tokens/s'}", flush=True)
    return row


def _start(rival: Rival) -> Worker:
    return Worker(rival.function, rival.spec, rival.environment)


def _count(seconds_per_step: float, seconds: float) -> int:
    return max(1, math.ceil(seconds / max(seconds_per_step, 1e-6)))


def _rounds(finalists: list[Rival], rows: dict[Rival, dict[str, Any]], config: ConfigDict, tokens: int,
            together: bool) -> dict[Rival, list[float]]:
    """Tokens/s of every round; who is first moves on by one each time. Who fails is out, and the row says why."""
    rates: dict[Rival, list[float]] = {rival: [] for rival in finalists}
    held: dict[Rival, Worker] = {}
    for i in range(config.rounds):
        first = i % max(len(finalists), 1)
        for rival in finalists[first:] + finalists[:first]:
            if rows[rival]["failure"]:
                continue
            count = rows[rival]["count"]
            try:
                worker = held.pop(rival) if rival in held else _start(rival)
                rates[rival].append(count * tokens / worker.run(count))
            except OSError as error:
                rows[rival] |= {"rate": 0.0, "failure": f"in round {i + 1}: {error}"}
                continue
            if together and i + 1 < config.rounds:
                held[rival] = worker
            else:
                worker.close()
    return {rival: found for rival, found in rates.items() if not rows[rival]["failure"]}
