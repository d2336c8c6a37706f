"""The chat formats that need no template: each turns plain messages into pieces of text.

A piece is the format's own text, in which special tokens are meant, or a foreign one (what somebody wrote), in which
their spelling is only text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None


class Piece(NamedTuple):
    """Some text of a rendered conversation: whose it is, and whether the loss counts it."""

    text: str
    own: bool
    counts: bool = False


@dataclasses.dataclass(frozen=True)
class Format:
    """A chat format.

    Attributes:
      write: function (messages, tools, add_generation_prompt) -> pieces.
      needs: the special tokens that it is made of.
      ends: those that end the assistant's turn; any of them may be missing in a tokenizer but the first.
      tool_calls: how calls are spelled, a key of `chat_tools.CALLS`, or None where the format has none.
    """

    write: Callable[[Messages, Tools, bool], list[Piece]]
    needs: tuple[str, ...]
    ends: tuple[str, ...]
    tool_calls: str | None


def own(text: str, counts: bool = False) -> Piece:
    """The format's own text: special tokens in it are meant."""
    return Piece(text, True, counts)


def foreign(text: str, counts: bool = False) -> Piece:
    """What somebody wrote: a special token's spelling in it is text."""
    return Piece(text, False, counts)


def to_json(value: Any) -> str:
    """JSON on one line, letters beyond ASCII as they are."""
    return json.dumps(value, ensure_ascii=False)


def _with_tools(messages: Messages, tools: Tools, how: str) -> Messages:
    """The conversation with the tools described at the end of its system message, made if there is none."""
    if not tools:
        return messages
    lines = "\n".join(to_json(tool["function"]) for tool in tools)
    described = f"You can call these functions, one JSON description per line:\n{lines}\n{how}"
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": described}, *messages]
    return [{**messages[0], "content": f"{messages[0]['content']}\n\n{described}"}, *messages[1:]]


def write_im_sep(messages: Messages, tools: Tools, add_generation_prompt: bool) -> list[Piece]:
    """<|im_start|>role<|im_sep|>content<|im_end|>, nothing between turns: no text ever meets a header."""
    pieces = []
    how = 'To call one, write its JSON object {"name": ..., "arguments": {...}} as a tool call.'
    for message in _with_tools(messages, tools, how):
        role, content = message["role"], message.get("content", "")
        counts = role == "assistant"
        pieces.append(own(f"<|im_start|>{role}<|im_sep|>"))
        if role == "tool":
            pieces += [own("<|tool_result|>"), foreign(content), own("<|tool_end|>")]
        else:
            pieces.append(foreign(content, counts))
        for call in message.get("tool_calls", ()):
            pieces += [own("<|tool_call|>", True), foreign(to_json(_named(call)), True), own("<|tool_end|>", True)]
        pieces.append(own("<|im_end|>", counts))
    return [*pieces, own("<|im_start|>assistant<|im_sep|>")] if add_generation_prompt else pieces


def write_chatml(messages: Messages, tools: Tools, add_generation_prompt: bool) -> list[Piece]:
    """<|im_start|>role newline content<|im_end|> newline; calls and results in Hermes' and Qwen's tags."""
    pieces = []
    how = ('To call one, write its JSON object {"name": ..., "arguments": {...}} between <tool_call> and '
           '</tool_call>.')
    for message in _with_tools(messages, tools, how):
        role, content = message["role"], message.get("content", "")
        counts = role == "assistant"
        pieces.append(own(f"<|im_start|>{'user' if role == 'tool' else role}\n"))
        if role == "tool":
            pieces += [own("<tool_response>\n"), foreign(content), own("\n</tool_response>")]
        else:
            pieces.append(foreign(content, counts))
        for number, call in enumerate(message.get("tool_calls", ())):
            line = "\n" if content or number else ""
            pieces += [own(f"{line}<tool_call>\n", True), foreign(to_json(_named(call)), True),
                       own("\n</tool_call>", True)]
        pieces += [own("<|im_end|>", counts), own("\n")]
    return [*pieces, own("<|im_start|>assistant\n")] if add_generation_prompt else pieces


def write_llama3(messages: Messages, tools: Tools, add_generation_prompt: bool) -> list[Piece]:
    """<|start_header_id|>role<|end_header_id|>, two newlines, content without outer space, <|eot_id|>."""
    pieces = [own("<|begin_of_text|>")]
    how = 'To call one, answer with its JSON object {"name": ..., "parameters": {...}} and nothing else.'
    turns = _with_tools(messages, tools, how)
    for i, message in enumerate(turns, len(messages) - len(turns)):
        role, content, calls = message["role"], message.get("content", "").strip(), message.get("tool_calls", ())
        if len(calls) > 1 or calls and content:
            raise ValueError(f"message {i}: in the llama3 format a message is a text or one tool call, not both and "
                             f"not several; write it as several messages")
        for call in calls:
            content = to_json(_named(call, "parameters"))
        counts = role == "assistant"
        pieces += [own(f"<|start_header_id|>{'ipython' if role == 'tool' else role}<|end_header_id|>\n\n"),
                   foreign(to_json(content) if role == "tool" else content, counts), own("<|eot_id|>", counts)]
    return [*pieces, own("<|start_header_id|>assistant<|end_header_id|>\n\n")] if add_generation_prompt else pieces


def write_gemma(messages: Messages, tools: Tools, add_generation_prompt: bool) -> list[Piece]:
    """<start_of_turn>user or model, newline, content without outer space, <end_of_turn> newline.

    The system message goes before the first user's text; there are no tools.
    """
    if tools:
        raise ValueError("the gemma format has no tools; use another chat format")
    pieces, system = [own("<bos>")], ""
    for i, message in enumerate(messages):
        role, content = message["role"], message.get("content", "").strip()
        if role == "tool" or message.get("tool_calls"):
            raise ValueError(f"message {i}: the gemma format has no tool calls and results")
        if role == "system":
            if i or len(messages) == 1 or messages[1]["role"] != "user":
                raise ValueError(f"message {i}: in the gemma format a system message comes first and a user's "
                                 f"message follows it")
            system = f"{message['content']}\n\n"
            continue
        counts = role == "assistant"
        pieces += [own(f"<start_of_turn>{'model' if counts else role}\n"), foreign(system + content, counts),
                   own("<end_of_turn>", counts), own("\n")]
        system = ""
    return [*pieces, own("<start_of_turn>model\n")] if add_generation_prompt else pieces


def _named(call: Mapping[str, Any], arguments: str = "arguments") -> dict[str, Any]:
    return {"name": call["function"]["name"], arguments: call["function"]["arguments"]}


FORMATS: Mapping[str, Format] = {
    "im_sep": Format(write_im_sep, ("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|tool_call|>", "<|tool_result|>",
                                    "<|tool_end|>"), ("<|im_end|>",), "im_sep"),
    "chatml": Format(write_chatml, ("<|im_start|>", "<|im_end|>"), ("<|im_end|>",), "hermes"),
    "llama3": Format(write_llama3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
                     ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"), "json"),
    "gemma": Format(write_gemma, ("<bos>", "<start_of_turn>", "<end_of_turn>"), ("<end_of_turn>", "<eos>"), None),
}
