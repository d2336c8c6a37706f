"""What the interrogation found, over seeds: tables by band and by control, risk against coverage, the trade-off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.claims import Claim, of_shares
from experiments.findings import Findings, Table
from experiments.interrogate_model import Interrogated
from jaxllm.evals import factuality
from jaxllm.evals.factuality import Verdict
from jaxllm.evals.intervals import share_interval, spread, t_interval
from jaxllm.evals.questions import HELD_OUT, WORLD_BANDS


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """What one seed gave.

    Attributes:
      seed: of the run.
      test: the test side, asked before.
      recipe: that was chosen; rounds: name -> {"chosen", "points"} of each recipe; random_rounds: of the control.
      validation: the validation side, asked before.
      after_texts: what the taught model replies to the test.
      verdicts: system -> int [N] on the test: before, refusals, random refusals, threshold.
      scores: name -> float [N], higher where the answer of before is more likely right.
      layers: per layer fold_auc, auc, within_bands, shuffled; none where all answers were of one kind.
    """

    seed: int
    test: Interrogated
    recipe: str
    rounds: dict[str, dict[str, Any]]
    random_rounds: dict[str, Any]
    validation: Interrogated
    after_texts: Sequence[str]
    verdicts: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    layers: list[dict[str, Any]]

    @property
    def strangers(self) -> np.ndarray:
        """bool [N]: unknown questions about those of whom nothing is told."""
        return self.test.unknown & (self.test.bands != HELD_OUT)

    @property
    def wrong(self) -> np.ndarray:
        """bool [N]: the answers of before that are not right."""
        return self.test.verdicts != Verdict.RIGHT


MEASURES: dict[str, Callable[[SeedRun, np.ndarray], float]] = {
    "unknown, confident and wrong": lambda run, said: factuality.confabulation(said, run.strangers),
    "known, refused": lambda run, said: factuality.over_refusal(said, run.test.known),
    "held-out facts, confident and wrong": lambda run, said: factuality.confabulation(said, run.test.bands == HELD_OUT),
    "right answers kept": lambda run, said: factuality.accuracy_kept(said, run.test.verdicts),
    "refusal precision": lambda run, said: factuality.refusal_precision(said, run.test.verdicts),
    "refusal recall": lambda run, said: factuality.refusal_recall(said, run.test.verdicts),
}
AXES = ("known, refused", "unknown, confident and wrong")
COVERAGES = np.linspace(0.01, 1, 100)
RISK = 0.05


def make(runs: Sequence[SeedRun], config: ConfigDict) -> Findings:
    """All tables, pictures and numbers."""
    measured = {system: {name: [measure(run, run.verdicts[system]) for run in runs]
                         for name, measure in MEASURES.items()} for system in runs[0].verdicts}
    selective = {name: {"AURC": [factuality.aurc(run.scores[name], run.wrong) for run in runs],
                        "excess AURC": [factuality.excess_aurc(run.scores[name], run.wrong) for run in runs],
                        f"coverage at risk {RISK}": [factuality.coverage_at(run.scores[name], run.wrong, RISK)
                                                     for run in runs]} for name in runs[0].scores}
    tables = [systems(measured, runs, config), by_band(runs), recipes(runs, config), foreseen(selective)]
    tables += [layers(runs)] if all(run.layers for run in runs) else []
    return Findings(
        "What the model knows that it does not know", [*tables, samples(runs[0])],
        [("Risk against coverage", risk_picture(runs)), ("Trade-off along the rounds", trade_picture(runs, config))],
        _plain({"seeds": [run.seed for run in runs], "systems": measured, "scores": selective,
                "recipe": [run.recipe for run in runs], "rounds": [run.rounds for run in runs],
                "random_rounds": [run.random_rounds for run in runs], "layers": [run.layers for run in runs]}),
        claims(runs))


def claims(runs: Sequence[SeedRun]) -> list[Claim]:
    """That a model makes things up, that it can be taught not to, and that this is more than refusing at random."""
    def wrong(system: str, which: Callable[[SeedRun], np.ndarray]) -> list[tuple[int, int]]:
        return [(int((run.verdicts[system][which(run)] == Verdict.WRONG).sum()), int(which(run).sum())) for run in runs]

    def strangers(run: SeedRun) -> np.ndarray:
        return run.strangers

    def known(run: SeedRun) -> np.ndarray:
        return run.test.known

    return [of_shares("Asked about strangers, a chat model makes something up", "unknown, answered wrongly",
                      wrong("before", strangers), "known, answered wrongly", wrong("before", known)),
            of_shares("Taught to say that it does not know, it makes up less", "after refusals",
                      wrong("refusals", strangers), "before", wrong("before", strangers), less=True),
            of_shares("Refusals must fit what the model does not know", "refusals of the unknown",
                      wrong("refusals", strangers), "as many refusals at random", wrong("random refusals", strangers),
                      less=True)]


def _plain(tree: Any) -> Any:
    """The same with None for nan, which JSON lacks."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree


