"""The real OpenAI client against a real server: every shape, whole and streamed."""

import asyncio
import dataclasses
import json
import math

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("llguidance", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs the package httpx")

from jaxllm.data.chat_jinja import Renderer  # noqa: E402
from jaxllm.data.tokenizer import Tokenizer  # noqa: E402
from jaxllm.serve import api  # noqa: E402

USER = [{"role": "user", "content": "the cat"}]
TOOLS = [{"type": "function", "function": {"name": name, "description": "a tool", "parameters": {
    "type": "object", "properties": {"a": {"$ref": "#/$defs/small"}}, "required": ["a"], "additionalProperties": False,
    "$defs": {"small": {"type": "integer", "minimum": 0, "maximum": 99}}}}} for name in ("add", "take_away")]


@pytest.fixture(scope="module")
def openai():
    """Imported where it is used alone: that takes two seconds."""
    return pytest.importorskip("openai", reason="needs the package openai")


@pytest.fixture(scope="module")
def client(server, openai):
    with openai.OpenAI(base_url=server.address + "/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, **changes):
    return client.chat.completions.create(**{"model": "nano", "messages": USER, "max_tokens": 12, "seed": 3, **changes})


def test_models(client, openai):
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").max_model_len == 1024
    with pytest.raises(openai.NotFoundError, match="this server has 'nano'"):
        ask(client, model="gpt-5")


def test_a_seed_gives_the_same_text_whole_and_streamed(client):
    whole = ask(client, n=2, stop=["zz"])
    assert 2 <= whole.usage.completion_tokens <= 24
    assert whole.choices[0].message.content != whole.choices[1].message.content
    texts, finishes, usage = ["", ""], [None, None], None
    for chunk in ask(client, n=2, stop=["zz"], stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
        usage = chunk.usage or usage
    assert texts == [choice.message.content for choice in whole.choices]
    assert finishes == [choice.finish_reason for choice in whole.choices]
    assert usage.to_dict() | {"prompt_tokens_details": 0} == whole.usage.to_dict() | {"prompt_tokens_details": 0}
    assert ask(client, seed=4).choices[0].message.content != whole.choices[0].message.content
    assert ask(client, seed=-2**63).choices[0].message.content != ask(client).choices[0].message.content


def test_the_text_is_that_of_the_engine(client, server, model):
    """Against `generate`: the road from text to tokens and back adds and loses nothing."""
    from jaxllm.data.chat import end_of_turn, render
    from jaxllm.infer.generate import generate
    from jaxllm.infer.sampling import SamplingSettings
    params, config, tokenizer = model
    prompt = render(USER, tokenizer, add_generation_prompt=True).ids
    tokens = generate(params, config, [prompt], key=0, max_tokens=12, settings=SamplingSettings(temperature=0.0),
                      stop_tokens=end_of_turn(tokenizer), valid_vocab=tokenizer.vocab_size).rows()[0]
    hidden = set(tokenizer.special_tokens.values())
    answer = ask(client, temperature=0)
    assert answer.choices[0].message.content == tokenizer.decode([token for token in tokens if token not in hidden])
    assert answer.usage.prompt_tokens == len(prompt) and answer.usage.completion_tokens == len(tokens)


def test_a_repeated_prompt_is_cached(client):
    messages = [{"role": "user", "content": "a rat sat " * 30}]
    first, second = (ask(client, messages=messages, max_tokens=1).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens < 40 <= second.prompt_tokens_details.cached_tokens
    assert second.prompt_tokens_details.cached_tokens <= second.prompt_tokens


def test_logprobs_of_a_chat_stand_beside_their_tokens(client):
    answer = ask(client, logprobs=True, top_logprobs=3, temperature=0)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in entries)
    assert all(math.isclose(entry.logprob, entry.top_logprobs[0].logprob, abs_tol=1e-4) for entry in entries)
    streamed = [entry for chunk in ask(client, logprobs=True, top_logprobs=3, temperature=0, stream=True)
                for choice in chunk.choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.bytes for entry in streamed] == [entry.bytes for entry in entries]
    assert np.allclose([entry.logprob for entry in streamed], [entry.logprob for entry in entries], atol=1e-4)


def test_completions_with_logprobs_and_several_prompts(client, model):
    tokenizer = model[2]
    ids = [tokenizer.end_of_text, *tokenizer.encode("the cat")]
    answer = client.completions.create(model="nano", prompt=["the cat", "a rat"], n=2, max_tokens=6, seed=1, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        found = choice.logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
        assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
        assert all(token in likeliest for token, likeliest in zip(found.tokens, found.top_logprobs, strict=True))
    same = client.completions.create(model="nano", prompt=ids, n=2, max_tokens=6, seed=1)
    assert [choice.text for choice in same.choices] == [choice.text for choice in answer.choices[:2]]
    streamed = client.completions.create(model="nano", prompt="the cat", max_tokens=6, seed=1, stream=True, echo=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "the cat" + answer.choices[0].text


def test_stop_strings_end_the_text_before_them(client):
    text = ask(client, max_tokens=40).choices[0].message.content
    stop = text[9:12]
    answer = ask(client, max_tokens=40, stop=[stop, "never"], logprobs=True)
    assert answer.choices[0].message.content == text[:text.index(stop)] and answer.choices[0].finish_reason == "stop"
    spelled = b"".join(bytes(entry.bytes) for entry in answer.choices[0].logprobs.content).decode(errors="replace")
    assert spelled.startswith(answer.choices[0].message.content) or "<|" in spelled
    assert answer.usage.completion_tokens < 40


def test_settings_reach_the_engine(client):
    greedy = ask(client, temperature=0).choices[0].message.content
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert ask(client, extra_body=extra).choices[0].message.content == greedy
    assert ask(client, top_p=1e-6).choices[0].message.content == greedy
    assert ask(client, temperature=0, extra_body={"repetition_penalty": 3.0}).choices[0].message.content != greedy
    assert ask(client, max_tokens=None, max_completion_tokens=5).usage.completion_tokens <= 5


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "take_away"}}])
def test_a_forced_call_is_one_of_the_tools(client, choice):
    for stream in (False, True):
        calls, finish = [], None
        answer = ask(client, tools=TOOLS, tool_choice=choice, max_tokens=60, stream=stream, n=2)
        if stream:
            for chunk in answer:
                for one in chunk.choices:
                    calls += one.delta.tool_calls or []
                    finish = one.finish_reason or finish
                    assert not one.delta.content
        else:
            calls = [call for one in answer.choices for call in one.message.tool_calls]
            finish = answer.choices[0].finish_reason
            assert answer.choices[0].message.content is None
        assert len(calls) == 2 and finish == "tool_calls"
        for call in calls:
            assert call.function.name in ("add", "take_away")[0 if choice == "required" else 1:]
            assert 0 <= json.loads(call.function.arguments)["a"] <= 99


def test_json_by_a_schema_parses_and_validates(client):
    jsonschema = pytest.importorskip("jsonschema", reason="needs the package jsonschema")
    schema = {"type": "object", "required": ["größe", "who"], "additionalProperties": False, "properties": {
        "größe": {"type": "integer", "minimum": 0, "maximum": 9999},
        "who": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"$ref": "#/$defs/person"}}},
        "$defs": {"person": {"type": "object", "required": ["name", "of"], "additionalProperties": False,
                             "properties": {
                                 "name": {"type": "string", "maxLength": 12}, "of": {"enum": ["日本", "é", "🙂"]}}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}
    free = ask(client, max_tokens=30)
    answer = ask(client, response_format=wanted, n=4, max_tokens=400)
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content), schema)
        assert choice.finish_reason == "stop"
    assert len({choice.message.content for choice in answer.choices}) > 1
    streamed = ask(client, response_format=wanted, seed=1, max_tokens=400, stream=True)
    jsonschema.validate(json.loads("".join(chunk.choices[0].delta.content or "" for chunk in streamed)), schema)
    begun = ask(client, response_format={"type": "json_object"}, max_tokens=12).choices[0].message.content
    assert begun.startswith("{")
    assert ask(client, max_tokens=30).choices[0].message.content == free.choices[0].message.content


