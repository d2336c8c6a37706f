"""Measures what fewer bits cost and save: perplexity, log-probabilities, bytes and tokens/s of each scheme.

    python -m experiments.quantize --config.model=runs/pretrain_tiny --workdir=runs/quantize
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import html
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import launch, report
from jaxllm.data.sources import open_source
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.cache import empty_cache
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.quantize import SCHEMES, prepare_for_decoding, quantize, tree_bytes
from jaxllm.model.transformer import decode, forward, logits
from jaxllm.train.checkpoint import load_model

CACHES = ("float32", "bfloat16", "int8")
HEADER = ("weights / cache", "weights, MB", "cache, bytes a token", "perplexity", "change", "95% interval",
          "mean gap of logp", "largest", "same likeliest token")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row: how weights and cache are stored."""

    weights: str
    cache: str

    @property
    def name(self) -> str:
        return f"{self.weights} / {self.cache}"


@dataclasses.dataclass(frozen=True)
class Scores:
    """logp float32 [blocks, length - 1] of the tokens of the text, in nats; likeliest int32 alike."""

    logp: np.ndarray
    likeliest: np.ndarray


def main(config: ConfigDict, workdir: str) -> None:
    """Scores the text with every variant, times generation, writes quantize.md, quantize.json and report.html.

    Raises:
      ValueError: a key is out of range, or the text is too short.
      FileNotFoundError: there is no such model or text.
    """
    variants = check(config)
    params, model, tokenizer = load_model(config.model)
    check_model(config, model)
    blocks = read_blocks(config, tokenizer)
    execution = Execution(dtype=config.dtype)
    make = functools.partial(weights_of, params, model, config)
    print(f"scoring {blocks.shape[0]} blocks of {config.length} tokens", flush=True)
    reference = score(make("float32"), model, execution, blocks, config.batch, config.dtype)
    control = score(make("float32"), model, execution, blocks, config.batch, None)
    rows = [compare(Variant("float32", config.dtype), reference, reference, make("float32"), model, config),
            compare(Variant("float32", "none: whole rows (control)"), reference, control, make("float32"), model,
                    config)]
    for variant in variants:
        tree = make(variant.weights)
        found = score(tree, model, execution, blocks, config.batch, variant.cache)
        rows.append(compare(variant, reference, found, tree, model, config))
        print(" | ".join(cells(rows[-1], ())), flush=True)
    add_speed(rows, [Variant("float32", config.dtype), None, *variants], make, model, execution, blocks, config)
    write(pathlib.Path(workdir), rows, config, f"{blocks.shape[0]} blocks of {config.length} tokens")


def check(config: ConfigDict) -> list[Variant]:
    """The variants asked for; refuses what would fail only after the model was loaded."""
    for key, least in (("length", 2), ("batch", 1), ("bootstrap_samples", 1), ("rounds", 1), ("speed_prompt", 1),
                       ("speed_new", 1)):
        if config[key] < least:
            raise ValueError(f"config.{key} is {config[key]}; it must be at least {least}")
    if config.tokens < 2 * config.length:
        raise ValueError(f"config.tokens ({config.tokens}) must hold two blocks of config.length ({config.length}) or "
                         f"more: the interval is over blocks")
    if any(batch < 1 for batch in config.speed_batches):
        raise ValueError(f"config.speed_batches is {config.speed_batches}; give numbers of rows >= 1, or ()")
    variants = []
    for text in config.variants:
        weights, _, cache = text.partition("/")
        if weights not in ("float32", *SCHEMES) or cache not in ("", *CACHES):
            raise ValueError(f"config.variants holds {text!r}; write WEIGHTS or WEIGHTS/CACHE, with weights of "
                             f"float32, {', '.join(SCHEMES)} and a cache of {', '.join(CACHES)}")
        variants.append(Variant(weights, cache or config.dtype))
    return variants


