"""report.html and report.md of a curation: the funnel, what was dropped and why, and pages to read."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import html
import itertools
import json
import pathlib
import urllib.parse
from collections.abc import Iterator

from experiments import report
from experiments.findings import html_table, markdown_table
from jaxllm.data.curate.funnel import Funnel

KEPT, DROPPED = "#2a6fdb", "#d9822b"


@dataclasses.dataclass
class Facts:
    """What the written documents tell, over at most so many of them."""

    languages: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    domains: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    clusters: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kept_lengths: list[int] = dataclasses.field(default_factory=list)
    dropped_lengths: list[int] = dataclasses.field(default_factory=list)
    pair: tuple[dict, dict] | None = None


def write(run: pathlib.Path, rows: Funnel, title: str, limit: int, note: str = "") -> None:
    """Writes report.html and report.md into the run's folder; reads at most `limit` documents of each kind."""
    facts = gather(run, limit)
    sections = [("Funnel", funnel_picture(rows) + html_table(funnel_rows(rows)))]
    sections += [("Why pages were dropped", reasons_picture(rows))]
    if facts.languages:
        sections.append(("Languages", counts_picture(facts.languages, "pages after extraction")))
    if facts.domains:
        sections.append(("Hosts of the kept documents", counts_picture(facts.domains, "documents")))
    if facts.kept_lengths:
        sections.append(("Lengths", lengths_picture(facts)))
    if facts.clusters:
        sections.append(("Near duplicates", duplicates(facts)))
    sections += [("What else was counted", report.table(notes(rows))), ("Seconds of work", seconds_picture(rows)),
                 ("Samples", samples(run, rows))]
    report.write_text(run / "report.html", report.page(title, note, sections))
    report.write_text(run / "report.md", f"# {title}\n\n{note}\n\n{markdown_table(funnel_rows(rows))}\n")


