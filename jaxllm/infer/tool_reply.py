"""A model's reply as token ids to the message that it stands for, and results to the token ids that a model reads next.

Both keep to `jaxllm.data.chat.render`: what the loop puts together is what rendering its messages gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.data.chat import FORMATS, end_of_turn, parse_reply, render
from jaxllm.data.chat_tools import CALLS, call_style, split_calls
from jaxllm.data.tokenizer import Tokenizer

MAX_DEPTH = 32  # of a call's arguments: lists and objects within each other
UNREADABLE = 'error: the call could not be read; write one JSON object {"name": ..., "arguments": {...}}'


def read_reply(ids: Sequence[int], tokenizer: Tokenizer, template: str | None = None) -> tuple[dict[str, Any], bool]:
    """The message that a reply stands for.

    In the im_sep format calls stand between special tokens, and their spelling in ordinary tokens is text.

    Args:
      ids: what the model wrote, with or without the token that ends its turn.
      tokenizer, template: as in `render`.

    Returns:
      (the message in OpenAI's shape, whether something in it looks like a call but cannot be read as one).
    """
    template = template or tokenizer.chat_template
    style = FORMATS[template].tool_calls if template in FORMATS else call_style(template)
    if ids and ids[-1] in end_of_turn(tokenizer, template):
        ids = ids[:-1]
    try:
        if style == "im_sep" and set(CALLS[style]) <= set(tokenizer.special_tokens):
            message, unreadable = _read_special(ids, tokenizer)
        else:
            message = parse_reply(tokenizer.decode(ids), template)
            unreadable = bool(style and CALLS[style][0] and CALLS[style][0] in (message["content"] or ""))
        arguments = [json.loads(call["function"]["arguments"]) for call in message.get("tool_calls", ())]
        if all(_depth(value) <= MAX_DEPTH for value in arguments):
            return message, unreadable
    except RecursionError:
        pass
    return {"role": "assistant", "content": tokenizer.decode(ids)}, True


def _read_special(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[dict[str, Any], bool]:
    opening, closing = (tokenizer.special_tokens[token] for token in CALLS["im_sep"])
    ids, calls, kept, unreadable = list(ids), [], [], False
    while opening in ids:
        start = ids.index(opening)
        end = ids.index(closing, start) if closing in ids[start:] else len(ids)
        _, found = split_calls(tokenizer.decode(ids[start + 1:end]), "json")
        calls += found
        unreadable |= not found
        kept += ids[:start] if found else ids[:end + 1]
        ids = ids[end + 1:]
    content = tokenizer.decode(kept + ids)
    message: dict[str, Any] = {"role": "assistant", "content": content or None if calls else content}
    return ({**message, "tool_calls": calls} if calls else message), unreadable


def _depth(value: Any) -> int:
    """How deep lists and objects stand within each other; a loop, since the depth is a stranger's."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def next_ids(messages: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *,
             tools: Sequence[Mapping[str, Any]] | None = None, template: str | None = None) -> list[int]:
    """What stands behind the token that ended the last message: the new messages, and the next reply's header.

    Args:
      messages: the conversation, the model's last message included.
      new: the results that follow; with none, only what the format writes behind a turn (a newline in ChatML).
      tokenizer, tools, template: as in `render`.

    Raises:
      ValueError: where a Jinja template does not take such messages, or writes the earlier ones anew.
    """
    before = render(messages, tokenizer, tools=tools, template=template).ids
    ends = end_of_turn(tokenizer, template)
    behind = next((i for i in range(len(before), 0, -1) if before[i - 1] in ends), len(before))
    if not new:
        return before[behind:]
    after = render([*messages, *new], tokenizer, tools=tools, add_generation_prompt=True, template=template).ids
    if after[:len(before)] != before:
        raise ValueError("this chat template writes earlier messages anew when others follow, so the model's tokens "
                         "cannot be kept; use a format of which n messages are a prefix of n + 1")
    return after[behind:]
