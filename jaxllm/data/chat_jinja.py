"""Jinja chat templates, as Hugging Face writes them, with content that cannot speak as the template.

A template is run in Jinja's sandbox with the names that transformers gives it. Where a message spells a special token,
a private character goes into the spelling before the template runs and comes out afterwards, once the special tokens
that the template itself wrote have been found.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxllm.data.chat_formats import Messages, Piece, Tools
from jaxllm.data.chat_messages import ROLES

# What templates call the special tokens that they do not spell out; the first that the tokenizer has is meant.
NAMED_TOKENS: Mapping[str, tuple[str, ...]] = {
    "bos_token": ("<|begin_of_text|>", "<bos>", "<s>", "<｜begin▁of▁sentence｜>"),
    "eos_token": ("<|eot_id|>", "<|im_end|>", "<eos>", "</s>", "<｜end▁of▁sentence｜>", "<|endoftext|>"),
    "pad_token": ("<pad>", "<|endoftext|>"),
    "unk_token": ("<unk>", "<|endoftext|>"),
}
_OPENING = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Marks(NamedTuple):
    """Three characters that occur nowhere else: inside spelled special tokens, and around the generation blocks."""

    broken: str
    opening: str
    closing: str


class Renderer:
    """One template with the special tokens of one tokenizer.

    Args:
      source: the template.
      special_tokens: the tokenizer's spellings.
      variables: more names for the template, such as bos_token or enable_thinking.

    Raises:
      ValueError: when the source is not a Jinja template.
      ImportError: without jinja2.
    """

    def __init__(self, source: str, special_tokens: Iterable[str], variables: Mapping[str, Any] | None = None):
        self.source, self.special_tokens = source, tuple(special_tokens)
        self.template = _compile(source)
        named = {name: next((token for token in tokens if token in self.special_tokens), None)
                 for name, tokens in NAMED_TOKENS.items()}
        self.variables = {name: token for name, token in named.items() if token} | dict(variables or {})
        self.guard = guard_of(self.special_tokens)
        self.pattern = special_pattern(self.special_tokens)

    def pieces(self, messages: Messages, tools: Tools, add_generation_prompt: bool) -> tuple[list[Piece], str]:
        """Renders a conversation.

        Returns:
          (pieces, a character to leave out of their text once the special tokens are found).

        Raises:
          ValueError: for an error in the template or one that it raises itself, and when it cannot be told which
            text is the assistant's.
        """
        marks = _free_marks([self.source, *_strings(messages), *_strings(tools or [])])
        text, spans = self.run(messages, tools, add_generation_prompt, marks)
        if add_generation_prompt:
            spans = []
        elif _OPENING.search(self.source):
            spans = [(start, self._with_end(text, end)) for start, end in spans]
        else:
            spans = self._spans(text, messages, tools, marks)
        pieces, done = [], 0
        for start, end in spans:
            pieces += [Piece(text[done:start], True), Piece(text[start:end], True, True)]
            done = end
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
        found = []
        for reply in ({"content": "Gladly so."}, {"content": "", "tool_calls": [call]}):
            messages = [{"role": "user", "content": "Please do."}, {"role": "assistant", **reply}]
            try:
                text, _ = self.run(messages, None, False, _free_marks([self.source]))
            except ValueError:  # it may have no tool calls
                continue
            after = max(text.rfind("Gladly so."), text.rfind("lookup"))
            matches = [match[0] for match in self.pattern.finditer(text, max(after, 0))]
            if after >= 0 and matches and not set(matches) & set(found):  # a call may end by a token of its own
                found.append(matches[-1] if found else matches[0])
        return tuple(found)

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
            before, _ = self.run(messages[:i], tools, True, marks)
            start = len(before)
            if not text.startswith(before) or spans and start < spans[-1][1]:
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


class Guard:
    """Puts a character into every special token that foreign text spells, or could spell with what is around it."""

    def __init__(self, special_tokens: Sequence[str]):
        self.spelled = re.compile(special_pattern(tuple(special_tokens)).pattern, re.IGNORECASE)
        whole = [token for token in special_tokens if len(token) > 1]
        self.starts = {token[:k] for token in whole for k in range(1, len(token))}
        self.ends = {token[k:] for token in whole for k in range(1, len(token))}
        self.firsts = {case for token in special_tokens for case in (token[:1].lower(), token[:1].upper())}
        self.insides = "\0".join(token[1:-1] for token in whole)
        self.reach = max(map(len, whole), default=1)

    def __call__(self, value: Any, mark: str) -> Any:
        """Any JSON value with its strings and keys guarded, but for the words that steer a template."""
        if isinstance(value, str):
            return self._edges(self._spellings(value, mark), mark)
        if isinstance(value, Mapping):
            return {self._spellings(key, mark): item if _steers(key, item) else self(item, mark)
                    for key, item in value.items()}
        return [self(item, mark) for item in value] if isinstance(value, list) else value

    def _spellings(self, text: str, mark: str) -> str:
        if not any(first in text for first in self.firsts):  # far quicker than the search
            return text
        return self.spelled.sub(lambda match: match[0][:1] + mark + match[0][1:], text)

    def _edges(self, text: str, mark: str) -> str:
        """A text is guarded also where the template would write the beginning or the end of a special token."""
        core = text.strip()
        start = text.index(core)
        end = start + len(core)
        if core and core in self.insides:
            return text[:start + 1] + mark + text[start + 1:]
        if any(core[-k:] in self.starts for k in range(1, self.reach)):
            text = text[:end] + mark + text[end:]
        if any(core[:k] in self.ends for k in range(1, self.reach)):
            text = text[:start] + mark + text[start:]
        return text



@functools.lru_cache(16)
def guard_of(special_tokens: tuple[str, ...]) -> Guard:
    """The guard against these special tokens."""
    return Guard(special_tokens)


def _steers(key: str, value: Any) -> bool:
    """Words that a template compares or puts into a special token of its own; they are checked before."""
    return key == "role" and value in ROLES or key == "type" and value == "function"


@functools.lru_cache(64)
def special_pattern(special_tokens: tuple[str, ...]) -> re.Pattern:
    """Finds special tokens in a text, of several at one place the longest."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _free_marks(texts: Iterable[str]) -> Marks:
    """Characters of a private plane that no text holds; they are neither space nor letter to a template."""
    used = set().union(*map(set, texts))
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    try:
        return Marks(next(free), next(free), next(free))
    except StopIteration:
        raise ValueError("the conversation uses every character of Unicode's private plane 15") from None


@functools.lru_cache(64)
def _compile(source: str):
    """The template in transformers' environment."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError as error:
        raise ImportError("this model's chat template needs jinja2: pip install -e '.[serve]'") from error

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