def check_model(config: ConfigDict, model: ModelConfig) -> None:
    """Refuses rows that the model has no positions for."""
    longest = max([config.length] + [config.speed_prompt + config.speed_new] * bool(config.speed_batches))
    if longest > model.max_positions:
        raise ValueError(f"rows of {longest} tokens exceed the model's {model.max_positions} positions; lower "
                         f"config.length, or config.speed_prompt and config.speed_new")


def read_blocks(config: ConfigDict, tokenizer: Tokenizer) -> np.ndarray:
    """The first tokens of the text, every document begun by the end of text: int32 [blocks, length]."""
    tokens: list[int] = []
    for document in open_source(config.text):
        tokens += [tokenizer.end_of_text, *tokenizer.encode(document.text)]
        if len(tokens) >= config.tokens:
            break
    count = min(len(tokens), config.tokens) // config.length
    if count < 2:
        raise ValueError(f"{config.text} has {len(tokens)} tokens; two blocks of config.length={config.length} are the "
                         f"least")
    return np.asarray(tokens[:count * config.length], np.int32).reshape(count, config.length)


def weights_of(params: Params, model: ModelConfig, config: ConfigDict, scheme: str) -> Params:
    """The weights in a scheme, laid out for decoding."""
    if scheme != "float32":
        params = jax.jit(functools.partial(quantize, config=model, scheme=scheme, group=config.group))(params)
    return prepare_for_decoding(params, model)


