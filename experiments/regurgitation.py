"""Regurgitation: verbatim extraction against copies in the corpus and model size; then after deduplication.

    python -m experiments.regurgitation --workdir=runs/regurgitation

References: Carlini et al. 2022 and Kandpal et al. 2022 (see jaxllm/evals/memorization.py); Lee et al., Deduplicating
Training Data Makes Language Models Better, 2021. https://arxiv.org/abs/2107.06499
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import findings, lab, launch, report
from experiments.regurgitation_corpus import ARMS, Corpora, make_corpora
from jaxllm.data.loader import Rows
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.evals.intervals import share, spread, t_interval
from jaxllm.evals.memorization import exposure, extract, rest_nll
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params, count_params, init
from jaxllm.train.objective import evaluate, next_token_objective


def main(config: ConfigDict, workdir: str) -> None:
    """Runs every size, arm and seed, and writes the report.

    Raises:
      ValueError: a key is out of range, or the source has too few pages.
      FileNotFoundError: no source where the config says.
    """
    begun = time.perf_counter()
    check(config)
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in config.to_dict().items() if key not in ("seeds", "sizes")}
    corpora = functools.cache(functools.partial(make_corpora, config))
    runs = []
    for size, seed in itertools.product(config.sizes, config.seeds):
        for arm in ARMS:
            found = lab.kept(folder / "parts", f"{size[0]}-{ARMS.index(arm)}-{seed}", [settings, size, arm, seed],
                             lambda: measure(config, corpora(seed), size, arm, seed))  # noqa: B023
            runs.append({"size": list(size), "arm": arm, "seed": seed, **found})
    findings.write(report_of(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after a model is trained."""
    if not config.seeds or not config.sizes:
        raise ValueError("config.seeds and config.sizes must name at least one each")
    for key, least in (("notes", 1), ("unplanted_notes", 2), ("prompt_tokens", 1), ("rest_tokens", 1),
                       ("batch_size", 1), ("validation_pages", 1), ("row_length", 2)):
        if config[key] < least:
            raise ValueError(f"config.{key}={config[key]}: choose {least} or more")
    if sorted(set(config.copies)) != list(config.copies) or config.copies[:1] != (0,) or len(config.copies) < 2:
        raise ValueError(f"config.copies={config.copies}: give rising numbers that begin with 0, the control")
    if config.tokens < config.batch_size * config.row_length:
        raise ValueError(f"config.tokens={config.tokens} is not one step of {config.batch_size} rows of "
                         f"{config.row_length}; raise it")
    for size in config.sizes:
        if len(size) != 3 or size[0] % size[2]:
            raise ValueError(f"config.sizes has {size}: give (D, layers, heads), heads a divisor of D")
    planted = config.notes * sum(config.copies) * (config.prompt_tokens + config.rest_tokens + 2)
    if planted > config.tokens / 2:
        raise ValueError(f"the notes are about {planted} of config.tokens={config.tokens} tokens: at most half may be; "
                         f"lower config.notes or the copies, or raise config.tokens")


def measure(config: ConfigDict, corpora: Corpora, size: Sequence[int], arm: str, seed: int) -> dict[str, Any]:
    """Trains one model and prompts it with the start of every note."""
    dim, layers, heads = size
    model = ModelConfig(corpora.tokenizer.vocab_size, dim, layers, heads, heads, dim // heads, 3 * dim,
                        max(config.row_length, config.prompt_tokens + config.rest_tokens + 1))
    rows = corpora.rows[arm]
    recipe = lab.Recipe(len(rows.tokens) // config.batch_size, config.batch_size, config.learning_rate,
                        config.warmup_steps, config.weight_decay)
    params = lab.train(init(model, jax.random.key(seed)), model, Rows(rows, seed=seed), recipe,
                       f"D {dim}, {arm}, seed {seed}")
    objective = jax.jit(next_token_objective(model, lab.EXECUTION))
    loss = evaluate(objective, params, [corpora.validation])["loss"]
    end = corpora.tokenizer.end_of_text
    sequences = [(copies, [end, *note]) for copies, notes in corpora.notes.items() for note in notes]
    own, other = extract(functools.partial(continue_greedily, params, model, corpora.tokenizer),
                         [ids for _, ids in sequences], config.prompt_tokens + 1)
    nll = jax.jit(functools.partial(rest_nll, config=model, prompt_tokens=config.prompt_tokens + 1,
                                    execution=lab.EXECUTION))(params, sequences=np.array([ids for _, ids in sequences]))
    never = [float(value) for value, (copies, _) in zip(nll, sequences, strict=True) if copies == 0]
    notes = [{"copies": copies, "matched": mine.matched, "of": mine.of, "other": chance.matched,
              "exposure": exposure(float(value), never) if copies else None}
             for (copies, _), mine, chance, value in zip(sequences, own, other, nll, strict=True)]
    return {"parameters": count_params(model), "validation_loss": loss, "left": corpora.left[arm], "notes": notes,
            "places": int(rows.tokens.size), "padding": corpora.padding[arm]}


