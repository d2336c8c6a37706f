"""Run folders and their report.html: one page without outside assets, in light and dark."""

from __future__ import annotations

import html
import io
import json
import os
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxllm.train.metrics import read_metrics

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fcfcfd; --line: #d8d8de; --soft: #f1f1f4; --dim: #63636b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6ea; --paper: #17171a; --line: #3a3a40; --soft: #222226; --dim: #9b9ba4; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 54rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.dim { color: var(--dim); } figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
figure { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .5rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .6rem;
       border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
table.wide { display: block; overflow-x: auto; }
table.wide td, table.wide th { font-size: .85rem; white-space: nowrap; }
table.wide td.text { white-space: normal; min-width: 8rem; overflow-wrap: normal; }
blockquote { margin: .6rem 0; padding: .6rem 1rem; background: var(--soft); border-radius: 8px;
       white-space: pre-wrap; overflow-wrap: anywhere; } blockquote b { color: #2a6fdb; }
"""


def claim_folder(folder: pathlib.Path, config: ConfigDict) -> None:
    """Makes the run folder and writes the resolved config, or checks that the run begun there has the same.

    Raises:
      ValueError: when the folder holds a run of another config; names the keys that differ.
    """
    wanted = json.loads(json.dumps(config.to_dict(), default=str))
    path = folder / "config.json"
    if path.exists() and (folder / "checkpoints").exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        old, new = _flatten(found), _flatten(wanted)
        keys = [f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
                for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if keys:
            raise ValueError(f"{folder} holds a run with other settings: {'; '.join(keys[:5])}; resume it with its own "
                             f"settings or choose another --workdir")
    elif jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(wanted, indent=2) + "\n")


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def against_counts(series: Sequence[tuple[str, Mapping[int, Sequence[float]], str, bool]], *, x_label: str,
                   y_label: str) -> str:
    """Shares against counts that double, 0 among them: means over seeds, and bands of their range.

    Args:
      series: (label, count -> the share of each seed, colour, whether it is a control, which is dashed).
    """
    def draw(axes) -> None:
        for label, found, colour, control in series:
            counts = list(found)
            axes.plot(counts, [statistics.fmean(v) for v in found.values()], "s--" if control else "o-", color=colour,
                      markersize=4, linewidth=1.5, label=label)
            axes.fill_between(counts, [min(v) for v in found.values()], [max(v) for v in found.values()], color=colour,
                              alpha=0.12, linewidth=0)
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(-0.03, 1.03))
        axes.legend(frameon=False, fontsize=8)

    return picture(draw)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """An HTML page; each section is (heading, HTML body)."""
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections)
    return (f"<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            f"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
            f"<body><h1>{html.escape(title)}</h1><p class=\"dim\">{html.escape(subtitle)}</p>\n{body}\n"
            f"</body></html>\n")


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """Two columns: a name and its value."""
    cells = "".join(f"<tr><td>{html.escape(name)}</td><td class=\"n\">{html.escape(str(value))}</td></tr>"
                    for name, value in rows)
    return f"<table>{cells}</table>"


def settings(config: ConfigDict) -> str:
    """The keys of a config and their values as a table."""
    return table(sorted(_flatten(config.to_dict()).items()))


def curves(series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, x_label: str, y_label: str,
           log_y: bool = False) -> str:
    """Line plots (label, x, y) on one pair of axes, as an SVG inside a figure element."""
    def draw(axes) -> None:
        for i, (label, x, y) in enumerate(series):
            marker = "o" if len(x) < 40 else None
            axes.plot(x, y, label=label, marker=marker, markersize=3.5, linewidth=1.4, color=f"C{i}")
        axes.set(xlabel=x_label, ylabel=y_label, yscale="log" if log_y else "linear")
        if len(series) > 1:
            axes.legend(frameon=False)

    return picture(draw)


def picture(draw: Callable[[Any], None], height: float = 3.6, grid: str = "both") -> str:
    """What `draw` puts on a pair of axes, as an SVG inside a figure element; the same data gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "jaxllm", "font.size": 10}):
        figure = Figure(figsize=(8, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.25, axis=grid)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        out = io.StringIO()
        # `figure.savefig` writes the same, but lays everything out twice.
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return f"<figure>{text[text.index('<svg'):]}</figure>"


def save_picture(folder: pathlib.Path, heading: str, picture: str) -> str:
    """Writes the SVG of a picture to pictures/ under its heading; returns its name, "" where there is none to write.

    Raises:
      OSError: as `write_text`.
    """
    drawn = re.search("<svg.*</svg>", picture, re.DOTALL)
    if not drawn:
        return ""
    name = re.sub("[^a-z0-9]+", "_", heading.lower()).strip("_") + ".svg"
    write_text(folder / "pictures" / name, drawn[0] + "\n")
    return name


def write_pretraining(folder: pathlib.Path, config: ConfigDict) -> None:
    """report.html of a pretraining run: loss and its companions against tokens, the last samples, the settings."""
    write_training(folder, config, "Pretraining", ", ".join(config.data.sources), x_label="million tokens",
                   x_per_step=config.batch_size * config.row_length / 1e6)


def write_training(folder: pathlib.Path, config: ConfigDict, title: str, about: str, *, x_label: str = "step",
                   x_per_step: float = 1.0, data: Sequence[tuple[str, str]] = ()) -> None:
    """report.html of a run of experiments/training.py.

    Args:
      folder: of the run.
      config: with `steps` and `seed`.
      title: of the page.
      about: what stands first below the title.
      x_label, x_per_step: of the curves.
      data: more sections, (heading, HTML body), before the settings.
    """
    records = read_metrics(folder)
    steps = [r for r in records if "loss" in r and r["loss"] is not None]
    checks = [r for r in records if r.get("validation_loss") is not None]

    def line(label: str, rows: list[dict], key: str) -> tuple[str, list[float], list[float]]:
        rows = [r for r in rows if r.get(key) is not None]
        return label, [r["step"] * x_per_step for r in rows], [r[key] for r in rows]

    def plot(lines: Sequence[tuple], y_label: str, log_y: bool = False) -> str:
        return curves(lines, x_label=x_label, y_label=y_label, log_y=log_y)

    sections = []
    if steps:
        lines = [line("training", steps, "loss")] + ([line("validation", checks, "validation_loss")] if checks else [])
        sections.append(("Loss", plot(lines, "nats per token")))
    parts = sorted({key for r in checks for key in r if key.startswith("validation/") and key.endswith("_loss")})
    if parts:
        sections.append(("Validation by source", plot([line(
            key.removeprefix("validation/").removesuffix("_loss"), checks, key) for key in parts], "nats per token")))
    if checks:
        sections.append(("Validation, bits per byte of text", plot(
            [line("validation", checks, "validation_bits_per_byte")], "bits per byte")))
    sections.append(("Samples", _samples(folder)))
    if steps:
        sections.append(("Gradient norm and learning rate",
                         plot([line("gradient norm", steps, "grad_norm")], "norm", log_y=True)
                         + plot([line("learning rate", steps, "learning_rate")], "rate")))
        sections.append(("Speed", plot([line("tokens/s", steps[1:], "tokens_per_second")], "tokens per second")))
    sections += [*data, ("Settings", settings(config))]
    write_text(folder / "report.html", page(title, _summary(steps, checks, config, about), sections))


def _summary(steps: list[dict], checks: list[dict], config: ConfigDict, about: str) -> str:
    parts = [about, f"seed {config.seed}", jax.devices()[0].device_kind]
    if steps:
        parts.append(f"step {steps[-1]['step']} of {config.steps}")
    if checks:
        parts.append(f"validation loss {checks[-1]['validation_loss']:.4f}, "
                     f"{checks[-1]['validation_bits_per_byte']:.4f} bits per byte")
    return " · ".join(parts)


def read_samples(folder: pathlib.Path) -> list[dict[str, Any]]:
    """What a run's model wrote along the way: "step", "prompt" and "text" of each; none where nothing was drawn."""
    path = folder / "samples.jsonl"
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as lines:  # not splitlines: a text may hold a separator of Unicode's
        return [json.loads(line) for line in lines]


def _samples(folder: pathlib.Path) -> str:
    records = read_samples(folder)
    if not records:
        return "<p class=\"dim\">none were drawn</p>"
    shown = sorted({r["step"] for r in records}, reverse=True)
    out = []
    for step in shown:
        quotes = "".join(f"<blockquote><b>{html.escape(r['prompt'])}</b>{html.escape(r['text'])}</blockquote>"
                         for r in records if r["step"] == step)
        out.append(f"<h3 class=\"dim\">step {step}</h3>{quotes}")
    return "".join(out)
