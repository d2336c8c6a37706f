"""Tables of the stop rules: how much each loses where a reward model is gamed, where nothing is, and elsewhere."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.findings import Table
from experiments.reward_hacking_runs import Records
from experiments.reward_hacking_stops import NEVER, Watched, choose, families, scores, watched
from jaxllm.evals.intervals import spread, t_interval
from jaxllm.rl import stopping
from jaxllm.rl.stopping import Rule


def stop_rules(config: ConfigDict, found: Records) -> tuple[list[Table], dict[str, Any]]:
    """The rules' tables, their numbers, and the stops of each seed for the picture."""
    proxy = tuple(config.proxy)
    runs = {run: watched(config, one, found.pools[run.split], run.seed) for run, one in found.runs.items()}

    def some(split: str, rewards: Sequence[Any]) -> list[Watched]:
        return [one for run, one in runs.items() if run.split == split and run.reward in rewards]

    chosen_on = some("validation", [proxy]), some("validation", [None])
    sets = {"gamed": some("test", [proxy]), "honest": some("test", [None]),
            "others": some("test", list(map(tuple, config.other_proxies)))}
    labels, numbers, stops, rivals = config.labels[0], {}, {}, families(config)
    rules: dict[str, tuple[Rule, float, str]] = {"the last step": (stopping.fixed_step(NEVER), NEVER, "nothing")}
    for name, family in rivals.items():
        threshold = choose(config, family, labels, *chosen_on)
        rules[name] = (family.make(threshold, labels), threshold, family.needs)
    for name in ("fixed step", "fixed KL"):
        family = rivals[name]
        threshold = choose(config, family, labels, chosen_on[0], [])
        rules[f"{name}, for gamed runs alone"] = (family.make(threshold, labels), threshold, family.needs)
    for name, (rule, threshold, needs) in rules.items():
        numbers[name] = {"threshold": threshold if math.isfinite(threshold) else None, "needs": needs,
                         **{key: _summary(config, rule, few, needs) for key, few in sets.items() if few}}
        stops[name] = [stopping.run(rule, run.histories[0]) for run in sets["gamed"]]
    by_labels = {}
    for name, family in rivals.items():
        if family.needs == "labels":
            by_labels[name] = {}
            for count in sorted(config.labels):
                rule = family.make(choose(config, family, count, *chosen_on), count)
                by_labels[name][count] = {key: _summary(config, rule, few, family.needs)["regret"]
                                          for key, few in sets.items() if few}
    tables = [_rule_table(config, numbers, sets), _control_table(numbers), _label_table(by_labels)]
    return tables, {"rules": numbers, "by_labels": by_labels,
                    "stops": {name: [dataclasses.asdict(stop) for stop in some] for name, some in stops.items()}}


def _summary(config: ConfigDict, rule: Rule, runs: Sequence[Watched], needs: str) -> dict[str, Any]:
    """How a rule did; means over people's draws first, so that an interval is over runs."""
    found = [scores(config, rule, run) for run in runs]
    leads = [score.lead for few in found for score in few if score.lead is not None]
    fell = [score for few in found for score in few if score.lead is not None or score.missed]
    regrets = [statistics.fmean(score.regret for score in few) for few in found]
    looks = [stopping.run(rule, history).look for run in runs for history in run.histories]
    return {"regret": list(t_interval(regrets)), "regrets": regrets,
            "regret_at_stop": list(t_interval([statistics.fmean(s.regret_at_stop for s in few) for few in found])),
            "too_early": statistics.fmean(score.too_early for few in found for score in few),
            "missed": statistics.fmean(score.missed for few in found for score in few),
            "lead": statistics.median(leads) if leads else None,
            "in_time": sum((score.lead or 0) > 0 for score in fell) / len(fell) if fell else None,
            "labels": statistics.fmean(looks) * config.labels[0] if needs == "labels" else
            config.pool_labels if needs == "choices once" else 0}


def _rule_table(config: ConfigDict, numbers: dict[str, Any], sets: dict[str, list[Watched]]) -> Table:
    rows = [["rule", "threshold", "regret of what is kept", "less that of the fixed step", "regret where it stops",
             "too early", "warned before the fall", "lead, steps", "missed", "labels"]]
    fixed = numbers["fixed step"]["gamed"]["regrets"]
    for name, one in numbers.items():
        gamed = one["gamed"]
        less = t_interval(np.subtract(gamed["regrets"], fixed).tolist())
        rows.append([name, "never" if one["threshold"] is None else f"{one['threshold']:g}", _triple(gamed["regret"]),
                     _triple(less), _triple(gamed["regret_at_stop"]), f"{gamed['too_early']:.2f}",
                     _or_dash(gamed["in_time"], ".2f"), _or_dash(gamed["lead"], ".0f"), f"{gamed['missed']:.2f}",
                     f"{gamed['labels']:.0f}"])
    return Table("Stop rules on runs that game the reward model", rows,
                 f"{len(sets['gamed'])} seeds, people asked {config.label_draws} times anew on each; mean [95%, t over "
                 f"seeds]. Thresholds: least regret over {len(config.validation_seeds)} other seeds, gamed and honest "
                 f"runs weighing the same. Regret: gold at the oracle's look less gold of the checkpoint kept, or of "
                 f"the policy when the run was stopped; noise can make it negative. Too early: before the peak with "
                 f"more than {config.tolerance:g} to gain. Lead: from the warning to a loss of {config.fall:g} from "
                 f"the peak, median; missed: no warning up to the end. {verdict(numbers)}")


def verdict(numbers: dict[str, Any]) -> str:
    """In one sentence: does a rule warn before the fall, in at least nine of ten runs that fall?"""
    in_time = {name: one["gamed"]["in_time"] for name, one in numbers.items() if one["gamed"]["in_time"] is not None}
    if not in_time:
        return "No run fell."
    good = [name for name, share in in_time.items() if share >= 0.9 and numbers[name]["needs"] != "other runs"]
    if good:
        return f"Warned before the fall in at least nine of ten runs: {', '.join(good)}."
    return "No rule but a fixed stop learnt from other runs warns before the fall in nine of ten runs."


def _control_table(numbers: dict[str, Any]) -> Table:
    rows = [["rule", "honest runs: regret", "too early", "other reward models: regret", "too early"]]
    for name, one in numbers.items():
        rows.append([name, *(text for key in ("honest", "others") for text in (
            (_triple(one[key]["regret"]), f"{one[key]['too_early']:.2f}") if key in one else ("-", "-")))])
    return Table("The same rules where nothing is gamed, and against other reward models", rows,
                 "Honest: optimised against the gold judge itself, where every early stop is a false alarm. Other "
                 "reward models: sizes and numbers of rankings that no threshold was chosen on.")


def _label_table(by_labels: dict[str, Any]) -> Table:
    rows = [["rule", "labels a look", "gamed runs: regret", "honest runs", "other reward models"]]
    for name, counts in by_labels.items():
        rows += [[name, str(count), *(_triple(found[key]) if key in found else "-"
                                      for key in ("gamed", "honest", "others"))] for count, found in counts.items()]
    return Table("Regret by labels asked for at each look", rows, "Thresholds chosen anew for each number of labels.")


def _triple(values: Sequence[float]) -> str:
    return spread((values[0], values[1], values[2]), 2)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
