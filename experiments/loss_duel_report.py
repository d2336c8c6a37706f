"""What experiments.loss_duel found: a table of outcomes, curves over replies, and heatmaps of angles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.findings import Findings, Table
from experiments.report import picture
from jaxllm.evals.intervals import share_interval, spread, t_interval

SHUFFLED = "shuffled rewards"
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def findings(config: ConfigDict, starts: Sequence[Mapping[str, float]], runs: Runs,
             compared: Sequence[Mapping[str, Any]]) -> Findings:
    """Tables, pictures and numbers.

    Args:
      starts: accuracy of the start of each seed.
      runs: arm -> what `loss_duel.practise` returned for each seed.
      compared: what `loss_duel_angles.angles` returned for each seed.
    """
    found = {arm: summary(config, arm, starts, runs) for arm in runs}
    said = verdict(config, found)
    table = Table("Outcome at equal samples", [
        ["", "accuracy", f"less {config.control}'s", "less the control's", "greedy", "steps", "updates", "replies",
         "clip fraction", "entropy at the end"], *[row(config, arm, one) for arm, one in found.items()]],
        f"{config.part} problems, {config.samples} replies each at temperature 1; start "
        f"{spread(share_interval([one['sampled'] for one in starts]))}. Mean [95%, t over {len(starts)} seeds]; "
        f"differences are paired by seed. {SHUFFLED} is the control: {config.control} on rewards that changed places. "
        f"{said}{_stopped(config, runs)}")
    names, points = compared[0]["names"], {
        "start": "Angles at the start, where every ratio is 1",
        "moved": f"Angles after {config.dump_updates} updates by {config.control} on the dump"}
    mean = {point: np.mean([one["points"][point]["cosines"] for one in compared], axis=0) for point in points}
    halves = {point: np.mean([one["points"][point]["halves"] for one in compared], axis=0) for point in points}
    tables = [Table(title, [["cosine", *names, "of its own halves"], *[
        [name, *[f"{value:.2f}" for value in mean[point][i]], f"{halves[point][i]:.2f}"]
        for i, name in enumerate(names)]],
        f"Cosines between the gradients of the losses by all weights, on one dump of {config.dump_prompts} prompts x "
        f"{config.dump_samples} replies a seed; mean over {len(compared)} seeds. Of its own halves: between a loss's "
        f"gradients on two halves of the prompts, which is how far apart two draws of the same thing are. Mean "
        f"|log ratio| of a token: {np.mean([one['points'][point]['ratio'] for one in compared]):.3f} nats.")
        for point, title in points.items()]
    pictures = [("Reward over replies", curves(runs)), ("Accuracy", outcomes(found, starts)),
                *[(title, heatmap(names, mean[point], halves[point])) for point, title in points.items()]]
    return Findings("Loss duel", [table, *tables], pictures, {
        "verdict": said, "summary": found, "starts": list(starts), "runs": dict(runs), "angles": list(compared)})


def summary(config: ConfigDict, arm: str, starts: Sequence[Mapping[str, float]], runs: Runs) -> dict[str, Any]:
    """Of an arm: accuracies with intervals, differences paired by seed, and means of what its rows say."""
    some = runs[arm]

    def apart(other: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
        return t_interval([one["sampled"] - two["sampled"] for one, two in zip(some, other, strict=True)])

    def over_rows(key: str, part: slice = slice(None)) -> float:
        return float(np.mean([np.mean([step[key] for step in one["rows"][part]]) for one in some]))

    return {"accuracy": share_interval([one["sampled"] for one in some]),
            "greedy": share_interval([one["greedy"] for one in some]), "gain": apart(starts),
            "beside": None if arm == config.control else apart(runs[config.control]),
            "above_control": None if arm == SHUFFLED else apart(runs[SHUFFLED]),
            "steps": float(np.mean([len(one["rows"]) for one in some])),
            "updates": float(np.mean([sum(step["updates"] for step in one["rows"]) for one in some])),
            "drawn": float(np.mean([one["drawn"] for one in some])), "clip_fraction": over_rows("clip_fraction"),
            "entropy": over_rows("entropy", slice(-3, None)), "equal": over_rows("equal")}


def row(config: ConfigDict, arm: str, one: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    def signed(values: Sequence[float] | None) -> str:
        return "" if values is None else f"{values[0]:+.3f} [{values[1]:+.3f}, {values[2]:+.3f}]"

    return [f"{arm} (the control)" if arm == SHUFFLED else arm, spread(one["accuracy"]), signed(one["beside"]),
            signed(one["above_control"]), spread(one["greedy"]), f"{one['steps']:.0f}", f"{one['updates']:.0f}",
            f"{one['drawn']:,.0f}", f"{one['clip_fraction']:.3f}", f"{one['entropy']:.2f}"]


def verdict(config: ConfigDict, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Which algorithms learn more than the control, and which differ from the one it was made of, beyond chance."""
    learned = [arm for arm, one in found.items() if one["above_control"] and one["above_control"][1] > 0]
    better = [arm for arm, one in found.items() if arm != SHUFFLED and one["beside"] and one["beside"][1] > 0]
    worse = [arm for arm, one in found.items() if arm != SHUFFLED and one["beside"] and one["beside"][2] < 0]
    return (f"Above the control beyond chance: {', '.join(learned) or 'none'}. Better than {config.control} beyond "
            f"chance: {', '.join(better) or 'none'}; worse: {', '.join(worse) or 'none'}.")


