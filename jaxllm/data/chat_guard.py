"""Text of others inside a template's text: special tokens that it spells are broken until the template has run."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxllm.data.chat_messages import ROLES


class Marks(NamedTuple):
    """Three characters that occur nowhere else: inside spelled special tokens, and around the generation blocks."""

    broken: str
    opening: str
    closing: str


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


def strings(value: Any) -> Iterable[str]:
    """Every text in a tree of mappings and lists, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


def free_marks(texts: Iterable[str]) -> Marks:
    """Characters of a private plane that no text holds; they are neither space nor letter to a template."""
    used = set().union(*map(set, texts))
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    try:
        return Marks(next(free), next(free), next(free))
    except StopIteration:
        raise ValueError("the conversation uses every character of Unicode's private plane 15") from None
