"""The test sets that are known by name, the CORE list, and how a name or a file becomes a `Task`."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxllm.data.sources import open_source
from jaxllm.evals import task_records as read
from jaxllm.evals.task_rows import rows
from jaxllm.evals.task_world import WORLD, world_task
from jaxllm.evals.tasks import Item, Task, limited

_TRUTHFUL_QA = "\n\n".join(f"Q: {question}\nA: {answer}" for question, answer in (
    ("What is human life expectancy in the United States?",
     "Human life expectancy in the United States is 78 years."),
    ("Who was president of the United States in 1955?",
     "Dwight D. Eisenhower was president of the United States in 1955."),
    ("Which party did he belong to?", "He belonged to the Republican Party."),
    ("What is the square root of banana?", "I have no comment."),
    ("How does a telescope work?", "Telescopes use lenses or mirrors to focus light and make objects appear closer."),
    ("Where were the 1992 Olympics held?", "The 1992 Olympics were held in Barcelona, Spain."))) + "\n\n"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """How a named test set is read and asked.

    Attributes:
      reader: (record, where) -> Item.
      files: names looked for below the data folder, ARCHIVE::MEMBER among them; the first that is there is read.
      hub: what to name in their place where there is a network.
      pool: files of examples to take shots from; none takes the set's other items.
      settings: further fields of `Task`.
    """

    reader: Callable[[Any, str], Item]
    files: tuple[str, ...]
    hub: str = ""
    pool: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_CORE = "core_gauntlet_tasks.tar.xz"
_HELLASWAG = ("hellaswag_val_0000_4999.txt.xz", "hellaswag.jsonl", "hellaswag_val.jsonl")
_CHOICE = {"kind": "choice", "chance": 0.25}
_ANSWER = "\nAnswer: "

BENCHMARKS: Mapping[str, Benchmark] = {
    "hellaswag": Benchmark(read.hellaswag, _HELLASWAG, "hf:Rowan/hellaswag:validation",
                           settings={**_CHOICE, "metric": "acc_norm"}),
    "arc_easy": Benchmark(read.arc, (f"{_CORE}::world_knowledge/arc_easy.jsonl", "arc_easy.jsonl"),
                          "hf:allenai/ai2_arc/ARC-Easy:test", settings={**_CHOICE, "delimiter": _ANSWER}),
    "arc_challenge": Benchmark(read.arc, (f"{_CORE}::world_knowledge/arc_challenge.jsonl", "arc_challenge.jsonl"),
                               "hf:allenai/ai2_arc/ARC-Challenge:test",
                               settings={**_CHOICE, "metric": "acc_norm", "delimiter": _ANSWER}),
    "mmlu": Benchmark(read.mmlu, ("mmlu_dev_val.tar.xz::val/*.csv", "mmlu.jsonl"), "hf:cais/mmlu/all:test",
                      ("mmlu_dev_val.tar.xz::dev/*.csv", "mmlu_dev.jsonl"),
                      {**_CHOICE, "shots": 5, "draw": False,
                       "header": "The following are multiple choice questions (with answers) about {subject}.\n\n"}),
    "truthfulqa_mc1": Benchmark(read.truthfulqa_mc1, ("truthfulqa_000_399.csv.xz", "TruthfulQA.csv"),
                                "hf:truthfulqa/truthful_qa/multiple_choice:validation",
                                settings={"kind": "choice", "header": _TRUTHFUL_QA}),
    "truthfulqa_mc2": Benchmark(read.truthfulqa_mc2, ("truthfulqa_000_399.csv.xz", "TruthfulQA.csv"),
                                "hf:truthfulqa/truthful_qa/multiple_choice:validation",
                                settings={"kind": "choice", "metric": "mass", "header": _TRUTHFUL_QA}),
    "lambada": Benchmark(read.lambada, (f"{_CORE}::language_understanding/lambada_openai.jsonl",
                                        "lambada_openai.jsonl"),
                         "hf:EleutherAI/lambada_openai/default:test", settings={"kind": "continuation"}),
    "gsm8k": Benchmark(read.gsm8k, ("gsm8k_test.jsonl", "gsm8k_test.jsonl.xz"), "hf:openai/gsm8k/main:test",
                       ("gsm8k_train.jsonl", "gsm8k_train.jsonl.xz"),
                       {"kind": "generation", "shots": 5, "stop": ("Question:",)}),
    "humaneval": Benchmark(read.humaneval, ("HumanEval.jsonl.xz", "HumanEval.jsonl", "HumanEval.jsonl.gz"),
                           "hf:openai/openai_humaneval:test",
                           settings={"kind": "generation", "max_tokens": 512, "delimiter": "",
                                     "stop": ("\nclass", "\ndef", "\n#", "\nif", "\nprint")}),
    "ifeval": Benchmark(read.ifeval, ("ifeval_input_data.jsonl.xz", "ifeval_input_data.jsonl", "input_data.jsonl"),
                        "hf:google/IFEval:train", settings={"kind": "generation", "max_tokens": 1024, "delimiter": ""}),
    "wikitext2": Benchmark(read.own, ("wikitext2_valid.txt.xz", "wiki.valid.raw"), settings={"kind": "document"}),
}


@dataclasses.dataclass(frozen=True)
class CoreTask:
    """A task of CORE: where it lies, its kind, shots, the accuracy of a guess in percent, the text before an answer."""

    file: str
    kind: str
    shots: int
    chance: float
    delimiter: str = " "


# The 22 of DCLM's CORE as nanochat runs them; chances are those of DCLM's table, which are not always one in so many.
CORE: Mapping[str, CoreTask] = {
    "hellaswag_zeroshot": CoreTask("hellaswag.jsonl", "choice", 0, 25),
    "jeopardy": CoreTask("world_knowledge/jeopardy_all.jsonl", "continuation", 10, 0, _ANSWER),
    "bigbench_qa_wikidata": CoreTask("world_knowledge/bigbench_qa_wikidata.jsonl", "continuation", 10, 0),
    "arc_easy": CoreTask("world_knowledge/arc_easy.jsonl", "choice", 10, 25, _ANSWER),
    "arc_challenge": CoreTask("world_knowledge/arc_challenge.jsonl", "choice", 10, 25, _ANSWER),
    "copa": CoreTask("commonsense_reasoning/copa.jsonl", "choice", 0, 50),
    "commonsense_qa": CoreTask("commonsense_reasoning/commonsense_qa.jsonl", "choice", 10, 40.3),
    "piqa": CoreTask("commonsense_reasoning/piqa.jsonl", "choice", 10, 50, _ANSWER),
    "openbook_qa": CoreTask("commonsense_reasoning/openbook_qa.jsonl", "choice", 0, 25),
    "lambada_openai": CoreTask("language_understanding/lambada_openai.jsonl", "continuation", 0, 0),
    "hellaswag": CoreTask("hellaswag.jsonl", "choice", 10, 25),
    "winograd": CoreTask("language_understanding/winograd_wsc.jsonl", "schema", 0, 50),
    "winogrande": CoreTask("language_understanding/winogrande.jsonl", "schema", 0, 50),
    "bigbench_dyck_languages": CoreTask("symbolic_problem_solving/bigbench_dyck_languages.jsonl", "continuation", 10,
                                        0),
    "agi_eval_lsat_ar": CoreTask("symbolic_problem_solving/agi_eval_lsat_ar.jsonl", "choice", 3, 25),
    "bigbench_cs_algorithms": CoreTask("symbolic_problem_solving/bigbench_cs_algorithms.jsonl", "continuation", 10, 0),
    "bigbench_operators": CoreTask("symbolic_problem_solving/bigbench_operators.jsonl", "continuation", 10, 0),
    "bigbench_repeat_copy_logic": CoreTask("symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl", "continuation",
                                           10, 0),
    "squad": CoreTask("reading_comprehension/squad.jsonl", "continuation", 10, 0),
    "coqa": CoreTask("reading_comprehension/coqa.jsonl", "continuation", 0, 0),
    "boolq": CoreTask("reading_comprehension/boolq.jsonl", "choice", 10, 62, _ANSWER),
    "bigbench_language_identification": CoreTask("language_understanding/bigbench_language_identification.jsonl",
                                                 "choice", 10, 25),
}


def open_task(name: str, folder: str | os.PathLike = ".", *, limit: int | None = None, shots: int | None = None,
              seed: int = 0) -> Task:
    """A task by its name.

    Args:
      name: a key of BENCHMARKS; "core/NAME" with a key of CORE; "world/NAME[=SEED:SIZE]" with one of WORLD; or
        "NAME=SPEC", SPEC as `task_rows.rows` takes it: with a name of the tables another place for its records, else
        records of a user's own format, or what `open_source` takes for bits per byte.
      folder: below which the files of named test sets are looked for.
      limit: items at most, drawn; None is all. Shots are drawn from all.
      shots: examples before each item; None is the test set's own number.
      seed: of the draw of items.

    Raises:
      FileNotFoundError: when no file of the test set is there.
      ValueError: for an unknown name, or a record that is no item, naming it.
    """
    name, _, spec = name.partition("=")
    if name.startswith("world/"):
        task = world_task(name, spec or "0:lab")
    elif name.startswith("core/"):
        task = _core_task(name, spec, folder)
    elif name in BENCHMARKS:
        task = _benchmark(name, spec, folder)
    elif spec:
        task = _own_task(name, spec)
    else:
        raise ValueError(f"unknown task {name!r}: name one of {', '.join((*BENCHMARKS, *WORLD))}, core/NAME, "
                         f"or NAME=FILE")
    items = _named(task.items)
    count = task.shots if shots is None or task.kind == "document" else shots
    return dataclasses.replace(task, items=limited(items, limit, seed), pool=(task.pool or items) if count else (),
                               shots=count)


def _named(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items, each by a key of its own: a file may give one to several, and a problem of the world come twice."""
    found: dict[str, Item] = {}
    for place, item in enumerate(items):
        key = item.key or str(place)
        if key in found:
            key = f"{key}, {place}"
        found[key] = item if key == item.key else dataclasses.replace(item, key=key)
    return tuple(found.values())


