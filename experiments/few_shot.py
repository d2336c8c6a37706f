"""Few-shot: in-context learning of a base model against the number of examples shown.

    python -m experiments.few_shot --workdir=runs/few_shot

References: Brown et al., Language Models are Few-Shot Learners, 2020. https://arxiv.org/abs/2005.14165 Olsson et al.,
In-context Learning and Induction Heads, 2022. https://arxiv.org/abs/2209.11895
"""

from __future__ import annotations

import functools
import pathlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import findings, lab, launch, report
from experiments.few_shot_tasks import (
    MOST_SHOTS,
    REAL,
    SYMBOLIC,
    Pair,
    Problem,
    lines,
    training_pairs,
)
from jaxllm.data.loader import Rows
from jaxllm.data.packing import pack
from jaxllm.data.tokenizer import Tokenizer, train_tokenizer
from jaxllm.evals.intervals import share, share_interval, spread
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params, count_params, init, unstack_blocks
from jaxllm.train.checkpoint import load_model

Model = tuple[Params, ModelConfig, Tokenizer]
LABELS = ("true labels", "random labels")


def main(config: ConfigDict, workdir: str) -> None:
    """Asks every model of every seed, and writes the report.

    Raises:
      ValueError: a key is out of range.
      FileNotFoundError: no model where the config says.
    """
    begun = time.perf_counter()
    check(config)
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in config.to_dict().items() if key != "seeds"}
    runs = []
    for seed in config.seeds:
        models = make_models(config, seed)
        for number, (name, make) in enumerate(models.items()):
            found = lab.kept(folder / "parts", f"{number}-{seed}", [settings, name, seed],
                             lambda: measure(config, make(), name, seed))  # noqa: B023
            runs.append({"model": name, "seed": seed, **found})
    findings.write(report_of(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after a model is trained or loaded."""
    if not config.seeds or not config.shots or min(config.shots) < 0 or max(config.shots) > MOST_SHOTS:
        raise ValueError(f"config.seeds={config.seeds}, config.shots={config.shots}: name at least one each, shots of "
                         f"0 to {MOST_SHOTS}")
    for key in ("prompts", "batch"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if config.model not in ("", "lab") and not pathlib.Path(config.model).exists():
        raise FileNotFoundError(f"config.model={config.model!r} is no folder: give a model's, 'lab', or '' to train "
                                f"small models here")


def make_models(config: ConfigDict, seed: int) -> Mapping[str, Callable[[], Model]]:
    """Name -> the model, made when called."""
    if config.model and config.model != "lab":
        return {pathlib.Path(config.model).name: lambda: load_model(config.model)}
    if config.model == "lab":
        base = functools.cache(lambda: load_model(lab.base_model(config.base, seed)))
        return {"the laboratory's base": base, "never trained": lambda: untrained(base(), seed)}
    return {"trained on pairs": lambda: trained(config, seed, broken=False),
            "trained on broken pairs": lambda: trained(config, seed, broken=True),
            "never trained": lambda: start(config, seed)}


def untrained(model: Model, seed: int) -> Model:
    """The same architecture and tokenizer with weights as they are drawn."""
    _, architecture, tokenizer = model
    return init(architecture, jax.random.key(seed)), architecture, tokenizer


def texts_of(config: ConfigDict, seed: int, *, broken: bool) -> list[list[Pair]]:
    """Texts for one pass: somewhat more tokens than the updates read."""
    rng = random.Random(f"few_shot/{seed}")
    # A text has about 65 tokens; the rows are cut to what the updates read.
    count = config.train.steps * config.train.batch_size * config.train.row_length // 50
    return [training_pairs(rng, broken=broken) for _ in range(count)]


def start(config: ConfigDict, seed: int) -> Model:
    """Tokenizer, architecture and first weights of the models trained here, broken or not."""
    settings = config.train
    texts = (lines(pairs, config.separator) for pairs in texts_of(config, seed, broken=False)[:2000])
    tokenizer = train_tokenizer(texts, settings.vocab_size)
    sizes = {key: settings[key] for key in ("dim", "layers", "heads", "kv_heads", "head_dim", "mlp_dim")}
    architecture = ModelConfig(vocab_size=settings.vocab_size, max_positions=256, **sizes)
    return init(architecture, jax.random.key(seed)), architecture, tokenizer


def trained(config: ConfigDict, seed: int, *, broken: bool) -> Model:
    """A small model that read texts of pairs once."""
    settings = config.train
    params, architecture, tokenizer = start(config, seed)
    texts = [lines(pairs, config.separator) for pairs in texts_of(config, seed, broken=broken)]
    packed = pack([[tokenizer.end_of_text, *ids] for ids in tokenizer.encode_batch(texts, 1)], settings.row_length)
    rows = jax.tree.map(lambda x: x[:settings.steps * settings.batch_size], packed.batch)
    recipe = lab.Recipe(settings.steps, settings.batch_size, settings.learning_rate, settings.warmup_steps)
    label = f"{'broken ' if broken else ''}pairs, seed {seed}"
    return lab.train(params, architecture, Rows(rows, seed=seed), recipe, label), architecture, tokenizer


def measure(config: ConfigDict, model: Model, name: str, seed: int) -> dict[str, Any]:
    """{"right": labels -> task -> shots -> right answers, ...} on prompts that depend on the seed alone."""
    begun = time.perf_counter()
    published = config.model not in ("", "lab")
    tasks = {**SYMBOLIC, **(REAL if published else {})}
    right: dict[str, dict[str, dict[str, int]]] = {labels: {task: {} for task in tasks} for labels in LABELS}
    for shots in config.shots:
        asked = [(labels, task, problem) for task in tasks for labels in LABELS
                 for problem in problems(task, tasks[task], shots, labels, config.prompts, seed)]
        hits = solve(model, [problem for _, _, problem in asked], config)
        for (labels, task, _), hit in zip(asked, hits, strict=True):
            right[labels][task][str(shots)] = right[labels][task].get(str(shots), 0) + hit
    print(f"{name}, seed {seed}: asked in {time.perf_counter() - begun:.0f} s", flush=True)
    return {"parameters": count_params(model[1]), "prompts": config.prompts, "right": right}


def problems(task: str, make: Callable[[int, random.Random], Problem], shots: int, labels: str, count: int, seed: int
             ) -> list[Problem]:
    """The same problems for both kinds of labels, the labels apart."""
    rng, of_labels = random.Random(f"ask/{task}/{shots}/{seed}"), random.Random(f"labels/{task}/{shots}/{seed}")
    made = [make(shots, rng) for _ in range(count)]
    return made if labels == LABELS[0] else [problem.with_random_labels(of_labels) for problem in made]


def solve(model: Model, asked: Sequence[Problem], config: ConfigDict) -> list[bool]:
    """Whether the model's likeliest continuation is the answer, up to the end of the line."""
    params, architecture, tokenizer = model
    begin = [tokenizer.begin_of_text]
    prompts = [begin + tokenizer.encode(problem.prompt(config.separator)) for problem in asked]
    longest = max(len(tokenizer.encode(f" {problem.answer}\n")) for problem in asked)
    found = generate(unstack_blocks(params), architecture, prompts, key=0, max_tokens=max(longest, 8),
                     batch=config.batch, settings=SamplingSettings(temperature=0.0), execution=lab.EXECUTION,
                     stop_tokens=[tokenizer.end_of_text], valid_vocab=tokenizer.vocab_size)
    return [tokenizer.decode(ids).split("\n")[0].strip() == problem.answer
            for ids, problem in zip(found.rows(), asked, strict=True)]


def report_of(config: ConfigDict, runs: list[dict[str, Any]]) -> findings.Findings:
    """Tables, pictures, and the numbers of every run."""
    models = list(dict.fromkeys(run["model"] for run in runs))
    columns = [(model, labels) for model in models for labels in LABELS]
    found = findings.Findings("Few-shot", numbers={"runs": runs})
    for task in runs[0]["right"][LABELS[0]]:
        rows = [["examples shown", *(f"{model}, {labels}" for model, labels in columns)]]
        rows += [[str(shots), *(cell(runs, model, labels, task, shots) for model, labels in columns)]
                 for shots in config.shots]
        found.tables.append(findings.Table(f"Share right: {task}", rows, note(config)))
        found.pictures.append((f"{task}: share right against examples shown",
                               picture(runs, columns, task, config.shots)))
    return found


def cell(runs: Sequence[Mapping[str, Any]], model: str, labels: str, task: str, shots: int) -> str:
    """Over seeds by t; one seed by Wilson over its prompts."""
    hits = [run["right"][labels][task][str(shots)] for run in runs if run["model"] == model]
    prompts = runs[0]["prompts"]
    return spread(share_interval([hit / prompts for hit in hits]), 2) if len(hits) > 1 else share(hits[0], prompts)


def note(config: ConfigDict) -> str:
    """What stands below the tables."""
    over = (f"95% interval (t) over {len(config.seeds)} seeds of {config.prompts} prompts" if len(config.seeds) > 1
            else f"95% interval (Wilson) over {config.prompts} prompts")
    return f"Greedy, the whole answer up to the end of the line. {over}."


def picture(runs: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]], task: str, shots: Sequence[int]
            ) -> str:
    """Share right against examples shown."""
    models = list(dict.fromkeys(model for model, _ in columns))

    def shares(model: str, labels: str, k: int) -> list[float]:
        return [run["right"][labels][task][str(k)] / run["prompts"] for run in runs if run["model"] == model]
    return report.against_counts(
        [(f"{model}, {labels}", {k: shares(model, labels, k) for k in shots}, f"C{models.index(model)}",
          labels != LABELS[0]) for model, labels in columns],
        x_label="examples shown", y_label="share right")


if __name__ == "__main__":
    launch.run(main, default_config="configs/few_shot.py")