def continue_greedily(params: Params, model: ModelConfig, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]],
                      max_tokens: int) -> list[list[int]]:
    """The likeliest continuation of each prompt, token by token."""
    return generate(params, model, prompts, key=0, max_tokens=max_tokens, settings=SamplingSettings(temperature=0.0),
                    stop_tokens=[tokenizer.end_of_text], valid_vocab=tokenizer.vocab_size,
                    execution=lab.EXECUTION).rows()


def by_copies(runs: Sequence[dict[str, Any]], value: Any) -> dict[int, list[float]]:
    """copies -> for each run, the mean of `value(note)` over its notes with so many."""
    levels = sorted({note["copies"] for run in runs for note in run["notes"]})
    return {copies: [statistics.fmean(value(note) for note in run["notes"] if note["copies"] == copies)
                     for run in runs] for copies in levels}


def exact(note: dict[str, Any]) -> float:
    """1 if all of the rest came out."""
    return float(note["matched"] == note["of"])


def report_of(config: ConfigDict, runs: list[dict[str, Any]]) -> findings.Findings:
    """Tables, the picture, and the numbers of every run."""
    groups = {(size[0], arm): [run for run in runs if run["size"] == list(size) and run["arm"] == arm]
              for size in config.sizes for arm in ARMS}
    found = findings.Findings("Regurgitation")
    over = f"Mean and 95% interval (t) over {len(config.seeds)} seeds; copies are those planted."
    measures = (("Tokens given back before the first difference", lambda note: note["matched"],
                 f"of {config.rest_tokens}"),
                ("Chance: the same continuations against another note's rest", lambda note: note["other"],
                 f"tokens of {config.rest_tokens}"),
                ("Exposure (bits)", lambda note: note["exposure"],
                 f"at most {np.log2(config.unplanted_notes + 1):.2f}; 1.4 is expected of a note that was not seen"))
    found.tables.append(given_back(config, groups))
    for title, value, note in measures:
        exposed = title.startswith("Exposure")
        columns = {key: by_copies(exposed_only(some) if exposed else some, value) for key, some in groups.items()}
        rows = [header(groups)]
        rows += [[str(copies), *(spread(t_interval(column[copies]), 2) for column in columns.values())]
                 for copies in next(iter(columns.values()))]
        found.tables.append(findings.Table(title, rows, f"{note}. {over}"))
    found.tables += [models(groups), removed(runs)]
    found.pictures = [("Notes given back whole, against their copies in the corpus", picture(groups))]
    found.numbers = {"runs": runs}
    return found


def header(groups: dict[tuple[int, str], list[dict[str, Any]]]) -> list[str]:
    """Of a table with a column for each size and arm."""
    return ["copies", *(f"D {dim}, {arm}" for dim, arm in groups)]


def given_back(config: ConfigDict, groups: dict[tuple[int, str], list[dict[str, Any]]]) -> findings.Table:
    """Notes given back whole, those of all seeds together: three seeds that agree have no spread of their own."""
    rows = [header(groups)]
    for copies in config.copies:
        notes = [[note for run in some for note in run["notes"] if note["copies"] == copies]
                 for some in groups.values()]
        rows.append([str(copies), *(share(int(sum(map(exact, some))), len(some)) for some in notes)])
    return findings.Table("Whole rest given back", rows, f"{config.rest_tokens} tokens after {config.prompt_tokens} "
                                                         f"given. 95% interval (Wilson) over the notes of "
                                                         f"{len(config.seeds)} seeds; copies are those planted.")


def exposed_only(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs without the notes that serve as references."""
    return [{**run, "notes": [note for note in run["notes"] if note["copies"]]} for run in runs]


def models(groups: dict[tuple[int, str], list[dict[str, Any]]]) -> findings.Table:
    """Parameters, validation loss and what was read."""
    rows = [["model", "parameters", "validation loss (nats a token)", "places read", "of them padding"]]
    rows += [[f"D {dim}, {arm}", f"{some[0]['parameters']:,}", spread(t_interval([r["validation_loss"] for r in some])),
              f"{some[0]['places']:,}", f"{some[0]['padding']:.2%}"] for (dim, arm), some in groups.items()]
    return findings.Table("Models", rows, "Pages that no arm reads; both arms read equally many places, once each.")


def removed(runs: Sequence[dict[str, Any]]) -> findings.Table:
    """What deduplication left of the notes."""
    first = {arm: next(run for run in runs if run["arm"] == arm)["left"] for arm in ARMS}
    rows = [["copies planted", *(f"documents, {arm}" for arm in ARMS)]]
    rows += [[str(copies), *(str(first[arm][copies]) for arm in ARMS)] for copies in first[ARMS[0]]]
    return findings.Table("Documents with a note", rows,
                          "First seed, all notes of a level together. Deduplication is exact: by a hash of the "
                          "document without case, punctuation and white space.")


def picture(groups: dict[tuple[int, str], list[dict[str, Any]]]) -> str:
    """Share of notes given back whole against copies."""
    dims = sorted({dim for dim, _ in groups})
    return report.against_counts(
        [(f"{some[0]['parameters'] / 1e6:.2f} M parameters, {arm}", by_copies(some, exact), f"C{dims.index(dim)}",
          arm != ARMS[0]) for (dim, arm), some in groups.items()],
        x_label="copies planted (0: never)", y_label="notes given back whole")


if __name__ == "__main__":
    launch.run(main, default_config="configs/regurgitation.py")
