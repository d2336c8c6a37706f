"""Preferences out of files as they are published: rankings, chosen and rejected, votes; and unpaired verdicts.

Each format is a function of a record that yields drafts of rankings, which jaxllm/data/preferences.py checks.
`read_feedback` reads unpaired data (KTO), where each completion is called desirable or not by itself.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxllm.data import source_files
from jaxllm.data.chat_messages import plain_messages
from jaxllm.data.conversation_readers import SENDERS

_TURN = re.compile(r"\n\n(Human|Assistant):")
_COLUMNS = ("prompt", "completions", "ranking", "annotator", "chosen", "rejected", "conversations", "instruction",
            "input", "response1", "response2", "messages", "completion", "output", "label", "kto_tag", "system")


class SkippedError(Exception):
    """A well-formed record from which nothing can be learned; the text is the reason that is counted."""


class Draft(NamedTuple):
    """A ranking as a file holds it: messages, texts, tiers of indices (best first), who."""

    prompt: Sequence[Mapping[str, Any]]
    completions: Sequence[Any]
    ranking: Sequence[Sequence[int]]
    annotator: str = ""


def records(path: pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("file, line 3", the object there), of any file that `source_files` reads."""
    columns = _COLUMNS
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        present = pyarrow.parquet.read_schema(path).names
        columns = tuple(sorted(columns, key=lambda column: column not in present))
    for place, record in source_files.reader_for(path)(path, columns):
        if not isinstance(record, Mapping):
            raise ValueError(f"{path}, {place}: expected an object, got {type(record).__name__}")
        yield f"{path}, {place}", record


def find_format(record: Mapping[str, Any], where: str) -> str:
    """The key of FORMATS that a record's fields tell.

    Raises:
      ValueError: when they tell none.
    """
    for name, fields in (("rankings", ("completions", "ranking")), ("pandalm", ("response1", "response2")),
                         ("sharegpt", ("conversations", "chosen", "rejected")),
                         ("instruction", ("instruction", "chosen", "rejected")),
                         ("prompt", ("prompt", "chosen", "rejected")), ("dialogue", ("chosen", "rejected"))):
        if all(field in record for field in fields):
            return name
    raise ValueError(f"{where}: no known format of preferences has the fields {', '.join(map(repr, record))}; name one "
                     f'of {", ".join(FORMATS)}, or write {{"prompt": ..., "completions": [...], "ranking": [...]}}')


def _rankings(record: Mapping[str, Any]) -> Iterator[Draft]:
    """This project's own form; an entry of the ranking is an index or a list of tied ones."""
    tiers = [entry if isinstance(entry, list) else [entry] for entry in record["ranking"]]
    if not all(type(i) is int for tier in tiers for i in tier):
        raise TypeError("ranking must hold indices, and lists of them for ties")
    annotator = record.get("annotator", "")
    if not isinstance(annotator, str):
        raise TypeError(f"annotator must be a text, not {type(annotator).__name__}")
    yield Draft(_messages(record["prompt"]), record["completions"], tiers, annotator)


def _dialogue(record: Mapping[str, Any]) -> Iterator[Draft]:
    """hh-rlhf: two whole dialogues as texts, which share all but the last turn; or as lists of messages."""
    sides = [_turns(record[side]) if isinstance(record[side], str) else _messages(record[side])
             for side in ("chosen", "rejected")]
    if any(not side or side[-1]["role"] != "assistant" for side in sides):
        raise SkippedError("no answer")
    if sides[0][:-1] != sides[1][:-1]:
        raise SkippedError("different prompts")
    if len(sides[0]) == 1:
        raise SkippedError("empty prompt")
    yield _pair(sides[0][:-1], *(side[-1]["content"] for side in sides))


