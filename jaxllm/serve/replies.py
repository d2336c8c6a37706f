"""The assistant's message out of its text: content that may be shown at once, and tool calls at the end."""

from __future__ import annotations

import json
import uuid
from typing import Any

from jaxllm.data.chat import parse_reply
from jaxllm.data.chat_tools import CALLS
from jaxllm.data.tokenizer import Tokenizer

# Special tokens of some tokenizers, plain text in others, that are part of how a call is written.
_CALL_TOKENS = tuple(spelling for pair in CALLS.values() for spelling in pair if spelling) + ("<|python_tag|>",)


def call_tokens(tokenizer: Tokenizer, style: str | None) -> frozenset[int]:
    """Special tokens whose spelling must stay in the text, so that calls can be read from it."""
    if style is None:
        return frozenset()
    return frozenset(id for spelling, id in tokenizer.special_tokens.items() if spelling in _CALL_TOKENS)


class Reply:
    """A reply that grows.

    Args:
      template: the chat template, which says how calls are written.
      style: a key of `chat_tools.CALLS`; None when the reply is text whatever it looks like.
      forced: True when the text is the JSON of one call.
    """

    def __init__(self, template: str | None, style: str | None, forced: bool = False) -> None:
        self._template = template
        self._style = style
        self._forced = forced
        self._text = ""
        self._shown = 0

    def push(self, text: str) -> str:
        """Takes text; returns the content that is certain not to belong to a call."""
        self._text += text
        until = self._certain()
        new, self._shown = self._text[self._shown:until], max(self._shown, until)
        return new

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """(content that was held back, the tool calls)."""
        if self._forced:
            call = _forced_call(self._text)
            return ("", [call]) if call else (self._text, [])
        if self._style is None:
            return self._text[self._shown:], []
        message = parse_reply(self._text, self._template)
        content = message["content"] or ""
        shown = self._text[:self._shown]
        rest = content[len(shown):] if content.startswith(shown) else ""
        return rest, message.get("tool_calls", [])

    def _certain(self) -> int:
        """How much of the text may be shown."""
        if self._forced:
            return 0
        if self._style is None:
            return len(self._text)
        opening = CALLS[self._style][0]
        if not opening:  # a reply that is a call is JSON from its first character on
            begun = self._text.lstrip()
            return 0 if not begun or begun[0] in "{<" else len(self._text)
        found = self._text.find(opening)
        if found >= 0:
            return found
        for size in range(min(len(opening) - 1, len(self._text)), 0, -1):
            if self._text.endswith(opening[:size]):
                return len(self._text) - size
        return len(self._text)


def _forced_call(text: str) -> dict[str, Any] | None:
    """The call whose JSON was written under a grammar; None when the tokens ended before it was whole."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}}
