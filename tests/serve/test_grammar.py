"""Text under a grammar always parses and validates, whatever a random model draws."""

import json

import numpy as np
import pytest

from jaxllm.data.chat import end_of_turn

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("llguidance", reason="needs the extra `serve`")
jsonschema = pytest.importorskip("jsonschema", reason="needs the package jsonschema")

from jaxllm.serve.errors import ApiError  # noqa: E402
from jaxllm.serve.grammar import Grammars, call_schema  # noqa: E402

PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "größe", "tags", "child"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "größe": {"type": "number", "minimum": -10, "maximum": 10},
        "tags": {"type": "array", "items": {"enum": ["日本", "é", "\"quoted\"", "🙂"]}, "minItems": 1, "maxItems": 3},
        "child": {"anyOf": [{"type": "null"}, {
            "type": "object", "properties": {"id": {"type": "integer", "minimum": 0, "maximum": 999},
                                             "ok": {"type": "boolean"}},
            "required": ["id", "ok"], "additionalProperties": False}]}}}
SCHEMAS = [PERSON, {"type": "string", "pattern": "^[a-f]{3}-[0-9]{2}$"}, {"enum": [1, "two", None, [3]]},
           {"type": "array", "items": {"type": "string", "format": "date"}, "minItems": 2, "maxItems": 2}]


@pytest.fixture(scope="module")
def grammars(model):
    _, config, tokenizer = model
    return Grammars(tokenizer, config.vocab_size, end_of_turn(tokenizer))


def written(constraint, tokenizer, rng, most=2000):
    """A text whose every token is drawn evenly from those that are allowed: worse than any model."""
    ids = []
    while len(ids) < most:
        allowed = constraint.allowed()
        assert allowed.any() and not constraint.error
        token = int(rng.choice(np.flatnonzero(allowed)))
        constraint.accept(token)
        if token in end_of_turn(tokenizer):
            return tokenizer.decode_bytes(ids).decode("utf-8")
        ids.append(token)
    raise AssertionError("the text does not end")


@pytest.mark.parametrize("schema", SCHEMAS, ids=["nested", "pattern", "enum", "dates"])
def test_any_draw_validates(grammars, model, schema):
    rng, checker = np.random.default_rng(0), jsonschema.Draft202012Validator(schema)
    texts = {written(grammars.json_schema(schema), model[2], rng) for _ in range(60)}
    assert len(texts) >= (4 if "enum" in schema else 40)
    for text in texts:
        value = json.loads(text)
        checker.validate(value)
        assert text == json.dumps(value, ensure_ascii=False) or "\\u" in text or "e" in text.lower() or "." in text


def test_only_the_end_may_follow_a_whole_text(grammars, model):
    constraint = grammars.json_schema({"const": 7})
    for token in model[2].encode("7"):
        assert constraint.allowed()[token] and constraint.allowed().sum() == 1
        constraint.accept(token)
    assert set(np.flatnonzero(constraint.allowed())) == set(end_of_turn(model[2]))


def test_copies_go_their_own_ways(grammars, model):
    first = grammars.json_schema({"enum": ["aa", "bb"]})
    for token in model[2].encode('"'):
        first.accept(token)
    second = first.copy()
    a, b = model[2].encode("a")[0], model[2].encode("b")[0]
    first.accept(a)
    assert second.allowed()[b] and not first.allowed()[b]


def test_a_call_names_a_function_and_follows_its_own_references(grammars, model):
    functions = [{"name": "now"}, {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"$ref": "#/$defs/number"}}, "required": ["a"],
        "additionalProperties": False, "$defs": {"number": {"type": "integer", "minimum": 3, "maximum": 5}}}}]
    rng = np.random.default_rng(1)
    calls = [json.loads(written(grammars.tool_call(functions[1:]), model[2], rng)) for _ in range(20)]
    assert {call["name"] for call in calls} == {"add"} and {call["arguments"]["a"] for call in calls} == {3, 4, 5}
    jsonschema.Draft202012Validator.check_schema(call_schema(functions))
    assert call_schema(functions)["anyOf"][0]["properties"]["name"] == {"const": "now"}


@pytest.mark.parametrize("schema, sentence", [
    ({"type": "object", "not": {}}, "Unimplemented keys"), ({"type": "thing"}, "Invalid type"),
    ({"$ref": "http://127.0.0.1:9/schema.json"}, "does not fetch"), ({"type": "string", "pattern": "(("}, "regex"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
])
def test_a_schema_that_cannot_be_held_is_refused_with_the_reason(grammars, schema, sentence):
    for _ in range(2):
        with pytest.raises(ApiError, match="schema") as refused:
            grammars.json_schema(schema)
        assert refused.value.status_code == 400 and sentence in refused.value.detail


def test_costly_schemas_end(grammars, model):
    """They are refused or they work, within the library's own limits; none runs away."""
    deep = {"type": "integer"}
    for _ in range(200):
        deep = {"type": "array", "items": deep, "minItems": 1, "maxItems": 1}
    for schema in (deep, {"type": "string", "pattern": "(.{0,9000}){0,9000}"},
                   {"type": "array", "minItems": 3_000_000, "items": {"type": "string"}},
                   {"enum": [f"choice {i}" for i in range(5000)]}):
        try:
            constraint = grammars.json_schema(schema)
            for _ in range(3):
                constraint.accept(int(np.flatnonzero(constraint.allowed())[0]))
        except ApiError as refused:
            assert refused.status_code == 400
