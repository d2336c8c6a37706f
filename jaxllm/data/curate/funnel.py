"""What each stage of a run let through and dropped, from the statistics that its tasks wrote."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from typing import Any

from jaxllm.data.curate.recipe import STAGES, Recipe


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      name: as in `recipe.STAGES`.
      documents, characters, tokens: what left it (characters of HTML before extraction; tokens None if not counted).
      dropped: pages that did not leave it.
      reasons: how many of those by reason, most frequent first.
      seconds: of work, summed over tasks.
      notes: what else was counted (replaced emails, cut lines, duplicate clusters).
    """

    name: str
    documents: int
    characters: int
    tokens: int | None
    dropped: int
    reasons: dict[str, int]
    seconds: float
    notes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Funnel:
    """All stages in order; `html_bytes` is what was read, `tasks` how many tasks have finished."""

    stages: tuple[Stage, ...]
    html_bytes: int
    tasks: int


def read(run: str | os.PathLike, recipe: Recipe) -> Funnel:
    """The funnel of a run so far.

    Args:
      run: its folder, as `curate` returns it.
      recipe: of the run: says which stages to expect.
    """
    steps = {job: _steps(pathlib.Path(run) / "logs" / job / "stats")
             for job in ("pages", "signatures", "buckets", "clusters", "documents")}
    page_steps, tasks = steps["pages"]
    final_steps, _ = steps["documents"]
    stages = [_first(page_steps)]
    for name in STAGES[1:]:
        if not getattr(recipe, name).on:
            continue
        late = name in ("minhash", "pii")
        source = final_steps if late else page_steps
        if f"after {name}" not in source:
            continue
        extra = sum(steps[job][0].get(key, _EMPTY)["seconds"] for job, key in (
            ("signatures", "MinHash stage 1"), ("buckets", "MinHash stage 2"), ("clusters", "MinHash stage 3")))
        stages.append(_stage(name, source, stages[-1].documents, extra if name == "minhash" else 0.0,
                             steps["clusters"][0].get("MinHash stage 3", _EMPTY)["stats"]))
    return Funnel(tuple(stages), int(_total(page_steps.get("pages", _EMPTY)["stats"].get("bytes", 0))), tasks)


_EMPTY: dict[str, Any] = {"seconds": 0.0, "stats": {}}
# How datatrove names its steps; ours bear the stage's own name.
_THEIRS = {"Gopher Repetition": "gopher_repetition", "Gopher Quality": "gopher_quality", "C4 Quality": "c4",
           "FineWeb Quality": "fineweb", "MinHash stage 4": "minhash"}


def _steps(folder: pathlib.Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Statistics by step, summed over the tasks that have finished, and how many those are."""
    found: dict[str, dict[str, Any]] = {}
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    for file in files:
        for step in json.loads(file.read_text()):
            name = step["name"].partition(": ")[2]
            name = name if name.isascii() else name.partition(" ")[2]  # datatrove's begin with a picture
            entry = found.setdefault(_THEIRS.get(name, name), {"seconds": 0.0, "stats": collections.Counter()})
            entry["seconds"] += _total(step["time_stats"])
            for key, value in step["stats"].items():
                entry["stats"][key] += _total(value)
    return found, len(files)


def _total(value: Any) -> float:
    return value["total"] if isinstance(value, dict) else value


def _first(steps: dict[str, dict[str, Any]]) -> Stage:
    entry, after = steps.get("pages", _EMPTY), steps.get("after read", _EMPTY)["stats"]
    lost = {key.removeprefix("lost_"): int(value) for key, value in entry["stats"].items() if key.startswith("lost_")}
    return Stage("read", int(after.get("documents", 0)), int(after.get("characters", 0)), None, sum(lost.values()),
                 _sorted(lost), entry["seconds"], {})


def _stage(name: str, steps: dict[str, dict[str, Any]], before: int, extra_seconds: float,
           clusters: dict[str, Any]) -> Stage:
    entry, after = steps.get(name, _EMPTY), steps[f"after {name}"]["stats"]
    documents = int(after.get("documents", 0))
    reasons = {key.removeprefix("dropped_"): int(value) for key, value in entry["stats"].items()
               if key.startswith("dropped_")}
    notes = {key: int(value) for key, value in entry["stats"].items()
             if key in ("emails", "ips", "no_url") or key.startswith("line-")}
    if name == "minhash":
        notes = {"clusters": int(clusters.get("clusters", 0)), "in_clusters": int(clusters.get("duplicates", 0))}
    tokens = int(after["tokens"]) if "tokens" in after else None
    return Stage(name, documents, int(after.get("characters", 0)), tokens, before - documents, _sorted(reasons),
                 entry["seconds"] + extra_seconds, notes)


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
