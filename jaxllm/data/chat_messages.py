"""Conversations in the OpenAI shape: checked, and brought to one plain form that every chat format reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
# Lists and objects within each other: every later step, templates among them, goes down into them by recursion.
MAX_DEPTH = 100


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Checks a conversation and returns it with text for content and objects for arguments.

    Args:
      messages: each with `role` (system, developer, user, assistant, tool) and `content`: a text, a list of parts
        `{"type": "text", "text": ...}`, or None in an assistant's message with `tool_calls`. A call is
        `{"function": {"name": ..., "arguments": ...}}`, its arguments an object or the JSON text of one.

    Returns:
      New messages: "developer" has become "system", parts are joined, None is left out, and each call is
      `{"type": "function", "id": ..., "function": {"name": str, "arguments": dict}}`.

    Raises:
      ValueError: the sentence names the message by its index, from 0.

    >>> plain_messages([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
    [{'role': 'user', 'content': 'Hi'}]
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise ValueError(f"messages must be a list of objects with role and content, not {type(messages).__name__}")
    if not messages:
        raise ValueError("the conversation is empty: give at least one message")
    return [_plain_message(message, f"message {i}") for i, message in enumerate(messages)]


def _plain_message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with role and content, not {type(message).__name__}")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
        raise ValueError(f"{where}: the role {role!r} is unknown; choose one of {', '.join(ROLES)}")
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        raise ValueError(f"{where}: only an assistant's message has tool_calls, this one is of role {role!r}")
    plain = {str(key): _clean(value, where) for key, value in message.items()
             if value is not None and key != "tool_calls"}
    plain["role"] = role
    if calls:
        if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
            raise ValueError(f"{where}: tool_calls must be a list")
        plain["tool_calls"] = [_plain_call(call, f"{where}, tool call {i}") for i, call in enumerate(calls)]
    if message.get("content") is not None:
        plain["content"] = _clean(_text(message["content"], where))
    elif not calls:
        raise ValueError(f"{where}: a message of role {role!r} needs content")
    return plain


def _text(content: Any, where: str) -> str:
    """Content as one text; parts are joined as they are."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise ValueError(f"{where}: content must be a text or a list of parts, not {type(content).__name__}")
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f'{where}, part {number}: only parts {{"type": "text", "text": ...}} can be read, '
                             f"this one is of type {kind!r}")
    return "".join(part["text"] for part in content)


def _plain_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f'{where} must be {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: its arguments are not JSON ({error})") from error
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: its arguments must be an object, or the JSON text of one")
    plain = {"type": "function", "function": {"name": _clean(function["name"]), "arguments": _clean(arguments, where)}}
    return {"id": _clean(str(call["id"])), **plain} if call.get("id") is not None else plain


def plain_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Checks the descriptions of tools, each `{"type": "function", "function": {"name": ..., ...}}`.

    Raises:
      ValueError: the sentence names the tool by its index, from 0.
    """
    if not tools:
        return None
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f'tool {number} must be {{"type": "function", "function": {{"name": ..., '
                             f'"parameters": ...}}}}')
    return [_clean(tool, f"tool {number}") for number, tool in enumerate(tools)]


def _clean(value: Any, where: str = "", depth: int = 0) -> Any:
    """Plain JSON types alone, which is all that a template may touch; surrogates as the tokenizer reads them."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return str(value)
    if isinstance(value, (Mapping, list, tuple)) and depth >= MAX_DEPTH:
        raise ValueError(f"{where}: lists and objects nest deeper than {MAX_DEPTH}; make its values flatter")
    if isinstance(value, Mapping):
        return {_clean(str(key)): _clean(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item, where, depth + 1) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else f"<{type(value).__name__}>"
