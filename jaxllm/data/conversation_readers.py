"""Conversations out of files as they are published: OpenAI, ShareGPT, Alpaca, Dolly, OASST trees, tool calls.

Two kinds of trouble are kept apart. A file that is not what it claims to be stops the reading, with file and line. A
conversation that is well-formed and cannot be learned from is skipped and counted, by one of REASONS.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxllm.data import source_files
from jaxllm.data.chat_messages import ROLES, plain_messages, plain_tools

REASONS = ("empty", "no assistant turn", "bad roles")
PATHS = ("best", "all")
# ShareGPT's names of roles. A function_call's value is JSON, which becomes the tool_calls of an assistant's message.
SENDERS: Mapping[str, str] = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
                              "assistant": "assistant", "system": "system", "observation": "tool", "tool": "tool",
                              "function_response": "tool", "function_call": "call", "tool_call": "call"}
_WRAPPED = re.compile(r"### Instruction:\n(?P<instruction>.*?)(\n\n### Input:\n(?P<input>.*?))?\n\n### Response:\s*\Z",
                      re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A conversation in plain OpenAI shape, as `chat_messages.plain_messages` returns it.

    Attributes:
      messages: its messages.
      tools: descriptions of the tools it may use, or None.
      where: file and line.
      origin: what several conversations have in common (an OASST tree), or None; a split keeps them together.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    where: str = ""
    origin: str | None = None


@dataclasses.dataclass(frozen=True)
class ReadConversations:
    """What a file held.

    Attributes:
      conversations: in the file's order.
      skipped: how many were left out, by each of REASONS.
      format: the one of FORMATS that was found or named.
    """

    conversations: list[Conversation]
    skipped: Mapping[str, int]
    format: str


def read_conversations(path: str | os.PathLike, format: str | None = None, *, paths: str = "best") -> ReadConversations:
    """Reads all conversations of a file.

    A conversation is skipped as "empty" when it has no message or a user's or assistant's turn without text, as "no
    assistant turn", or for "bad roles": one that nobody knows, or an order in which an assistant or a tool begins, or
    a tool's result follows neither a call nor another result.

    Args:
      path: .jsonl or .json (an array, or an object per line), also with .gz, .xz or .zst behind; or .parquet.
      format: a key of FORMATS; None finds it from the fields of the first record.
      paths: of OASST trees. "best": one conversation a tree, from the root down by the reply of the lowest rank (the
        first of those without one). "all": one for every path that ends at an assistant's message without replies
        by an assistant further down; early messages are then repeated. Deleted messages and those that failed the
        review are left out with all below them.

    Raises:
      FileNotFoundError: for a file that is not there.
      ValueError: for an unknown format or a malformed record; names file and line.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a file of conversations")
    if paths not in PATHS or format is not None and format not in FORMATS:
        raise ValueError(f"{path}: format {format!r} with paths {paths!r} cannot be read; formats are "
                         f"{', '.join(FORMATS)}, paths are {', '.join(PATHS)}")
    found, skipped = [], collections.Counter({reason: 0 for reason in REASONS})
    for place, record in _records(path):
        where = f"{path}, {place}"
        if not isinstance(record, Mapping):
            raise ValueError(f"{where}: expected an object, got {type(record).__name__}")
        format = format or _find_format(record, where)
        try:
            drafts = list(FORMATS[format](record, paths))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: not a conversation of the format {format} ({reason})") from error
        for draft in drafts:
            draft = dataclasses.replace(draft, where=where)
            reason = _why_not(draft)
            if reason:
                skipped[reason] += 1
                continue
            try:
                found.append(dataclasses.replace(draft, messages=plain_messages(draft.messages),
                                                 tools=plain_tools(draft.tools)))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
    if format is None:
        raise ValueError(f"{path}: the file holds no record")
    return ReadConversations(found, dict(skipped), format)


