"""The report of the road: a chapter for each part of the talk, with its claims, controls, verdicts and pictures."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Mapping
from typing import Any

import jax

from experiments import report
from experiments.claims import HOLDS, OPEN, REFUTED, Claim, rows
from experiments.findings import Table, html_table, markdown
from experiments.speedrun_road import Road

Told = Mapping[str, Mapping[str, Any]]
COLOURS = {HOLDS: "#1a7f4b", REFUTED: "#c0362c", OPEN: "#8a6d1a"}
STYLE = """<style>
.verdict { display: inline-block; min-width: 7rem; font-weight: 600; text-indent: 0; }
.said { padding-left: 7.3rem; text-indent: -7.3rem; } .lead { font-size: 1.05rem; }
.claim { margin: 1rem 0; padding: .2rem 0 .2rem 1rem; border-left: 4px solid var(--line); }
.claim p { margin: .15rem 0; } .claim b.n { font-variant-numeric: tabular-nums; }
nav ol { padding-left: 1.4rem; } nav li { margin: .5rem 0; } nav a { color: inherit; }
</style>"""


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A part of the talk.

    Attributes:
      title: of the chapter.
      says: what the talk says there, in our words.
      stages: that belong to it.
    """

    title: str
    says: str
    stages: tuple[str, ...]


CHAPTERS = (
    Chapter("The web, filtered", "A model reads what was left of the web after spam, boilerplate, other languages and "
            "duplicates were thrown away.", ("crawl", "curate")),
    Chapter("Text as tokens", "Text becomes a sequence of symbols from a vocabulary that merges what often stands "
            "together.", ("tokenizer",)),
    Chapter("Predicting the next token", "Training turns the weights until the next token of the text is no surprise.",
            ("pretrain",)),
    Chapter("A dream of documents", "What comes out is a simulator of internet documents: it remembers what it read "
            "often, and makes up the rest in the same tone.", ("recall", "evaluate")),
    Chapter("An assistant", "Some conversations written by people, in a format of their own, make an assistant of it.",
            ("sft",)),
    Chapter("What it does not know", "It answers all the same, with confidence. Ask it what it knows, and teach it to "
            "refuse the rest.", ("interrogate",)),
    Chapter("Looking things up", "What is in the context is working memory: let it search, and it reads instead of "
            "remembering.", ("look_up",)),
    Chapter("Practice", "With answers that can be checked it may try many solutions and keep what works; it finds out "
            "by itself that working things out pays.", ("sft_to_rl",)),
    Chapter("A teacher's solutions", "A small model learns from a large one's solutions what it would hardly find.",
            ("distill",)),
    Chapter("Beyond the teacher", "Imitation ends at its teacher; a player that plays itself goes on.", ("self_play",)),
    Chapter("Taste", "Where nothing can be checked, a model of people's rankings stands in for them, and the policy "
            "learns from that.", ("reward_model", "policy_gradient")),
    Chapter("The score is not the taste", "Optimised for long, the policy finds what the model of taste mistakes for "
            "good, and goes there: stop in time.", ("reward_hacking",)),
    Chapter("Small enough to keep", "The weights fit fewer bits, and run in other people's programs.",
            ("quantize", "export")),
    Chapter("The arena", "Which model is best is settled in battles, by who wins.", ("arena",)),
)


def write(road: Road, told: Told, seconds: float) -> None:
    """report.html, report.md and results.json of the stages so far.

    Args:
      road: the run.
      told: what each stage told.
      seconds: since the command began.
    """
    note = (f"seed {road.config.seed}, world {road.config.size} · {jax.devices()[0].device_kind} · {len(told)} of "
            f"{len(road.config.stages)} stages, {sum(one['seconds'] for one in told.values()) / 60:.0f} minutes of "
            f"work in {seconds / 60:.0f} of this call")
    chapters = [(chapter, {name: told[name] for name in chapter.stages if name in told}) for chapter in CHAPTERS]
    chapters = [(chapter, stages) for chapter, stages in chapters if stages]
    sections = [("The claims and their verdicts", STYLE + _contents(chapters))]
    sections += [(chapter.title, _chapter(road, chapter, stages)) for chapter, stages in chapters]
    sections += [("Minutes of each stage", _minutes(told)), ("Settings", (
        f"<details><summary>every key of every stage</summary>{report.settings(road.config)}</details>"))]
    report.write_text(road.folder / "report.html", report.page("From web pages to an assistant", note, sections))
    tables = [Table(chapter.title, rows([claim for one in stages.values() for claim in _claims(one)]), chapter.says)
              for chapter, stages in chapters]
    report.write_text(road.folder / "report.md", f"# From web pages to an assistant\n\n{note}\n\n" + "\n".join(
        markdown(table) for table in tables if len(table.rows) > 1))
    report.write_text(road.folder / "results.json", json.dumps(told, indent=2) + "\n")


