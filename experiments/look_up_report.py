"""Looking up, told: tables and a picture out of the records of all seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.claims import of_shares
from experiments.findings import Findings, Table
from experiments.look_up_measure import GROUPS
from jaxllm.evals.intervals import share_interval, spread

Questions = Sequence[Mapping[str, Any]]  # records of them
Records = Mapping[str, Questions]  # what is measured -> its questions
BAR, FLOOR = 0.85, 0.10
COLUMNS = {"closed book": "closed book", "page": "page in context", "search": "search",
           "wrong pages": "search, others' pages", "closed-book training": "closed book, trained on it alone"}


def findings_of(seeds: Sequence[Records], config: ConfigDict) -> Findings:
    """Tables, picture and numbers of the seeds together."""
    numbers: dict[str, Any] = {name: {group: interval(seeds, name, group, _right) for group in GROUPS}
                               for name in seeds[0]}
    numbers |= {f"search: {name}": {group: interval(seeds, "search", group, share) for group in GROUPS}
                for name, share in SHARES.items()}
    found, without = numbers["search"]["never"][0], numbers["closed book"]["never"][0]
    reached = found >= BAR and without < FLOOR
    bar = (f"People of the band never: {found:.3f} with the search, {without:.3f} without. Bar: at least {BAR:g} from "
           f"under {FLOOR:g}, {'reached' if reached else 'missed'}.")
    note = (f"Share of right answers, mean over {len(seeds)} seeds [95% by Student's t over seeds]; "
            f"{config.split} people. {bar}")
    tables = [Table("Right answers, by how often documents tell the fact", _right_table(seeds), note),
              Table("With the search", _search_table(seeds), "Query right: the attribute and the whole name. Copied: "
                    "the answer is what the page that was found tells."),
              Table("With pages that tell what is true of somebody else", _wrong_table(seeds), "A model that reads "
                    "says what the page says; one that remembers does not.")]
    def never(name: str) -> list[tuple[int, int]]:
        rows = [[row["right"] for row in records[name] if row["group"] == "never"] for records in seeds]
        return [(sum(row), len(row)) for row in rows]

    claims = [of_shares("With a search a model answers about people it never read of", "search", never("search"),
                        "the same model without it", never("closed book")),
              of_shares("It reads what it finds", "search", never("search"), "search, others' pages",
                        never("wrong pages"))]
    return Findings("Looking up", tables, [("Right answers", _picture(seeds))], {"bar_reached": reached, **numbers},
                    claims)


def interval(seeds: Sequence[Records], name: str, group: str, share: Callable[[Questions], float | None]
             ) -> tuple[float, float, float] | None:
    """Mean of a share over seeds with its interval, cut to [0, 1]; None where no seed has such questions."""
    rows = [[row for row in records[name] if row["group"] == group] for records in seeds]
    values = [value for value in map(share, rows) if value is not None]
    if not values:
        return None
    return share_interval(values)


def _share(key: str, among: Callable[[Mapping[str, Any]], bool] = lambda row: True):
    def share(rows: Questions) -> float | None:
        rows = [row for row in rows if among(row)]
        return sum(bool(row[key]) for row in rows) / len(rows) if rows else None
    return share


_right = _share("right")
SHARES = {"searched": _share("searched"), "query right": _share("query_right", lambda row: row["searched"]),
          "page found": _share("found", lambda row: row["searched"]),
          "copied": _share("copied", lambda row: row["copied"] is not None),
          "right without searching": _share("right", lambda row: not row["searched"])}


def _right_table(seeds: Sequence[Records]) -> list[list[str]]:
    rows = [["told", *COLUMNS.values(), "search, new wording"]]
    for group in GROUPS:
        rows.append([group, *(_cell(interval(seeds, name, group, _right)) for name in (*COLUMNS, "new wording"))])
    return rows


def _search_table(seeds: Sequence[Records]) -> list[list[str]]:
    rows = [["told", *SHARES]]
    return rows + [[group, *(_cell(interval(seeds, "search", group, share)) for share in SHARES.values())]
                   for group in GROUPS]


def _wrong_table(seeds: Sequence[Records]) -> list[list[str]]:
    columns = {"searched": SHARES["searched"], "says what the page says": SHARES["copied"], "right": _right}
    return [["told", *columns], *([group, *(_cell(interval(seeds, "wrong pages", group, share))
                                            for share in columns.values())] for group in GROUPS)]


def _cell(values: tuple[float, float, float] | None) -> str:
    return "none" if values is None else spread(values)


def _picture(seeds: Sequence[Records]) -> str:
    def draw(axes) -> None:
        for number, (name, label) in enumerate(COLUMNS.items()):
            values = [(place, *value) for place, group in enumerate(GROUPS)
                      if (value := interval(seeds, name, group, _right)) is not None]
            places, means, lows, highs = map(np.array, zip(*values, strict=True))
            ends = [means - lows, highs - means] if len(seeds) > 1 else None  # of one seed: all of [0, 1]
            axes.errorbar(places + 0.05 * (number - 2), means, ends, label=label, marker="o",
                          markersize=4, linewidth=1.2, capsize=2, color=f"C{number}",
                          linestyle="--" if name in ("wrong pages", "closed-book training") else "-")
        axes.axhline(BAR, color="gray", linewidth=0.8, linestyle=":")
        axes.set(xticks=range(len(GROUPS)), xticklabels=GROUPS, ylim=(-0.02, 1.02), ylabel="share of right answers",
                 xlabel="how often documents tell the fact")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return report.picture(draw)