def _turns(text: str) -> list[dict[str, str]]:
    """Messages of "\\n\\nHuman: ...\\n\\nAssistant: ...".

    >>> _turns("\\n\\nHuman: Hi\\n\\nAssistant: Hello.")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]
    """
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise ValueError('a dialogue must begin with "\\n\\nHuman:"')
    return [{"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
            for speaker, said in zip(parts[::2], parts[1::2], strict=True)]


def _prompt(record: Mapping[str, Any]) -> Iterator[Draft]:
    """prompt, chosen, rejected: each a text, or a list of messages; chosen and rejected may repeat the prompt."""
    prompt = _messages(record["prompt"])
    yield _pair(prompt, *(_completion(record[side], prompt) for side in ("chosen", "rejected")))


def _instruction(record: Mapping[str, Any]) -> Iterator[Draft]:
    """instruction, input (which may be missing or empty), chosen, rejected."""
    yield _pair(_request(record), record["chosen"], record["rejected"])


def _sharegpt(record: Mapping[str, Any]) -> Iterator[Draft]:
    """conversations of {"from", "value"}, then chosen and rejected of the same shape."""
    prompt = [{"role": SENDERS.get(turn["from"], turn["from"]), "content": turn["value"]}
              for turn in record["conversations"]]
    yield _pair(prompt, record["chosen"]["value"], record["rejected"]["value"])


def _pandalm(record: Mapping[str, Any]) -> Iterator[Draft]:
    """Votes on two responses, one ranking for each field annotator1, annotator2, ...: 1 or 2 is better, 0 is a tie.

    The published file holds a few responses as JSON's true, which were the text "True".
    """
    responses = [str(record[name]) if isinstance(record[name], bool) else record[name]
                 for name in ("response1", "response2")]
    tiers = {0: ((0, 1),), 1: ((0,), (1,)), 2: ((1,), (0,))}
    voters = sorted(field for field in record if re.fullmatch(r"annotator\d+", field))
    if not voters:
        raise KeyError("annotator1")
    for voter in voters:
        if record[voter] not in tiers:
            raise ValueError(f"{voter} must be 0, 1 or 2, not {record[voter]!r}")
        yield Draft(_request(record), responses, tiers[record[voter]], voter)


def _pair(prompt: Sequence[Mapping[str, Any]], chosen: Any, rejected: Any) -> Draft:
    if chosen == rejected:
        raise SkippedError("equal completions")
    return Draft(prompt, (chosen, rejected), ((0,), (1,)))


def prompt_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a record's `prompt`, or those of its `messages` before the last answer."""
    if "prompt" in record:
        return _messages(record["prompt"])
    messages = _messages(record["messages"])
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _messages(value: Any) -> list[dict[str, Any]]:
    """A prompt as messages: a text is what the user said."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else plain_messages(value)


def _completion(value: Any, prompt: Sequence[Mapping[str, Any]]) -> str:
    """A completion as a text: given as one, or as messages, behind the prompt's or not."""
    if isinstance(value, str):
        return value
    messages = _messages(value)
    if messages[:len(prompt)] == list(prompt):
        messages = messages[len(prompt):]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise SkippedError("different prompts")
    return messages[0].get("content", "")


def _request(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """instruction and input as a user's message, two newlines between; and the system message where there is one."""
    texts = [record["instruction"], record.get("input") or "", record.get("system") or ""]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("instruction, input and system must be texts")
    content = f"{texts[0]}\n\n{texts[1]}" if texts[1].strip() else texts[0]
    system = [{"role": "system", "content": texts[2]}] if texts[2].strip() else []
    return [*system, {"role": "user", "content": content}]


FORMATS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Draft]]] = {
    "rankings": _rankings, "dialogue": _dialogue, "prompt": _prompt, "instruction": _instruction,
    "sharegpt": _sharegpt, "pandalm": _pandalm}


@dataclasses.dataclass(frozen=True)
class Feedback:
    """One completion of a prompt that somebody called desirable or not, with nothing to compare it to (KTO)."""

    prompt: tuple[dict[str, Any], ...]
    completion: str
    desirable: bool
    where: str = ""


@dataclasses.dataclass(frozen=True)
class ReadFeedback:
    """What a file held, and how many records were left out, by reason."""

    feedback: list[Feedback]
    skipped: Mapping[str, int]


def read_feedback(path: str | os.PathLike) -> ReadFeedback:
    """Reads unpaired verdicts: `label` or `kto_tag`, true or false, beside messages, prompt and completion, or
    instruction, input and output.

    Args:
      path: of a file as `preferences.read_preferences` takes it.

    Raises:
      FileNotFoundError: for a file that is not there.
      ValueError: for a malformed record; names file and line (the item of a JSON array).
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a file of verdicts")
    found: list[Feedback] = []
    skipped: collections.Counter[str] = collections.Counter()
    for where, record in records(path):
        try:
            found.append(dataclasses.replace(_feedback(record), where=where))
        except SkippedError as reason:
            skipped[str(reason)] += 1
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: not an unpaired verdict ({reason})") from error
    return ReadFeedback(found, dict(skipped))


def _feedback(record: Mapping[str, Any]) -> Feedback:
    desirable = record["label"] if "label" in record else record["kto_tag"]
    if not isinstance(desirable, bool):
        raise TypeError(f"the verdict must be true or false, not {desirable!r}")
    if "messages" in record:
        *prompt, last = _messages(record["messages"])
        if last["role"] != "assistant":
            raise SkippedError("no answer")
        completion = last.get("content", "")
    elif "completion" in record:
        prompt = _messages(record["prompt"])
        completion = _completion(record["completion"], prompt)
    else:
        prompt, completion = plain_messages(_request(record)), record["output"]
    if not isinstance(completion, str):
        raise TypeError(f"a completion must be a text, not {type(completion).__name__}")
    if not any(message.get("content", "").strip() for message in prompt):
        raise SkippedError("empty prompt")
    return Feedback(tuple(prompt), completion, desirable)
