"""Tool calls as models write them: found in a reply's text and brought to the OpenAI shape."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

# Style -> the spellings around the JSON of a call. "json" is Llama-3's: the reply is the call and nothing else.
CALLS: Mapping[str, tuple[str, str]] = {
    "im_sep": ("<|tool_call|>", "<|tool_end|>"),
    "hermes": ("<tool_call>", "</tool_call>"),
    "json": ("", ""),
}


def call_style(template: str) -> str | None:
    """How a model over a Jinja template writes calls, judged by what the template spells; None: not at all."""
    for style in ("im_sep", "hermes"):
        if CALLS[style][0] in template:
            return style
    return "json" if "ipython" in template and "parameters" in template else None


def split_calls(text: str, style: str | None) -> tuple[str, list[dict[str, Any]]]:
    """Takes the tool calls out of a reply.

    Args:
      text: the assistant's reply, special tokens spelled, without its end-of-turn token.
      style: a key of CALLS, or None for a format without calls.

    Returns:
      (the text without them, the calls in OpenAI's shape, their arguments as JSON text). What looks like a call but
      is not JSON with a name, or does not end, stays in the text.

    >>> text, calls = split_calls('So: <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', "hermes")
    >>> text, calls[0]["function"]
    ('So:', {'name': 'add', 'arguments': '{"a": 1}'})
    """
    if style is None:
        return text, []
    if style == "json":
        call = _read_call(text.strip().removeprefix("<|python_tag|>"))
        return ("", [call]) if call else (text, [])
    opening, closing = map(re.escape, CALLS[style])
    calls, kept, done = [], [], 0
    for match in re.finditer(f"{opening}(.*?){closing}", text, re.DOTALL):
        if call := _read_call(match[1]):
            calls.append(call)
            kept.append(text[done:match.start()])
            done = match.end()
    rest = "".join([*kept, text[done:]])
    return (rest.strip() if calls else rest), calls


def _read_call(text: str) -> dict[str, Any] | None:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}}
