"""Measures fine-tuning beside TRL's SFTTrainer: the same model, the same tokens, the same machine, in turn.

    python -m experiments.benchmark_sft --config.data.sources="('dolly.jsonl',)" --workdir=runs/benchmark_sft

Each rival works in a process of its own (experiments/benchmark_worker.py). Before it trains it computes the loss of the
untouched weights over all conversations: where that is ours, it computes the same function of the same data.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pathlib
import random
import statistics
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import launch, report, sft_data
from experiments.benchmark import physical_cores
from experiments.benchmark_worker import KEEP_MEMORY, Worker
from experiments.findings import Findings, Table, write
from jaxllm.data.conversations import fit
from jaxllm.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from jaxllm.data.tokenizer_hugging_face import JINJA, tokenizer_to_hugging_face
from jaxllm.model.config import ModelConfig, preset
from jaxllm.model.hub import write_hugging_face
from jaxllm.model.params import init
from jaxllm.train.checkpoint import save_model

TEMPLATE = "chatml"  # which both sides have
TALKS, OURS, THEIRS = "talks.json", "model", "hugging_face"


def main(config: ConfigDict, workdir: str) -> None:
    """Makes the data and the model, and measures every rival.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    tokens = prepare(config, folder)
    rivals = list_rivals(config, folder)
    workers = {name: Worker(function, spec, environment) for name, (function, spec, environment) in rivals.items()}
    rates: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(config.rounds):
        names = list(rivals)[number % len(rivals):] + list(rivals)[:number % len(rivals)]
        for name in names:
            rates[name].append(tokens / workers[name].run(1))
        print(f"round {number + 1} of {config.rounds}: " + ", ".join(
            f"{name} {rates[name][-1]:,.0f}" for name in rivals), flush=True)
    for worker in workers.values():
        worker.close()
    about = {name: worker.about for name, worker in workers.items()}
    write(findings(config, tokens, rates, about), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be measured, before anything is made."""
    for key, allowed in (("ours", ("unrolled", "scan")), ("peers", PEERS)):
        unknown = [value for value in config[key] if value not in allowed]
        if unknown:
            raise ValueError(f"config.{key} holds {', '.join(unknown)}; choose from {', '.join(allowed)}")
    for key in ("rounds", "batch_size", "dim", "layers", "heads", "mlp_dim"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if config.data.conversations < 1 or not config.data.sources:
        raise ValueError("config.data needs a source and at least one conversation")
    if config.dim % config.heads:
        raise ValueError(f"config.heads={config.heads} must divide config.dim={config.dim}")


# How TRL is asked: SFTConfig's fields, with B for the batch size of the config.
PEERS = {
    "as it comes": {"batch": 1},
    "padded": {"batch": 1, "gradient_checkpointing": False},
    "padded, large batch": {"batch": 4, "gradient_checkpointing": False},
    "packed bfd": {"batch": 1, "gradient_checkpointing": False, "packing": True, "packing_strategy": "bfd"},
    "packed wrapped": {"batch": 1, "gradient_checkpointing": False, "packing": True, "packing_strategy": "wrapped"},
}


def has_trl() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers", "trl"))


def prepare(config: ConfigDict, folder: pathlib.Path) -> int:
    """Writes the conversations as tokens and the model in both forms; returns the real tokens of a reading."""
    talks = [talk for spec in config.data.sources for talk in sft_data.open_conversations(spec).conversations]
    random.Random(config.data.seed).shuffle(talks)
    texts = [message.get("content") or "" for talk in talks for message in talk.messages]
    tokenizer = train_tokenizer(texts, config.vocab_size, "gpt4", SPECIAL_TOKENS)
    kept = []
    for talk in talks:
        rendered, dropped, _ = fit(talk, tokenizer, config.row_length, template=TEMPLATE)
        if rendered and not dropped:
            kept.append({"input_ids": rendered.ids, "assistant_masks": list(map(int, rendered.mask))})
        if len(kept) == config.data.conversations:
            break
    if not kept:
        raise ValueError(f"no conversation of {', '.join(config.data.sources)} fits a row of {config.row_length} "
                         f"tokens; raise config.row_length")
    folder.mkdir(parents=True, exist_ok=True)
    report.write_text(folder / TALKS, json.dumps(kept))
    write_model(folder, model_of(config), tokenizer)
    return sum(len(talk["input_ids"]) for talk in kept)


def model_of(config: ConfigDict) -> ModelConfig:
    """A Llama of the config's sizes: RMS norms, SwiGLU, rotary positions, tied head."""
    return preset("smollm2_135m", vocab_size=config.vocab_size, dim=config.dim, layers=config.layers,
                  heads=config.heads, kv_heads=config.heads, head_dim=config.dim // config.heads,
                  mlp_dim=config.mlp_dim, max_positions=config.row_length)


def write_model(folder: pathlib.Path, model: ModelConfig, tokenizer: Tokenizer) -> None:
    params = init(model, jax.random.key(0))
    save_model(folder / OURS, params, model, tokenizer)
    theirs = folder / THEIRS
    theirs.mkdir(exist_ok=True)
    write_hugging_face(theirs, params, model, extra={"eos_token_id": tokenizer.end_of_text})
    tokenizer_to_hugging_face(tokenizer, theirs, JINJA[TEMPLATE])


def list_rivals(config: ConfigDict, folder: pathlib.Path) -> dict[str, tuple[str, dict[str, Any], dict[str, str]]]:
    """Name -> (function, arguments, environment) of its process."""
    place = {"folder": str(folder.absolute()), "row_length": config.row_length}
    rivals = {f"ours: {name}": ("experiments.benchmark_sft_ours:train",
                                place | {"batch": config.batch_size, "scan": name == "scan"}, {})
              for name in config.ours}
    for name in config.peers if has_trl() else ():
        asked = PEERS[name] | {"batch": PEERS[name]["batch"] * config.batch_size}
        rivals[f"TRL: {name}"] = ("experiments.benchmark_sft_trl:train", place | {
            "asked": asked, "threads": config.threads or physical_cores()}, KEEP_MEMORY)
    return rivals


def findings(config: ConfigDict, tokens: int, rates: dict[str, list[float]], about: dict[str, dict[str, Any]]
             ) -> Findings:
    """One table, the quickest first."""
    rows = [["rival", "real tokens/s", "lowest - highest", "padding", "updates a reading", "loss before"]]
    for name in sorted(rates, key=lambda name: -statistics.median(rates[name])):
        found = about[name]
        rows.append([name, f"{statistics.median(rates[name]):,.0f}",
                     f"{min(rates[name]):,.0f} - {max(rates[name]):,.0f}", f"{1 - tokens / found['places']:.1%}",
                     str(found["updates"]), f"{found['loss']:.4f}"])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in (
        "jax", *(("torch", "transformers", "trl") if has_trl() else ())))
    note = (f"{versions}; medians of {config.rounds} rounds in turn, each a reading of {tokens:,} tokens; float32; "
            f"padding is the share of places without a token. \"packed wrapped\" cuts conversations and attends across "
            f"them, so its loss is another one.")
    if not has_trl():
        note += " The extra `peers` is not installed: our side alone was measured."
    numbers = {name: {"tokens_per_second": rates[name], **about[name]} for name in rates}
    return Findings("Fine-tuning beside TRL", [Table("Real tokens a second", rows, note)], [], numbers)


if __name__ == "__main__":
    launch.run(main, default_config="configs/benchmark_sft.py")