def documents(folder: pathlib.Path, limit: int) -> Iterator[dict]:
    """The first documents of the .jsonl.gz files of a folder."""
    def rows() -> Iterator[dict]:
        for path in sorted(folder.glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                yield from map(json.loads, file)

    yield from itertools.islice(rows(), limit)


def gather(run: pathlib.Path, limit: int) -> Facts:
    """Reads kept and dropped documents once."""
    facts = Facts()
    representative = {}
    for row in documents(run / "documents", limit):
        metadata = row.get("metadata", {})
        facts.kept_lengths.append(len(row["text"]))
        facts.languages.update([metadata["language"]] if "language" in metadata else [])
        facts.domains[urllib.parse.urlsplit(metadata.get("url", "")).hostname or "(none)"] += 1
        size = metadata.get("minhash_cluster_size", 1)
        facts.clusters[size] += 1
        if size > 1:
            representative.setdefault(metadata["minhash_cluster_id"], row)
    for folder in sorted((run / "dropped").glob("*")):
        for row in documents(folder, limit):
            metadata = row.get("metadata", {})
            facts.languages.update([metadata["language"]] if "language" in metadata else [])
            if folder.name not in ("url", "extract"):
                facts.dropped_lengths.append(len(row["text"]))
            if folder.name == "minhash" and facts.pair is None:
                kept = representative.get(metadata.get("minhash_cluster_id"))
                facts.pair = (kept, row) if kept else None
    return facts


def funnel_rows(rows: Funnel) -> list[list[str]]:
    """The table: header first."""
    table = [["after stage", "documents", "kept", "characters", "tokens", "dropped", "reasons", "seconds"]]
    before = None
    for stage in rows.stages:
        share = "" if before is None or not before else f"{100 * stage.documents / before:.1f}%"
        reasons = ", ".join(f"{name} {count:,}" for name, count in list(stage.reasons.items())[:3])
        table.append([stage.name, f"{stage.documents:,}", share, f"{stage.characters:,}",
                      "" if stage.tokens is None else f"{stage.tokens:,}", f"{stage.dropped:,}", reasons,
                      f"{stage.seconds:.1f}"])
        before = stage.documents
    return table


def funnel_picture(rows: Funnel) -> str:
    """Pages that each stage kept and dropped."""
    def draw(axes) -> None:
        names = [stage.name for stage in rows.stages]
        kept = [stage.documents for stage in rows.stages]
        dropped = [stage.dropped for stage in rows.stages]
        axes.barh(names, kept, color=KEPT, label="kept")
        axes.barh(names, dropped, left=kept, color=DROPPED, label="dropped here")
        for i, (k, d) in enumerate(zip(kept, dropped, strict=True)):
            axes.text(k + d, i, f"  {k:,}" + (f"  (−{d:,})" if d else ""), va="center", fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set(xlabel="pages")
        axes.legend(frameon=False, loc="lower right")

    return report.picture(draw, height=0.38 * len(rows.stages) + 1.0, grid="x")


def reasons_picture(rows: Funnel) -> str:
    """The twenty most frequent reasons, with their stage."""
    found = collections.Counter({f"{stage.name}: {reason}": count for stage in rows.stages
                                 for reason, count in stage.reasons.items()})
    for stage in rows.stages:
        if stage.dropped and not stage.reasons:
            found[stage.name] = stage.dropped
    return counts_picture(found, "pages", color=DROPPED) if found else "<p class=\"dim\">none were</p>"


def counts_picture(counts: collections.Counter, label: str, color: str = KEPT, most: int = 20) -> str:
    """Horizontal bars, the longest first."""
    shown = counts.most_common(most)

    def draw(axes) -> None:
        axes.barh([name for name, _ in shown], [count for _, count in shown], color=color)
        for i, (_, count) in enumerate(shown):
            axes.text(count, i, f"  {count:,}", va="center", fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set(xlabel=label)

    return report.picture(draw, height=0.3 * len(shown) + 0.9, grid="x")


def lengths_picture(facts: Facts) -> str:
    """Characters of kept and dropped texts on a logarithmic scale."""
    import numpy as np

    def draw(axes) -> None:
        longest = max([*facts.kept_lengths, *facts.dropped_lengths, 10])
        bins = np.geomspace(10, longest + 1, 40)
        axes.hist(facts.kept_lengths, bins=bins, color=KEPT, alpha=0.8, label="kept")
        axes.hist(facts.dropped_lengths, bins=bins, color=DROPPED, alpha=0.6, label="dropped after extraction")
        axes.set(xscale="log", xlabel="characters of text", ylabel="documents")
        axes.legend(frameon=False)

    return report.picture(draw)


def duplicates(facts: Facts) -> str:
    """Cluster sizes, and one pair side by side."""
    text = counts_picture(collections.Counter({f"cluster of {size}" if size > 1 else "unique": count
                                               for size, count in sorted(facts.clusters.items())}), "kept documents")
    if facts.pair:
        kept, dropped = (html.escape(row["text"][:600]) for row in facts.pair)
        text += f"<p class=\"dim\">kept, and dropped for it:</p><blockquote>{kept}</blockquote>" \
                f"<blockquote>{dropped}</blockquote>"
    return text


def notes(rows: Funnel) -> list[tuple[str, str]]:
    """Replaced emails and addresses, cut lines, duplicate clusters; what was read."""
    found = [("bytes of pages read", f"{rows.html_bytes:,}"), ("finished tasks", f"{rows.tasks:,}")]
    return found + [(f"{stage.name}: {name}", f"{count:,}") for stage in rows.stages
                    for name, count in stage.notes.items()]


def seconds_picture(rows: Funnel) -> str:
    """Where the time went."""
    def draw(axes) -> None:
        axes.barh([stage.name for stage in rows.stages], [stage.seconds for stage in rows.stages], color=KEPT)
        axes.invert_yaxis()
        axes.set(xlabel="seconds, summed over tasks")

    return report.picture(draw, height=0.32 * len(rows.stages) + 0.9, grid="x")


def samples(run: pathlib.Path, rows: Funnel, count: int = 3) -> str:
    """For each stage a few that it kept and a few that it dropped, folded."""
    out = []
    for stage in rows.stages[1:]:
        shown = []
        for folder, word in (("samples", "kept"), ("dropped", "dropped")):
            for row in documents(run / folder / stage.name, count):
                reason = row.get("metadata", {}).get("filter_reason", "")
                url = row.get("metadata", {}).get("url", "")
                shown.append(f"<p class=\"dim\">{word}{f' ({html.escape(reason)})' if reason else ''}: "
                             f"{html.escape(url)}</p><blockquote>{html.escape(row['text'][:500])}</blockquote>")
        out.append(f"<details><summary>{stage.name}</summary>{''.join(shown)}</details>")
    return "".join(out)
