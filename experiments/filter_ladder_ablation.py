"""Filter ladder, what matters in the end: the same small model on the output with each stage off, and controls.

All runs of a seed share the initial weights, the tokenizer, the number of tokens and one compiled step; they differ in
the documents alone. A control drops as much at random as the stage (or the whole recipe) drops by its rules.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.curation_report import documents
from experiments.filter_ladder_planted import RECIPES, with_blocked
from experiments.findings import Findings, Table
from jaxllm.data import world, world_web
from jaxllm.data.curate import recipe, run
from jaxllm.data.curate.stages import Inputs
from jaxllm.data.packing import Batch
from jaxllm.data.tokenizer import Tokenizer, train_tokenizer
from jaxllm.evals.intervals import spread, t_interval
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import init
from jaxllm.train.objective import evaluate, next_token_objective
from jaxllm.train.optimizer import learning_rate_schedule, make_optimizer
from jaxllm.train.step import init_state, make_train_step

FULL, EXTRACTED, RAW = "full recipe", "extraction alone", "no stage: HTML as text"
RANDOM = "random, as much as the recipe"


def section(config: ConfigDict, workdir: pathlib.Path) -> Findings:
    """Curates every variant of every seed, trains on each, and compares with the full recipe of the same seed."""
    settings, tokenizer, train = config.ablation, None, None
    kept: dict[str, list[int]] = {}
    tokens: dict[str, list[int]] = {}
    bits: dict[str, list[float]] = {}
    for seed in settings.seeds:
        begun = time.perf_counter()
        texts = variants(config, workdir, seed)
        print(f"ablation: seed {seed}: {len(texts)} variants curated, {time.perf_counter() - begun:.0f} s", flush=True)
        if tokenizer is None:
            tokenizer = train_tokenizer(texts[EXTRACTED], settings.vocab_size, "gpt4")
            train = make_trainer(settings, tokenizer, held_out(settings, tokenizer))
        streams = {name: encode(tokenizer, some, seed) for name, some in texts.items()}
        counts = {name: len(some) for name, some in texts.items()}
        add_controls(streams, counts, settings.least_mass, seed)
        for name, stream in streams.items():
            kept.setdefault(name, []).append(counts[name])
            tokens.setdefault(name, []).append(sum(map(len, stream)))
            bits.setdefault(name, []).append(train(stream, seed))
            print(f"ablation: seed {seed}, {name}: {counts[name]:,} pages, {tokens[name][-1]:,} tokens, "
                  f"{bits[name][-1]:.4f} bits per byte, {time.perf_counter() - begun:.0f} s", flush=True)
    return describe(settings, kept, tokens, bits)


def variants(config: ConfigDict, workdir: pathlib.Path, seed: int) -> dict[str, list[str]]:
    """Name -> documents, for the full recipe, each stage off, extraction alone, and no stage at all.

    Extraction looks at one page at a time, so it is done once, and its pages are the input of every variant that
    extracts; all later stages run anew for each.
    """
    settings, web = config.ablation, workdir / f"web-{seed}"
    if not (web / "truth.jsonl").exists():
        world_web.write_web(world.make_world(seed, settings.world), web, seed=seed, pages=settings.pages, files=1,
                            shares=world_web.Shares(**settings.shares.to_dict()))
    full = with_blocked(RECIPES[settings.recipe](), workdir, config.language_model)
    raw = Inputs(str(web), pattern="*.warc.gz")
    nothing = full
    for stage in recipe.SWITCHABLE:
        nothing = nothing.without(stage)
    alone = dataclasses.replace(nothing, extract=full.extract)

    def documents_of(settled: recipe.Recipe, inputs: Inputs) -> tuple[pathlib.Path, list[str]]:
        # One task in this process: starting others takes longer than the work.
        try:
            folder = run.curate(settled, inputs, workdir / f"runs-{seed}", run.Where(workers=1, tasks=1),
                                cache=config.cache, progress=False)
        except ValueError as error:  # no page came through, which is a result
            print(f"ablation: seed {seed}: {error}", flush=True)
            return workdir, []
        return folder, [row["text"] for row in documents(folder / "documents", 10**9)]

    folder, extracted = documents_of(alone, raw)
    pages = Inputs(str(folder / "documents"))
    texts = {FULL: documents_of(full, pages)[1]}
    for stage in recipe.SWITCHABLE:
        texts[f"without {stage}"] = documents_of(full.without(stage), raw if stage == "extract" else pages)[1]
    return texts | {EXTRACTED: extracted, RAW: documents_of(nothing, raw)[1]}


def encode(tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> list[list[int]]:
    """Documents as tokens, each after the end-of-text token, in an order of the seed."""
    order = np.random.default_rng(seed).permutation(len(texts))
    return [[tokenizer.end_of_text, *ids] for ids in tokenizer.encode_batch([texts[i] for i in order])]


def add_controls(streams: dict[str, list[list[int]]], counts: dict[str, int], least_mass: float, seed: int) -> None:
    """Adds, per variant that is larger than the full recipe, as many of its tokens drawn by whole documents."""
    size = sum(map(len, streams[FULL]))
    sources = {RANDOM: EXTRACTED} | {f"random, as much as {name.removeprefix('without ')}": name for name in streams
                                     if name.startswith("without ") and name != "without extract"}
    for name, source in sources.items():
        if sum(map(len, streams[source])) <= (1 + least_mass) * size:
            continue
        # The documents stand in random order already; another draw keeps control and source apart.
        order = np.random.default_rng((seed, 1)).permutation(len(streams[source]))
        drawn = [streams[source][i] for i in order]
        ends = np.cumsum([len(ids) for ids in drawn])
        streams[name] = drawn[:int(np.searchsorted(ends, size)) + 1]
        counts[name] = len(streams[name])


def held_out(settings: ConfigDict, tokenizer: Tokenizer) -> list[Batch]:
    """Text of the article pages of another world, in batches of rows; what pads the last row counts nothing."""
    pages = world_web.pages(world.make_world(settings.held_out_world, settings.world), settings.held_out_world, None)
    texts = [page.text for page in itertools.islice((p for p in pages if p.kind == "article"),
                                                    settings.held_out_pages)]
    rows = []
    for text in texts:
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        for start in range(0, len(ids) - 1, settings.length):
            piece = ids[start:start + settings.length + 1]
            rows.append(piece + [-1] * (settings.length + 1 - len(piece)))
    rows += [[-1] * (settings.length + 1)] * (-len(rows) % settings.rows)
    table = np.array(rows, np.int32).reshape(-1, settings.rows, settings.length + 1)
    return [Batch(np.maximum(t[:, :-1], 0), np.maximum(t[:, 1:], 0), (t[:, 1:] >= 0).astype(np.float32))
            for t in table]


def training_rows(stream: Sequence[Sequence[int]], steps: int, rows: int, length: int, seed: int) -> np.ndarray:
    """int32 [steps, rows, length + 1]: the stream cut into rows, shuffled anew in every pass.

    Raises:
      ValueError: the stream has not even one row.
    """
    flat = np.fromiter(itertools.chain.from_iterable(stream), np.int32)
    count = (len(flat) - 1) // length
    if count < 1:
        raise ValueError(f"{len(flat)} tokens are less than one row of {length}: more pages, or shorter rows")
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(count) for _ in range(-(-steps * rows // count))]
    starts = np.concatenate(passes)[:steps * rows] * length
    return flat[starts[:, None] + np.arange(length + 1)].reshape(steps, rows, length + 1)


def make_trainer(settings: ConfigDict, tokenizer: Tokenizer,
                 validation: Sequence[Batch]) -> Callable[[list[list[int]], int], float]:
    """Returns train(stream, seed) -> bits per byte on the held-out text; compiled once for all runs."""
    model = ModelConfig(vocab_size=-(-tokenizer.vocab_size // 64) * 64, dim=settings.dim, layers=settings.layers,
                        heads=settings.heads, kv_heads=settings.heads, head_dim=settings.dim // settings.heads,
                        mlp_dim=3 * settings.dim, max_positions=settings.length)
    execution = Execution(scan=False)
    schedule = learning_rate_schedule("cosine", settings.learning_rate, warmup_steps=settings.warmup_steps,
                                      total_steps=settings.steps, final_fraction=0.1)
    optimizer = make_optimizer("adamw", schedule)
    step = jax.jit(make_train_step(next_token_objective(model, execution), optimizer), donate_argnums=0)
    score = jax.jit(next_token_objective(model, execution, token_bytes=tokenizer.token_bytes()))
    begin = jax.jit(lambda key: init_state(init(model, key), optimizer))

    def train(stream: list[list[int]], seed: int) -> float:
        if sum(map(len, stream)) <= settings.length:
            return float("nan")
        state: Any = begin(jax.random.key(seed))
        weights = np.ones((settings.rows, settings.length), np.float32)
        for rows in training_rows(stream, settings.steps, settings.rows, settings.length, seed):
            state, _ = step(state, Batch(rows[:, :-1], rows[:, 1:], weights))
        return evaluate(score, state.params, validation)["bits_per_byte"]

    return train


def describe(settings: ConfigDict, kept: Mapping[str, list[int]], tokens: Mapping[str, list[int]],
             bits: Mapping[str, list[float]]) -> Findings:
    """The table against the full recipe, paired by seed, and its picture."""
    rows = [["training data", "pages", "tokens", "bits per byte [95%, t over seeds]", "less the full recipe's, paired",
             "what can be said"]]
    gaps = {}
    for name, values in bits.items():
        if len(values) < len(settings.seeds) or not np.all(np.isfinite(values)):
            rows.append([name, f"{np.mean(kept[name]):,.0f}", f"{np.mean(tokens[name]):,.0f}", "not in every seed", "",
                         "too little text was left, or nothing to match"])
            continue
        gap = t_interval(np.subtract(values, bits[FULL]).tolist())
        row = [name, f"{np.mean(kept[name]):,.0f}", f"{np.mean(tokens[name]):,.0f}", spread(t_interval(values), 4)]
        if name == FULL:
            rows.append([*row, "", ""])
            continue
        gaps[name] = gap
        verdict = "worse than the full recipe" if gap[1] > 0 else "better than the full recipe" if gap[2] < 0 else \
            "no difference shown: the interval covers zero"
        rows.append([*row, spread(gap, 4), verdict])
    taken = settings.steps * settings.rows * settings.length
    table = Table("Bits per byte on clean held-out text", rows,
                  f"Recipe {settings.recipe}; webs of {settings.pages:,} pages; {taken:,} tokens a run; seeds "
                  f"{', '.join(map(str, settings.seeds))}. Pages and tokens: mean over seeds. With so few seeds the "
                  "intervals are wide, and of so many rows about one in twenty leaves zero out by chance.")

    def draw(axes) -> None:
        names = list(gaps)[::-1]
        middle = np.array([gaps[name][0] for name in names])
        ends = np.array([gaps[name][1:] for name in names]).T
        axes.axvline(0, color="#888", linewidth=1)
        axes.errorbar(middle, names, xerr=np.abs(ends - middle), fmt="o", markersize=4, capsize=3, color="#2a6fdb")
        axes.set(xlabel="bits per byte above the full recipe (left: better)", xscale="symlog" if max(
            middle, default=0) > 0.5 else "linear")
    pictures = [("Difference to the full recipe, 95%", report.picture(draw, height=0.9 + 0.28 * len(gaps), grid="x"))]
    numbers = {"bits_per_byte": dict(bits), "pages": dict(kept), "tokens": dict(tokens), "gaps": gaps}
    return Findings("Ablation: the model that each stage leads to", [table], pictures, numbers)
