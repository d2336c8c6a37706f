"""Measures training, generation, the loader and the start, beside PyTorch in the same run; prints and writes tables.

    python -m experiments.benchmark --workdir=runs/benchmark
    python -m experiments.benchmark --config=configs/benchmark.py:train_cpu

Every rival runs in a process of its own that waits while the others are measured, so that no thread pool, allocator or
compile of one weighs on another. benchmark.md is what docs/benchmarks.md shows.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from experiments import benchmark_decode, benchmark_engine, benchmark_loader, launch
from experiments.benchmark_contest import Rival, contest
from experiments.benchmark_worker import KEEP_MEMORY, Worker
from experiments.report import write_text
from jaxllm.model.params import flops_per_token

SIZES = ("vocab_size", "dim", "layers", "heads", "length")
# A GPU is shared by the processes of a contest: neither side may take all of it at the start.
SHARE_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def main(config: ConfigDict, workdir: str) -> None:
    """Runs the sections that the config names and writes benchmark.md and benchmark.json."""
    unknown = set(config.sections) - set(SECTIONS)
    if unknown or not config.sections:
        raise ValueError(f"sections holds {sorted(unknown)}; choose from {', '.join(SECTIONS)}")
    if min(config.rounds, config.finalists) < 1:
        raise ValueError("rounds and finalists must be at least 1")
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    limit = Worker.answer_of("experiments.benchmark_ours:limit", {})
    results: dict[str, Any] = {"about": describe(limit)}
    texts = ["\n".join(f"- {line}" for line in results["about"]["lines"])]
    for name in config.sections:
        print(f"measuring {name} ...", flush=True)
        results[name], text = SECTIONS[name](config, limit)
        texts.append(text)
        print(text, flush=True)
        write_text(folder / "benchmark.json", json.dumps(results, indent=2))
        write_text(folder / "benchmark.md", "\n\n".join(texts) + "\n")


def describe(limit: dict[str, Any]) -> dict[str, Any]:
    """Date, device, versions, and how busy the machine was."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "transformers")
                if importlib.util.find_spec(name)}
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    load = os.getloadavg()[0]
    lines = [f"{datetime.date.today()}; {processor}, {physical_cores()} cores; accelerator: "
             f"{limit['device'] if limit['platform'] != 'cpu' else 'none'}",
             f"Python {platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in versions.items()),
             "limit: " + ", ".join(f"{flops / 1e9:,.0f} GFLOP/s {dtype}" for dtype, flops in limit["flops"].items()),
             f"load average at the start: {load:.1f}" + (" (machine shared while measuring)" if load > 0.5 else "")]
    if not has_peers():
        lines.append("the extra `interop` (torch, transformers) is not installed: our side alone was measured")
    return {"lines": lines, "versions": versions, "limit": limit, "load": load}


def has_peers() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def physical_cores() -> int:
    """Cores, hyper-threads counted once, that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not os.path.exists("/proc/cpuinfo"):
        return allowed
    records = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")
    ids = {tuple(line for line in record.splitlines() if line.startswith(("physical id", "core id")))
           for record in records if "core id" in record}
    return min(allowed, len(ids) or allowed)


def sizes(case: ConfigDict) -> dict[str, int]:
    return {name: case[name] for name in SIZES}


def training_rivals(section: ConfigDict, case: ConfigDict, threads: int, environment: dict[str, str]
                    ) -> Iterable[Rival]:
    """Our variants and the peers' (given the allocator settings that ours has)."""
    for name in section.ours:
        layers, dtype = name.split()
        yield Rival("ours", name, "experiments.benchmark_ours:train", dict(
            model=sizes(case), batch=case.batch, dtype=dtype, scan=layers == "scan", chunks=case.chunks), environment)
    for name in section.peers if has_peers() else ():
        peer, mode, dtype = name.split()
        yield Rival("PyTorch", name, "experiments.benchmark_torch:train", dict(
            model=sizes(case), batch=case.batch, peer=peer, compiled=mode == "compiled", dtype=dtype,
            threads=threads), environment | KEEP_MEMORY, alternatives(environment))


def alternatives(environment: dict[str, str]) -> dict[str, dict[str, str]]:
    """Other settings of the process in which PyTorch may be quicker: the best of them counts."""
    return {"malloc as installed": environment,
            "waiting threads sleep": environment | KEEP_MEMORY | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}}


