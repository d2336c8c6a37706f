"""Measures policy-gradient steps beside TRL's trainers: the same model, prompts and samples, in turn.

    python -m experiments.benchmark_policy --workdir=runs/benchmark_policy

Each rival works in a process of its own (experiments/benchmark_worker.py). Before it trains it gives the mean
log-probability of fixed tokens by the untouched weights: where that is ours, it computes the same function.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
import random
import statistics
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import launch, report
from experiments.benchmark import physical_cores
from experiments.benchmark_sft import TEMPLATE, has_trl, write_model
from experiments.benchmark_worker import KEEP_MEMORY, Worker
from experiments.findings import Findings, Table, write
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.data.world_taste import joke, prompt, things
from jaxllm.model.config import ModelConfig, preset
from jaxllm.rl.policy_settings import ALGORITHMS
from jaxllm.rl.rollout import SAMPLERS

PEERS = ("grpo, as it comes", "grpo", "rloo")


def main(config: ConfigDict, workdir: str) -> None:
    """Makes the model and the prompts, and measures every rival.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    prepare(config, folder)
    rivals = list_rivals(config, folder)
    workers = {name: Worker(function, spec, environment) for name, (function, spec, environment) in rivals.items()}
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(config.rounds):
        first = number % len(rivals)
        for name in [*rivals][first:] + [*rivals][:first]:
            seconds[name].append(workers[name].run(config.steps) / config.steps)
        print(f"round {number + 1} of {config.rounds}, seconds a step: " + ", ".join(
            f"{name} {seconds[name][-1]:.3f}" for name in rivals), flush=True)
    for worker in workers.values():
        worker.close()
    about = {name: worker.about for name, worker in workers.items()}
    write(findings(config, seconds, about), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be measured, before anything is made."""
    ways = [f"{algorithm}, {by}" for algorithm in ALGORITHMS for by in SAMPLERS]
    for key, allowed in (("ours", ways), ("peers", PEERS)):
        unknown = [value for value in config[key] if value not in allowed]
        if unknown:
            raise ValueError(f"config.{key} holds {'; '.join(unknown)}; choose from {'; '.join(allowed)}")
    for key in ("rounds", "steps", "dim", "layers", "heads", "mlp_dim", "prompts", "max_tokens"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if config.samples < 2 or config.dim % config.heads:
        raise ValueError(f"config.samples={config.samples} must be 2 or more, and config.heads={config.heads} divide "
                         f"config.dim={config.dim}")


def prepare(config: ConfigDict, folder: pathlib.Path) -> None:
    """Writes the model in both forms, the prompts, and tokens for the comparison of the two."""
    rng = random.Random(0)
    asked = [prompt(thing)[0]["content"] for thing in things("train")]
    texts = [joke(rng, rng.choice(things("train"))) for _ in range(3000)] + asked
    tokenizer = train_tokenizer(texts, config.vocab_size, "digits", SPECIAL_TOKENS)
    tokenizer = dataclasses.replace(tokenizer, chat_template=TEMPLATE)
    model: ModelConfig = preset(
        "smollm2_135m", vocab_size=tokenizer.vocab_size, dim=config.dim, layers=config.layers, heads=config.heads,
        kv_heads=config.heads, head_dim=config.dim // config.heads, mlp_dim=config.mlp_dim,
        max_positions=64 + config.max_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    report.write_text(folder / "prompts.json", json.dumps(asked))
    tokens = np.random.default_rng(0).integers(0, tokenizer.vocab_size, (4, 32))
    report.write_text(folder / "tokens.json", json.dumps(tokens.tolist()))
    write_model(folder, model, tokenizer)


def list_rivals(config: ConfigDict, folder: pathlib.Path) -> dict[str, tuple[str, dict[str, Any], dict[str, str]]]:
    """Name -> (function, arguments, environment) of its process."""
    place = {"folder": str(folder.absolute()), "prompts": config.prompts, "samples": config.samples,
             "max_tokens": config.max_tokens}
    rivals = {}
    for name in config.ours:
        algorithm, by = name.split(", ")
        rivals[f"ours: {name}"] = ("experiments.benchmark_policy_ours:train",
                                   place | {"algorithm": algorithm, "by": by}, {})
    for name in config.peers if has_trl() else ():
        rivals[f"TRL: {name}"] = ("experiments.benchmark_policy_trl:train", place | {
            "algorithm": name.split(", ")[0], "checkpointing": name.endswith("as it comes"),
            "threads": config.threads or physical_cores()}, KEEP_MEMORY)
    return rivals


def findings(config: ConfigDict, seconds: dict[str, list[float]], about: dict[str, dict[str, Any]]) -> Findings:
    """Steps a second, the quickest first; and where a step of ours goes."""
    rows = [["rival", "steps/s", "lowest - highest", "drawn tokens a step", "log-probability before"]]
    for name in sorted(seconds, key=lambda name: statistics.median(seconds[name])):
        rates = [1 / one for one in seconds[name]]
        rows.append([name, f"{statistics.median(rates):.2f}", f"{min(rates):.2f} - {max(rates):.2f}",
                     f"{about[name]['tokens']:,.0f}", f"{about[name]['logp']:.4f}"])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in (
        "jax", *(("torch", "transformers", "trl") if has_trl() else ())))
    note = (f"{versions}; medians of {config.rounds} rounds in turn, {config.steps} steps each, of {config.prompts} "
            f"prompts x {config.samples} samples; float32.")
    if not has_trl():
        note += " The extra `peers` is not installed: our side alone was measured."
    parts = [["", "sampling", "rewarding", "scoring", "updating", "drawn tokens/s", "the engine's best", "share"]]
    for name, found in about.items():
        if "shares" in found:
            parts.append([name, *(f"{share:.0%}" for share in found["shares"].values()),
                          f"{found['sampled_per_second']:,.0f}", f"{found['engine_per_second']:,.0f}",
                          f"{found['sampled_per_second'] / found['engine_per_second']:.2f}"])
    best = "The engine at its best: as many slots as replies, always full, the same weights throughout."
    numbers = {name: {"seconds": seconds[name], **about[name]} for name in seconds}
    return Findings("Policy gradients beside TRL", [Table("Steps a second", rows, note),
                                                    Table("Where a step of ours goes", parts, best)], [], numbers)


if __name__ == "__main__":
    launch.run(main, default_config="configs/benchmark_policy.py")
