"""Tools that never raise, search and calculator against truths that are not theirs, and the loop against `render`."""

import decimal
import fractions
import json
import math
import random

import jax
import numpy as np
import pytest
from random_weights import random_weights

from jaxllm.data.chat import FORMATS, end_of_turn, render
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.data.world import make_world
from jaxllm.infer.engine import Completion, Engine, Request
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.infer.tool_calculator import calculate, calculator_tool
from jaxllm.infer.tool_loop import run_with_tools
from jaxllm.infer.tool_reply import read_reply
from jaxllm.infer.tool_search import NOTHING, search_tool, world_encyclopedia
from jaxllm.infer.tools import Tool, ToolError, check_arguments
from jaxllm.model.config import preset

ALL_TOKENS = dict.fromkeys([*SPECIAL_TOKENS, *(token for name in FORMATS for token in FORMATS[name].needs)])
TOKENIZER = train_tokenizer(["search and calculator, tools of a page", '{"name": "say", "arguments": {}}'] * 3,
                            256 + len(ALL_TOKENS) + 24,
                            special_tokens=tuple(ALL_TOKENS))
QUESTION = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "What is 2+3? <|im_end|>"}]
JINJA = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}\n"
         "<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def assistant(content=None, *calls):
    written = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": content, **({"tool_calls": written} if calls else {})}


ADD = ("calculator", {"expression": "2+3"})


class Script:
    """A model that has learned a conversation by heart: whatever the context, it writes its next reply.

    Replies are messages (written as `render` writes them) or lists of ids. It keeps what it was asked.
    """

    def __init__(self, template, *replies):
        self.template, self.replies, self.asked = template, list(replies), []

    def __call__(self, requests):
        assert len(requests) == 1
        self.asked.append(requests[0])
        reply = self.replies.pop(0)
        ids = reply if isinstance(reply, list) else written(reply, self.template)
        ids = ids[:requests[0].max_tokens]
        stopped = ids[-1] in requests[0].stop_tokens
        return [Completion(tuple(ids), (-0.5,) * len(ids), (-0.25,) * len(ids), "stop" if stopped else "length", 0)]


def written(message, template):
    """The ids that count in a message."""
    rendered = render([{"role": "user", "content": ""}, message], TOKENIZER, template=template)
    return [id for id, counts in zip(rendered.ids, rendered.mask, strict=True) if counts]


def converse(template, *replies, tools=None, **settings):
    script = Script(template, *replies)
    tools = [calculator_tool()] if tools is None else tools
    return run_with_tools(script, [QUESTION], tools, TOKENIZER, template=template, **settings)[0], script


@pytest.mark.parametrize("template", ["im_sep", "chatml", "llama3", JINJA], ids=["im_sep", "chatml", "llama3", "jinja"])
def test_the_tokens_are_those_of_rendering_the_messages(template):
    last = assistant("It is 5, or 5.5 <|tool_end|>.")
    calls = [assistant(None, ADD), assistant(None, ("calculator", {"expression": "2+3.5"}))]
    if template != "llama3":
        calls.append(assistant("Two at once:", ADD, ("nobody", {"x": [1, {"é": None}]})))
    made, script = converse(template, *calls, last)
    tools = [calculator_tool().describe()]
    expected = render(made.messages, TOKENIZER, tools=tools, template=template)
    assert made.exact and made.ids == expected.ids and made.mask == expected.mask and made.finish == "stop"
    assert [message["content"] for message in made.messages if message["role"] == "tool"][:2] == ["5", "5.5"]
    assert made.messages[:2] == QUESTION and made.messages[-1]["content"] == last["content"]
    assert [logp for logp, mine in zip(made.logp, made.mask, strict=True) if mine] == [-0.5] * sum(made.mask)
    assert sum(made.logp) == 2 * sum(made.sampling_logp) == -0.5 * sum(made.mask)
    drawn = [id for id, mine in zip(made.ids, made.mask, strict=True) if mine]
    assert drawn == [id for reply in (*calls, last) for id in written(reply, template)]
    for asked in script.asked:  # every context is a prefix of what came of it, and of the rendered messages
        assert list(asked.prompt) == made.ids[:len(asked.prompt)]


def test_two_calls_of_a_turn_are_answered_in_order_and_by_their_ids():
    made, _ = converse("im_sep", assistant("So:", ADD, ("nobody", {})), assistant("Done."))
    call_ids = [call["id"] for call in made.messages[2]["tool_calls"]]
    results = made.messages[3:5]
    assert call_ids == ["call_0", "call_1"] == [result["tool_call_id"] for result in results]
    assert [result["content"] for result in results] == ["5", "error: there is no tool 'nobody'; there are: calculator"]
    assert made.calls == 2


