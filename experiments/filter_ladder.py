"""Is the curation right? Each stage against planted truth, against labels of others, and by the model it leads to.

    pip install -e '.[curate]'; export JAXLLM_LANGUAGE_MODEL=lid.176.ftz
    python -m experiments.filter_ladder --workdir=runs/filter_ladder
    python -m experiments.filter_ladder --config.sections="('planted',)" --workdir=runs/filter_ladder
"""

from __future__ import annotations

import html
import importlib.util
import json
import pathlib
import time

import jax
from ml_collections import ConfigDict

from experiments import launch, report
from experiments.curation_report import html_table, markdown_table
from experiments.filter_ladder_numbers import Section, Table

SECTIONS = ("planted", "real", "ablation")


def main(config: ConfigDict, workdir: str) -> None:
    """Runs the sections that the config names, and writes results.json, report.md and report.html of each.

    Raises:
      ValueError: a key is out of range, or the extra is not installed.
      FileNotFoundError: the language model or a labelled file is missing.
    """
    check(config)
    from experiments import filter_ladder_ablation, filter_ladder_planted, filter_ladder_real
    from jaxllm.data.curate import steps

    steps.language_model(config.language_model)
    parts = {"planted": filter_ladder_planted.section, "real": filter_ladder_real.section,
             "ablation": filter_ladder_ablation.section}
    for name in config.sections:
        begun = time.perf_counter()
        folder = pathlib.Path(workdir) / name
        folder.mkdir(parents=True, exist_ok=True)
        found = parts[name](config, folder)
        if found is not None:
            write(found, folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after minutes of work."""
    missing = [name for name in ("datatrove", "warcio", "spacy", "cchardet") if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed: pip install -e '.[curate]'")
    if unknown := set(config.sections) - set(SECTIONS):
        raise ValueError(f"config.sections names {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    if unknown := set(config.planted.recipes) - {"fineweb", "fast"}:
        raise ValueError(f"config.planted.recipes names {', '.join(sorted(unknown))}; choose from fineweb, fast")
    for path, value, least in (("planted.seeds", len(config.planted.seeds), 1), ("bootstrap", config.bootstrap, 1),
                               ("ablation.seeds", len(config.ablation.seeds), 2), ("workers", config.workers, 1),
                               ("planted.pages", config.planted.pages, 1), ("ablation.pages", config.ablation.pages, 1),
                               ("ablation.steps", config.ablation.steps, 1)):
        if value < least:
            raise ValueError(f"config.{path}: {value}, which must be {least} or more"
                             + (": an interval over seeds needs two" if path == "ablation.seeds" else ""))


def write(found: Section, folder: pathlib.Path, config: ConfigDict, seconds: float) -> None:
    """The section's files, and its tables on the terminal."""
    note = f"{jax.devices()[0].device_kind} · {seconds:.0f} s"
    report.write_text(folder / "results.json", json.dumps(found.numbers, indent=2) + "\n")
    text = f"# {found.title}\n\n{note}\n\n" + "\n".join(map(markdown, found.tables))
    report.write_text(folder / "report.md", text)
    sections = [*found.pictures]
    sections += [(table.title, html_table(table.rows) + f'<p class="dim">{html.escape(table.note)}</p>')
                 for table in found.tables]
    sections.append(("Settings", report.table(sorted(config.to_dict().items()))))
    report.write_text(folder / "report.html", report.page(found.title, note, sections))
    print(f"{text}\nwritten: {folder}/report.html, report.md, results.json", flush=True)


def markdown(table: Table) -> str:
    """A table under its heading, its note below."""
    return f"## {table.title}\n\n{markdown_table(table.rows)}\n\n{table.note}\n"


if __name__ == "__main__":
    launch.run(main, default_config="configs/filter_ladder.py")
