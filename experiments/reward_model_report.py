"""What judges of taste were worth, told: tables and pictures out of every seed's scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.claims import Claim, of_values
from experiments.findings import Findings, Table
from experiments.reward_model_measure import (
    HeldOut,
    agreement,
    by_gold_margin,
    by_margin,
    calibration,
    disagreement,
    hits,
    length_bias,
)
from jaxllm.evals.intervals import bootstrap, spread, t_interval

PEOPLE = 0.73  # of pairs, 72.6 +- 1.5% between training labellers: Ouyang et al., 2022, section 3.4
_LABELS = {"gold": "the noise-free judge", "another person": "another person's noise", "length": "length alone",
           "unigram": "words without order", "member 0": "reward model"}
_DRAWS = 2000  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class Run:
    """One seed: its held-out rankings, and each judge's scores [N] with what else is known of it."""

    seed: int
    data: HeldOut
    scores: Mapping[str, np.ndarray]
    known: Mapping[str, Mapping[str, Any]]

    def calibrated(self, judge: str) -> np.ndarray:
        """Scores divided by the temperature that validation gave."""
        return self.scores[judge] / np.asarray(self.known[judge]["temperature"], float)


def findings_of(config: ConfigDict, runs: Sequence[Run], account: Mapping[str, int] | None) -> Findings:
    """Tables, pictures and numbers.

    Args:
      config: of the experiment.
      runs: one a seed.
      account: what became of the file's rankings; None for jokes.
    """
    numbers: dict[str, Any] = {"seeds": [run.seed for run in runs]}
    main = "reward model" if account else "member 0"
    agree, numbers["agreement"] = _agreement(config, runs, account)
    calibrated, numbers["calibration"] = _calibration(runs, main)
    margins, numbers["margins"] = _margins(runs, main)
    lengths, numbers["length"] = _lengths(runs, main)
    tables = [agree, margins, calibrated, lengths]
    pictures = [("Said and true", report.picture(_draw_reliability(numbers["margins"]["pooled"])))]
    if not account:
        doubt, numbers["disagreement"] = _disagreement(config, runs)
        curve, numbers["curve"] = _curve(config, runs)
        tables += [doubt, curve]
        pictures.insert(0, ("Agreement by number of rankings", report.picture(_draw_curve(numbers["curve"]))))
    else:
        numbers["account"] = dict(account)
    return Findings("Reward model", tables, pictures, numbers, claims(config, runs, main))


def claims(config: ConfigDict, runs: Sequence[Run], judge: str) -> list[Claim]:
    """That rankings can be learnt; over seeds, or with one seed over the rankings held out."""
    def right(name: str) -> list[float]:
        if len(runs) > 1:
            return [float(hits(run.scores[name], run.data.pairs).mean()) for run in runs]
        data = runs[0].data
        sums, pairs = np.bincount(data.groups, hits(runs[0].scores[name], data.pairs)), np.bincount(data.groups)
        return (sums[pairs > 0] / pairs[pairs > 0]).tolist()

    against = {"shuffled labels": "A model learns the order that people would give",
               "length": "It has learnt more than that longer is better",
               "unigram": "It has learnt more than which words are liked"}
    return [of_values(text, "right pairs, reward model", right(judge), _LABELS.get(name, name), right(name),
                      of="seeds" if len(runs) > 1 else "rankings")
            for name, text in against.items() if name in runs[0].scores]


def _over_seeds(values: Sequence[Mapping[str, float]], key: str) -> list[float]:
    """[mean, low, high] over seeds."""
    return list(t_interval([value[key] for value in values]))


