"""Conversations to token ids and back: which tokens a model reads, and which of them the loss counts.

A chat format is one of FORMATS or a Jinja template, as published models carry. Either way the text of a message can
never become a special token, and text between special tokens is encoded in one piece, as Hugging Face does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.data.chat_formats import FORMATS, Piece
from jaxllm.data.chat_guard import special_pattern
from jaxllm.data.chat_jinja import Renderer
from jaxllm.data.chat_messages import Message, plain_messages, plain_tools
from jaxllm.data.chat_tools import CALLS, call_style, split_calls
from jaxllm.data.tokenizer import Tokenizer

# Special tokens that end a turn or a text in published models; a chat stops at those that its tokenizer has.
KNOWN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<eos>", "</s>",
              "<｜end▁of▁sentence｜>", "<|endoftext|>")


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as tokens.

    Attributes:
      ids: token ids.
      mask: one bool per id; True where the loss counts: the assistant's own tokens and the one that ends its turn.
    """

    ids: list[int]
    mask: list[bool]


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, tools: Sequence[Mapping[str, Any]] | None = None,
           add_generation_prompt: bool = False, template: str | None = None,
           variables: Mapping[str, Any] | None = None, mask: bool = True) -> Rendered:
    """Renders a conversation to token ids with the loss mask.

    n messages give a prefix of what n + 1 give, in every one of FORMATS. The ids are those of Hugging Face's
    `apply_chat_template` unless a message spells a special token, which stays text here.

    Args:
      messages: the OpenAI shape, see `chat_messages.plain_messages`.
      tokenizer: encodes the text; its special tokens are the only control tokens.
      tools: descriptions, each `{"type": "function", "function": {"name", "description", "parameters"}}`.
      add_generation_prompt: end with the header of the assistant's next turn. The result is a prompt: nothing in it
        counts.
      template: a name of FORMATS or the source of a Jinja template; None is the tokenizer's own.
      variables: more names for a Jinja template, such as bos_token or enable_thinking.
      mask: False where only the ids are wanted: nothing in the result counts. A Jinja template that does not mark
        the assistant's text is then run once, not once per reply.

    Returns:
      The ids, and the mask. A token that holds bytes of both a header and the reply does not count.

    Raises:
      ValueError: for a bad conversation (the sentence names the message by its index from 0), a format that the
        tokenizer lacks tokens for, a template with an error, or one of which the reply's tokens cannot be told.

    Note: `{% generation %}` decides what counts where a Jinja template has it, and the end-of-turn token right behind
      such a block counts too: a model that is never trained on it never stops.
    """
    template = _template(tokenizer, template)
    plain, tools = plain_messages(messages), plain_tools(tools)
    if template in FORMATS:
        _check_tokens(template, tokenizer)
        rendered = _encode(FORMATS[template].write(plain, tools, add_generation_prompt), tokenizer)
    else:
        renderer = Renderer(template, tokenizer.special_tokens, _named_tokens(tokenizer) | dict(variables or {}))
        pieces, broken = renderer.pieces(plain, tools, add_generation_prompt, mask)
        rendered = _encode(pieces, tokenizer, broken)
    counts = mask and not add_generation_prompt
    return rendered if counts else Rendered(rendered.ids, [False] * len(rendered.ids))


def end_of_turn(tokenizer: Tokenizer, template: str | None = None) -> tuple[int, ...]:
    """Ids at which generation of a reply stops: what ends a turn in this format first, then other ends of text.

    Args:
      tokenizer, template: as in `render`.

    Raises:
      ValueError: as `render`.
    """
    template = _template(tokenizer, template)
    if template in FORMATS:
        _check_tokens(template, tokenizer)
        spellings = FORMATS[template].ends
    else:
        spellings = Renderer(template, tokenizer.special_tokens).ends()
    ids = [tokenizer.special_tokens[token] for token in (*spellings, *KNOWN_ENDS) if token in tokenizer.special_tokens]
    return tuple(dict.fromkeys([*ids, tokenizer.end_of_text]))