def test_what_a_model_spells_in_its_own_way_is_kept_token_for_token():
    special = TOKENIZER.special_tokens
    mine = [special["<|tool_call|>"], *TOKENIZER.encode('{"arguments":{"expression":"2+3"},"name":"calculator"}'),
            special["<|tool_end|>"], special["<|im_end|>"]]
    made, script = converse("im_sep", mine, assistant("5"))
    assert made.messages[3]["content"] == "5" and not made.exact
    assert made.ids[made.prompt_length:made.prompt_length + len(mine)] == mine
    assert list(script.asked[1].prompt[-2:]) == [*TOKENIZER.encode("assistant")[-1:], special["<|im_sep|>"]]


@pytest.mark.parametrize("inside", ["no json", "{", '{"name": 3}', '{"name": "calculator", "arguments": [1]}',
                                    '{"name": "a", "arguments": ' + "[" * 2000 + "]" * 2000 + "}",
                                    '{"name": "a", "arguments": {"b": ' + "[" * 900 + "]" * 900 + "}}"])
@pytest.mark.parametrize("template", ["im_sep", "chatml"])
def test_a_call_that_cannot_be_read_is_answered_too(template, inside):
    special = TOKENIZER.special_tokens
    middle = TOKENIZER.encode(f"<tool_call>{inside}</tool_call>") if template == "chatml" else [
        special["<|tool_call|>"], *TOKENIZER.encode(inside), special["<|tool_end|>"]]
    made, _ = converse(template, [*middle, special["<|im_end|>"]], assistant("5"), max_tokens=10_000)
    assert made.messages[3]["content"].startswith("error: the call could not be read") and made.finish == "stop"


def test_no_depth_of_a_call_gets_through():
    """Between what json reads and what it writes again lies the interpreter's own limit."""
    for depth in range(200, 1000, 20):
        text = '{"name": "a", "arguments": {"b": ' + "[" * depth + "]" * depth + "}}"
        ids = [TOKENIZER.special_tokens["<|tool_call|>"], *TOKENIZER.encode(text),
               TOKENIZER.special_tokens["<|tool_end|>"]]
        message, unreadable = read_reply(ids, TOKENIZER, "im_sep")
        assert unreadable and "tool_calls" not in message


def test_a_template_that_writes_the_past_anew_ends_the_conversation():
    counting = JINJA.replace("{{ m.role }}", "{{ m.role }} {{ loop.index }} of {{ loop.length }}")
    made, _ = converse(counting, written(assistant(None, ADD), "chatml"))
    assert made.finish == "template" and made.messages[-1]["tool_calls"] and not made.exact


def test_only_special_tokens_make_a_call():
    text = '<|tool_call|>{"name": "calculator", "arguments": {"expression": "1"}}<|tool_end|>'
    message, unreadable = read_reply(TOKENIZER.encode(text), TOKENIZER, "im_sep")
    assert message == {"role": "assistant", "content": text} and not unreadable


def test_calls_and_lengths_are_bounded():
    again = assistant(None, ADD, ADD)
    made, script = converse("im_sep", *[again] * 9, max_calls=3)
    contents = [message["content"] for message in made.messages if message["role"] == "tool"]
    assert contents == ["5", "5", "5", "error: no call is left, all 3 are used; answer now"]
    assert made.finish == "calls" and made.calls == 3 and made.exact and len(script.asked) == 3
    made, _ = converse("im_sep", again, max_calls=0)
    assert made.finish == "calls" and made.calls == 0
    made, _ = converse("im_sep", assistant("a long story"), max_tokens=3)
    assert made.finish == "length" and sum(made.mask) == 3 and not made.exact
    page = Tool("calculator", "Long.", calculator_tool().parameters, lambda expression: "page " * 100)
    room = made.prompt_length + 120
    made, _ = converse("im_sep", again, tools=[page], max_length=room)
    assert made.finish == "length" and len(made.ids) <= room and made.messages[-1]["role"] == "assistant" and made.exact


def test_bad_settings_are_told():
    for settings, said in (({"max_calls": -1}, "max_calls"), ({"max_tokens": 0}, "max_tokens"),
                           ({"samples": [1, 2]}, "samples"), ({"max_length": 5}, "no room"),
                           ({"tools": [calculator_tool()] * 2}, "same name")):
        with pytest.raises(ValueError, match=said):
            converse("im_sep", assistant("5"), **settings)


