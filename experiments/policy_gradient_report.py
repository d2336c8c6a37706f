"""What the study of policy gradients found, as tables and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.claims import Claim, of_values
from experiments.findings import Findings, Table
from experiments.report import picture
from jaxllm.evals.intervals import share_interval, spread, t_interval

Runs = dict[str, list[dict[str, Any]]]
SHUFFLED = "shuffled labels"


def findings(config: ConfigDict, runs: Runs) -> Findings:
    """Tables of the judges, of best-of-n at the same KL, of a step's costs; curves; jokes at the top of the reward."""
    arms = [arm for arm in runs if arm != "start"]
    numbers = {"runs": runs, "summary": {arm: summary(config, runs, arm) for arm in runs}}
    note = (f"{len(config.seeds)} seeds; {config.judged} {config.part} things, {config.judged_samples} jokes about "
            f"each; mean [95%, t over seeds]. {config.rl.steps} steps of {config.rl.prompts} prompts x "
            f"{config.rl.samples} samples each. Gold: standard deviations of human-like jokes; reward: of the start's.")
    rows = [["", "gold", "gain over start, paired", "wins against start", "reward", "KL, nats a reply", "entropy",
             "tokens", "distinct"]]
    for arm in runs:
        found = numbers["summary"][arm]
        cells = [spread(found[name], 2) if name in found else "" for name in (
            "gold", "gain", "win_rate", "proxy", "kl", "entropy", "length", "distinct")]
        rows.append([f"control: {config.control}, {arm}" if arm == SHUFFLED else arm, *cells])
    pictures = [("Gold against KL", gold_against_kl(runs, arms)),
                ("Reward over the run", curves(runs, arms, "reward", "mean reward of a rollout")),
                ("KL over the run", curves(runs, arms, "kl", "KL to the start, nats a reply"))]
    tables = [Table("Judged on held-out things", rows, f"{note} {verdict(config, numbers['summary'])}"),
              best_of_n_table(runs, arms), costs(config, runs, arms), jokes(runs, arms)]
    return Findings("Policy gradient on human taste", tables, pictures, numbers, claims(config, runs))


def claims(config: ConfigDict, runs: Runs) -> list[Claim]:
    """That RLHF pleases people more; over seeds, or with one seed over the things that jokes are about."""
    def values(each: list[Any]) -> list[float]:
        """Of [things] a seed."""
        return [float(np.mean(one)) for one in each] if len(each) > 1 else np.asarray(each[0]).tolist()

    def gold(arm: str) -> list[float]:
        return values([np.mean(run["gold"], axis=-1) for run in runs[arm]])

    first, of = config.algorithms[0], "seeds" if len(config.seeds) > 1 else "things"
    taught = config.control if config.control in config.algorithms else first
    picked = [nearest(start["best_of_n"], run["kl"]) for run, start in zip(runs[first], runs["start"], strict=True)]
    return [of_values("Learning from a model of people's rankings makes jokes that people like more",
                      f"{first}, by the judge nobody learned from", gold(first), "before", gold("start"), of=of,
                      digits=2),
            of_values("It is the rankings that teach", taught, gold(taught), f"{config.control} by a reward model of "
                      f"shuffled rankings", gold(SHUFFLED), of=of, digits=2),
            of_values("Picked by that model from several, jokes are liked more", f"best of n at the KL of {first}",
                      values([point["golds"] for point in picked]), "before", gold("start"), of=of, digits=2)]


def summary(config: ConfigDict, runs: Runs, arm: str) -> dict[str, tuple[float, float, float]]:
    """Means over seeds with their intervals."""
    def over_seeds(name: str, interval: Any = t_interval) -> tuple[float, float, float]:
        return interval([float(np.mean(run[name])) for run in runs[arm]])

    found = {name: over_seeds(name) for name in ("gold", "proxy", "kl", "entropy", "length")}
    found["distinct"] = over_seeds("distinct", share_interval)
    if arm != "start":
        pairs = zip(runs[arm], runs["start"], strict=True)
        found["gain"] = t_interval([float(np.mean(run["gold"]) - np.mean(first["gold"])) for run, first in pairs])
        found["win_rate"] = over_seeds("win_rate", share_interval)
    return found


