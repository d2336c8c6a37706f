"""Tasks with an answer that a program can check: the door of `jaxllm.rl.rewards`, and readers of what is published.

The door is a jsonl file, one {"prompt": messages, "answer": str, "verifier": name} a line, with an optional
"reference", a completion that is right. Every reader gives `Task`s; which verifier a name stands for is the business of
`jaxllm.rl.rewards`.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxllm.data import source_files, world_problems
from jaxllm.data.chat_messages import Message, plain_messages

_MARK = re.compile(r"<<[^<>\n]*>>")
FIELDS = ("prompt", "answer", "verifier", "reference", "question", "task_id", "test", "entry_point",
          "canonical_solution", "Body", "Question", "Answer", "Equation")


@dataclasses.dataclass(frozen=True)
class Task:
    """A prompt, and what says whether a completion of it is right.

    Attributes:
      prompt: messages in the OpenAI shape; the last is not the assistant's.
      answer: what the verifier compares with; its shape is the verifier's.
      verifier: the name of one.
      reference: a completion that is right, or None.
      key: what a split hashes: tasks with one key stay together.
      where: file and line.
    """

    prompt: tuple[Message, ...]
    answer: str
    verifier: str
    reference: str | None = None
    key: str = ""
    where: str = ""


def read_tasks(path: str | os.PathLike, format: str | None = None, *, instruction: str = "") -> Iterator[Task]:
    """The tasks of a file.

    Args:
      path: .jsonl or .json (an array, or an object per line), also with .gz, .xz or .zst behind; or .parquet.
      format: a key of FORMATS; None finds it from the fields of the first record.
      instruction: put behind the last message of every prompt, after an empty line, such as "Put the answer in
        \\\\boxed{}.".

    Raises:
      FileNotFoundError: for a file that is not there.
      ValueError: for an unknown format, a malformed record or a file without records; names file and line.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a file of tasks")
    if format is not None and format not in FORMATS:
        raise ValueError(f"{path}: unknown format {format!r}; formats are {', '.join(FORMATS)}")
    for place, record in source_files.reader_for(path)(path, FIELDS):
        where = f"{path}, {place}"
        if not isinstance(record, Mapping):
            raise ValueError(f"{where}: expected an object, got {type(record).__name__}")
        format = format or _find_format(record, where)
        try:
            task = FORMATS[format](record)
            task = dataclasses.replace(task, prompt=_instructed(task.prompt, instruction), where=where,
                                       key=task.key or json.dumps(task.prompt, sort_keys=True))
        except (KeyError, TypeError, AttributeError, ValueError, SyntaxError, RecursionError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: not a task of the format {format} ({reason})") from error
        yield task
    if format is None:
        raise ValueError(f"{path}: the file holds no record")


def write_tasks(path: str | os.PathLike, tasks: Iterable[Task]) -> int:
    """Writes tasks as a door; returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for task in tasks:
            record = {"prompt": list(task.prompt), "answer": task.answer, "verifier": task.verifier}
            record |= {"reference": task.reference} if task.reference is not None else {}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def world_tasks(seed: int, count: int, split: str = "train", kinds: Sequence[str] | None = None, *,
                instruction: str = "") -> list[Task]:
    """Word problems of the made-up world, verified by "number"; the reference is the worked solution.

    Args:
      seed, split, kinds: as `world_problems.problems` takes them; the split is the world's own, by the numbers of a
        problem.
      count: at least 1.
      instruction: as `read_tasks` takes it.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be 1 or more")
    stream = world_problems.problems(seed, split, kinds)
    return [Task(_instructed(_user(problem.question), instruction), str(problem.answer), "number",
                 f"{problem.steps}\nAnswer: {problem.answer}.", problem.key, f"world {seed}, {split}, {index}")
            for index, problem in zip(range(count), stream, strict=False)]


def reasoning_gym_tasks(name: str, count: int, seed: int = 0, *, config: Mapping[str, Any] | None = None,
                        instruction: str = "") -> list[Task]:
    """Tasks of reasoning-gym, verified by "reasoning_gym".

    The same arguments give the same tasks, but for the few of the library (isomorphic_strings) whose order of choices
    depends on the process; write those to a door once. The answer carries the library's entry.

    Args:
      name: of one of its datasets, such as "chain_sum".
      count: at least 1.
      seed: of the dataset. Two seeds may share questions where a dataset has few; split by `key`.
      config: settings of the dataset, JSON values.
      instruction: as `read_tasks` takes it.

    Raises:
      ImportError: without the extra `verify`.
      ValueError: for an unknown name, settings that the dataset refuses, or a scorer that lets any text pass.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ImportError("these tasks need reasoning-gym: pip install -e '.[verify]'") from error
    if name not in DATASETS or name == "composite":
        raise ValueError(f"unknown task {name!r} of reasoning-gym; there are "
                         f"{', '.join(sorted(set(DATASETS) - {'composite'}))}")
    if count < 1:
        raise ValueError(f"count is {count}; it must be 1 or more")
    config = dict(config or {})
    try:
        entries = reasoning_gym.create_dataset(name, seed=seed, size=count, **config)
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"reasoning-gym refuses {name!r} with {config}: {error}") from error
    if _scores_anything(entries):
        raise ValueError(f"the scorer of {name!r} in this version of reasoning-gym gives any text its full score; take "
                         f"another task")
    tasks = []
    for index in range(count):
        entry = entries[index]
        answer = json.dumps({"task": name, "config": config, "entry": _kept(entry)}, ensure_ascii=False)
        tasks.append(Task(_instructed(_user(entry["question"]), instruction), answer, "reasoning_gym",
                          None if entry["answer"] is None else f"<answer>{entry['answer']}</answer>",
                          entry["question"], f"reasoning-gym {name}, seed {seed}, {index}"))
    return tasks


def _scores_anything(entries: Any) -> bool:
    try:
        return entries.score_answer("no answer", entries[0]) >= 1
    except Exception:  # a scorer may raise on what is no answer of its kind
        return False


def _kept(value: Any) -> Any:
    """A value for JSON in which tuples stay apart from lists: some scorers compare with them."""
    if isinstance(value, tuple):
        return {"<tuple>": [_kept(part) for part in value]}
    if isinstance(value, Mapping):
        return {name: _kept(part) for name, part in value.items()}
    return [_kept(part) for part in value] if isinstance(value, list) else value


def split_tasks(tasks: Sequence[Task], fraction: float, seed: int = 0) -> tuple[list[Task], list[Task]]:
    """(training, held out): each task by a hash of its key, so that other tasks and their order do not matter.

    Args:
      tasks: any.
      fraction: expected share of the second, in [0, 1).
      seed: of the hash.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the held-out fraction ({fraction}) must lie in [0, 1)")
    sides: tuple[list[Task], list[Task]] = [], []
    for task in tasks:
        digest = hashlib.sha256(json.dumps([seed, task.key]).encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < fraction * 2**64].append(task)
    return sides


def _user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def _instructed(prompt: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    if not instruction:
        return tuple(prompt)
    last = dict(prompt[-1])
    if not isinstance(last["content"], str):
        raise TypeError("an instruction can be put behind a text alone")
    return (*prompt[:-1], {**last, "content": f"{last['content']}\n\n{instruction}"})


def _find_format(record: Mapping[str, Any], where: str) -> str:
    for name, fields in (("door", ("prompt", "answer", "verifier")), ("humaneval", ("prompt", "test", "entry_point")),
                         ("svamp", ("Body", "Question", "Answer")), ("gsm8k", ("question", "answer"))):
        if all(record.get(field) is not None for field in fields):
            return name
    raise ValueError(f"{where}: no known format has the fields {', '.join(map(repr, record))}; name one of "
                     f'{", ".join(FORMATS)}, or write {{"prompt": messages, "answer": ..., "verifier": ...}}')


def _text(record: Mapping[str, Any], field: str) -> str:
    if not isinstance(record[field], str) or not record[field].strip():
        raise TypeError(f"{field} must be a text that is not empty")
    return record[field]


def _door(record: Mapping[str, Any]) -> Task:
    if not isinstance(record["prompt"], list) or not record["prompt"]:
        raise TypeError("prompt must be a list of messages, at least one")
    prompt = tuple(plain_messages(record["prompt"]))
    if prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with the assistant's message; its completion is what is graded")
    if not isinstance(record["answer"], str):
        raise TypeError("answer must be a text")
    reference = record.get("reference")
    if reference is not None and not isinstance(reference, str):
        raise TypeError("reference must be a text")
    return Task(prompt, record["answer"], _text(record, "verifier"), reference)


def _gsm8k(record: Mapping[str, Any]) -> Task:
    """GSM8K: the answer stands behind ####; the calculator's marks <<48/2=24>> are left out of the reference.

    References: Cobbe et al., 2021. https://arxiv.org/abs/2110.14168
    """
    solution, mark, answer = _text(record, "answer").rpartition("####")
    if not mark or not re.fullmatch(r"-?[\d,]*\.?\d+", answer.strip()):
        raise ValueError(f"answer must end with #### and a number, not with {answer.strip()[-40:]!r}")
    answer = answer.strip().replace(",", "")
    question = _text(record, "question")
    return Task(_user(question), answer, "number", f"{_MARK.sub('', solution).strip()}\n#### {answer}", question)


def _svamp(record: Mapping[str, Any]) -> Task:
    """SVAMP: body and question as one text; the reference is the equation.

    References: Patel et al., Are NLP Models really able to Solve Simple Math Word Problems?, 2021.
      https://arxiv.org/abs/2103.07191
    """
    answer = record["Answer"]
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise TypeError("Answer must be a number")
    shown = str(int(answer)) if float(answer).is_integer() else repr(float(answer))
    body = _text(record, "Body").strip().rstrip(".,")
    # A body may go on in the question: "If there are 12 books" + "How many ...?".
    question = f"{body}{',' if body.startswith('If ') else '.'} {_text(record, 'Question').strip()}"
    return Task(_user(question), shown, "number", f"{record.get('Equation', '')} = {shown}".strip(" ="), question)


def _humaneval(record: Mapping[str, Any]) -> Task:
    """HumanEval: the prompt is code to go on with; every statement of `check` that asserts becomes a test of its own.

    References: Chen et al., 2021. https://arxiv.org/abs/2107.03374
    """
    prefix, tests = _text(record, "prompt"), _tests(_text(record, "test"))
    answer = json.dumps({"entry_point": _text(record, "entry_point"), "prefix": prefix, "tests": tests})
    return Task(_user(prefix), answer, "code", record.get("canonical_solution"), record.get("task_id", prefix))


def _tests(source: str) -> list[str]:
    """One program for every statement of `check(candidate)` that asserts, with the statements before it that do not."""
    outside, check = [], None
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            check = node
        elif not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "METADATA"):
            outside.append(node)
    if check is None:
        raise ValueError("test defines no function check")
    tests, shared = [], []
    for statement in check.body:
        if any(isinstance(node, ast.Assert) for node in ast.walk(statement)):
            function = ast.FunctionDef("check", check.args, [*shared, statement], [], lineno=1)
            tests.append("\n".join(map(ast.unparse, [*outside, function])) + "\ncheck(candidate)")
        else:
            shared.append(statement)
    if not tests:
        raise ValueError("check asserts nothing")
    return tests


FORMATS: Mapping[str, Callable[[Mapping[str, Any]], Task]] = {
    "door": _door, "gsm8k": _gsm8k, "svamp": _svamp, "humaneval": _humaneval}
