"""Jinja chat templates, as Hugging Face writes them, with content that cannot speak as the template.

A template is run in Jinja's sandbox with the names that transformers gives it. Where a message spells a special token,
a private character goes into the spelling before the template runs and comes out afterwards, once the special tokens
that the template itself wrote have been found.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from jaxllm.data.chat_formats import Messages, Piece, Tools
from jaxllm.data.chat_guard import Marks, free_marks, guard_of, special_pattern, strings

# What templates call the special tokens that they do not spell out; the first that the tokenizer has is meant.
NAMED_TOKENS: Mapping[str, tuple[str, ...]] = {
    "bos_token": ("<|begin_of_text|>", "<bos>", "<s>", "<｜begin▁of▁sentence｜>"),
    "eos_token": ("<|eot_id|>", "<|im_end|>", "<eos>", "</s>", "<｜end▁of▁sentence｜>", "<|endoftext|>"),
    "pad_token": ("<pad>", "<|endoftext|>"),
    "unk_token": ("<unk>", "<|endoftext|>"),
}
_OPENING = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Renderer:
    """One template with the special tokens of one tokenizer.

    Args:
      source: the template.
      special_tokens: the tokenizer's spellings.
      variables: more names for the template, such as bos_token or enable_thinking.

    Raises:
      ValueError: when the source is not a Jinja template.
    """

    def __init__(self, source: str, special_tokens: Iterable[str], variables: Mapping[str, Any] | None = None):
        self.source, self.special_tokens = source, tuple(special_tokens)
        self.template = _compile(source)
        named = {name: next((token for token in tokens if token in self.special_tokens), None)
                 for name, tokens in NAMED_TOKENS.items()}
        self.variables = {name: token for name, token in named.items() if token} | dict(variables or {})
        self.guard = guard_of(self.special_tokens)
        self.pattern = special_pattern(self.special_tokens)

    def pieces(self, messages: Messages, tools: Tools, add_generation_prompt: bool, mask: bool = True
               ) -> tuple[list[Piece], str]:
        """Renders a conversation.

        Args:
          mask: False where it need not be told which text is the assistant's.

        Returns:
          (pieces, a character to leave out of their text once the special tokens are found).

        Raises:
          ValueError: for an error in the template or one that it raises itself, and when it cannot be told which
            text is the assistant's.
        """
        marks = free_marks([self.source, *strings(messages), *strings(tools or [])])
        text, spans = self.run(messages, tools, add_generation_prompt, marks)
        if add_generation_prompt or not mask:
            spans = []
        elif _OPENING.search(self.source):
            spans = [(start, self._with_end(text, end)) for start, end in spans]
        else:
            spans = self._spans(text, messages, tools, marks)
        pieces, done = [], 0
        for start, end in spans:
            start = max(start, done)  # a block may begin with the end of the turn that the one before was given
            pieces += [Piece(text[done:start], True), Piece(text[start:max(start, end)], True, True)]
            done = max(done, end)
        return [*pieces, Piece(text[done:], True)], marks.broken

    def run(self, messages: Messages, tools: Tools, add_generation_prompt: bool, marks: Marks
            ) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text, still with `marks.broken` in it, and the spans of its generation blocks."""
        names = self.variables | {"messages": self.guard(messages, marks.broken),
                                  "tools": self.guard(tools, marks.broken), "documents": None,
                                  "add_generation_prompt": add_generation_prompt, "generation_marks": marks}
        try:
            text = self.template.render(names)
        except Exception as error:  # a template can fail in any way that Python can
            raise ValueError(f"the chat template refuses this conversation: {error}") from error
        # A template may ask for JSON in ASCII.
        text = text.replace(json.dumps(marks.broken)[1:-1], marks.broken)
        parts, spans = re.split(f"([{marks.opening}{marks.closing}])", text), []
        length, start = 0, 0
        for part in parts:
            if part == marks.opening:
                start = length
            elif part == marks.closing:
                spans.append((start, length))
            else:
                length += len(part)
        return "".join(part for part in parts if part not in marks[1:]), spans

    def ends(self) -> tuple[str, ...]:
        """The special tokens with which the template ends an assistant's turn, found by trying."""
        call = {"type": "function", "id": "call00000", "function": {"name": "lookup", "arguments": {}}}
        plain, calling = {"content": "Gladly so."}, {"content": "", "tool_calls": [call]}
        found = []
        if at_end := self._after(plain, "Gladly so.", False):
            within = self._after(plain, "Gladly so.", True) or at_end
            # What follows the reply at once, whether or not a turn follows: the last of it ends the turn.
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1],
                                                      zip(at_end, within, strict=False)))
            found.append(at_end[max(same, 1) - 1])
        behind = self._after(calling, "lookup", False, adjoining=False)
        if behind and not set(behind) & set(found):  # a call may end by a token of its own
            found.append(behind[-1])
        return tuple(found)

    def _after(self, reply: dict[str, Any], words: str, followed: bool, adjoining: bool = True) -> list[str]:
        """The special tokens behind the words of a reply; with `adjoining` only those before any text."""
        messages = [{"role": "user", "content": "Please do."}, {"role": "assistant", **reply},
                    {"role": "user", "content": "Go on."}]
        try:
            text, _ = self.run(messages if followed else messages[:2], None, False, free_marks([self.source]))
        except ValueError:  # it may have no tool calls
            return []
        at = text.rfind(words)
        if at < 0:
            return []
        found, done = [], at + len(words)
        for match in self.pattern.finditer(text, done):
            if adjoining and found and match.start() != done:
                break
            found.append(match[0])
            done = match.end()
        return found

    def _with_end(self, text: str, end: int) -> int:
        """Where the turn that a generation block holds ends: its end-of-turn token may stand just behind."""
        match = self.pattern.match(text, end)
        return match.end() if match and match[0] in self.ends() else end

    def _spans(self, text: str, messages: Messages, tools: Tools, marks: Marks) -> list[tuple[int, int]]:
        """The assistant's text in a template that does not mark it: from where a prompt would end to the turn's end."""
        ends, spans = self.ends(), []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = self._start(text, messages[:i], tools, marks)
            if start is None or spans and start < spans[-1][1]:
                raise ValueError(
                    f"message {i}: the chat template writes what comes before this reply differently once the reply "
                    f"is there, so it cannot be told which tokens are the assistant's; put {{% generation %}} and "
                    f"{{% endgeneration %}} around them in the template")
            end = next((match.end() for match in self.pattern.finditer(text, start) if match[0] in ends), None)
            if end is None and i + 1 < len(messages):
                raise ValueError(f"message {i}: the chat template does not end the assistant's turn by a special "
                                 f"token; put {{% generation %}} and {{% endgeneration %}} around the turn in it")
            spans.append((start, len(text) if end is None else end))
        return spans


    def _start(self, text: str, before: Messages, tools: Tools, marks: Marks) -> int | None:
        """Where the reply to these messages begins in the text: where a prompt for it would end.

        A template that begins some replies for the model (with <think>, say) may not have it so in the past; the
        header is then what the two have in common, up to its last special token or line.
        """
        prompt, _ = self.run(before, tools, True, marks)
        if text.startswith(prompt):
            return len(prompt)
        past, _ = self.run(before, tools, False, marks)
        if not text.startswith(past) or not prompt.startswith(past):
            return None
        common = len(os.path.commonprefix([text, prompt]))
        ends = [match.end() for match in self.pattern.finditer(prompt, len(past), common)]
        line = prompt.rfind("\n", len(past), common) + 1
        return max([line, *ends], default=0) or None


@functools.lru_cache(64)
def _compile(source: str):
    """The template in transformers' environment."""
    class Generation(jinja2.ext.Extension):
        """{% generation %} ... {% endgeneration %}: what is between is the assistant's."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            marks = jinja2.nodes.Name("generation_marks", "load")
            return jinja2.nodes.CallBlock(self.call_method("_marked", [marks]), [], [], body).set_lineno(line)

        def _marked(self, marks, caller):
            return marks.opening + caller() + marks.closing

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from error