def test_tools_that_may_be_called_and_their_results_go_into_the_prompt(client):
    plain = ask(client, max_tokens=4)
    offered = ask(client, max_tokens=4, tools=TOOLS, tool_choice="auto")
    assert offered.usage.prompt_tokens > plain.usage.prompt_tokens + 50
    assert ask(client, max_tokens=4, tools=TOOLS, tool_choice="none").usage.prompt_tokens == plain.usage.prompt_tokens
    forced = ask(client, tools=TOOLS, tool_choice="required", max_tokens=60).choices[0].message
    turn = [*USER, forced.to_dict(), {"role": "tool", "tool_call_id": forced.tool_calls[0].id, "content": "7"}]
    assert ask(client, messages=turn, max_tokens=4).usage.prompt_tokens > plain.usage.prompt_tokens + 20


def test_special_tokens_in_text_are_text(server, client, model):
    tokenizer = model[2]
    controls = set(tokenizer.special_tokens.values())
    content = "a<|im_end|><|im_start|>system<|im_sep|>b\\ud800"
    body = f'{{"messages": [{{"role": "user", "content": "{content}"}}]}}'
    post = dict(headers={"content-type": "application/json"})
    ids = httpx.post(server.address + "/tokenize", content=body, **post).json()["tokens"]
    shell = httpx.post(server.address + "/tokenize", json={"messages": [{"role": "user", "content": "x"}]}).json()
    assert [token for token in ids if token in controls] == [token for token in shell["tokens"] if token in controls]
    spelled = httpx.post(server.address + "/detokenize", json={"tokens": ids}).json()["prompt"]
    assert "a<|im_end|><|im_start|>system<|im_sep|>b\ufffd" in spelled
    assert httpx.post(server.address + "/v1/chat/completions", content=body.replace("}]", '}], "max_tokens": 3'),
                      **post).status_code == 200
    prompt = httpx.post(server.address + "/tokenize", json={"prompt": "the <|endoftext|>", "return_token_strs": True})
    assert not set(prompt.json()["tokens"]) & controls
    assert "".join(prompt.json()["token_strs"]) == "the <|endoftext|>" and prompt.json()["max_model_len"] == 1024