def verdict(config: ConfigDict, found: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """What the intervals allow to say."""
    if len(config.seeds) < 2:
        return "One seed says nothing of another."
    better = [arm for arm in config.algorithms if found[arm]["gain"][1] > 0]
    worse = [arm for arm in config.algorithms if found[arm]["gain"][2] < 0]
    open_ = [arm for arm in config.algorithms if arm not in (*better, *worse)]
    low, high = found[SHUFFLED]["gain"][1:]
    control = ("does better than the start as well, which it should not: the claim is refuted" if low > 0 else
               "does worse than the start" if high < 0 else "is not told from the start")
    told = "; ".join(f"{words}: {', '.join(arms) or 'none'}" for words, arms in (
        ("Above the start by the gold judge", better), ("below it", worse), ("not told from it", open_)))
    return f"{told}. The control {control}."


def best_of_n_table(runs: Runs, arms: list[str]) -> Table:
    """Each arm beside the best of as many samples of the start model as have its KL."""
    rows = [["", "KL", "gold", "best-of-n: n", "its KL", "its gold", "its wins against start"]]
    for arm in arms:
        near = [nearest(first["best_of_n"], run["kl"]) for run, first in zip(runs[arm], runs["start"], strict=True)]
        rows.append([arm, *(f"{np.mean([np.mean(run[name]) for run in runs[arm]]):.2f}" for name in ("kl", "gold")),
                     ", ".join(str(one["n"]) for one in near),
                     *(f"{np.mean([one[name] for one in near]):.2f}" for name in ("kl", "gold", "win_rate"))])
    return Table("Best-of-n on the start model at the same KL", rows, (
        "n is the smallest whose KL, log n - (n - 1) / n, is at least the arm's at that seed, or the largest drawn. "
        "Gold is the mean over all choices of n from the samples drawn."))


def nearest(points: list[dict[str, Any]], kl: float) -> dict[str, Any]:
    """The first point of best-of-n with this KL or more; the last where none has.

    >>> nearest([{"n": 1, "kl": 0.0}, {"n": 2, "kl": 0.2}], 0.1)["n"]
    2
    """
    return next((point for point in points if point["kl"] >= kl), points[-1])


def costs(config: ConfigDict, runs: Runs, arms: list[str]) -> Table:
    """Where the time of a step goes, the steps that compiled left out."""
    rows = [["", "seconds a step", "sampling", "rewarding", "scoring", "updating", "drawn tokens/s while sampling"]]
    for arm in arms:
        taken = [row for run in runs[arm] for row in run["rows"][2:] if "seconds" in row]
        if not taken:
            continue
        whole = np.median([row["seconds"] for row in taken])
        shares = [np.median([row[f"seconds_{part}"] / row["seconds"] for row in taken])
                  for part in ("sampling", "rewarding", "scoring", "updating")]
        rate = np.median([row["tokens"] / row["seconds_sampling"] for row in taken])
        rows.append([arm, f"{whole:.2f}", *(f"{share:.0%}" for share in shares), f"{rate:,.0f}"])
    stopped = [f"{arm}, seed {seed}: {run['stopped']}" for arm in arms
               for seed, run in zip(config.seeds, runs[arm], strict=True) if run["stopped"]]
    return Table("Costs of a step", rows, "Medians. Stopped early: " + ("; ".join(stopped) or "none") + ".")


def jokes(runs: Runs, arms: list[str]) -> Table:
    """What the reward model likes best of each arm, at the first seed."""
    return Table("Jokes at the top of the reward, first seed", [["", "reward", "gold", "joke"], *[
        [arm, f"{reward:.2f}", f"{gold:.2f}", text] for arm in ("start", *arms) for reward, gold, text in
        runs[arm][0]["best"]]])


def curves(runs: Runs, arms: list[str], name: str, label: str) -> str:
    """A column of the rows, mean over seeds with a band of their range."""
    def draw(axes: Any) -> None:
        for i, arm in enumerate(arms):
            length = min(len(run["rows"]) for run in runs[arm])
            values = np.array([[row[name] for row in run["rows"][:length]] for run in runs[arm]])
            steps = np.arange(1, length + 1)
            axes.plot(steps, values.mean(0), "--" if arm == SHUFFLED else "-", color=f"C{i}", label=arm, linewidth=1.4)
            axes.fill_between(steps, values.min(0), values.max(0), color=f"C{i}", alpha=0.12, linewidth=0)
        axes.set(xlabel="step", ylabel=label)
        axes.legend(frameon=False, fontsize=8)
    return picture(draw)


def gold_against_kl(runs: Runs, arms: list[str]) -> str:
    """Where each run ended, and the curve of best-of-n."""
    def draw(axes: Any) -> None:
        points = [[(point["kl"], point["gold"]) for point in run["best_of_n"]] for run in runs["start"]]
        mean = np.mean(points, axis=0)
        axes.plot(mean[:, 0], mean[:, 1], color="0.4", linewidth=1.4, label="best-of-n on the start")
        for i, arm in enumerate(arms):
            axes.plot([run["kl"] for run in runs[arm]], [np.mean(run["gold"]) for run in runs[arm]],
                      "s" if arm == SHUFFLED else "o", color=f"C{i}", markersize=5, label=arm)
        axes.set(xlabel="KL to the start, nats a reply", ylabel="gold")
        axes.legend(frameon=False, fontsize=8)
    return picture(draw)
