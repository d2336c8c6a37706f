"""Tools that a model may call: what they are called, what they take, and the text that they answer.

Whatever a model writes, a call answers with text of bounded length: the result, or a sentence that says what was wrong,
which the model reads like any result. The tools themselves stand in `tool_search`, `tool_calculator` and
`tool_python`, the loop that runs them in `tool_loop`.

References: Schick et al., Toolformer, 2023. https://arxiv.org/abs/2302.04761 Yao et al., ReAct, 2022.
https://arxiv.org/abs/2210.03629
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

# JSON Schema's names of types -> what json.loads makes of them; a bool is no number here, as in JSON.
TYPES: Mapping[str, tuple[type, ...]] = {"string": (str,), "number": (int, float), "integer": (int,),
                                         "boolean": (bool,), "array": (list, tuple), "object": (dict,)}
# The keywords that calls are checked against; a description with any other is refused, so that none goes unheeded.
KEYWORDS = {"type", "description", "enum", "minimum", "maximum", "maxLength", "items", "properties", "required",
            "additionalProperties"}


class ToolError(Exception):
    """What a tool tells the model when a call cannot be answered."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
      name: letters, digits and underscores.
      description: one or two sentences, for the model.
      parameters: JSON Schema of the arguments, an object; of its keywords those of KEYWORDS.
      function: called with the arguments by name, returns the result. Any thread may call it, several at once; it
        must end by itself. A ToolError or ValueError is told to the model with its sentence, of any other exception
        only the name is told.
      max_chars: characters of a result; a longer one is cut and says so.

    Raises:
      ValueError: for a name or schema that cannot be.

    >>> add = Tool("add", "Adds two numbers.", {"type": "object", "required": ["a", "b"],
    ...            "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}, lambda a, b: str(a + b))
    >>> add.call({"a": 1, "b": 2}), add.call({"a": 1})
    ('3', 'error: the argument b is missing')
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., str]
    max_chars: int = 2000

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or not self.name.isascii():
            raise ValueError(f"the name of a tool must be letters, digits and underscores, not {self.name!r}")
        if self.parameters.get("type") != "object":
            raise ValueError(f'the parameters of {self.name} must be a schema of {{"type": "object"}}')
        if self.max_chars < 1:
            raise ValueError(f"max_chars of {self.name} is {self.max_chars}; it must be at least 1")
        _check_schema(self.parameters, self.name)

    def describe(self) -> dict[str, Any]:
        """The description as `render` and OpenAI's API take it."""
        return {"type": "function", "function": {"name": self.name, "description": self.description,
                                                 "parameters": dict(self.parameters)}}

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Runs the tool and returns text in every case.

        Args:
          arguments: what the model wrote; any JSON object.

        Returns:
          At most about max_chars characters of valid Unicode; errors begin with "error: ".
        """
        try:
            problem = check_arguments(arguments, self.parameters)
            text = f"error: {problem}" if problem else str(self.function(**arguments))
        except (ToolError, ValueError) as error:
            text = f"error: {error}"
        except Exception as error:  # the loop must go on; the sentence may hold what is not for the model
            text = f"error: {self.name} failed ({type(error).__name__})"
        return bounded(text, self.max_chars)


def bounded(text: str, max_chars: int) -> str:
    """The text, cut to max_chars characters with a note if it is longer; lone surrogates become question marks.

    >>> bounded("abcdef", 3)
    'abc [cut: 6 characters in all]'
    """
    if len(text) > max_chars:
        text = f"{text[:max_chars]} [cut: {len(text)} characters in all]"
    return text.encode("utf-8", "replace").decode()


def check_arguments(value: Any, schema: Mapping[str, Any], name: str = "") -> str | None:
    """What is wrong with a value by its schema, as a sentence for the model, or None."""
    what = f"the argument {name}" if name else "the arguments"
    expected = schema.get("type")
    if expected and not _is_of(value, expected):
        return f"{what} must be of type {expected}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{what} must be one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value) or value < schema.get("minimum", value) or value > schema.get("maximum", value):
            return (f"{what} must be a number from {schema.get('minimum', 'any')} to {schema.get('maximum', 'any')}")
    if isinstance(value, str) and len(value) > schema.get("maxLength", len(value)):
        return f"{what} is too long: {len(value)} characters, at most {schema['maxLength']} are allowed"
    if isinstance(value, (list, tuple)) and "items" in schema:
        problems = (check_arguments(item, schema["items"], f"{name}[{i}]") for i, item in enumerate(value))
        return next(filter(None, problems), None)
    return _check_object(value, schema, name) if isinstance(value, Mapping) else None


def _check_object(value: Mapping[str, Any], schema: Mapping[str, Any], name: str) -> str | None:
    properties, prefix = schema.get("properties", {}), f"{name}." if name else ""
    for key in schema.get("required", ()):
        if key not in value:
            return f"the argument {prefix}{key} is missing"
    for key, item in value.items():
        if key in properties:
            if problem := check_arguments(item, properties[key], f"{prefix}{key}"):
                return problem
        elif not schema.get("additionalProperties", False):
            return f"there is no argument {prefix}{key[:50]}; there are: {', '.join(properties) or 'none'}"
    return None


def _is_of(value: Any, name: str) -> bool:
    if name == "object":
        return isinstance(value, Mapping)
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _check_schema(schema: Mapping[str, Any], where: str) -> None:
    if unknown := set(schema) - KEYWORDS:
        raise ValueError(f"the parameters of {where} use {', '.join(sorted(unknown))}, which is not checked here; use "
                         f"{', '.join(sorted(KEYWORDS))}")
    if schema.get("type", "string") not in TYPES:
        raise ValueError(f"the type {schema['type']!r} in the parameters of {where} is none of {', '.join(TYPES)}")
    for part in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        _check_schema(part, where)
