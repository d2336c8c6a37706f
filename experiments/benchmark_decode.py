"""The decoding contest: tokens/s of `generate` beside transformers and llama.cpp, and the share of memory bandwidth."""

from __future__ import annotations

import importlib.util
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmark_contest import Rival, contest
from experiments.benchmark_worker import KEEP_MEMORY, Worker

SIDES = "experiments.benchmark_decode_sides"


def measure(section: ConfigDict, seconds: float, threads: int, peers: bool, environment: dict[str, str]
            ) -> tuple[list[dict[str, Any]], str]:
    """Every model of a section at every batch size.

    Args:
      section: `config.generate` or `config.generate_gpu`.
      seconds: of one measurement, at least one call.
      threads: that the peers compute with.
      peers: whether transformers is there to compare with.
      environment: of all processes.

    Returns:
      (a row for each rival, the text for the report).
    """
    speed = Worker.answer_of(f"{SIDES}:bandwidth", {}, environment)["bytes_per_second"]
    settings = ConfigDict({"finalists": section.finalists, "rounds": section.rounds, "seconds": seconds})
    rows: list[dict[str, Any]] = []
    text = (f"Greedy, {section.prompt} + {section.new} tokens a row, the prompt's time included. Memory moves "
            f"{speed / 1e9:,.1f} GB/s; share: bytes of weights / bandwidth / time of a step.\n")
    for model in section.models:
        folder = section.weights.get(model, "")
        text += f"\n### {model}, {'weights of ' + folder if folder else 'random weights'}\n"
        for batch in section.batches:
            spec = dict(model=model, folder=folder, batch=batch, prompt=section.prompt, new=section.new)
            found = contest(rivals(section, spec, threads, peers, environment), settings, batch * section.new,
                            section.together)
            for row in found:
                row["share"] = row.get("weight_bytes", 0) * row["rate"] / batch / speed
            rows += [{"model": model, "batch": batch, **row} for row in found]
            text += f"\n**Batch {batch}.** {verdicts(found)}\n\n{table(found)}\n"
    return rows, text


def rivals(section: ConfigDict, spec: dict[str, Any], threads: int, peers: bool, environment: dict[str, str]
           ) -> list[Rival]:
    """Ours in each scheme, and the peers that are installed."""
    found = [Rival("ours", scheme, f"{SIDES}:ours", spec | {"scheme": scheme}, environment) for scheme in section.ours]
    if peers:
        found += [Rival("transformers", dtype, f"{SIDES}:transformers", spec | {"dtype": dtype, "threads": threads},
                        environment | KEEP_MEMORY) for dtype in section.transformers]
    if importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf"):
        found += [Rival("llama.cpp", scheme, f"{SIDES}:llama_cpp", spec | {"scheme": scheme, "threads": threads},
                        environment) for scheme in section.llama_cpp]
    return found


def verdicts(rows: list[dict[str, Any]]) -> str:
    """Each of our schemes against the best of every peer."""
    def measured(side: str) -> list[dict[str, Any]]:
        return sorted((row for row in rows if row["side"] == side and row["rounds"]), key=lambda row: -row["rate"])

    sentences = []
    for mine in measured("ours"):
        against = [f"**{mine['rate'] / measured(side)[0]['rate']:.2f}x** of {side} ({measured(side)[0]['name']})"
                   for side in dict.fromkeys(row["side"] for row in rows) if side != "ours" and measured(side)]
        if against:
            sentences.append(f"Ours in {mine['name']} is at {', '.join(against)}.")
    return " ".join(sentences)


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each rival, the quickest first."""
    lines = ["| rival | tokens/s | lowest - highest | weights, MB | share of bandwidth |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: -row["rate"]):
        if row["failure"]:
            lines.append(f"| {row['side']}: {row['name']} | failed | {row['failure'][:80]} | | |")
            continue
        span = f"{row['lowest']:,.1f} - {row['highest']:,.1f}" if row["rounds"] else "tried once"
        lines.append(f"| {row['side']}: {row['name']} | {row['rate']:,.1f} | {span} | "
                     f"{row['weight_bytes'] / 1e6:,.0f} | {row['share']:.0%} |")
    return "\n".join(lines)
