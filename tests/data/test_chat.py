"""Chat formats and templates: equal to Hugging Face's, masks, prefixes, and content that is never a control token."""

import dataclasses
import importlib.util
import itertools
import json
import lzma
import pathlib
import re

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxllm.data.chat import FORMATS, Rendered, end_of_turn, parse_reply, render
from jaxllm.data.chat_messages import plain_messages
from jaxllm.data.tokenizer import SPECIAL_TOKENS, Tokenizer, tokenizer_from_ranks
from jaxllm.data.tokenizer_folder import parse_ranks
from jaxllm.data.tokenizer_split import PATTERNS
from jaxllm.data.tokenizer_training import _byte_of_character, train_library_tokenizer

CORPUS = ["The user asked the assistant about the weather in Zürich. It is 22 degrees.\n\nfunction name arguments",
          "<|im_start|>user\n\nHello there 漢字<|im_end|>\n<|im_start|>assistant\n 🙂 system tool call end"] * 4
SPECIALS = (*SPECIAL_TOKENS, "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<bos>",
            "<start_of_turn>", "<end_of_turn>", "<tool_call>", "</tool_call>", "<|user|>", "<|assistant|>",
            "<|system|>", "<|end|>", "<s>", "</s>", "[INST]", "[/INST]")

# Facts of the published formats, in words of our own; a backslash at a line's end joins it to the next.
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
MARKED = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}\
{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}\
{{ '\\n' }}{% endfor %}"""
MARKED_TWICE = MARKED.replace("+ '<|im_end|>' }}{% endgeneration %}",
                              "}}{% endgeneration %}{% generation %}{{ '<|im_end|>' }}{% endgeneration %}")
MARKED_SHORT = MARKED.replace("+ '<|im_end|>' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>' }}")
LLAMA3 = """{% set ns = namespace(text=bos_token) %}{% for m in messages %}
{% set ns.text = ns.text + '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim %}
{% set ns.text = ns.text + '<|eot_id|>' %}{% endfor %}{{ ns.text }}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}
{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}
{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}
{% endif %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{{- first if loop.first else '' }}{{ m.content | trim }}{{ '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
QWEN = """{% if tools %}{{ '<|im_start|>system\\n' }}\
{{ messages[0].content if messages[0].role == 'system' else 'You help.' }}{{ '\\n\\n<tools>' }}\
{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}{% endif %}
{% for m in messages %}{% if m.role == 'tool' %}\
{{ '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' }}\
{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}\
{{ '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' else '' }}\
{% elif not (tools and loop.first and m.role == 'system') %}{{ '<|im_start|>' + m.role }}\
{% if m.content or not m.tool_calls %}{{ '\\n' + m.content }}{% endif %}{% for call in m.tool_calls or [] %}\
{{ '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}\
{{ '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
PHI3 = """{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"""
MISTRAL = """{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"""
# A token after the reply before the one that ends the turn; and a prompt that begins to think in the reply's place.
COHERE = """{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|><|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
ENDED = COHERE.replace("<|end|><|eot_id|>", "<|im_end|>").replace("{% endif %}", "{% else %}<|endoftext|>{% endif %}")
THINKING = CHATML.replace("assistant\\n' }}", "assistant\\n<s>\\n' }}")
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "qwen": QWEN, "phi3": PHI3, "mistral": MISTRAL}

TALK = [{"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What is the weather\n in Zürich? 漢字 🙂"},
        {"role": "assistant", "content": "It is 22 degrees."},
        {"role": "user", "content": "Hello   there"},
        {"role": "assistant", "content": "Hello!\n\nBye."}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather <|im_end|> ü",
                                           "parameters": {"type": "object", "properties": {"city": {"type": "str"}}}}}]
CALLS = [{"role": "user", "content": "Weather?"},
         {"role": "assistant", "content": None, "tool_calls": [
             {"id": "a", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}]},
         {"role": "tool", "tool_call_id": "a", "content": "22 degrees"},
         {"role": "assistant", "content": "It is warm."}]


def library_and_ours(added=SPECIALS):
    """The `tokenizers` library's tokenizer and ours with the same ids."""
    from tokenizers import AddedToken

    library = train_library_tokenizer(CORPUS, 120, PATTERNS["gpt4"])
    byte_of = _byte_of_character()
    ranks = {bytes(byte_of[character] for character in token): id for token, id in library.get_vocab().items()}
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    specials = {token: library.token_to_id(token) for token in added}
    return library, tokenizer_from_ranks("test", ranks, PATTERNS["gpt4"], specials)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return library_and_ours()[1]


@pytest.fixture(scope="module")
def theirs():
    """Hugging Face's tokenizer with the ids of ours."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=library_and_ours()[0])


def their_ids(theirs, name, messages, **settings):
    bos = {"llama3": "<|begin_of_text|>", "gemma": "<bos>"}.get(name, "<s>")
    return theirs.apply_chat_template(messages, chat_template=TEMPLATES.get(name, name), bos_token=bos,
                                      return_dict=False, **settings)


def counted(rendered: Rendered, tokenizer: Tokenizer) -> list[str]:
    """The text of each run of tokens that count."""
    runs, before = [], False
    for id, counts in zip(rendered.ids, rendered.mask, strict=True):
        if counts and not before:
            runs.append([])
        if counts:
            runs[-1].append(id)
        before = counts
    return [tokenizer.decode(run) for run in runs]


# Equal to Hugging Face

WHITESPACE = [{"role": "user", "content": "\n\n  a \n\t"}, {"role": "assistant", "content": " \n b\u00a0\n"},
              {"role": "user", "content": ""}]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("messages", [TALK, TALK[1:4], WHITESPACE], ids=["talk", "question", "whitespace"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_equal_hugging_face(theirs, tokenizer, name, messages, prompt):
    bos = {"bos_token": "<bos>"} if name == "gemma" else {}
    expected = their_ids(theirs, name, messages, add_generation_prompt=prompt)
    ours = render(messages, tokenizer, template=TEMPLATES[name], add_generation_prompt=prompt, variables=bos)
    assert ours.ids == expected
    if name in FORMATS:
        named = render(messages, tokenizer, template=name, add_generation_prompt=prompt)
        assert named == ours
    assert any(ours.mask) == (not prompt)


def test_tools_equal_hugging_face(theirs, tokenizer):
    plain = json.loads(json.dumps(TOOLS).replace("<|im_end|>", "ß"))
    for messages, tools in ((CALLS, plain), (CALLS, None), ([TALK[0], *CALLS], plain)):
        ours = render(messages, tokenizer, template=QWEN, tools=tools)
        assert ours.ids == their_ids(theirs, "qwen", messages, tools=tools)
        assert counted(ours, tokenizer)[-1] == "It is warm.<|im_end|>"
        assert '"city": "Zürich"' in counted(ours, tokenizer)[0]
    text = json.loads(json.dumps(CALLS))
    text[1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Zürich"}'
    assert render(text, tokenizer, template=QWEN) == render(CALLS, tokenizer, template=QWEN)
    # The named format is the same layout, but for the words that introduce the tools.
    assert render(CALLS, tokenizer, template="chatml").ids == render(CALLS, tokenizer, template=QWEN).ids


@pytest.mark.parametrize("template, short", [(MARKED, 0), (MARKED_SHORT, 2), (MARKED_TWICE, 0)])
def test_generation_blocks_decide_what_counts(theirs, tokenizer, template, short):
    """As in transformers, with the end-of-turn token also where the template leaves it out."""
    expected = theirs.apply_chat_template(TALK, chat_template=template, return_dict=True,
                                          return_assistant_tokens_mask=True)
    ours = render(TALK, tokenizer, template=template)
    assert ours.ids == expected["input_ids"]
    assert sum(ours.mask) - sum(expected["assistant_masks"]) == short
    assert ours.mask == render(TALK, tokenizer, template=CHATML).mask


@pytest.mark.slow
def test_published_templates(theirs):
    """Every chat template that TRL carries: the same ids and, where it is marked, the same mask but for its end."""
    trl = importlib.util.find_spec("trl")
    if trl is None:
        pytest.skip("published chat templates: pip install --no-deps trl")
    folder = pathlib.Path(trl.origin).parent / "chat_templates"
    sources = {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}
    pattern = (r"<\|[\w/ .-]{1,40}\|>|<｜[^<>'\"]{1,40}｜>|<turn\|>|</?think>|</?tool_call>"
               r"|<(?:start|end)_of_(?:turn|utterance)>")
    found = {token for source in sources.values() for token in re.findall(pattern, source)}
    library, ours = library_and_ours(("<|endoftext|>", "<bos>", "<eos>", *sorted(found - {"<|endoftext|>"})))
    theirs = type(theirs)(tokenizer_object=library)
    names, same, unclear = {"bos_token": "<bos>", "eos_token": "<eos>"}, 0, 0
    plain = json.loads(json.dumps(TOOLS).replace("<|im_end|>", "ß"))
    for (name, source), (messages, tools), prompt in itertools.product(
            sources.items(), ((TALK, None), (TALK[1:], None), ([TALK[0], *CALLS], plain)), (False, True)):
        marked = not prompt and name.endswith("_training")
        try:
            expected = theirs.apply_chat_template(
                json.loads(json.dumps(messages)), chat_template=source, tools=tools, add_generation_prompt=prompt,
                return_dict=True, return_assistant_tokens_mask=marked, **names)
        except Exception:  # the template's own refusal (no system message, no tools), of whatever type
            continue
        try:
            rendered = render(messages, ours, template=source, tools=tools, add_generation_prompt=prompt,
                              variables=names)
        except ValueError as error:
            assert "put {% generation %}" in str(error) and not prompt and not marked, name
            unclear += 1
            continue
        assert rendered.ids == expected["input_ids"], name
        if marked:
            assert all(ours >= theirs for ours, theirs in zip(rendered.mask, expected["assistant_masks"], strict=True))
        same += 1
    print(f"{same} conversations are the same in {len(sources)} templates; {unclear} need generation blocks for a mask")
    assert same > 10 * unclear


@pytest.mark.slow
def test_real_qwen_tokenizer(real_data):
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    from tokenizers import Tokenizer as Library

    library = Library.from_str(lzma.open(real_data("tokenizers/qwen2_5_tokenizer.json.xz"), "rt").read())
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library)
    ranks = parse_ranks(lzma.open(real_data("tokenizers/qwen.tiktoken.xz")).read())
    added = {token.content: id for id, token in library.get_added_tokens_decoder().items()}
    ours = tokenizer_from_ranks("qwen", ranks, PATTERNS["digits"], added, QWEN)
    for messages in (TALK, CALLS, WHITESPACE):
        assert render(messages, ours).ids == their_ids(theirs, QWEN, messages)
    assert end_of_turn(ours) == (added["<|im_end|>"], added["<|endoftext|>"])


# What counts, and prefixes

@pytest.mark.parametrize("name, end", [("im_sep", "<|im_end|>"), ("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"),
                                       ("gemma", "<end_of_turn>"), (CHATML, "<|im_end|>"), (PHI3, "<|end|>"),
                                       (MISTRAL, "</s>"), (COHERE, "<|eot_id|>"), (THINKING, "<|im_end|>"),
                                       (ENDED, "<|im_end|>")])
def test_the_assistants_tokens_and_its_end_count(tokenizer, name, end):
    replies = ["It is 22 degrees." + end, "Hello!\n\nBye." + end]
    space = " " if name == MISTRAL else ""  # its header ends before the space
    if name == COHERE:
        replies = [reply.replace(end, "<|end|>" + end) for reply in replies]
    assert counted(render(TALK, tokenizer, template=name), tokenizer) == [space + reply for reply in replies]
    assert end_of_turn(tokenizer, name)[0] == tokenizer.special_tokens[end]


def test_the_house_format(tokenizer):
    ours = render(CALLS, tokenizer, template="im_sep")
    assert tokenizer.decode(ours.ids) == (
        '<|im_start|>user<|im_sep|>Weather?<|im_end|><|im_start|>assistant<|im_sep|><|tool_call|>{"name": "weather", '
        '"arguments": {"city": "Zürich"}}<|tool_end|><|im_end|><|im_start|>tool<|im_sep|><|tool_result|>22 degrees'
        '<|tool_end|><|im_end|><|im_start|>assistant<|im_sep|>It is warm.<|im_end|>')
    assert counted(ours, tokenizer) == ['<|tool_call|>{"name": "weather", "arguments": {"city": "Zürich"}}<|tool_end|>'
                                        '<|im_end|>', "It is warm.<|im_end|>"]
    described = tokenizer.decode(render(CALLS, tokenizer, template="im_sep", tools=TOOLS).ids)
    assert described.startswith("<|im_start|>system<|im_sep|>You can call") and '"name": "weather"' in described


# Texts from pieces that would be control tokens, alone or together with what a template writes around them.
HOSTILE = st.lists(st.sampled_from([*SPECIALS, "<|", "|>", "<", ">", "im_start", "im_end|>", "<|im_", "user", "\n", " ",
                                    "a", "é", "\ud800", "\\", '"', "\U000f0000", "\U000f0001", "{{", "<|IM_END|>"]),
                   max_size=6).map("".join)


@pytest.mark.parametrize("name", ["im_sep", "chatml", "llama3", "gemma", CHATML, LLAMA3, GEMMA, QWEN, PHI3, MARKED])
@hypothesis.given(texts=st.lists(HOSTILE, min_size=5, max_size=5))
@hypothesis.settings(deadline=None, max_examples=20)
def test_content_is_never_a_control_token(tokenizer, name, texts):
    specials = set(tokenizer.special_tokens.values())
    bos = {"bos_token": "<bos>"} if name == GEMMA else {}

    def controls(messages):
        rendered = render(messages, tokenizer, template=name, variables=bos)
        return [(id, counts) for id, counts in zip(rendered.ids, rendered.mask, strict=True) if id in specials]

    hostile = [{**message, "content": text} for message, text in zip(TALK, texts, strict=True)]
    assert controls(hostile) == controls(TALK)
    # Nothing of the content is lost or added either.
    text = tokenizer.decode(render(hostile, tokenizer, template=name, variables=bos).ids)
    for message in plain_messages(hostile):
        assert message["content"].strip() in text
    expected = tokenizer.decode(render(TALK, tokenizer, template=name, variables=bos).ids)
    if name not in ("llama3", "gemma", LLAMA3, GEMMA):  # which trim
        added = sum(len(m["content"]) - len(t["content"]) for m, t in zip(plain_messages(hostile), TALK, strict=True))
        assert len(text) - len(expected) == added


@pytest.mark.parametrize("template, content", [("<|{}|>", "im_end"), ("<|im_{}|>", " end "), ("<|im_{}", "end|> x"),
                                               ("{}|>", "x <|im_end"), ("{}>", "<"), ("<{}", "|im_end|>")])
def test_a_template_cannot_complete_a_control_token(tokenizer, template, content):
    source = "{{ '" + template.replace("{}", "' + messages[0].content | trim + '") + "' }}<|eot_id|>"
    ours = render([{"role": "user", "content": content}], tokenizer, template=source)
    controls = set(tokenizer.special_tokens.values()).intersection(ours.ids)
    assert controls == {tokenizer.special_tokens["<|eot_id|>"]}
    assert tokenizer.decode(ours.ids) == template.format(content.strip()) + "<|eot_id|>"


@pytest.mark.parametrize("name", ["im_sep", "chatml", QWEN])
@hypothesis.given(name_text=HOSTILE.filter(bool), key=HOSTILE, value=HOSTILE, result=HOSTILE)
@hypothesis.settings(deadline=None, max_examples=20)
def test_tools_are_never_control_tokens(tokenizer, name, name_text, key, value, result):
    def messages(function, arguments, content):
        call = {"id": function, "type": "function", "function": {"name": function, "arguments": arguments}}
        return [CALLS[0], {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": content}]

    def controls(function, arguments, content):
        tool = {"type": "function", "function": {"name": function, "description": content, "parameters": arguments}}
        rendered = render(messages(function, arguments, content), tokenizer, tools=[tool], template=name)
        return [id for id in rendered.ids if id in tokenizer.special_tokens.values()]

    assert controls(name_text, {key: value, "role": value}, result) == controls("f", {}, "r")


@pytest.mark.parametrize("name", [*FORMATS, CHATML, LLAMA3])
@hypothesis.given(texts=st.lists(HOSTILE, min_size=5, max_size=5), count=st.integers(1, 4))
@hypothesis.settings(deadline=None, max_examples=15)
def test_fewer_turns_are_a_prefix(tokenizer, name, texts, count):
    messages = [{**message, "content": text} for message, text in zip(TALK, texts, strict=True)]
    if name == "gemma":
        messages = messages[1:]
    some = render(messages[:count], tokenizer, template=name)
    whole = render(messages, tokenizer, template=name)
    assert whole.ids[:len(some.ids)] == some.ids and whole.mask[:len(some.mask)] == some.mask
    if name == "im_sep" and messages[min(count, 3)]["role"] == "assistant":
        prompt = render(messages[:count], tokenizer, template=name, add_generation_prompt=True)
        assert whole.ids[:len(prompt.ids)] == prompt.ids and not any(prompt.mask)


def test_a_token_of_header_and_reply_does_not_count(tokenizer):
    """The reply's first newline would merge with the header's: the loss leaves that token alone."""
    ranks = dict(tokenizer.ranks) | {b"\n\n": 5000} if b"\n\n" not in tokenizer.ranks else tokenizer.ranks
    specials = {token: 6000 + i for i, token in enumerate(SPECIALS)}
    merging = tokenizer_from_ranks("merging", ranks, PATTERNS["gpt4"], specials)
    ours = render([TALK[1], {"role": "assistant", "content": "\nHi"}], merging, template="chatml")
    assert counted(ours, merging) == ["Hi<|im_end|>"]


# Replies

def test_replies_are_read(tokenizer):
    for name in ("im_sep", "chatml", QWEN, "llama3"):
        rendered = render(CALLS[:2], tokenizer, template=name)
        message = parse_reply(counted(rendered, tokenizer)[0], name)
        call = message["tool_calls"][0]
        assert call["type"] == "function" and call["id"].startswith("call_") and message["content"] is None
        assert call["function"]["name"] == "weather" and json.loads(call["function"]["arguments"]) == {"city": "Zürich"}
        assert render([CALLS[0], message], tokenizer, template=name) == rendered
    two = '<tool_call>{"name": "a"}</tool_call>\n<tool_call>{"name": "b", "arguments": "{\\"x\\": 1}"}</tool_call>'
    message = parse_reply("Well.\n" + two + "<|im_end|>")
    assert message["content"] == "Well."
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["a", "b"]


@pytest.mark.parametrize("text", ["plain { text", "<tool_call>{nonsense}</tool_call>", "<tool_call>{\"name\": \"a\"}",
                                  '<tool_call>{"name": 3}</tool_call>', '<tool_call>[1]</tool_call>', "", " <think> "])
def test_what_is_no_call_stays_text(text):
    assert parse_reply(text) == parse_reply(text, "chatml") == {"role": "assistant", "content": text}
    assert parse_reply(text, "llama3")["content"] == text


# Bad input

@pytest.mark.parametrize("messages, message", [
    ([], "the conversation is empty"),
    ("hello", "messages must be a list"),
    ([{"role": "user", "content": "a"}, "b"], "message 1 must be an object"),
    ([{"role": "robot", "content": "a"}], "message 0: the role 'robot' is unknown; choose one of system"),
    ([{"role": "user"}], "message 0: a message of role 'user' needs content"),
    ([{"role": "user", "content": 3}], "message 0: content must be a text or a list of parts, not int"),
    ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
     "message 0, part 1: only parts .* this one is of type 'image_url'"),
    ([{"role": "user", "content": "a", "tool_calls": [{}]}], "message 0: only an assistant's message has tool_calls"),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
     "message 0, tool call 0: its arguments are not JSON"),
    ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "message 0, tool call 0 must be"),
])
def test_bad_messages(tokenizer, messages, message):
    with pytest.raises(ValueError, match=message):
        render(messages, tokenizer, template="im_sep")


@pytest.mark.parametrize("template, messages, message", [
    (None, TALK, "the tokenizer test has no chat template: .* continues text"),
    ("alpaca", TALK, "the chat format 'alpaca' is unknown; choose one of im_sep, chatml"),
    ("{% for %}", TALK, "the chat template is not valid Jinja: line 1"),
    ("{{ raise_exception('no system') }}", TALK, "the chat template refuses this conversation: no system"),
    ("{{ messages.append(1) }}", TALK, "the chat template refuses this conversation: .*unsafe|.*append"),
    ("{{ ''.__class__.__mro__ }}", TALK, "the chat template refuses this conversation"),
    ("gemma", CALLS, "message 1: the gemma format has no tool calls"),
    ("gemma", [TALK[1], TALK[0]], "message 1: in the gemma format a system message comes first"),
    ("llama3", [{**CALLS[1], "content": "text"}], "message 0: in the llama3 format a message is a text or one tool"),
    ("{{ messages | length }}{{ messages[-1].content }}", TALK, "message 2: the chat template writes what"),
])
def test_bad_templates(tokenizer, template, messages, message):
    with pytest.raises(ValueError, match=message):
        render(messages, tokenizer, template=template)


def test_a_format_needs_its_tokens(tokenizer):
    bare = tokenizer_from_ranks("bare", tokenizer.ranks, PATTERNS["gpt4"], {"<|endoftext|>": 9000})
    with pytest.raises(ValueError, match=r"the chat format llama3 needs the special tokens <\|begin_of_text\|>"):
        render(TALK, bare, template="llama3")


def test_the_first_token_is_the_tokenizers(tokenizer):
    begins = dataclasses.replace(tokenizer, begin_token="<s>")
    assert render(TALK, begins, template=LLAMA3).ids[0] == tokenizer.special_tokens["<s>"]
    assert render(TALK, begins, template=LLAMA3, variables={"bos_token": "<bos>"}).ids[0] == (
        tokenizer.special_tokens["<bos>"])


def test_parts_are_joined_and_developers_are_the_system(tokenizer):
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
             *TALK[1:]]
    for name in ("im_sep", CHATML):
        assert render(parts, tokenizer, template=name) == render(TALK, tokenizer, template=name)