def lines(name: str, found: Mapping[str, Any]) -> list[str]:
    """What a stage told, for the terminal."""
    said = [f"{name}: {found['seconds'] / 60:.1f} min"]
    said += [f"  {claim.verdict}: {claim.text}. {claim.measure} {_number(claim.measured, claim)}, {claim.control} "
             f"{_number(claim.controlled, claim)}" for claim in _claims(found)]
    return [*said, *(f"  {what.removesuffix(':')}: {value}" for what, value in found["lines"])]


def _claims(found: Mapping[str, Any]) -> list[Claim]:
    return [Claim.from_json(fields) for fields in found["claims"]]


def _number(value: tuple[float, float, float], claim: Claim) -> str:
    return f"{value[0]:.{claim.digits}f}"


def _contents(chapters: list[tuple[Chapter, Told]]) -> str:
    """The chapters with the verdict of each claim."""
    items = []
    for number, (chapter, stages) in enumerate(chapters):
        verdicts = "".join(f"<div class=\"said\">{_verdict(claim)} {html.escape(claim.text)}</div>"
                           for one in stages.values() for claim in _claims(one))
        items.append(f"<li><a href=\"#c{number}\"><b>{html.escape(chapter.title)}</b></a>{verdicts}</li>")
    return f"<nav><ol>{''.join(items)}</ol></nav>"


def _verdict(claim: Claim) -> str:
    return f"<span class=\"verdict\" style=\"color:{COLOURS[claim.verdict]}\">{claim.verdict}</span>"


def _chapter(road: Road, chapter: Chapter, stages: Told) -> str:
    """What the talk says, then every stage's claims, pictures and lines."""
    number = [one.title for one in CHAPTERS].index(chapter.title)
    body = [f"<p class=\"lead\" id=\"c{number}\">{html.escape(chapter.says)}</p>"]
    for one in stages.values():
        body += [_claim(claim) for claim in _claims(one)]
        for picture in one["pictures"]:
            drawn = (road.folder / picture).read_text(encoding="utf-8")
            body.append(f"<figure>{drawn}</figure>")
        if one["lines"]:
            body.append(html_table([["", ""], *one["lines"]]))
    links = " · ".join(f"<a href=\"{html.escape(one['page'])}\">{name}</a>" for name, one in stages.items()
                       if one["page"])
    minutes = sum(one["seconds"] for one in stages.values()) / 60
    body.append(f"<p class=\"dim\">{minutes:.1f} minutes{'. The whole of it: ' + links if links else ''}</p>")
    return "\n".join(body)


def _claim(claim: Claim) -> str:
    def number(value: tuple[float, float, float]) -> str:
        low, high = (f"{end:.{claim.digits}f}" for end in value[1:])
        return f"<b class=\"n\">{value[0]:.{claim.digits}f}</b> <span class=\"dim\">[{low}, {high}]</span>"

    return (f"<div class=\"claim\" style=\"border-color:{COLOURS[claim.verdict]}\"><p>{_verdict(claim)} "
            f"<b>{html.escape(claim.text)}.</b></p><p>Measured: {html.escape(claim.measure)}, "
            f"{number(claim.measured)}</p><p>Control: {html.escape(claim.control)}, {number(claim.controlled)}</p>"
            f"<p class=\"dim\">Ahead by {number(claim.lead)} over {html.escape(claim.over)}.</p></div>")


def _minutes(told: Told) -> str:
    names, minutes = list(told), [one["seconds"] / 60 for one in told.values()]

    def draw(axes: Any) -> None:
        axes.barh(names, minutes, color="#2a6fdb", height=0.6)
        for i, value in enumerate(minutes):
            axes.text(value, i, f"  {value:.1f}", va="center", fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set(xlabel="minutes")

    return report.picture(draw, height=0.9 + 0.28 * len(names), grid="x")