def score(params: Params, model: ModelConfig, execution: Execution, blocks: np.ndarray, batch: int,
          cache_dtype: str | None) -> Scores:
    """Log-probabilities of every block's tokens through the cache of decoding, or by `forward` where it is None."""
    @jax.jit
    def run(params: Params, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        if cache_dtype is None:
            scores_BTV = forward(params, model, tokens, execution=execution)[:, :-1]
        else:
            cache = empty_cache(model, batch, tokens.shape[1], cache_dtype)
            hidden, _ = decode(params, model, tokens, cache, execution=execution)
            scores_BTV = logits(params, model, hidden[:, :-1])
        target = jnp.take_along_axis(scores_BTV, tokens[:, 1:, None], axis=-1)[..., 0]
        return target - jax.nn.logsumexp(scores_BTV, axis=-1), jnp.argmax(scores_BTV, axis=-1)

    padded = np.resize(blocks, (-(-len(blocks) // batch) * batch, blocks.shape[1]))
    found = [jax.device_get(run(params, padded[i:i + batch])) for i in range(0, len(padded), batch)]
    logp, likeliest = (np.concatenate(parts)[:len(blocks)] for parts in zip(*found, strict=True))
    return Scores(logp, likeliest)


def compare(variant: Variant, reference: Scores, found: Scores, tree: Params, model: ModelConfig, config: ConfigDict
            ) -> dict[str, Any]:
    """A row of the table: what changed against float32, with an interval over blocks drawn in pairs."""
    drift = (reference.logp - found.logp).astype(np.float64)  # nats lost at each token
    low, high = interval(drift.mean(axis=1), config.bootstrap_samples, config.seed)
    row = {"name": variant.name, "bytes": tree_bytes(tree), "perplexity": math.exp(-found.logp.mean(dtype=np.float64)),
           "change": math.expm1(drift.mean()), "low": math.expm1(low), "high": math.expm1(high),
           "mean_gap": float(np.abs(drift).mean()), "largest_gap": float(np.abs(drift).max()),
           "agreement": float((reference.likeliest == found.likeliest).mean()), "speed": {}}
    if variant.cache in CACHES:
        row["cache_bytes"] = tree_bytes(jax.eval_shape(
            lambda: empty_cache(model, 1, 2, variant.cache))) - tree_bytes(jax.eval_shape(
                lambda: empty_cache(model, 1, 1, variant.cache)))
    return row


def interval(values: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    """95% bootstrap interval of the mean of `values`, one per block.

    References: Efron, Bootstrap methods, 1979 (percentile interval).

    >>> interval(np.full(5, 2.0), 100, 0)
    (2.0, 2.0)
    """
    draws = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def add_speed(rows: list[dict[str, Any]], variants: list[Variant | None], make: Callable[[str], Params],
              model: ModelConfig, execution: Execution, blocks: np.ndarray, config: ConfigDict) -> None:
    """Tokens/s of greedy generation, each variant in turn; a row whose variant is None has none."""
    trees = {variant.weights: make(variant.weights) for variant in variants if variant and config.speed_batches}
    for batch in config.speed_batches:
        print(f"timing {batch} rows", flush=True)
        prompts = np.resize(blocks[:, :config.speed_prompt], (batch, config.speed_prompt)).tolist()

        def run(variant: Variant, prompts=prompts) -> float:
            begun = time.perf_counter()
            generate(trees[variant.weights], model, prompts, key=0, max_tokens=config.speed_new, execution=execution,
                     settings=SamplingSettings(temperature=0.0), cache_dtype=variant.cache).tokens.block_until_ready()
            return time.perf_counter() - begun

        seconds: list[list[float]] = [[] for _ in rows]
        for _ in range(config.rounds + 1):  # the first compiles
            for i, variant in enumerate(variants):
                if variant:
                    seconds[i].append(run(variant))
        for row, found in zip(rows, seconds, strict=True):
            if found:
                row["speed"][str(batch)] = batch * config.speed_new / statistics.median(found[1:])


def cells(row: dict[str, Any], batches: tuple[int, ...]) -> list[str]:
    """A row as text."""
    return [row["name"], f"{row['bytes'] / 1e6:,.1f}", f"{row['cache_bytes']:,}" if "cache_bytes" in row else "",
            f"{row['perplexity']:.4f}", f"{row['change']:+.3%}", f"{row['low']:+.3%} to {row['high']:+.3%}",
            f"{row['mean_gap']:.2g}", f"{row['largest_gap']:.2g}", f"{row['agreement']:.2%}",
            *(f"{row['speed'][str(batch)]:,.1f}" if row["speed"] else "" for batch in batches)]


def write(folder: pathlib.Path, rows: list[dict[str, Any]], config: ConfigDict, size: str) -> None:
    """quantize.md, quantize.json and report.html."""
    batches = tuple(config.speed_batches)
    header = [*HEADER, *(f"tokens/s, {batch} rows" for batch in batches)]
    device = jax.devices()[0].device_kind
    about = (f"{config.model} on {config.text}: {size}, activations in {config.dtype}, int4 in groups of "
             f"{config.group}; {device}, jax {jax.__version__}, {datetime.date.today()}")
    lines = [header, ["---"] * len(header), *(cells(row, batches) for row in rows)]
    text = f"{about}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    folder.mkdir(parents=True, exist_ok=True)
    report.write_text(folder / "quantize.md", text)
    report.write_text(folder / "quantize.json", json.dumps({"about": about, "rows": rows}, indent=2) + "\n")

    def draw(axes) -> None:
        shown = rows[2:]
        middle = [100 * row["change"] for row in shown]
        ends = [[100 * (row["change"] - row["low"]) for row in shown],
                [100 * (row["high"] - row["change"]) for row in shown]]
        axes.errorbar(middle, [row["name"] for row in shown], xerr=np.maximum(ends, 0), fmt="o", capsize=3)
        axes.axvline(0, color="#888888", linewidth=1)
        axes.set(xlabel="change of perplexity against float32, percent (95% interval over blocks)")
        axes.invert_yaxis()

    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row, batches)) + "</tr>"
                   for row in rows)
    table = (f"<table class=\"wide\"><tr>{''.join(f'<th>{html.escape(name)}</th>' for name in header)}</tr>"
             f"{body}</table>")
    sections = [("Change of perplexity", report.picture(draw))] if rows[2:] else []
    for section in sections:
        report.save_picture(folder, *section)
    report.write_text(folder / "report.html", report.page(
        "Fewer bits", about, [*sections, ("Measured", table),
                              ("Settings", report.table(sorted(config.to_dict().items())))]))
    print(f"{text}\nwritten: {folder}/quantize.md, quantize.json, report.html")


if __name__ == "__main__":
    launch.run(main, default_config="configs/quantize.py")
