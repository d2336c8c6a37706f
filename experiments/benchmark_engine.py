"""The engine under load: requests of mixed lengths that arrive at random, against the same one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.benchmark_worker import Worker
from experiments.launch import set_up_process
from jaxllm.infer.engine import Engine, Request
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, ModelConfig, preset
from jaxllm.model.params import Params, init
from jaxllm.model.quantize import prepare_for_decoding, quantize
from jaxllm.model.transformer import forward
from jaxllm.train.checkpoint import load_model

# How an engine may run a model: dtype of activations, scheme of the weights, dtype of the cache.
WAYS = {"float32": ("float32", None, None), "bfloat16": ("bfloat16", None, None),
        "float32, cache int8": ("float32", None, "int8"), "float32, weights int8": ("float32", "int8", None),
        "float32, weights int4": ("float32", "int4", None)}
TEXT = "The engine of the train was old, but every morning it left the station on time, because the driver"


def engine(config: ConfigDict, limit: dict[str, Any], environment: dict[str, str] | None = None
           ) -> tuple[list[dict[str, Any]], str]:
    """The section `engine` of the benchmark: each number of slots in a process of its own, in turn."""
    section = config.engine
    spec = {name: section[name] for name in ("model", "dtype", "capacity", "chunk", "requests", "prompt", "new",
                                             "per_second", "weights")}
    rounds: dict[int, list[dict[str, Any]]] = {slots: [] for slots in section.slots}
    for number in range(section.rounds):
        for slots in section.slots:
            rounds[slots].append(Worker.answer_of("experiments.benchmark_engine:measure",
                                                  {**spec, "slots": slots, "seed": number}, environment))
    rows = [{"slots": slots, **{name: float(np.median([one[name] for one in found])) for name in found[0]},
             "lowest": min(one["tokens_per_second"] for one in found),
             "highest": max(one["tokens_per_second"] for one in found)} for slots, found in rounds.items()]
    text = table(section, rows)
    if section.weights:
        gaps = Worker.answer_of("experiments.benchmark_engine:gap", {"weights": section.weights}, environment)["gaps"]
        text += "\n\n" + gap_table(gaps)
        rows += gaps
    return rows, text


def table(section: ConfigDict, rows: list[dict[str, Any]]) -> str:
    """What was asked, and a line for each number of slots."""
    gain = rows[-1]["tokens_per_second"] / rows[0]["tokens_per_second"]
    lines = ["## Engine", "",
             f"{section.requests} requests to {section.model} ({section.dtype}); prompts of "
             f"{section.prompt[0]}-{section.prompt[1]} tokens, {section.new[0]}-{section.new[1]} new ones each, half "
             f"greedy, half drawn at temperature 1; {section.per_second:g} arrive a second, at random. 1 slot serves "
             f"one after another. Medians of {section.rounds} rounds; {rows[-1]['slots']} slots give **{gain:.1f}x** "
             f"the tokens/s of {rows[0]['slots']}.", "",
             "| slots | tokens/s | lowest - highest | first token, s: median | 95% | between tokens, ms: median | 95% "
             "|",
             "|---|---|---|---|---|---|---|"]
    lines += [f"| {row['slots']} | {row['tokens_per_second']:,.0f} | {row['lowest']:,.0f} - {row['highest']:,.0f} | "
              f"{row['first_median']:.2f} | {row['first_95']:.2f} | {1e3 * row['between_median']:.0f} | "
              f"{1e3 * row['between_95']:.0f} |" for row in rows]
    return "\n".join(lines)


def gap_table(gaps: list[dict[str, Any]]) -> str:
    """A line for each way to run the model."""
    lines = ["Log-probabilities of the engine beside those of the trainer's `forward` in float32 with the weights "
             f"unquantised, on the same {gaps[0]['tokens']} drawn tokens, in nats:", "",
             "| engine | mean difference, absolute | largest |", "|---|---|---|"]
    return "\n".join(lines + [f"| {one['way']} | {one['mean']:.1e} | {one['largest']:.1e} |" for one in gaps])


def gap(weights: str) -> tuple[Callable[[int], float], dict[str, Any]]:
    """How far what the engine says of its tokens is from what the trainer would say of them."""
    set_up_process()
    params, config, tokenizer = load_model(weights)
    prompt = tuple(tokenizer.encode(TEXT))
    score = jax.jit(forward, static_argnums=1)
    found = []
    for way, (dtype, scheme, cache_dtype) in WAYS.items():
        run = quantize(params, config, scheme) if scheme else prepare_for_decoding(params, config, dtype=dtype)
        served = Engine(run, config, slots=4, capacity=128, execution=Execution(dtype=dtype), cache_dtype=cache_dtype)
        told = served.run(Request(prompt, 32, seed=1, sample=i) for i in range(4))
        rows = np.array([prompt + one.tokens for one in told], np.int32)
        logp = np.asarray(jax.nn.log_softmax(score(params, config, rows)))[:, len(prompt) - 1:-1]
        logp = np.take_along_axis(logp, rows[:, len(prompt):, None], axis=-1)[..., 0]
        differences = np.abs(logp - np.array([one.logp for one in told]))
        found.append({"way": way, "tokens": differences.size, "mean": float(differences.mean()),
                      "largest": float(differences.max())})
    return lambda count: 0.0, {"gaps": found}


def weights_of(model: str, weights: str, dtype: str) -> tuple[Params, ModelConfig]:
    """The weights of a model folder, or random ones of a preset, as decoding runs fastest."""
    if weights:
        params, config, _ = load_model(weights)
    else:
        config = preset(model)
        params = jax.jit(lambda: init(config, jax.random.key(0)))()
    return prepare_for_decoding(params, config, dtype=dtype), config


def measure(model: str, weights: str, dtype: str, slots: int, capacity: int, chunk: int, requests: int,
            prompt: list[int], new: list[int], per_second: float, seed: int
            ) -> tuple[Callable[[int], float], dict[str, Any]]:
    """One round in this process; times are in seconds, the first token's from its request's arrival."""
    set_up_process()
    params, config = weights_of(model, weights, dtype)
    served = Engine(params, config, slots=slots, capacity=capacity, chunk=chunk, execution=Execution(dtype=dtype))
    served.warm_up()
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1 / per_second, requests))
    wanted = [Request(tuple(random.integers(config.vocab_size, size=int(random.integers(*prompt))).tolist()),
                      int(random.integers(*new)), SamplingSettings(temperature=float(i % 2)), seed=i)
              for i in range(requests)]
    told = serve(served, wanted, arrivals)
    first = [times[0] - arrival for times, arrival in zip(told, arrivals, strict=True)]
    between = np.concatenate([np.diff(times) for times in told])
    tokens, end = sum(map(len, told)), max(times[-1] for times in told)
    assert tokens == sum(one.max_tokens for one in wanted), "a request was not answered in full"
    return lambda count: 0.0, {
        "tokens_per_second": tokens / (end - arrivals[0]), "first_median": float(np.median(first)),
        "first_95": float(np.quantile(first, 0.95)), "between_median": float(np.median(between)),
        "between_95": float(np.quantile(between, 0.95))}


def serve(served: Engine, requests: list[Request], arrivals: np.ndarray) -> list[list[float]]:
    """Submits each request at its time; the times at which its tokens came, in seconds since the start."""
    told: dict[int, list[float]] = {}
    begun, arrived = time.perf_counter(), 0
    while arrived < len(requests) or served.waiting or served.running:
        now = time.perf_counter() - begun
        while arrived < len(requests) and arrivals[arrived] <= now:
            told[served.submit(requests[arrived])] = []
            arrived += 1
        if not (served.waiting or served.running):
            time.sleep(max(arrivals[arrived] - now, 0))
            continue
        events = served.step()
        now = time.perf_counter() - begun
        for event in events:
            told[event.request_id].append(now)
    return list(told.values())
