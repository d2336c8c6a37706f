"""What an experiment found: tables, pictures and numbers, and the three files that hold them."""

from __future__ import annotations

import dataclasses
import html
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import report


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, the header first; `note` stands below."""

    title: str
    rows: list[list[str]]
    note: str = ""


@dataclasses.dataclass
class Findings:
    """What an experiment or a part of it found: tables, pictures (heading, SVG) and the numbers themselves."""

    title: str
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)


def write(found: Findings, folder: pathlib.Path, config: ConfigDict, seconds: float) -> None:
    """Writes the files, see `save`, and shows the tables on the terminal."""
    print(f"{save(found, folder, config, seconds)}\nwritten: {folder}/report.html, report.md, results.json", flush=True)


def save(found: Findings, folder: pathlib.Path, config: ConfigDict, seconds: float) -> str:
    """Writes results.json, report.md and report.html into the folder; returns the text of report.md."""
    note = f"{jax.devices()[0].device_kind} · {seconds:.0f} s in this call"  # what it found kept took none of them
    report.write_text(folder / "results.json", json.dumps(found.numbers, indent=2) + "\n")
    text = f"# {found.title}\n\n{note}\n\n" + "\n".join(map(markdown, found.tables))
    report.write_text(folder / "report.md", text)
    sections = [*found.pictures]
    sections += [(table.title, html_table(table.rows) + f'<p class="dim">{html.escape(table.note)}</p>')
                 for table in found.tables]
    sections.append(("Settings", report.settings(config)))
    report.write_text(folder / "report.html", report.page(found.title, note, sections))
    return text


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