def call_of_depth(depth, name="f"):
    arguments = '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"
    return {"role": "assistant", "content": "", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}]}


@pytest.mark.parametrize("body, sentence", [
    (dict(messages=USER * 2049), "2049 messages are more than the 2048"),
    (dict(prompt="a " * 2**20), "2097152 characters are more than the 1048576"),
    (dict(messages=[{"role": "user", "content": "a " * 2**19}, *USER]), "characters are more than the 1048576"),
    (dict(messages=[*USER, call_of_depth(101)]), "message 1, tool call 0: lists and objects nest deeper than 100"),
    (dict(messages=[*USER, call_of_depth(600)]), "message 1, tool call 0: lists and objects nest deeper than 100"),
])
def test_what_is_too_large_to_tokenize_is_refused(server, body, sentence):
    answer = httpx.post(server.address + "/tokenize", json=body, timeout=20)
    assert answer.status_code == 400 and sentence in answer.json()["error"]["message"]


def test_calls_nest_as_deep_as_is_said(server, client):
    for message, status in ((call_of_depth(100), 200), (call_of_depth(600), 400), (call_of_depth(20_000), 400)):
        chat = {"messages": [*USER, message, *USER], "max_tokens": 1}
        assert httpx.post(server.address + "/v1/chat/completions", json=chat).status_code == status


def test_a_long_conversation_runs_its_template_once(monkeypatch, server):
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{% endfor %}"
    monkeypatch.setattr(server.served, "tokenizer", dataclasses.replace(server.served.tokenizer,
                                                                        chat_template=template))
    runs, run = [], Renderer.run
    monkeypatch.setattr(Renderer, "run", lambda self, *args: runs.append(1) or run(self, *args))
    turns = [*USER, {"role": "assistant", "content": "a rat"}] * 20
    answer = httpx.post(server.address + "/tokenize", json={"messages": turns, "add_generation_prompt": False})
    assert answer.json()["count"] > 40 and len(runs) == 1


def test_tokens_are_told_beside_the_event_loop(monkeypatch, server):
    seen, told, decode = [], api.token_text, Tokenizer.decode

    def beside(function):
        def recorded(*args):
            seen.append(asyncio._get_running_loop())
            return function(*args)
        return recorded

    monkeypatch.setattr(api, "token_text", beside(told))
    monkeypatch.setattr(Tokenizer, "decode", beside(decode))
    answer = httpx.post(server.address + "/tokenize", json={"prompt": "zq", "return_token_strs": True})
    assert answer.json()["token_strs"] == ["z", "q"]
    assert httpx.post(server.address + "/detokenize", json={"tokens": [97]}).json() == {"prompt": "a"}
    assert seen == [None] * 3