def parse_reply(text: str, template: str | None = None) -> dict[str, Any]:
    """The message that a model's reply stands for.

    Args:
      text: what the model wrote after the generation prompt, special tokens spelled; the end-of-turn token may be
        there or not.
      template: a name of FORMATS or the source of a Jinja template, which tells how calls are written; None tries
        `<|tool_call|>` and `<tool_call>`.

    Returns:
      `{"role": "assistant", "content": text or None, "tool_calls": [...]}`, the last only where there are calls: in
      OpenAI's shape, with arguments as JSON text. Calls that are not JSON stay in the content.

    >>> parse_reply("Hello.<|im_end|>")
    {'role': 'assistant', 'content': 'Hello.'}
    """
    for ending in KNOWN_ENDS:
        text = text.removesuffix(ending)
    if template is None:
        styles = [style for style in ("im_sep", "hermes") if CALLS[style][0] in text]
    else:
        styles = [FORMATS[template].tool_calls if template in FORMATS else call_style(template)]
    calls: list[dict[str, Any]] = []
    for style in styles:
        text, found = split_calls(text, style)
        calls += found
    message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text}
    return {**message, "tool_calls": calls} if calls else message


def _template(tokenizer: Tokenizer, template: str | None) -> str:
    template = tokenizer.chat_template if template is None else template
    if not template:
        raise ValueError(f"the tokenizer {tokenizer.name} has no chat template: its model is one that continues text, "
                         f"not a chat model; name a format ({', '.join(FORMATS)}) if it was trained on one")
    if template not in FORMATS and "{" not in template:
        raise ValueError(f"the chat format {template!r} is unknown; choose one of {', '.join(FORMATS)}, or give the "
                         f"source of a Jinja template")
    return template


def _named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """What a template may call the tokens that the tokenizer knows by their part."""
    return {"bos_token": tokenizer.begin_token} if tokenizer.begin_token else {}


def _check_tokens(name: str, tokenizer: Tokenizer) -> None:
    missing = [token for token in FORMATS[name].needs if token not in tokenizer.special_tokens]
    if missing:
        raise ValueError(f"the chat format {name} needs the special tokens {', '.join(missing)}, which the tokenizer "
                         f"{tokenizer.name} lacks; choose another format or add them")


def _encode(pieces: Sequence[Piece], tokenizer: Tokenizer, drop: str = "") -> Rendered:
    """Ids of the pieces: special tokens where the format's own text spells them, the text between them in one go."""
    ids: list[int] = []
    mask: list[bool] = []
    run: list[tuple[str, bool]] = []
    pattern = special_pattern(tuple(tokenizer.special_tokens))

    def end_run() -> None:
        run_ids, run_mask = _encode_run([part for part in run if part[0]], tokenizer)
        ids.extend(run_ids)
        mask.extend(run_mask)
        run.clear()

    for piece in pieces:
        done = 0
        for match in pattern.finditer(piece.text) if piece.own else ():
            run.append((_without(piece.text[done:match.start()], drop), piece.counts))
            end_run()
            ids.append(tokenizer.special_tokens[match[0]])
            mask.append(piece.counts)
            done = match.end()
        run.append((_without(piece.text[done:], drop), piece.counts))
    end_run()
    return Rendered(ids, mask)


def _without(text: str, drop: str) -> str:
    return text.replace(drop, "") if drop else text


def _encode_run(parts: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Ids of adjoining texts as of one; a token counts when all of its bytes stand in parts that count."""
    ids = tokenizer.encode("".join(text for text, _ in parts))
    if len({counts for _, counts in parts}) < 2:
        return ids, [bool(parts and parts[0][1])] * len(ids)
    counted = b"".join((b"\1" if counts else b"\0") * len(text.encode()) for text, counts in parts)
    mask, start = [], 0
    for id in ids:
        end = start + len(tokenizer.encoding.decode_single_token_bytes(id))
        mask.append(b"\0" not in counted[start:end])
        start = end
    return ids, mask
