"""What the over-optimisation experiment claims: it happens, the reward model is why, and it can be stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.claims import Claim, of_values
from experiments.reward_hacking_runs import Record, Records, Run

RULE = "law of choices"  # of the rules on people's choices the one that lost least (docs/reward_hacking.md)
JUDGE = "by the judge nobody learned from"
Side = Sequence[np.ndarray]  # of each run, a value of each thing that replies are about: [Q]


def claims(config: ConfigDict, found: Records, stops: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Claim]:
    """Over seeds; with one seed over the things that replies are about.

    Args:
      stops: of each rule, where it stopped the run of each seed and what it kept.
    """
    runs = _looks(config, found, config.seeds, tuple(config.proxy))
    gold, proxy = ([_of_things(looks, key) for looks in runs] for key in ("gold", "proxy"))
    peaks, last = [peak(of_run) for of_run in gold], [one[-1] for one in gold]
    said = [_claim("Pushed on against a model of people's taste, jokes get worse again", f"at the peak, {JUDGE}",
                   _at(gold, peaks), f"at the end, {JUDGE}", last),
            _claim("The model does not see it", "its own score at the end", [one[-1] for one in proxy],
                   "at the judge's peak", _at(proxy, peaks))]
    if config.controls:
        honest = _looks(config, found, config.seeds[:config.controls], None)
        said.append(_claim("It is the model that gives way, not the training", "the same RL, rewarded by the judge",
                           [_of_things(looks, "gold")[-1] for looks in honest], "rewarded by the model",
                           last[:config.controls]))
    if stopped := _stopped(config, runs, [stop["keep"] for stop in stops[RULE]]):
        said.append(stopped)
    return said


def _claim(text: str, measure: str, measured: Side, control: str, controlled: Side) -> Claim:
    """Means of seeds; of one seed alone the values of the things."""
    of = "seeds" if len(measured) > 1 else "things"
    values = [[float(np.mean(one)) for one in side] if of == "seeds" else side[0].tolist()
              for side in (measured, controlled)]
    return of_values(text, measure, values[0], control, values[1], of=of, digits=2)


def _stopped(config: ConfigDict, runs: Sequence[Sequence[Record]], kept: Sequence[int]) -> Claim | None:
    """What the rule is worth, read on replies that nobody was asked about; nothing where there are none."""
    labels = config.labels[0]
    if not all(len(unasked(looks[0], labels)) for looks in runs):
        return None
    return _claim("People's choices on the way stop it", f"kept after {labels} choices a look",
                  [unasked(looks[look], labels) for looks, look in zip(runs, kept, strict=True)],
                  "the last step", [unasked(looks[-1], labels) for looks in runs])


def _looks(config: ConfigDict, found: Records, seeds: Sequence[int], reward: tuple[int, int] | None
           ) -> list[list[Record]]:
    return [found.runs[Run(seed, "test", reward)]["looks"] for seed in seeds]


def _of_things(looks: Sequence[Record], key: str) -> np.ndarray:
    """Means over the replies about each thing at each look, [K, Q]."""
    return np.mean([look[key] for look in looks], axis=-1)


def _at(of_runs: Sequence[np.ndarray], looks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of each run [K, Q] every thing at a look of its own: [Q]."""
    return [np.take_along_axis(value_KQ, look_Q[None], 0)[0] for value_KQ, look_Q in zip(of_runs, looks, strict=True)]


def peak(gold_KQ: np.ndarray) -> np.ndarray:
    """The look with the highest mean gold, for each thing chosen on the other half of the things, int [Q].

    So that a maximum over looks is not read on the noise that made it one.

    >>> peak(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])).tolist()
    [2, 1]
    """
    half_Q = np.arange(gold_KQ.shape[1]) % 2
    best = np.array([gold_KQ[:, half_Q == half].mean(1).argmax() for half in (1, 0)])
    return best[half_Q]


def unasked(look: Record, labels: int) -> np.ndarray:
    """Mean gold about each thing over the replies that nobody was asked about: [at most Q].

    People are asked about the first `labels` rows, and row r is about thing r mod Q (`reward_hacking_stops.watched`).
    """
    gold_GQ = np.array(look["gold"]).T
    free_GQ = (np.arange(gold_GQ.size) >= labels).reshape(gold_GQ.shape)
    some_Q = free_GQ.any(0)
    return (gold_GQ * free_GQ).sum(0)[some_Q] / free_GQ.sum(0)[some_Q]