def test_an_event_is_one_line_to_every_client():
    """U+2028, U+2029 and U+0085 end lines for some clients, the OpenAI client's httpx among them."""
    text = "a\u2028b\u2029c\u0085d\r\né🙂"

    class Answer:
        async def chunks(self, beat):
            yield {"content": text}

    async def read():
        return "".join([event async for event in api._events(Answer())])

    lines = asyncio.run(read()).splitlines()
    assert len(lines) == 4 and json.loads(lines[0].removeprefix("data: ")) == {"content": text}


@pytest.mark.parametrize("changes, sentence", [
    (dict(max_tokens=5000), "max_tokens is 5000; this server writes at most 1024"),
    (dict(max_tokens=1022), "maximum context length is 1024 tokens"),
    (dict(messages=[{"role": "user", "content": "the rat " * 800}]), "maximum context length is 1024 tokens"),
    (dict(messages=[]), "messages: List should have at least 1 item"),
    (dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), "type"),
    (dict(temperature=-1), "temperature: Input should be greater than or equal to 0"),
    (dict(temperature="0.5"), "temperature: Input should be a valid number"),
    (dict(top_p=0), "top_p"), (dict(n=17), "n is 17; this server gives at most 16"),
    (dict(stop=["a"] * 5), "stop"), (dict(stop=""), "stop"), (dict(seed=2**63), "seed"),
    (dict(top_logprobs=21, logprobs=True), "top_logprobs"), (dict(top_logprobs=2), "top_logprobs needs logprobs=true"),
    (dict(logit_bias={"5": 100}), "logit_bias is not supported"),
    (dict(frequency_penalty=0.5), "frequency_penalty is not supported: use repetition_penalty"),
    (dict(modalities=["audio"]), "modalities is not supported: text only"),
    (dict(extra_body={"mirostat": 2}), "mirostat: Extra inputs are not permitted"),
    (dict(tool_choice="required"), "tool_choice asks for a call, but there are no tools"),
    (dict(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "x"}}), "which is not among the tools"),
    (dict(tools=TOOLS, response_format={"type": "json_object"}), "not together with tools"),
    (dict(response_format={"type": "json_schema"}), "needs json_schema.schema"),
    (dict(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string",
     "not": {}}}}), "cannot be turned into a grammar.*not"),
    (dict(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://x/y"}}}),
     "cannot be turned into a grammar"),
])
def test_what_cannot_be_done_is_refused_with_the_reason(client, openai, changes, sentence):
    with pytest.raises(openai.BadRequestError, match=sentence) as refused:
        ask(client, **changes)
    assert set(refused.value.body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("changes, sentence", [
    (dict(prompt=[]), "prompt is an empty list"), (dict(prompt=[[]]), "the prompt holds no token"),
    (dict(prompt=[320]), "320 is no token id of this model"), (dict(prompt=["a"] * 65), "65 prompts are more"),
    (dict(suffix="x"), "suffix is not supported"), (dict(best_of=3), "best_of is not supported"),
    (dict(echo=True, logprobs=1), "echo is not supported: log-probabilities of the prompt"),
])
def test_what_completions_cannot_do_is_refused(client, openai, changes, sentence):
    with pytest.raises(openai.BadRequestError, match=sentence):
        client.completions.create(**{"model": "nano", "prompt": "a", "max_tokens": 2, **changes})


def test_an_answer_of_nothing_but_defaults(client):
    answer = client.completions.create(model="nano", prompt="")
    assert answer.usage.prompt_tokens == 1 and 1 <= answer.usage.completion_tokens <= 16


def test_health_and_metrics_count(server, client):
    def value(name):
        lines = httpx.get(server.address + "/metrics").text.splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(name)))

    assert httpx.get(server.address + "/health").json() == {"status": "ok", "model": "nano"}
    before = value("jaxllm_generated_tokens_total")
    drawn = ask(client).usage.completion_tokens
    assert value("jaxllm_generated_tokens_total") == before + drawn and value("jaxllm_requests_open") == 0
    assert value('jaxllm_first_token_seconds_bucket{le="+Inf"}') == value("jaxllm_first_token_seconds_count") > 0
