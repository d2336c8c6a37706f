"""Runs the small road from a made-up world to models that learn by reward and by play, each stage made once.

    python -m experiments.speedrun --workdir=runs/speedrun
"""

from __future__ import annotations

import collections
import functools
import importlib.util
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments import (
    findings,
    interrogate,
    lab,
    launch,
    look_up,
    policy_gradient,
    report,
    reward_model,
    sft,
    sft_to_rl,
    train_tokenizer,
)
from jaxllm.data.world import SIZES, documents, make_world
from jaxllm.train.metrics import read_metrics

Lines = list[tuple[str, str]]


def main(config: ConfigDict, workdir: str) -> None:
    """Runs the stages that are not done yet and writes the report after each.

    Raises:
      ValueError: an unknown stage or size, or what a stage's own experiment refuses.
    """
    check(config)
    folder = pathlib.Path(workdir)
    told: dict[str, Mapping[str, Any]] = {}
    for name in config.stages:
        print(f"speedrun: {name}", flush=True)
        settings = [config.seed, config.size, *(config[part].to_dict() for part in needs(config, name))]
        told[name] = lab.kept(folder / "done", name, settings, functools.partial(timed, STAGES[name], config, folder))
        write(told, folder, config)
        print("\n".join(f"  {what}: {value}" for what, value in told[name]["lines"]), flush=True)
    print(f"written: {folder}/report.html", flush=True)


def check(config: ConfigDict) -> None:
    """Refuses what no stage could work with."""
    if unknown := [name for name in config.stages if name not in STAGES]:
        raise ValueError(f"config.stages names {', '.join(unknown)}; choose from {', '.join(STAGES)}")
    if list(config.stages) != [name for name in STAGES if name in config.stages]:
        raise ValueError(f"config.stages must stand in the order {', '.join(STAGES)}")
    if config.size not in SIZES:
        raise ValueError(f"config.size is {config.size!r}; choose one of {', '.join(SIZES)}")
    if "self_play" in config.stages and not importlib.util.find_spec("pgx"):
        raise ValueError("the stage self_play needs the rules of games: pip install -e '.[games]', or leave it out of "
                         "config.stages")


def needs(config: ConfigDict, name: str) -> list[str]:
    """The parts of the config that a stage depends on: its own, and those of the stages below it."""
    below = {"sft": ("tokenizer", "pretrain"), "interrogate": ("tokenizer", "pretrain"),
             "look_up": ("tokenizer", "pretrain"), "pretrain": ("tokenizer",)}
    return [part for part in (*below.get(name, ()), name) if part in config]


def timed(stage: Callable[[ConfigDict, pathlib.Path], Lines], config: ConfigDict, folder: pathlib.Path
          ) -> dict[str, Any]:
    """What a stage tells, and how long it took."""
    begun = time.perf_counter()
    lines = stage(config, folder)
    return {"seconds": time.perf_counter() - begun, "lines": lines}


def world(config: ConfigDict, folder: pathlib.Path) -> Lines:
    """The documents that there are, counted; nothing is kept, since they are a function of the seed."""
    del folder
    made = make_world(config.seed, config.size)
    styles: collections.Counter[str] = collections.Counter()
    characters = 0
    for document in documents(made):
        styles[document.metadata["style"]] += 1
        characters += len(document.text)
    facts = collections.Counter(fact.band for fact in made.facts)
    return [("documents", f"{styles.total():,}"), ("characters", f"{characters:,}"),
            ("styles", ", ".join(f"{style} {count:,}" for style, count in styles.most_common())),
            ("facts by how often they are told", ", ".join(f"{band} {count:,}" for band, count in facts.items()))]


def tokenizer(config: ConfigDict, folder: pathlib.Path) -> Lines:
    """A byte-level BPE trained on the world's documents."""
    settings = config.tokenizer.copy_and_resolve_references()
    settings.source = f"world:{config.seed}:{config.size}"
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)  # of a run that was killed
    train_tokenizer.main(settings, str(folder / "tokenizer"))
    measured = json.loads((folder / "tokenizer" / "compression.json").read_text(encoding="utf-8"))
    return [("tokens", f"{settings.vocab_size:,}"),
            ("bytes per token on held-out documents", f"{measured['tokenizers'][0]['bytes_per_token']:.2f}")]