def test_the_engine_and_rounds_of_it_give_the_same():
    """A random model, held to two calls by a constraint and then free."""
    config = preset("nano", layers=1, vocab_size=TOKENIZER.vocab_size, max_positions=128)
    engine = Engine(jax.device_put(random_weights(config)), config, slots=4, capacity=128, chunk=32)
    say = Tool("say", "Says.", {"type": "object"}, lambda: "said")
    call = [*written(assistant(None, ("say", {})), "im_sep")]
    prompts = [[{"role": "user", "content": "ab"[i % 2] * (i + 1)}] for i in range(5)]
    settings = SamplingSettings(temperature=0.9)
    options = dict(template="im_sep", max_tokens=len(call), max_calls=2, max_length=128, seed=3, settings=settings,
                   describe=False)

    def parroting(request):
        """The same request, held to the call in the first two turns; the third is free."""
        turns = request.prompt.count(TOKENIZER.special_tokens["<|tool_result|>"])
        return request if turns == 2 else Request(**{**vars(request), "constraint": Held(call, config.vocab_size)})

    class Parrot(Engine):
        def __init__(self):
            self.__dict__ = engine.__dict__

        def submit(self, request):
            return super().submit(parroting(request))

    overlapped = run_with_tools(Parrot(), prompts, [say], TOKENIZER, **options)
    rounds = run_with_tools(lambda requests: engine.run(map(parroting, requests)), prompts, [say], TOKENIZER, **options)
    assert overlapped == rounds and engine.running == engine.waiting == 0
    for made, prompt in zip(overlapped, prompts, strict=True):
        assert [message["role"] for message in made.messages[1:5]] == ["assistant", "tool"] * 2 and made.calls == 2
        assert len({len(made.ids), len(made.mask), len(made.logp), len(made.sampling_logp)}) == 1
        assert made.messages[0] == prompt[0]
        assert all((p < 0) == mine for p, mine in zip(made.logp, made.mask, strict=True))
    assert len({tuple(made.ids[-5:]) for made in overlapped}) > 1

    options["max_calls"], same = 3, prompts[:1] * 3
    again = run_with_tools(Parrot(), same, [say], TOKENIZER, samples=[1, 0, 1], **options)
    assert again[0] == again[2] != again[1] and again[1].ids == overlapped[0].ids

    def interrupt():
        raise KeyboardInterrupt  # what no tool can turn into text

    stopped = Tool("say", "Says.", {"type": "object"}, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_with_tools(Parrot(), prompts, [stopped], TOKENIZER, **options)
    assert run_with_tools(Parrot(), same[:1], [say], TOKENIZER, samples=[1], **options) == again[:1]


class Held:
    """A constraint that allows one text."""

    def __init__(self, ids, vocab_size):
        self.ids, self.vocab_size = list(ids), vocab_size

    def allowed(self):
        mask = np.zeros(self.vocab_size, bool)
        mask[self.ids[:1]] = True
        return mask

    def accept(self, token):
        assert token == self.ids.pop(0)


@pytest.mark.parametrize(("expression", "value"), [
    ("0.1 + 0.2", "0.3"), ("9.11 < 9.9", "true"), ("9.9 - 9.11", "0.79"), ("-2**2", "-4"), ("2**-2", "0.25"),
    ("7 // -2", "-4"), ("-7 % 3", "2"), ("2**3**2", "512"), ("(1 + 2) × 3 ÷ 4", "2.25"), ("1e3 - 1_000", "0"),
    ("22/7", "22/7 = 3.14285714286 (rounded)"), ("sqrt(16) + sqrt(2.25)", "5.5"),
    ("sqrt(2)", "1.41421356237 (rounded)"), ("round(2.675, 2)", "2.68"), ("gcd(12, 18) + lcm(4, 6)", "18"),
    ("max(1, 2/3, .5)", "1"), ("(-1)**9999999", "-1"), ("1/3 == 2/6", "true"),
    ("factorial(20)", "2432902008176640000"), ("0**0", "1"), ("1/1024", "0.0009765625")])
def test_values(expression, value):
    assert calculator_tool().call({"expression": expression}) == value


@pytest.mark.parametrize("expression", [
    "9**9**9", "9**99999", "2**99999999999999999999", "1e9999", "1e99999999999", "factorial(501)", "factorial(1e300)",
    "9" * 501, "(" * 60 + "1" + ")" * 60, "-" * 400 + "1", "1/0", "1 % 0", "0**-1", "2**0.5", "sqrt(-1)", "(((", "1 2",
    "", "1..2", "__import__('os')", "abs", "abs()", "open(1)", "a.b", "1 < 2 < 3", "lambda: 1", "１+1", "٣", "1;1",
    "[1]*9", "round(1, 1e9)", "2**2**2**2**2**2", "1/(10**400)**3**3", "max(" + "1," * 60 + "1)"])
def test_what_has_no_value_or_too_large_a_one_is_refused(expression):
    assert calculator_tool().call({"expression": expression}).startswith("error: ")


def test_the_calculator_against_fractions_and_decimals():
    rng = random.Random(0)
    for _ in range(300):
        numbers = [f"{rng.randint(0, 999)}.{rng.randint(0, 99):02}" for _ in range(4)]
        signs = [rng.choice("+-*") for _ in range(3)]
        text = f"({numbers[0]}{signs[0]}{numbers[1]}){signs[1]}({numbers[2]}{signs[2]}{numbers[3]})"
        wrapped = "".join(f"F('{part}')" if part[0].isdigit() else part for part in split_numbers(text))
        value = eval(wrapped, {"F": fractions.Fraction})  # the test's own text
        assert fractions.Fraction(calculate(text)) == value == fractions.Fraction(decimal.Decimal(calculate(text)))


def split_numbers(text):
    part = ""
    for letter in text:
        if letter.isdigit() or letter == ".":
            part += letter
        else:
            yield from filter(None, (part, letter))
            part = ""
    yield from filter(None, (part,))


def test_tools_answer_with_bounded_text_whatever_happens():
    def raising(error):
        def function(**_):
            raise error
        return function

    anything = {"type": "object", "additionalProperties": True}
    for error, said in ((ToolError("no"), "no"), (ValueError("bad"), "bad"),
                        (KeyError("/secret"), "t failed (KeyError)"), (RecursionError(), "t failed (RecursionError)")):
        assert Tool("t", "", anything, raising(error)).call({}) == f"error: {said}"
    long = Tool("t", "", anything, lambda **_: "x" * 50, max_chars=10)
    assert long.call({}) == "x" * 10 + " [cut: 50 characters in all]"
    assert Tool("t", "", anything, lambda **_: "\ud800").call({}) == "?"
    schema = {"type": "object", "required": ["n"], "properties": {
        "n": {"type": "integer", "minimum": 1, "maximum": 3},
        "s": {"type": "string", "maxLength": 2, "enum": ["a", "b"]},
        "l": {"type": "array", "items": {"type": "number"}}}}
    assert check_arguments({"n": 2, "s": "a", "l": [1, 2.5]}, schema) is None
    for wrong in ({}, {"n": 0}, {"n": 4}, {"n": True}, {"n": "1"}, {"n": 1.5}, {"n": 1, "s": "c"}, {"n": 1, "x": 1},
                  {"n": 1, "l": [1, "2"]}, {"n": 1, "l": 3}, {"n": 1, "l": [float("nan")]}, {"n": None}, [], "n"):
        assert check_arguments(wrong, schema), wrong
    for bad in ({"name": "a b"}, {"parameters": {"type": "string"}}, {"parameters": {"type": "object", "oneOf": []}},
                {"parameters": {"type": "object", "properties": {"a": {"type": "date"}}}}, {"max_chars": 0}):
        with pytest.raises(ValueError):
            Tool(**{"name": "t", "description": "", "parameters": anything, "function": str, **bad})


def test_search_finds_facts_that_no_document_tells():
    pytest.importorskip("bm25s", reason="needs the extra `tools`")
    world = make_world(seed=0, size="tiny")
    search = search_tool(world_encyclopedia(world))
    facts = world.select(band="never", kind="person")
    assert len(facts) >= 20 and all(fact.value in search.call({"query": fact.question()}) for fact in facts)
    assert all(fact.value in search.call({"query": fact.entity.name}) for fact in world.facts)
    assert search.call({"query": "zzzz"}) == search.call({"query": "?!"}) == NOTHING
    assert search.call({"query": " "}).startswith("error: ") and search.call({"query": "a" * 501}).startswith("error: ")


def test_search_ranks_by_bm25():
    """Against the formula, written out: idf * tf / (tf + k1 * (1 - b + b * length / mean length))."""
    pytest.importorskip("bm25s", reason="needs the extra `tools`")
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefghij", k=rng.randint(3, 30))) for _ in range(40)]
    two = search_tool([("", text) for text in texts], count=3, max_chars=9000)
    mean = sum(len(text.split()) for text in texts) / len(texts)

    def score(text, query):
        words, total = text.split(), 0.0
        for word in query.split():
            having = sum(word in other.split() for other in texts)
            tf = words.count(word)
            total += math.log(1 + (len(texts) - having + 0.5) / (having + 0.5)) * tf / (
                tf + 1.5 * (0.25 + 0.75 * len(words) / mean))
        return total

    for query in ("a", "b c", "d e j", "a a b"):
        best = sorted(texts, key=lambda text: -score(text, query))[:3]  # noqa: B023
        assert two.call({"query": query}) == "\n\n".join(best)


def test_results_of_several_pages_share_the_room():
    pytest.importorskip("bm25s", reason="needs the extra `tools`")
    search = search_tool([(f"Page {i}", "word " * 500) for i in range(5)], count=3, max_chars=300)
    found = search.call({"query": "word"})
    assert len(found) <= 300 and found.count(" ...") == 3 and found.startswith("Page 0\nword")
    assert json.dumps(search.describe()) and end_of_turn(TOKENIZER, "im_sep")
    with pytest.raises(ValueError, match="nothing to search"):
        search_tool([("", "")])