def train_cpu(config: ConfigDict, limit: dict[str, Any]) -> tuple[Any, str]:
    """Training on this machine's processor."""
    return train(config, config.train_cpu, {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"})


def train_gpu(config: ConfigDict, limit: dict[str, Any]) -> tuple[Any, str]:
    """Training on a GPU; where there is none, says so."""
    if limit["platform"] != "gpu":
        return None, "## Training on a GPU\nNot run: JAX sees none here."
    return train(config, config.train_gpu, SHARE_GPU)


def train(config: ConfigDict, section: ConfigDict, environment: dict[str, str]) -> tuple[Any, str]:
    """Every case of a section."""
    rows, text = [], "## Training, tokens/s\n"
    for key in sorted(section.cases):
        case = section.cases[key]
        # Measured beside each case: on a shared machine it moves as much as the rates do.
        flops = Worker.answer_of("experiments.benchmark_ours:limit", {}, environment)["flops"]
        found = contest(list(training_rivals(section, case, config.threads or physical_cores(), environment)), config,
                        case.batch * case.length, case.together)
        per_token = flops_per_token(model_of(case), case.length)
        for row in found:
            row["mfu"] = row["rate"] * per_token / max(flops.values())
        rows += [{"case": key, "limit_flops": flops, **row} for row in found]
        text += (f"\n**({key}) {case.name}**, T {case.length}, batch {case.batch}, vocabulary {case.vocab_size:,}; "
                 f"limit {max(flops.values()) / 1e9:,.0f} GFLOP/s. {verdict(found)}\n\n{table(found)}\n")
    return rows, text


def model_of(case: ConfigDict):
    """The ModelConfig that both sides build."""
    from experiments.benchmark_ours import gpt
    return gpt(**sizes(case))


def generate(config: ConfigDict, limit: dict[str, Any]) -> tuple[Any, str]:
    """Greedy generation with the cache on this machine's processor, beside transformers and llama.cpp."""
    rows, text = benchmark_decode.measure(config.generate, config.seconds, config.threads or physical_cores(),
                                          has_peers(), {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"})
    return rows, f"## Generation, tokens/s\n\n{text}"


def generate_gpu(config: ConfigDict, limit: dict[str, Any]) -> tuple[Any, str]:
    """The same on a GPU; where there is none, says so."""
    if limit["platform"] != "gpu":
        return None, "## Generation on a GPU\nNot run: JAX sees none here."
    rows, text = benchmark_decode.measure(config.generate_gpu, config.seconds, config.threads or physical_cores(),
                                          has_peers(), SHARE_GPU)
    return rows, f"## Generation on a GPU, tokens/s\n\n{text}"


def loader(config: ConfigDict, limit: dict[str, Any]) -> tuple[Any, str]:
    """Tokens into host batches, and resident memory."""
    section = config.loader
    rows = [row for tokens in section.tokens
            for row in benchmark_loader.measure(tokens, section.batch, section.length, section.seconds)]
    lines = ["## Loader", "", f"Batches of {section.batch} x {section.length:,} tokens, one thread.", "",
             "| corpus, tokens | read as | Mtok/s | Mtok/s of processor time | resident MB | grown by |",
             "|---|---|---|---|---|---|"]
    lines += [f"| {r['corpus_tokens']:,} | {r['read_as']} | {r['mtok_per_second']:.0f} | "
              f"{r['mtok_per_processor_second']:.0f} | {r['resident_mb']:.0f} | {r['resident_grew_mb']:.1f} |"
              for r in rows]
    return rows, "\n".join(lines)


def startup(config: ConfigDict, limit: dict[str, Any]) -> tuple[Any, str]:
    """Seconds from the start of the process to the end of its first training step."""
    case, (layers, dtype) = config.startup.case, config.startup.ours.split()
    spec = dict(model=sizes(case), batch=case.batch, dtype=dtype, scan=layers == "scan", chunks=case.chunks, warm=1)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name, folder in (("off", ""), ("on, empty", cache), ("on, filled", cache)):
            begun = time.perf_counter()
            Worker.answer_of("experiments.benchmark_ours:train", spec, {"JAX_COMPILATION_CACHE_DIR": folder})
            rows.append({"cache": name, "seconds": time.perf_counter() - begun})
    text = f"## From start to the end of the first step\n\n{case.name}, {config.startup.ours}.\n\n"
    text += "| compile cache | seconds |\n|---|---|\n"
    return rows, text + "\n".join(f"| {row['cache']} | {row['seconds']:.1f} |" for row in rows)


def verdict(rows: list[dict[str, Any]]) -> str:
    """Our best against the peer's best, by the medians of the contest."""
    best = {}
    for row in rows:
        if row["rounds"] and row["rate"] > best.get(row["side"], {"rate": 0.0})["rate"]:
            best[row["side"]] = row
    if "ours" not in best or len(best) < 2:
        return ""
    peer = next(row for side, row in best.items() if side != "ours")
    return (f"Ours ({best['ours']['name']}) is at **{best['ours']['rate'] / peer['rate']:.2f}x** of the best "
            f"{peer['side']} ({peer['name']}).")


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each rival, the quickest first; those that were only tried once are marked."""
    with_mfu = any("mfu" in row for row in rows)
    lines = ["| rival | tokens/s | lowest - highest |" + (" share of the limit | attention |" if with_mfu else ""),
             "|---|---|---|" + ("---|---|" if with_mfu else "")]
    for row in sorted(rows, key=lambda row: -row["rate"]):
        span = f"{row['lowest']:,.0f} - {row['highest']:,.0f}" if row["rounds"] else "tried once"
        line = f"| {row['side']}: {row['name']} | " + (
            f"{row['rate']:,.0f} | {span} |" if not row["failure"] else f"failed | {row['failure'][:80]} |")
        lines.append(line + (f" {row['mfu']:.1%} | {row['attention']} |" if with_mfu else ""))
    return "\n".join(lines)


SECTIONS = {"train_cpu": train_cpu, "generate": generate, "loader": loader, "startup": startup,
            "train_gpu": train_gpu, "generate_gpu": generate_gpu, "engine": benchmark_engine.engine}

if __name__ == "__main__":
    launch.run(main, default_config="configs/benchmark.py")