def base(config: ConfigDict, folder: pathlib.Path) -> ConfigDict:
    """The config of the base model, on this road's tokenizer."""
    settings = config.pretrain.copy_and_resolve_references()
    settings.data.tokenizer.name = str((folder / "tokenizer" / "tokenizer").absolute())
    return settings


def pretrain(config: ConfigDict, folder: pathlib.Path) -> Lines:
    """The base model."""
    run = lab.base_model(base(config, folder), config.seed)
    records = read_metrics(run)
    last = [record for record in records if record.get("validation_loss") is not None][-1]
    settings = config.pretrain
    return [("tokens", f"{settings.steps * settings.batch_size * settings.row_length:,}"),
            ("validation loss, nats a token", f"{last['validation_loss']:.4f}"),
            ("bits per byte", f"{last['validation_bits_per_byte']:.4f}"), ("run folder", str(run))]


def fine_tune(config: ConfigDict, folder: pathlib.Path) -> Lines:
    """The base model after conversations about the world."""
    settings = config.sft.copy_and_resolve_references()
    settings.model = str(lab.base_model(base(config, folder), config.seed))
    settings.data.sources = (f"world:{config.seed}:{config.size}",)
    settings.seed = config.seed
    if not sft.main(settings, str(folder / "sft")):
        sys.exit(1)  # it was asked to stop, and has said that the same command goes on
    records = read_metrics(folder / "sft")
    losses = [record["validation_loss"] for record in records if record.get("validation_loss") is not None]
    samples = [json.loads(line) for line in (folder / "sft" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    return [("validation loss on replies, nats a token", f"{losses[-1]:.4f}"),
            *((sample["prompt"], sample["text"]) for sample in samples if sample["step"] == samples[-1]["step"])]


def measured(experiment: Any, name: str, config: ConfigDict, folder: pathlib.Path) -> Lines:
    """An experiment of several seeds with the one of this road; its first table's first rows are what is told."""
    settings = config[name].copy_and_resolve_references()
    settings.seeds = (config.seed,)
    if "base" in settings:  # the experiments from reward_model on make a small model of their own
        settings.base = base(config, folder)
    experiment.main(settings, str(folder / name))
    text = (folder / name / "report.md").read_text(encoding="utf-8")
    return [(f"tables and pictures: {name}/report.html", ""), *first_table(text)]


def play(config: ConfigDict, folder: pathlib.Path) -> Lines:
    """Imitation of a player, and self-play beyond it."""
    from experiments import self_play  # here, as it needs an extra that all other stages do without

    return measured(self_play, "self_play", config, folder)


def first_table(text: str) -> Lines:
    """(first cell, the others) of every row of the first table in a report.md."""
    rows = []
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.append((cells[0], " · ".join(cells[1:])))
        elif rows:
            break
    return [row for row in rows if set(row[0]) != {"-"}]


STAGES: Mapping[str, Callable[[ConfigDict, pathlib.Path], Lines]] = {
    "world": world, "tokenizer": tokenizer, "pretrain": pretrain, "sft": fine_tune,
    "interrogate": functools.partial(measured, interrogate, "interrogate"),
    "look_up": functools.partial(measured, look_up, "look_up"),
    "reward_model": functools.partial(measured, reward_model, "reward_model"),
    "policy_gradient": functools.partial(measured, policy_gradient, "policy_gradient"),
    "sft_to_rl": functools.partial(measured, sft_to_rl, "sft_to_rl"),
    "self_play": play}


def write(told: Mapping[str, Mapping[str, Any]], folder: pathlib.Path, config: ConfigDict) -> None:
    """report.html, report.md and results.json of the stages so far."""
    names = list(told)
    minutes = [told[name]["seconds"] / 60 for name in names]

    def draw(axes) -> None:
        axes.barh(names, minutes, color="#2a6fdb")
        for i, value in enumerate(minutes):
            axes.text(value, i, f"  {value:.1f}", va="center", fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set(xlabel="minutes")

    tables = [findings.Table(f"{name}, {told[name]['seconds']:.0f} s", [["what", "measured"], *map(list, told[name][
        "lines"])]) for name in names]
    pictures = [("Minutes of each stage", report.picture(draw, height=0.9 + 0.35 * len(names), grid="x"))]
    found = findings.Findings(f"Speedrun, seed {config.seed}", tables, pictures, dict(told))
    findings.save(found, folder, config, sum(minutes) * 60)


if __name__ == "__main__":
    launch.run(main, default_config="configs/speedrun.py")