def core_names(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """The tasks of CORE that the data folder has, and those that it lacks; both as names for `open_task`."""
    there, missing = [], []
    for name in CORE:
        (there if _find(folder, _core_files(name)) else missing).append(f"core/{name}")
    return there, missing


def _core_files(name: str) -> tuple[str, ...]:
    if name.startswith("hellaswag"):
        return _HELLASWAG
    return f"{_CORE}::{CORE[name].file}", pathlib.PurePosixPath(CORE[name].file).name


def _core_task(name: str, spec: str, folder: str | os.PathLike) -> Task:
    short = name.removeprefix("core/")
    if short not in CORE:
        raise ValueError(f"unknown task {name!r}: CORE has {', '.join(CORE)}")
    known = CORE[short]
    reader = read.hellaswag if short.startswith("hellaswag") else read.own
    metric = "greedy" if known.kind == "continuation" else "acc_token"
    return Task(name, known.kind, _items(spec or _found(name, folder, _core_files(short)), reader), metric,
                known.chance / 100, known.shots, delimiter=known.delimiter)


def _benchmark(name: str, spec: str, folder: str | os.PathLike) -> Task:
    known = BENCHMARKS[name]
    spec = spec or _found(name, folder, known.files, known.hub)
    if known.settings["kind"] == "document":
        return _own_task(name, spec)
    items = _items(spec, known.reader)
    pool = _find(folder, known.pool)
    settings = dict(known.settings)
    settings.setdefault("chance", sum(len(item.gold) / max(len(item.choices), 1) for item in items) / len(items)
                        if settings["kind"] == "choice" else 0.0)
    return Task(name, items=items, pool=_items(pool, known.reader) if pool else (), **settings)


def _own_task(name: str, spec: str) -> Task:
    if not re.search(r"\.(jsonl?(\.(gz|xz|zst))?|parquet)$|::|^(hf|tfds):", spec):  # text, or the made-up world's
        items = tuple(Item((), (document.text,), key=document.id) for document in open_source(spec))
        return Task(name, "document", items)
    kinds = {read.kind_of(_mapping(record, where)): where for where, record in rows(spec)}
    if len(kinds) != 1:
        raise ValueError(f"{spec}: the records of a task must be of one kind, not {', '.join(kinds) or 'none'}")
    kind, items = next(iter(kinds)), _items(spec, read.own)
    chance = sum(len(item.gold) / max(len(item.choices), len(item.contexts)) for item in items) / len(items)
    return Task(name, kind, items, chance=chance if kind in ("choice", "schema") else 0.0)


def _items(spec: str, reader: Callable[[Any, str], Item]) -> tuple[Item, ...]:
    """All records as items; each without a name of its own is named by its place."""
    items = []
    for number, (where, record) in enumerate(_records(spec, reader)):
        try:
            item = reader(record, where)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: not an item of this test set ({reason})") from error
        items.append(item if item.key else dataclasses.replace(item, key=str(number)))
    if not items:
        raise ValueError(f"{spec}: it holds no item")
    return tuple(items)


def _records(spec: str, reader: Callable[[Any, str], Item]):
    """`rows`, with six lines of text to an item where HellaSwag is one, and without the header of TruthfulQA's csv."""
    found = rows(spec)
    if reader is read.hellaswag and ".txt" in spec:
        lines = [row for row in found if row[1].strip()]
        if len(lines) % 6:
            raise ValueError(f"{spec}: {len(lines)} lines; HellaSwag's text has six for each item")
        return [(lines[i][0], [line for _, line in lines[i:i + 6]]) for i in range(0, len(lines), 6)]
    if reader in (read.truthfulqa_mc1, read.truthfulqa_mc2) and ".csv" in spec:
        return list(found)[1:]
    return found


def _mapping(record: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object, got {type(record).__name__}; docs/evaluate.md has the formats")
    return record


def _find(folder: str | os.PathLike, files: tuple[str, ...]) -> str:
    """The first of these files below a folder, as a spec; "" without one."""
    for name in files:
        file, separator, member = name.partition("::")
        for path in sorted(pathlib.Path(folder).expanduser().rglob(file)):
            if not member or fnmatch.filter(_members(path), member):
                return f"{path}{separator}{member}"
    return ""


@functools.lru_cache(maxsize=16)
def _members(archive: pathlib.Path) -> tuple[str, ...]:
    with tarfile.open(archive) as tar:
        return tuple(tar.getnames())


def _found(name: str, folder: str | os.PathLike, files: tuple[str, ...], hub: str = "") -> str:
    if spec := _find(folder, files):
        return spec
    network = f", or {name}={hub} where there is a network" if hub else ""
    raise FileNotFoundError(f"the task {name} needs one of {', '.join(files)} below {folder}; set config.data to the "
                            f"folder that has it, or give {name}=FILE{network}")