def over(values: Sequence[float]) -> str:
    """Mean of a rate over seeds with its 95% interval by Student's t, cut to [0, 1]; of one seed the number alone."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "none"
    return spread(share_interval(values)) if len(values) > 1 else f"{values[0]:.3f}"


def systems(measured: dict[str, dict[str, list[float]]], runs: Sequence[SeedRun], config: ConfigDict) -> Table:
    """The bar, and the controls beside it."""
    rows = [["", *measured]]
    rows += [[name, *(over(found[name]) for found in measured.values())] for name in MEASURES]
    met = sum(measured["refusals"]["unknown, confident and wrong"][i] <= config.bar[0]
              and measured["refusals"]["known, refused"][i] <= config.bar[1] for i in range(len(runs)))
    unknown, known = sum(run.strangers.sum() for run in runs), sum(run.test.known.sum() for run in runs)
    return Table("Before, after, and controls", rows, (
        f"Test side: {unknown:,} unknown and {known:,} known questions of {len(runs)} seeds; mean over seeds and 95% "
        f"interval (t). Bar: at most {config.bar[0]} of the unknown and {config.bar[1]} of the known; {met} of "
        f"{len(runs)} seeds meet both. Precision, recall: a refusal is due where the answer of before was not right. "
        f"Random refusals: as many, on random questions. Threshold: the model of before, silent below a probability "
        f"of its own reply that was chosen on the validation side."))


def by_band(runs: Sequence[SeedRun]) -> Table:
    """Right, wrong and refused by how often a fact is told."""
    def cell(band: str, system: str, verdict: Verdict) -> str:
        return over([factuality.share_of(run.verdicts[system] == verdict, run.test.bands == band) for run in runs])
    shown = (("before", Verdict.RIGHT), ("refusals", Verdict.RIGHT), ("refusals", Verdict.WRONG),
             ("refusals", Verdict.REFUSED), ("random refusals", Verdict.REFUSED), ("threshold", Verdict.REFUSED))
    rows = [["band", "questions", *(f"{system}: {verdict.name.lower()}" for system, verdict in shown)]]
    bands = [band for band in (*WORLD_BANDS, "") if any((run.test.bands == band).any() for run in runs)]
    for band in bands:
        count = sum(int((run.test.bands == band).sum()) for run in runs)
        rows.append([band or "all", f"{count:,}", *(cell(band, *one) for one in shown)])
    return Table("By how often a fact is told", rows, "Test side, all questions; the rest of before is wrong.")


def recipes(runs: Sequence[SeedRun], config: ConfigDict) -> Table:
    """What was chosen from, on the validation side."""
    def cells(records: list[dict[str, Any]]) -> list[str]:
        points = [record["points"][record["chosen"]] for record in records]
        distances = [factuality.distance_to_bar(*point, config.bar) for point in points]
        return [", ".join(str(record["chosen"]) for record in records), over([point[0] for point in points]),
                over([point[1] for point in points]),
                spread(t_interval(distances)) if len(distances) > 1 else f"{distances[0]:.3f}"]
    rows = [["recipe", "round taken", "unknown, wrong", "known, refused", "distance to the bar", "chosen by"]]
    for name in config.recipes:
        chosen = sum(run.recipe == name for run in runs)
        rows.append([name, *cells([run.rounds[name] for run in runs]), f"{chosen} of {len(runs)} seeds"])
    rows.append(["random refusals", *cells([run.random_rounds for run in runs]), "control"])
    return Table("Recipes, validation side", rows, f"A round is {config.round_steps} steps on {config.round_questions} "
                 f"questions. Distance: the larger of both rates over the bar's; 1 meets it.")


def foreseen(selective: dict[str, dict[str, list[float]]]) -> Table:
    """Who foresees the wrong answers of before."""
    names = list(next(iter(selective.values())))
    rows = [["confidence", *names]]
    rows += [[name, *(over(found[one]) for one in names)] for name, found in selective.items()]
    return Table("Who foresees a wrong answer", rows, "All rank the same answers, those of the model before refusals "
                 "were taught. Taught to refuse, random refusals: 1 - P(refusal) of those models. 0 is the best AURC; "
                 "excess is over the best order of these answers.")


def layers(runs: Sequence[SeedRun]) -> Table:
    """The probe, layer by layer."""
    rows = [["after layer", "AUC", "within bands", "shuffled labels", "training side, cross-validated"]]
    for layer in range(len(runs[0].layers)):
        found = [run.layers[layer] for run in runs]
        rows.append([str(layer), over([one["auc"] for one in found]), over([one["within_bands"] for one in found]),
                     over([float(np.mean(one["shuffled"])) for one in found]),
                     over([one["fold_auc"] for one in found])])
    return Table("A probe that foresees a wrong answer", rows, "Logistic, on the residual stream at the prompt's last "
                 "token, before refusals were taught; learnt on the training side, tested on other people. Layer 0 is "
                 "the embedding. Within bands: only pairs of one band count.")


def samples(run: SeedRun, each: int = 3) -> Table:
    """Some replies: right, made up, refused rightly and wrongly."""
    before, after = run.verdicts["before"], run.verdicts["refusals"]
    kinds = {"right, kept": (before == Verdict.RIGHT) & (after == Verdict.RIGHT),
             "made up, now refused": run.test.unknown & (before == Verdict.WRONG) & (after == Verdict.REFUSED),
             "still made up": run.test.unknown & (after == Verdict.WRONG),
             "known, now refused": run.test.known & (after == Verdict.REFUSED)}
    rows = [["", "band", "question", "truth", "before", "after"]]
    for kind, mask in kinds.items():
        for i in np.flatnonzero(mask)[:each]:
            question = run.test.questions[i]
            rows.append([kind, question.band, question.text, question.answer, run.test.asked[i].reply.strip(),
                         run.after_texts[i].strip()])
    rows = [[cell.replace("\n", " ").replace("|", "/") for cell in row] for row in rows]
    return Table("Replies", rows, f"Seed {run.seed}, the first of each kind on the test side.")


def replies(run: SeedRun) -> Iterator[dict[str, Any]]:
    """A line for each test question."""
    for i, (question, asked) in enumerate(zip(run.test.questions, run.test.asked, strict=True)):
        yield {"seed": run.seed, **dataclasses.asdict(question), "before": asked.reply, "after": run.after_texts[i],
               "right_samples": asked.right, "confidence": asked.confidence,
               "verdicts": {name: Verdict(found[i]).name for name, found in run.verdicts.items()}}


def risk_picture(runs: Sequence[SeedRun]) -> str:
    """Mean over seeds of the risk at each coverage, for every confidence; and the best possible order."""
    def mean(score: Callable[[SeedRun], np.ndarray]) -> np.ndarray:
        return np.mean([np.interp(COVERAGES, *factuality.risk_coverage(score(run), run.wrong)) for run in runs], axis=0)

    def draw(axes) -> None:
        for name in runs[0].scores:
            axes.plot(COVERAGES, mean(lambda run: run.scores[name]), label=name, linewidth=1.4)  # noqa: B023
        axes.plot(COVERAGES, mean(lambda run: -run.wrong.astype(float)), label="best order", color="0.5", linewidth=1,
                  linestyle=":")
        axes.set(xlabel="coverage: share of the questions answered", ylabel="risk: share of the answers wrong",
                 xlim=(0, 1), ylim=(0, None))
        axes.legend(frameon=False)
    return report.picture(draw)


def trade_picture(runs: Sequence[SeedRun], config: ConfigDict) -> str:
    """Confabulation against over-refusal: rounds on the validation side, what was taken on the test side."""
    def draw(axes) -> None:
        for color, name in enumerate([*config.recipes, "random refusals"]):
            for run in runs:
                record = run.random_rounds if name == "random refusals" else run.rounds[name]
                x, y = np.array(record["points"], float).T[::-1]
                axes.plot(x, y, color=f"C{color}", alpha=0.6, linewidth=1, marker=".", markersize=4,
                          label=name if run is runs[0] else None)
        for run in runs:
            x, y = (MEASURES[name](run, run.verdicts["refusals"]) for name in AXES)
            axes.plot(x, y, "k*", markersize=9, label="taken, on the test side" if run is runs[0] else None)
            axes.plot(*threshold_curve(run.validation), color="0.5", linewidth=1, linestyle=":",
                      label="threshold on own probability" if run is runs[0] else None)
        axes.add_patch(_rectangle(config.bar))
        axes.set(xlabel="known questions refused", ylabel="unknown questions answered wrongly", xlim=(-0.02, 1),
                 ylim=(0, 1.02))
        axes.legend(frameon=False)
    return report.picture(draw, height=4.2)


def _rectangle(bar: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle
    return Rectangle((0, 0), bar[1], bar[0], facecolor="C2", alpha=0.15, edgecolor="none", label="the bar")


def threshold_curve(found: Interrogated) -> tuple[list[float], list[float]]:
    """(over-refusal, confabulation) at every threshold on the model's own probability."""
    said = [factuality.refuse_below(found.confidence, found.verdicts, threshold)
            for threshold in [*np.unique(found.confidence), math.inf]]
    return ([factuality.over_refusal(one, found.known) for one in said],
            [factuality.confabulation(one, found.unknown) for one in said])