def _agreement(config: ConfigDict, runs: Sequence[Run], account: Mapping[str, int] | None
               ) -> tuple[Table, dict[str, Any]]:
    """How often each judge orders held-out pairs as the person did."""
    judges = [name for name in runs[0].scores if not name.startswith("member") or name == "member 0"]
    if account:
        found = {name: {"accuracy": _by_prompt(runs, name)} for name in judges}
        rows = [["judge", "right pairs"], *[[_LABELS.get(name, name), spread(tuple(found[name]["accuracy"]))]
                                            for name in judges]]
        note = (f"{len(runs[0].data.pairs):,} pairs, each held out once in each of {len(runs)} divisions into "
                f"{config.folds} folds; mean over divisions [95%, bootstrap over rankings]. InstructGPT's labellers "
                f"agree with each other on about {PEOPLE} of pairs. Of {account['read']:,} rankings "
                f"{account['used']:,} were used; {account['too long']} of them did not fit {config.reward.row_length} "
                f"tokens and {account['shortened']} lost turns of the prompt.")
        return Table("Agreement with held-out orders", rows, note), found
    found, keys = {}, ("accuracy", "tau", "gold accuracy", "gold correlation")
    for name in judges:
        values = [agreement(run.scores[name], run.data) for run in runs]
        found[name] = {key: _over_seeds(values, key) for key in keys}
    rows = [["judge", "right pairs", "Kendall tau", "pairs by gold", "correlation with gold"],
            *[[_LABELS.get(name, name), *[spread(tuple(found[name][key])) for key in keys]] for name in judges]]
    train = np.mean([run.known["member 0"]["train"] for run in runs])
    note = (f"{config.test} held-out rankings of {config.completions} jokes a seed, {len(runs)} seeds; mean [95%, t "
            f"over seeds]. Things, jokes and rankings are new. The noise-free judge is the ceiling: it knows gold and "
            f"not the person's noise and biases. The reward model learnt from {config.rankings} rankings and orders "
            f"{train:.3f} of their pairs right.")
    return Table("Agreement with held-out orders", rows, note), found


def _by_prompt(runs: Sequence[Run], judge: str) -> list[float]:
    """[share of right pairs, low, high] by drawing rankings anew; a ranking's hits are averaged over seeds."""
    groups, count = runs[0].data.groups, len(runs[0].data.starts) - 1
    right = np.mean([hits(run.scores[judge], run.data.pairs) for run in runs], axis=0)
    sums = np.stack([np.bincount(groups, right, count), np.bincount(groups, minlength=count)], axis=1)
    return list(bootstrap(sums, lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), _DRAWS))


def _calibration(runs: Sequence[Run], judge: str) -> tuple[Table, dict[str, Any]]:
    """Calibration error and its companions before and after the temperature."""
    values = [calibration(run.scores[judge], run.calibrated(judge), run.data) for run in runs]
    found = {key: _over_seeds(values, key) for key in values[0]}
    found["temperature"] = list(t_interval([float(np.mean(run.known[judge]["temperature"])) for run in runs]))
    labels = (("ece", "calibration error"), ("floor", "the same if it were right"), ("brier", "Brier score"),
              ("log loss", "log loss, nats"))
    rows = [["", "before", "after"], *[[label, *[spread(tuple(found[f"{key} {when}"])) for when in ("before", "after")]]
                                       for key, label in labels]]
    return Table("Calibration", rows, (
        f"Of the reward model on held-out pairs, before and after its scores are divided by a temperature of "
        f"{spread(tuple(found['temperature']))}, fitted on validation rankings; mean over {len(runs)} seeds [95%, t]. "
        f"10 bins with as many pairs in each. Coin flips have a Brier score of 0.25 and a log loss of 0.693.")), found


def _margins(runs: Sequence[Run], judge: str) -> tuple[Table, dict[str, Any]]:
    """Accuracy by how sure the model is, and by how far gold holds the two apart."""
    each = np.array([by_margin(run.calibrated(judge), run.data) for run in runs])  # [seeds, bins, (said, true, pairs)]
    bins = [[list(t_interval(each[:, i, k].tolist())) for k in (0, 1)] for i in range(each.shape[1])]
    rows = [["pairs", "the model says", "right"],
            *[[_fifth(i, len(bins)), f"{said[0]:.3f}", spread(tuple(true))] for i, (said, true) in enumerate(bins)]]
    found: dict[str, Any] = {"pooled": [[said[0], *true] for said, true in bins]}
    if runs[0].data.gold is not None:
        thirds = np.array([by_gold_margin(run.scores[judge], run.data) for run in runs])
        found["by gold"] = [list(t_interval(thirds[:, i].tolist())) for i in range(3)]
        rows += [[f"{name} third by gold", "", spread(tuple(value))]
                 for name, value in zip(("closest", "middle", "farthest"), found["by gold"], strict=True)]
    return Table("Agreement by margin", rows, (
        f"Pairs by the model's lead{', and by gold (there right is its order)' * ('by gold' in found)}; mean over "
        f"{len(runs)} seeds [95%, t].")), found


def _fifth(i: int, bins: int) -> str:
    return {0: "smallest leads", bins - 1: "largest leads"}.get(i, f"fifth {i + 1}")


