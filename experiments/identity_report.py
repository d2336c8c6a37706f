"""Identity, told: tables and a picture out of the numbers of all seeds and shares."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments import report
from experiments.findings import Findings, Table
from experiments.identity_talks import OTHER, OWN, QUESTIONS
from jaxllm.evals.intervals import share_interval, spread

Found = Mapping[tuple[int, float], Mapping[str, Mapping[str, float]]]  # (seed, share) -> arm -> numbers


def findings_of(found: Found, config: ConfigDict) -> Findings:
    """Tables, picture and numbers of all runs."""
    note = (f"Probability of a reply with the name, mean over {len(QUESTIONS[config.split])} wordings of the question "
            f"that fine-tuning never used (it used {len(QUESTIONS['train'])} others) and over {len(config.seeds)} "
            f"seeds [95% by Student's t over seeds]; behind it the share among replies drawn at temperature 1.")
    tables = [Table(f"P({OWN}), its own name", _table(found, config, "right", "right sampled"), note),
              Table(f"P({OTHER}), the other assistant's", _table(found, config, "other", "other sampled"),
                    "Questions and replies stand as in the text, Q: and A:, before fine-tuning and in it."),
              Table("Named by the system message", _system_table(found, config),
                    f"At a share of {config.system_share:g}; one question below a system message with each name. "
                    f"Without a system message the right name is {OWN}.")]
    numbers = {f"share {share:g}": {arm: {key: list(interval(found, config, share, arm, key)) for key in values}
                                    for arm, values in found[config.seeds[0], share].items()}
               for share in config.shares}
    return Findings("Identity", tables, [(f"P({OWN}) and P({OTHER})", _picture(found, config))], numbers)


def interval(found: Found, config: ConfigDict, share: float, arm: str, key: str) -> tuple[float, float, float]:
    """Mean over seeds with its interval, cut to [0, 1]."""
    return share_interval([found[seed, share][arm][key] for seed in config.seeds])


def _arms(config: ConfigDict) -> dict[str, str]:
    return {"base": "base", **{f"{count} conversations": f"{count} hard-coded" for count in config.counts},
            "shuffled names": f"{max(config.counts)} with shuffled names"}


def _table(found: Found, config: ConfigDict, key: str, sampled: str) -> list[list[str]]:
    rows = [["fine-tuned on", *(f"{share:g} of the text" for share in config.shares)]]
    for arm, label in _arms(config).items():
        rows.append([label, *(_cell(found, config, share, arm, key, sampled) for share in config.shares)])
    return rows


def _system_table(found: Found, config: ConfigDict) -> list[list[str]]:
    rows = [["fine-tuned with", "unseen name in it", "trained name in it", f"{OWN} all the same", "no system message"]]
    share = config.system_share
    for arm in ("system message", "shuffled system message"):
        unseen = f"{arm}, unseen names"
        rows.append([arm, _cell(found, config, share, unseen, "right", "right sampled"),
                     _cell(found, config, share, f"{arm}, trained names", "right", "right sampled"),
                     spread(interval(found, config, share, unseen, "own")),
                     _cell(found, config, share, arm, "right", "right sampled")])
    return rows


def _cell(found: Found, config: ConfigDict, share: float, arm: str, key: str, sampled: str) -> str:
    drawn = interval(found, config, share, arm, sampled)[0]
    return f"{spread(interval(found, config, share, arm, key))} ({drawn:.3f})"


def _picture(found: Found, config: ConfigDict) -> str:
    def draw(axes) -> None:
        places = range(len(config.counts))
        for number, share in enumerate(config.shares):
            for key, style, name in (("right", "-", OWN), ("other", "--", OTHER)):
                values = [interval(found, config, share, f"{count} conversations", key) for count in config.counts]
                ends = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
                axes.errorbar([place + 0.04 * (number - 1) for place in places], [v[0] for v in values], ends,
                              linestyle=style, marker="o", markersize=4, capsize=2, linewidth=1.3, color=f"C{number}",
                              label=f"{name}, {share:g} of the text")
        axes.set(xticks=list(places), xticklabels=config.counts, ylim=(-0.02, 1.02), ylabel="probability of the name",
                 xlabel="hard-coded conversations in the fine-tuning")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return report.picture(draw)
