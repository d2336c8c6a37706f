"""Grammars that the model's text must follow: JSON, JSON by a schema, a call of one of some tools.

llguidance turns a schema into a parser and, before each token, gives the set of tokens that keep the text a
prefix of something valid. It works on the bytes of the tokens, so a character may be spread over several.

JSON is written on one line as Python's json.dumps does (", " and ": ", no other white space): where white space
is free, a small model may write nothing else until its tokens are spent.

References: https://github.com/guidance-ai/llguidance; Geng et al., JSONSchemaBench, 2025.
https://arxiv.org/abs/2501.10868
"""

from __future__ import annotations

import copy
import functools
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.data.tokenizer import Tokenizer
from jaxllm.serve.errors import ApiError

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_CACHED = 64


class Grammars:
    """Makes constraints over a tokenizer's tokens; compiled schemas are kept for the next request.

    Args:
      tokenizer: of the model.
      vocab_size: the model's, V; ids that the tokenizer lacks are never allowed.
      stop_tokens: ids that may end the text once it is whole, and only then.

    Raises:
      ModuleNotFoundError: when llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_tokens: Sequence[int]) -> None:
        try:
            from llguidance import LLMatcher
            from llguidance.tiktoken import lltokenizer_from_encoding
        except ImportError as error:
            raise ModuleNotFoundError("grammars need llguidance: pip install -e '.[serve]'") from error
        self._matcher = LLMatcher
        # Their ids may have gaps at the end of the tokenizer or of the model: the larger size holds both.
        size = max(vocab_size, tokenizer.vocab_size)
        self._tokens = lltokenizer_from_encoding(tokenizer.encoding, n_vocab=size, eos_token=list(stop_tokens))
        self._vocab_size = vocab_size
        self._stop_tokens = frozenset(stop_tokens)
        self._lock = threading.Lock()
        self._compiled = functools.lru_cache(_CACHED)(self._compile)

    def json_object(self) -> GrammarConstraint:
        """Any JSON object."""
        return self.json_schema({"type": "object"}, param="response_format")

    def json_schema(self, schema: Mapping[str, Any], *, param: str = "response_format") -> GrammarConstraint:
        """JSON that the schema allows.

        Raises:
          ApiError: 400 for a schema that is wrong or uses what llguidance cannot hold; it says what.
        """
        text = json.dumps(schema, sort_keys=False)
        with self._lock:  # the cache's entry is copied, and a copy of one that is in use would not be whole
            matcher = self._compiled(text, param).deep_copy()
        return GrammarConstraint(matcher, self._vocab_size, self._stop_tokens)

    def tool_call(self, functions: Sequence[Mapping[str, Any]], key: str = "arguments") -> GrammarConstraint:
        """{"name": one of the functions, "arguments": by its schema}.

        Args:
          functions: OpenAI's function objects: name, and parameters (a JSON schema) if there are any.
          key: what the model calls the arguments.
        """
        return self.json_schema(call_schema(functions, key), param="tools")

    def _compile(self, text: str, param: str) -> Any:
        try:
            grammar = self._matcher.grammar_from_json_schema(text, overrides=_LAYOUT)
        except ValueError as error:
            raise ApiError(400, f"{param}: this is no JSON schema: {error}", param=param) from error
        matcher = self._matcher(self._tokens, grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some limits are met only here
        if matcher.is_error():
            reason = matcher.get_error().split("\n<state>")[0].strip()[:500]
            raise ApiError(400, f"{param}: the schema cannot be turned into a grammar: {reason}", param=param,
                           code="unsupported_schema")
        return matcher


class GrammarConstraint:
    """The state of one text under a grammar, as the engine asks for it; for one thread.

    Attributes:
      error: why the grammar gave up (its own limits), or "". The text then ends where it is.
    """

    def __init__(self, matcher: Any, vocab_size: int, stop_tokens: frozenset[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._stop = np.zeros(vocab_size, bool)
        self._stop[[token for token in stop_tokens if token < vocab_size]] = True
        self._stop_tokens = stop_tokens
        self.error = ""

    def copy(self) -> GrammarConstraint:
        """One of its own for another text, in the same state."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def allowed(self) -> np.ndarray:
        """bool [V], the tokens that may come next; the stop tokens alone once the text is whole."""
        if self._matcher.is_stopped():
            self.error = self._matcher.get_error()
            return self._stop
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(packed, bitorder="little", count=self._vocab_size).astype(bool)
        if self._matcher.is_error() or not allowed.any():
            self.error = self._matcher.get_error() or "no token of the model can continue the text"
            return self._stop
        return allowed

    def accept(self, token: int) -> None:
        """Takes the token that was drawn."""
        if token not in self._stop_tokens and not self._matcher.is_stopped():
            self._matcher.consume_token(token)


def call_schema(functions: Sequence[Mapping[str, Any]], key: str = "arguments") -> dict[str, Any]:
    """The JSON schema of a call of one of the functions.

    Each function's parameters stand whole under `$defs`, and the references inside them are led there.

    >>> call_schema([{"name": "now"}])["anyOf"][0]["properties"]["name"]
    {'const': 'now'}
    """
    calls, parameters = [], {}
    for i, function in enumerate(functions):
        parameters[f"function{i}"] = _moved(function.get("parameters") or {"type": "object"}, f"#/$defs/function{i}")
        calls.append({"type": "object", "properties": {"name": {"const": function["name"]},
                                                       key: {"$ref": f"#/$defs/function{i}"}},
                      "required": ["name", key], "additionalProperties": False})
    return {"anyOf": calls, "$defs": parameters}


def _moved(schema: Any, root: str) -> Any:
    if isinstance(schema, list):
        return [_moved(part, root) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: root + value[1:] if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root) for key, value in schema.items()}