def _lengths(runs: Sequence[Run], judge: str) -> tuple[Table, dict[str, Any]]:
    """How far length moves the scores."""
    found: dict[str, Any] = {}
    for name in [judge, *(other for other in ("unigram", "gold") if other in runs[0].scores)]:
        values = [length_bias(run.scores[name], run.data) for run in runs]
        found[name] = {key: _over_seeds(values, key) for key in values[0]}
    labels = {"correlation": "score and words", "given gold": "the same given gold", "gold's own": "gold and words",
              "longer better": "right where the longer is better", "longer worse": "right where it is worse"}
    rows = [["judge", *[label for key, label in labels.items() if key in found[judge]]]]
    rows += [[_LABELS.get(name, name), *[spread(tuple(found[name][key])) for key in labels if key in found[judge]]]
             for name in found]
    judge_of = "the person" if runs[0].data.gold is None else "gold"
    return Table("Length", rows, (
        f"Correlations over completions, and accuracy on pairs in which the better one by {judge_of} has more or fewer "
        f"words; mean over {len(runs)} seeds [95%, t].")), found


def _disagreement(config: ConfigDict, runs: Sequence[Run]) -> tuple[Table, dict[str, Any]]:
    """Whether an ensemble knows where it is wrong."""
    values = [disagreement({f"{i}": run.scores[f"member {i}"] / run.known[f"member {i}"]["sd"]
                            for i in range(config.members)}, run.data, run.seed) for run in runs]
    found = {key: _over_seeds(values, key) for key in values[0]}
    labels = {"member accuracy": "right pairs, one member", "mean accuracy": "right pairs, mean of the ensemble",
              "sd": "AUC of sd for a wrong pair", "shuffled": "the same, sd shuffled over pairs",
              "sd within lead": "the same among pairs of like lead", "lead": "AUC of a small lead",
              "sd and error": "correlation of sd and rank error"}
    return Table("Ensemble", [["", "value"], *[[label, spread(tuple(found[key]))] for key, label in labels.items()]], (
        f"{config.members} members that differ in head and order of training; mean over {len(runs)} seeds [95%, t]. An "
        f"AUC of 0.5 foresees nothing. The spread is that of the members' leads on a pair; its rank error is how far a "
        f"joke's rank by the mean is from its rank by gold.")), found


def _curve(config: ConfigDict, runs: Sequence[Run]) -> tuple[Table, dict[str, Any]]:
    """Accuracy by number of rankings, between chance and the ceiling."""
    arms = {count: f"{count} rankings" for count in config.counts} | {config.rankings: "member 0"}
    found: dict[str, Any] = {"counts": list(arms)}
    for key in ("accuracy", "gold correlation"):
        found[key] = [_over_seeds([agreement(run.scores[arm], run.data) for run in runs], key) for arm in arms.values()]
    found["ceiling"] = _over_seeds([agreement(run.scores["gold"], run.data) for run in runs], "accuracy")
    rows = [["rankings", "right pairs", "correlation with gold"],
            *[[str(count), spread(tuple(right)), spread(tuple(gold))] for count, right, gold in
              zip(arms, found["accuracy"], found["gold correlation"], strict=True)]]
    pairs = config.completions * (config.completions - 1) // 2
    return Table("By number of rankings", rows, (
        f"A ranking of {config.completions} jokes holds {pairs} pairs at most. Ceiling "
        f"{found['ceiling'][0]:.3f}; {len(runs)} seeds, mean [95%, t].")), found


def _draw_curve(curve: Mapping[str, Any]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        mean, low, high = np.array(curve["accuracy"]).T
        axes.errorbar(curve["counts"], mean, [mean - low, high - mean], marker="o", markersize=4, capsize=3,
                      label="reward model")
        axes.axhline(curve["ceiling"][0], linestyle="--", color="C2", label="noise-free judge")
        axes.axhline(0.5, linestyle=":", color="gray", label="chance")
        axes.set(xscale="log", xlabel="rankings", ylabel="right held-out pairs")
        axes.set_xticks(curve["counts"], [str(count) for count in curve["counts"]])
        axes.minorticks_off()
        axes.legend(frameon=False)
    return draw


def _draw_reliability(bins: Sequence[Sequence[float]]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        said, mean, low, high = np.array(bins).T
        axes.errorbar(said, mean, [mean - low, high - mean], marker="o", markersize=4, capsize=3, label="reward model")
        axes.plot([0.5, 1.0], [0.5, 1.0], linestyle=":", color="gray", label="calibrated")
        axes.set(xlabel="probability that the model gives its choice", ylabel="right", xlim=(0.49, 1.0))
        axes.legend(frameon=False)
    return draw
