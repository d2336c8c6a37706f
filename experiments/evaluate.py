"""Puts test sets to one model or two and writes scores with intervals, controls, and the paired difference.

    python -m experiments.evaluate --config.models="('runs/pretrain_tiny',)" --workdir=runs/evaluate
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import evaluate_report, findings, lab, launch
from jaxllm.data.shards import open_shards
from jaxllm.data.sources import open_source
from jaxllm.evals import contamination, ifeval
from jaxllm.evals.evaluation import Result, evaluate
from jaxllm.evals.language_model import LanguageModel
from jaxllm.evals.task_table import core_names, open_task
from jaxllm.evals.tasks import Task
from jaxllm.model.config import Execution, load_config
from jaxllm.model.params import abstract_params, init, unstack_blocks
from jaxllm.rl import rewards
from jaxllm.train.checkpoint import load_model
from jaxllm.train.sharding import make_mesh, state_shardings

DTYPES = ("float32", "bfloat16")
LAB, UNTRAINED = "lab", "untrained"


def main(config: ConfigDict, workdir: str) -> None:
    """Evaluates what is not done yet, and writes the report.

    Raises:
      ValueError: a key is out of range, a task unknown or malformed, or an item too long for a model.
      FileNotFoundError: no such model or test set.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    names, missing = task_names(config)
    tasks = [open_task(name, config.data, limit=config.limit or None, shots=None if config.shots < 0 else config.shots,
                       seed=config.seed) for name in names]
    check_answers(tasks)
    opened = models(config)
    results = [[kept_result(config, folder, name, load, task) for task in tasks] for name, load in opened.items()]
    overlaps = kept_overlaps(config, folder, tasks, next(iter(opened.values()))) if config.corpus else []
    found = evaluate_report.findings_of(config, list(opened), tasks, results, missing, overlaps)
    findings.write(found, folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after a model was trained or loaded."""
    for key, least in (("limit", 0), ("shots", -1), ("max_length", 0), ("batch_tokens", 1), ("program_tokens", 0),
                       ("slots", 1), ("overlap_words", 1)):
        if config[key] < least:
            raise ValueError(f"config.{key} is {config[key]}; it must be at least {least}")
    if not 1 <= len(config.models) <= 2 or len(set(config.models)) < len(config.models):
        raise ValueError(f"config.models is {tuple(config.models)}; name one model, or two different ones to compare")
    if not config.tasks:
        raise ValueError("config.tasks is empty; name at least one task")
    if config.dtype not in DTYPES:
        raise ValueError(f"config.dtype is {config.dtype!r}; choose one of {', '.join(DTYPES)}")
    for model in config.models:
        if model not in (LAB, UNTRAINED) and not pathlib.Path(model).expanduser().is_dir():
            raise FileNotFoundError(f"config.models names {model!r}, which is no folder: give a model's or a run's, "
                                    f"{LAB!r} or {UNTRAINED!r}")
    if config.corpus:
        corpus_files(config.corpus)
    make_mesh(config.mesh)


def check_answers(tasks: Sequence[Task]) -> None:
    """Refuses a task whose replies no verifier could grade, before a model writes them."""
    for task in tasks:
        for item in task.items if task.kind == "generation" else ():
            try:
                grade(item.verifier, "", item.answer)
            except (ImportError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"task {task.name}, item {item.key}: no reply can be graded ({error})") from error


def task_names(config: ConfigDict) -> tuple[list[str], list[str]]:
    """The tasks asked for, "core" written out; and the tasks of CORE that are not in the data folder."""
    names, missing = [], []
    for name in config.tasks:
        if name == "core":
            there, missing = core_names(config.data)
            if not there:
                raise FileNotFoundError(f"no task of CORE lies below {config.data}; set config.data to the folder that "
                                        f"has core_gauntlet_tasks.tar.xz")
            names += there
        else:
            names.append(name)
    short = [name.partition("=")[0] for name in names]
    repeated = sorted({name for name in short if short.count(name) > 1})
    if repeated:
        raise ValueError(f"config.tasks names {', '.join(repeated)} more than once; results bear the name before the "
                         f"=, so give your own files two names, or ask for one at a time")
    return names, missing


def models(config: ConfigDict) -> dict[str, Callable[[], LanguageModel]]:
    """Name for the report -> the model, loaded when called; names are paths as short as they differ."""
    names = {path: pathlib.Path(path).name for path in config.models}
    if len(set(names.values())) < len(names):
        names = {path: path for path in config.models}
    return {names[path]: functools.cache(functools.partial(load, config, path)) for path in config.models}


def load(config: ConfigDict, path: str) -> LanguageModel:
    """A model on the mesh."""
    folder = lab.base_model(config.base, config.seed) if path in (LAB, UNTRAINED) else pathlib.Path(path).expanduser()
    mesh = make_mesh(config.mesh) if jax.device_count() > 1 else None
    shardings = None
    if mesh is not None:
        architecture = load_config(model_folder(folder) / "config.json")
        shardings = state_shardings(abstract_params(architecture), architecture, mesh)
    params, architecture, tokenizer = load_model(folder, dtype=config.dtype, shardings=shardings)
    if path == UNTRAINED:
        params = jax.jit(init, static_argnums=(0, 2), out_shardings=shardings)(
            architecture, jax.random.key(config.seed), config.dtype)
    params = unstack_blocks(params)  # once, not for every task
    return LanguageModel(params, architecture, tokenizer, Execution(dtype=config.dtype, scan=False), mesh, config.begin,
                         config.chat, config.max_length or None)


def model_folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder itself, or the model inside a run's."""
    folder = pathlib.Path(path).expanduser()
    return folder / "model" if (folder / "model" / "config.json").exists() else folder


def stamp(config: ConfigDict, path: str) -> Any:
    """What stands for a model in the name of a kept result: the laboratory's settings, or the model's files."""
    if path in (LAB, UNTRAINED):
        return [path, config.base.to_dict()]
    return written(model_folder(path).rglob("*"))


def written(files: Iterable[str | os.PathLike]) -> list[tuple[str, int, int]]:
    """(path, size, when it was written) of files: another list where one of them has changed."""
    return [(os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns)
            for file in sorted(map(os.fspath, files)) if os.path.isfile(file)]


def kept_result(config: ConfigDict, folder: pathlib.Path, name: str, make: Callable[[], LanguageModel], task: Task
                ) -> Result:
    """A model's result on a task, measured now or found; names what is measured, and how far it is."""
    path = dict(zip(models(config), config.models, strict=True))[name]
    settings = [stamp(config, path), dataclasses.asdict(task), config.seed, config.control, config.begin, config.chat,
                config.max_length, config.dtype]

    def measure() -> dict[str, Any]:
        result = evaluate(make(), task, seed=config.seed, control=config.control, grade=grade, slots=config.slots,
                          batch_tokens=config.batch_tokens, program_tokens=config.program_tokens,
                          progress=progress(f"{name}, {task.name}"))
        print(f"{name}, {task.name}: {evaluate_report.cell(result)}, {result.seconds:.1f} s", flush=True)
        return dataclasses.asdict(result)

    return Result(**lab.kept(folder / "parts", f"{name}-{task.name}".replace("/", "_"), settings, measure))


def progress(label: str, every: float = 20.0) -> Callable[[int, int], None]:
    """A line now and then: how many are done, and the time that is left."""
    begun = last = time.perf_counter()

    def tell(done: int, count: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= every and done:
            last = now
            left = (now - begun) * (count - done) / done
            print(f"{label}: {done:,} of {count:,}, {now - begun:.0f} s, about {left:.0f} s left", flush=True)
    return tell


def grade(verifier: str, reply: str, answer: str) -> Any:
    """IFEval's instructions, and the verifiers of rewards."""
    return ifeval.grade(reply, answer) if verifier == "ifeval" else rewards.grade(verifier, reply, answer)


def kept_overlaps(config: ConfigDict, folder: pathlib.Path, tasks: Sequence[Task], make: Callable[[], LanguageModel]
                  ) -> list[contamination.Overlap]:
    """What of each task stands in the corpus, found now or before; `make` gives the model whose token shards it is."""
    def measure() -> list[dict[str, Any]]:
        found = contamination.overlaps(tasks, corpus_texts(config.corpus, make), n=config.overlap_words)
        return [dataclasses.asdict(overlap) for overlap in found]

    settings = [config.corpus, written(corpus_files(config.corpus)), config.overlap_words,
                [dataclasses.asdict(task) for task in tasks]]
    return [contamination.Overlap(**one) for one in lab.kept(folder / "parts", "overlaps", settings, measure)]


def corpus_files(spec: str) -> Sequence[str | os.PathLike]:
    """The files of a corpus, none where it is made or TFDS's.

    Raises:
      FileNotFoundError, ValueError: there is no such corpus.
    """
    return sorted(pathlib.Path(spec).expanduser().iterdir()) if _has_shards(spec) else open_source(spec).files


def corpus_texts(spec: str, make: Callable[[], LanguageModel]) -> Iterator[str]:
    """The documents of a corpus: a folder of token shards by the tokenizer of a model, or what `open_source` takes."""
    if not _has_shards(spec):
        return (document.text for document in open_source(spec))
    tokenizer = make().tokenizer
    return contamination.shard_documents(open_shards(pathlib.Path(spec).expanduser(), tokenizer.fingerprint), tokenizer)


def _has_shards(spec: str) -> bool:
    return (pathlib.Path(spec).expanduser() / "index.json").is_file()


if __name__ == "__main__":
    launch.run(main, default_config="configs/evaluate.py")
