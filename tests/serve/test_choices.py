"""From events to text: what is shown and when, in whatever pieces the tokens come."""

import dataclasses
import random

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from jaxllm.data.chat import parse_reply  # noqa: E402
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer  # noqa: E402
from jaxllm.infer.engine import Event  # noqa: E402
from jaxllm.serve.choices import Choice, chat_logprobs, control_tokens, legacy_logprobs, token_text  # noqa: E402
from jaxllm.serve.replies import Reply, call_tokens  # noqa: E402


def events(tokens, finish="length"):
    return [Event(0, token, -1.0, -1.0, ((token, -1.0), (98, float("-inf"))), finish if i == len(tokens) - 1 else None)
            for i, token in enumerate(tokens)]


def pieces(choice, tokens, finish="length"):
    return [choice.push([event]) for event in events(tokens, finish)]


def test_control_tokens_have_no_text_and_a_character_comes_whole(model):
    tokenizer = model[2]
    control, end = tokenizer.special_tokens["<|im_start|>"], tokenizer.special_tokens["<|im_end|>"]
    tokens = [97, control, *"é".encode(), 319, end]  # 319: an id of the model's padding, without a token
    got = pieces(Choice(tokenizer, (end,)), tokens, "stop")
    assert [piece.text for piece in got] == ["a", "", "", "é", "\ufffd", ""]
    # A token is told once the text that it belongs to is; the one that ends the text never is.
    assert [[entry.token for entry in piece.entries] for piece in got] == [
        [97], [], [], [control, *"é".encode()], [319], []]
    assert got[-1].finish == "stop" and [piece.finish for piece in got[:-1]] == [None] * 5
    shown = Choice(tokenizer, (end,), shown=frozenset([control]))
    assert "".join(piece.text for piece in pieces(shown, tokens, "stop")) == "a<|im_start|>é\ufffd"


THINKING = """{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|turn_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}"""


@pytest.mark.parametrize("template", [THINKING, "chatml", None])
def test_reasoning_stands_apart_from_the_answer(template):
    """Special tokens that the chat format does not write around turns are text; <think> is even where it does."""
    names = ("<think>", "</think>", "<answer>", "<|user|>", "<|assistant|>", "<|turn_end|>", "<s>", "</s>")
    tokenizer = train_tokenizer(["a b"], 256 + len(SPECIAL_TOKENS) + len(names), special_tokens=SPECIAL_TOKENS + names)
    tokenizer = dataclasses.replace(tokenizer, chat_template=template)
    special = tokenizer.special_tokens
    tokens = [special["<|im_start|>"], special["<s>"], special["<think>"], 97, special["</think>"], special["<answer>"],
              98, special["</s>"]]
    whole = "".join(piece.text for piece in pieces(Choice(tokenizer, ()), tokens))
    assert whole == "<think>a</think><answer>b"
    controls = {spelling for spelling, id in special.items() if id in control_tokens(tokenizer)}
    written = {"<|user|>", "<|assistant|>", "<|turn_end|>"} if template == THINKING else set()
    assert controls == {*SPECIAL_TOKENS, "<s>", "</s>"} | written


def test_tokens_behind_a_stop_string_are_not_told(model):
    tokenizer = model[2]
    choice = Choice(tokenizer, (), ("xyz",))
    got = pieces(choice, list(b"abxyzcd"))
    assert choice.text == "ab" and choice.finish == "stop" and choice.tokens == 5
    assert [entry.token for piece in got for entry in piece.entries] == list(b"ab")
    assert [piece.finish for piece in got] == [None] * 4 + ["stop"] * 3
    held = Choice(tokenizer, (), ("xyz",))
    assert [piece.text for piece in pieces(held, list(b"abxy"))] == ["a", "b", "", "xy"] and held.finish == "length"
    assert sum(len(piece.entries) for piece in pieces(Choice(tokenizer, (), ("xyz",)), list(b"abxy"))) == 4


def test_shapes_of_log_probabilities(model):
    tokenizer = model[2]
    entries = pieces(Choice(tokenizer, ()), list("aé".encode()))
    entries = [entry for piece in entries for entry in piece.entries]
    chat = chat_logprobs(tokenizer, entries)["content"]
    assert [entry["token"] for entry in chat] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert bytes(byte for entry in chat for byte in entry["bytes"]).decode() == "aé"
    assert chat[0]["top_logprobs"][1] == {"token": "b", "logprob": -9999.0, "bytes": [98]}
    legacy = legacy_logprobs(tokenizer, entries)
    assert legacy["text_offset"] == [0, 1, 1] and legacy["top_logprobs"][0] == {"a": -1.0, "b": -9999.0}
    assert token_text(tokenizer, tokenizer.end_of_text) == "<|endoftext|>" and token_text(tokenizer, 319) == "\ufffd"


@pytest.mark.parametrize("template, style", [("im_sep", "im_sep"), ("chatml", "hermes"), ("llama3", "json")])
@pytest.mark.parametrize("text", [
    'I look. <|tool_call|>{"name": "f", "arguments": {"a": "<|tool_end"}}<|tool_end|>',
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>{"name": "g"}</tool_call>',
    '{"name": "f", "parameters": {"a": [1, "é"]}}', "a < b <| c <tool", "{not json}", "", "<|tool_call|>{", "  {", "x"])
def test_streamed_replies_are_the_whole_ones(template, style, text):
    """Content of all deltas with the calls at the end = `parse_reply` of the whole text, however it is cut."""
    whole = parse_reply(text, template)
    random.seed(text)
    for _ in range(20):
        cuts = sorted(random.choices(range(len(text) + 1), k=6))
        reply = Reply(template, style)
        shown = "".join(reply.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
        rest, calls = reply.finish()
        assert (shown + rest).strip() == (whole["content"] or "").strip()
        assert [call["function"] for call in calls] == [call["function"] for call in whole.get("tool_calls", [])]
        if calls:
            assert "{" not in shown
        else:
            assert shown + rest == text


def test_without_tools_a_reply_is_text_whatever_it_looks_like(model):
    text = '<|tool_call|>{"name": "f"}<|tool_end|>'
    reply = Reply("im_sep", None)
    assert reply.push(text) == text and reply.finish() == ("", [])
    assert call_tokens(model[2], None) == frozenset()
    wanted = {model[2].special_tokens[name] for name in ("<|tool_call|>", "<|tool_end|>")}
    assert call_tokens(model[2], "im_sep") == wanted


def test_a_forced_call_that_was_cut_short_stays_text():
    reply = Reply("im_sep", "im_sep", forced=True)
    assert reply.push('{"name": "f", "argu') == ""
    assert reply.finish() == ('{"name": "f", "argu', [])