def _records(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """(place, record); the place in a JSON array is the line on which the item begins."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".xz").removesuffix(".zst")
    reader = source_files.reader_for(path)
    if not name.endswith(".json"):
        fields = ("messages", "conversations", "tools", "instruction", "input", "output", "system", "prompt", "answer",
                  "response", "context", "instances")
        if name.endswith(".parquet"):
            import pyarrow.parquet

            columns = pyarrow.parquet.read_schema(path).names
            fields = tuple(sorted(fields, key=lambda field: field not in columns))
        yield from reader(path, fields)
        return
    lines = list(source_files._lines(path))
    if next((line.lstrip() for line in lines if line.strip()), b"").startswith(b"{"):
        yield from reader(path, ("messages",))
        return
    text = source_files.decode(b"".join(lines), str(path))
    for _ in reader(path, ("messages",)):
        break  # the errors of a file that is no array of objects
    decoder, at, line, counted = json.JSONDecoder(), text.find("[") + 1, 1, 0
    while (at := re.compile(r"[\s,]*").match(text, at).end()) < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        record, at = decoder.raw_decode(text, at)
        yield f"line {line}", record


def _find_format(record: Mapping[str, Any], where: str) -> str:
    for name, fields in (("openai", ("messages",)), ("sharegpt", ("conversations",)),
                         ("self_instruct", ("instruction", "instances")), ("alpaca", ("instruction", "output")),
                         ("dolly", ("instruction", "response")), ("prompt_answer", ("prompt", "answer"))):
        if all(field in record for field in fields):
            return name
    if isinstance(record.get("prompt"), Mapping):
        return "oasst"
    raise ValueError(f"{where}: no known format has the fields {', '.join(map(repr, record))}; name one of "
                     f"{', '.join(FORMATS)}, or write {{\"messages\": [{{\"role\": ..., \"content\": ...}}]}}")


def _why_not(draft: Conversation) -> str | None:
    """Why a conversation is skipped, or None."""
    if not draft.messages:
        return "empty"
    before = None
    for message in draft.messages:
        role = "system" if message["role"] == "developer" else message["role"]
        calls = bool(message.get("tool_calls"))
        if role not in ROLES or role == "assistant" and before in (None, "system"):
            return "bad roles"
        if role == "tool" and before not in ("call", "tool"):
            return "bad roles"
        content = message.get("content")
        if role in ("user", "assistant") and not calls and (
                content is None or isinstance(content, str) and not content.strip()):
            return "empty"
        before = "call" if calls else role
    return None if any(message["role"] == "assistant" for message in draft.messages) else "no assistant turn"


def _openai(record: Mapping[str, Any], paths: str) -> Iterator[Conversation]:
    messages = [dict(message) for message in record["messages"]]
    for message in messages:
        if not isinstance(message["role"], str):
            raise TypeError("role must be a text")
    yield Conversation(messages, _tools(record.get("tools")))


def _sharegpt(record: Mapping[str, Any], paths: str) -> Iterator[Conversation]:
    messages = [{"role": "system", "content": _text(record, "system")}] if record.get("system") else []
    for turn in record["conversations"]:
        role, value = SENDERS.get(turn["from"], turn["from"]), _text(turn, "value")
        if role == "call":
            calls = json.loads(value)
            calls = [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif role != "system" or value.strip():
            messages.append({"role": role, "content": value})
    yield Conversation(messages, _tools(record.get("tools")))


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    """OpenAI's descriptions, or the functions alone; as JSON or its text. An empty list is None."""
    tools = json.loads(tools or "[]") if isinstance(tools, str) else tools
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools or ()] or None


def _text(record: Mapping[str, Any], field: str) -> str:
    if not isinstance(record[field], str):
        raise TypeError(f"{field} must be a text, not {type(record[field]).__name__}")
    return record[field]


def _pair(question: str, context: str, answer: str, system: str = "") -> Conversation:
    """A question with an optional text it is about, two newlines between, and its answer."""
    content = f"{question}\n\n{context}" if context.strip() else question
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return Conversation([{"role": "system", "content": system}, *messages] if system.strip() else messages)


def _instruction(context: str, answer: str) -> Callable[[Mapping[str, Any], str], Iterator[Conversation]]:
    def read(record: Mapping[str, Any], paths: str) -> Iterator[Conversation]:
        optional = [_text(record, field) if record.get(field) is not None else "" for field in (context, "system")]
        yield _pair(_text(record, "instruction"), optional[0], _text(record, answer), optional[1])
    return read


def _prompt_answer(record: Mapping[str, Any], paths: str) -> Iterator[Conversation]:
    """Dolly as it is often passed on: Alpaca's wording around the instruction is taken off again."""
    prompt = _text(record, "prompt")
    match = _WRAPPED.search(prompt)
    yield _pair(match["instruction"] if match else prompt, match["input"] or "" if match else "",
                _text(record, "answer"))


def _self_instruct(record: Mapping[str, Any], paths: str) -> Iterator[Conversation]:
    for instance in record["instances"]:
        yield _pair(_text(record, "instruction"), _text(instance, "input"), _text(instance, "output"))


def _oasst(record: Mapping[str, Any], paths: str) -> Iterator[Conversation]:
    root = record["prompt"]
    for path in _paths(root, paths) or [[]]:
        yield Conversation(path, origin=str(record.get("message_tree_id", root.get("message_id"))))


def _paths(node: Mapping[str, Any], paths: str) -> list[list[dict[str, Any]]]:
    """The paths from a message down to an assistant's message; the message alone where it has none below."""
    if node.get("deleted") or node.get("review_result") is False:
        return []
    message = {"role": {"prompter": "user"}.get(node["role"], node["role"]), "content": _text(node, "text")}
    replies: Sequence[Mapping[str, Any]] = sorted(
        node.get("replies") or (), key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))
    below = [_paths(reply, paths) for reply in replies]
    if message["role"] == "assistant":  # a question that nobody answered is no part of a path
        below = [[path for path in group if any(later["role"] == "assistant" for later in path)] for group in below]
    below = [group for group in below if group]
    if paths == "best":
        below = below[:1]
    return [[message, *path] for group in below for path in group] or [[message]]


FORMATS: Mapping[str, Callable[[Mapping[str, Any], str], Iterator[Conversation]]] = {
    "openai": _openai, "sharegpt": _sharegpt, "alpaca": _instruction("input", "output"),
    "dolly": _instruction("context", "response"), "prompt_answer": _prompt_answer, "self_instruct": _self_instruct,
    "oasst": _oasst}
