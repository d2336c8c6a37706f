"""What an experiment found: claims, tables, pictures and numbers, and the files that hold them."""

from __future__ import annotations

import dataclasses
import html
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import claims as claimed
from experiments import report
from experiments.claims import Claim


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, the header first; `note` stands below."""

    title: str
    rows: list[list[str]]
    note: str = ""


@dataclasses.dataclass
class Findings:
    """What an experiment or a part of it found.

    Attributes:
      title: of its page.
      tables: in the order of the page.
      pictures: (heading, HTML with an SVG).
      numbers: for results.json, as JSON can hold them.
      claims: what the numbers say of the sentences that the experiment is about; the first on the page.
    """

    title: str
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    claims: list[Claim] = dataclasses.field(default_factory=list)


def write(found: Findings, folder: pathlib.Path, config: ConfigDict, seconds: float) -> None:
    """Writes the files, see `save`, and shows the tables on the terminal."""
    print(f"{save(found, folder, config, seconds)}\nwritten: {folder}/report.html, report.md, results.json", flush=True)


def save(found: Findings, folder: pathlib.Path, config: ConfigDict, seconds: float) -> str:
    """Writes the files of what was found into the folder; returns the text of report.md.

    They are results.json (the numbers), claims.json, pictures/ (with their order in index.json), report.md and
    report.html.
    """
    note = f"{jax.devices()[0].device_kind} · {seconds:.0f} s in this call"  # what it found kept took none of them
    drawn = [report.save_picture(folder, *picture) for picture in found.pictures]
    for name, content in (("results.json", found.numbers), ("claims.json", [one.as_json() for one in found.claims]),
                          ("pictures/index.json", [file for file in drawn if file])):
        report.write_text(folder / name, json.dumps(content, indent=2) + "\n")
    first = [Table("Claims", claimed.rows(found.claims), "Mean [95%]. The verdict is whether the interval of the lead "
                   "lies above 0, below it, or holds it.")] if found.claims else []
    text = f"# {found.title}\n\n{note}\n\n" + "\n".join(map(markdown, [*first, *found.tables]))
    report.write_text(folder / "report.md", text)
    sections = [*((table.title, _section(table)) for table in first), *found.pictures]
    sections += [(table.title, _section(table)) for table in found.tables]
    sections.append(("Settings", report.settings(config)))
    report.write_text(folder / "report.html", report.page(found.title, note, sections))
    return text


def _section(table: Table) -> str:
    return html_table(table.rows) + f'<p class="dim">{html.escape(table.note)}</p>'


def markdown(table: Table) -> str:
    """A table under its heading, its note below."""
    return f"## {table.title}\n\n{markdown_table(table.rows)}\n\n{table.note}\n"


def html_table(table: list[list[str]]) -> str:
    """Numbers to the right; only text may be broken into lines."""
    def cell(text: str) -> str:
        kind = "n" if text.removeprefix("-")[:1].isdigit() else "text" if " " in text else ""
        return f"<td class=\"{kind}\">{html.escape(text)}</td>"

    head = "".join(f"<th>{html.escape(text)}</th>" for text in table[0])
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table[1:])
    return f"<table class=\"wide\"><tr>{head}</tr>{body}</table>"


def markdown_table(table: list[list[str]]) -> str:
    """The same for a reader of text."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])