def _stopped(config: ConfigDict, runs: Runs) -> str:
    stopped = [f"{arm}, seed {seed}: {run['stopped']}" for arm, some in runs.items()
               for seed, run in zip(config.seeds, some, strict=True) if run["stopped"]]
    return f" Stopped early: {'; '.join(stopped)}." if stopped else ""


def curves(runs: Runs) -> str:
    """Mean reward of all that a step drew, by the replies drawn until then; mean over seeds, five steps together."""
    def draw(axes: Any) -> None:
        for i, (arm, some) in enumerate(runs.items()):
            length = min(len(one["rows"]) for one in some)
            drawn, reward = (np.mean([[step[key] for step in one["rows"][:length]] for one in some], axis=0)
                             for key in ("drawn", "reward"))
            width = min(5, length)
            axes.plot(np.cumsum(drawn)[width - 1:], np.convolve(reward, np.ones(width) / width, "valid"),
                      "--" if arm == SHUFFLED else "-", label=arm, color=f"C{i}", linewidth=1.3)
        axes.set(xlabel="replies drawn", ylabel="reward")
        axes.legend(frameon=False, fontsize=8, ncols=2)
    return picture(draw)


def outcomes(found: Mapping[str, Mapping[str, Any]], starts: Sequence[Mapping[str, float]]) -> str:
    """Accuracy of every arm with its interval; the start as a line."""
    def draw(axes: Any) -> None:
        values = np.array([one["accuracy"] for one in found.values()])
        axes.errorbar(range(len(found)), values[:, 0], [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]],
                      fmt="o", capsize=3)
        axes.axhline(np.mean([one["sampled"] for one in starts]), color="0.6", linestyle=":", label="start")
        axes.set_xticks(range(len(found)), list(found), rotation=25)
        axes.set(ylabel="accuracy", ylim=(0, 1))
        axes.legend(frameon=False, fontsize=8)
    return picture(draw)


def heatmap(names: Sequence[str], cosines: np.ndarray, halves: np.ndarray) -> str:
    """Cosines as colours and numbers; on the diagonal those of each loss's own halves."""
    def draw(axes: Any) -> None:
        shown = np.where(np.eye(len(names), dtype=bool), halves[:, None], cosines)
        axes.imshow(shown, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(shown):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if abs(value) > 0.7 else "black", fontweight="bold" if i == j else "normal")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("bold: a loss's gradients on two halves of the dump")
        axes.grid(False)
    return picture(draw, height=4.6)
