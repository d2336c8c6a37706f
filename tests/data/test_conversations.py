"""Conversations: files as they are published, whole turns in rows, masks that are never empty, exact mixtures."""

import collections
import functools
import gzip
import json
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data.chat import FORMATS, render
from jaxllm.data.conversation_readers import Conversation, read_conversations
from jaxllm.data.conversations import conversation_rows, fit, mix, split_conversations
from jaxllm.data.tokenizer import Tokenizer, train_tokenizer

ASK, REPLY = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}
RESULT = {"role": "tool", "content": "2"}
TREE = {"message_tree_id": "t", "prompt": {"text": "q", "role": "prompter", "replies": [
    {"text": "second", "role": "assistant", "rank": 1, "replies": []},
    {"text": "first", "role": "assistant", "rank": 0, "replies": [
        {"text": "unanswered", "role": "prompter", "replies": []},
        {"text": "more", "role": "prompter", "replies": [{"text": "end", "role": "assistant", "replies": []}]}]},
    {"text": "gone", "role": "assistant", "rank": -1, "deleted": True, "replies": []}]}}


@functools.cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the answer is so and why, the question is not"] * 3, 280)


def written(folder, records, name="a.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts(found):
    return [[message.get("content") for message in one.messages] for one in found.conversations]


@pytest.mark.parametrize("format, record, expected", [
    ("openai", {"messages": [ASK, CALL, RESULT, REPLY]}, [ASK, CALL, RESULT, REPLY]),
    ("sharegpt", {"conversations": [
        {"from": "system", "value": " "}, {"from": "human", "value": "Why?"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "So."}]}, [ASK, CALL, RESULT, REPLY]),
    ("alpaca", {"instruction": "Add", "input": "1, 2", "output": "3"},
     [{"role": "user", "content": "Add\n\n1, 2"}, {"role": "assistant", "content": "3"}]),
    ("dolly", {"instruction": "Why?", "context": "", "response": "So.", "category": "qa"}, [ASK, REPLY]),
    ("prompt_answer", {"prompt": "Below.\n\n### Instruction:\nAdd\n\n### Input:\n1, 2\n\n### Response:", "answer": "3"},
     [{"role": "user", "content": "Add\n\n1, 2"}, {"role": "assistant", "content": "3"}]),
    ("self_instruct", {"instruction": "Why?", "instances": [{"input": "", "output": "So."}]}, [ASK, REPLY]),
])
def test_every_format_is_found_by_itself(tmp_path, format, record, expected):
    for name in (None, format):
        found = read_conversations(written(tmp_path, [record]), name)
        assert found.format == format and [one.messages for one in found.conversations] == [expected]


def test_trees_are_read_by_the_stated_rule(tmp_path):
    path = written(tmp_path, [TREE])
    assert texts(read_conversations(path)) == [["q", "first", "more", "end"]]
    found = read_conversations(path, paths="all")
    assert texts(found) == [["q", "first", "more", "end"], ["q", "second"]]
    assert {one.origin for one in found.conversations} == {"t"}


def test_skipped_are_counted_by_reason(tmp_path):
    blank = {"role": "assistant", "content": " "}
    bad = [[], [ASK, blank], [ASK], [REPLY], [ASK, RESULT], [{"role": "bing", "content": "x"}, REPLY]]
    found = read_conversations(written(tmp_path, [{"messages": one} for one in [*bad, [ASK, REPLY]]]))
    assert found.skipped == {"empty": 2, "no assistant turn": 1, "bad roles": 3} and len(found.conversations) == 1


@pytest.mark.parametrize("line", ["{", "[1]", '{"messages": 3}', '{"messages": [{"content": "x"}]}', '{"x": 1}',
                                  '{"messages": [{"role": "user", "content": [{"type": "image"}]}, '
                                  '{"role": "assistant", "content": "x"}]}'])
def test_errors_name_file_and_line(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"messages": [ASK, REPLY]}) + "\n\n" + line + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 3: "):
        read_conversations(path)
    with pytest.raises(FileNotFoundError):
        read_conversations(tmp_path / "none.jsonl")


def test_arrays_and_compressed_files(tmp_path):
    good = {"instruction": "Why?", "output": "So."}
    data = json.dumps([good, good, {"instruction": 3, "output": "x"}], indent=1).encode()
    for opener, end in ((gzip.open, "gz"), (lzma.open, "xz"), (open, "")):
        path = tmp_path / f"a.json.{end}".rstrip(".")
        with opener(path, "wb") as file:
            file.write(data)
        with pytest.raises(ValueError, match=r"line 10: .*instruction must be a text"):
            read_conversations(path)


@pytest.mark.parametrize("name, format, count", [
    ("glaive_toolcall_300.json.xz", "sharegpt", 300), ("dolly_151.jsonl.xz", "prompt_answer", 151),
    ("rasbt_instruction_1100.json.xz", "alpaca", 1100), ("oasst_en_100_trees.jsonl.xz", "oasst", 100)])
def test_published_files(real_data, name, format, count):
    found = read_conversations(real_data(f"sft/{name}"))
    assert (found.format, len(found.conversations), sum(found.skipped.values())) == (format, count, 0)
    rows = conversation_rows(found.conversations, tokenizer(), 1024, template="im_sep")
    assert rows.conversations + rows.too_long + rows.nothing_counts == count
    assert np.all(rows.batch.weights.sum(1) > 0)


TURNS = st.lists(st.sampled_from([[ASK, REPLY], [ASK, CALL, RESULT, REPLY], [ASK, REPLY, REPLY],
                                  [ASK, {"role": "assistant", "content": "the answer is <|im_end|> so " * 3}]]),
                 min_size=1, max_size=4)


def conversations(many):
    return [Conversation([message for turn in turns for message in turn], where=f"x, line {number}")
            for number, turns in enumerate(many)]


@settings(max_examples=80, deadline=None)
@given(turns=TURNS, tail=st.sampled_from([[], [ASK]]), row_length=st.integers(2, 160),
       template=st.sampled_from(["im_sep", "chatml"]))
def test_only_whole_turns_go_and_no_mask_is_empty(turns, tail, row_length, template):
    (conversation,) = conversations([[*turns, tail]])
    found, dropped, reason = fit(conversation, tokenizer(), row_length, template=template)
    prefixes = [render([message for turn in turns[:n] for message in turn], tokenizer(), template=template)
                for n in range(1, len(turns) + 1)]
    fitting = [prefix for prefix in prefixes if len(prefix.ids) <= row_length]
    if fitting:
        assert found == fitting[-1] and dropped == len(turns) - len(fitting) and any(found.mask[1:])
    else:
        assert (found, reason) == (None, "too long")


@settings(max_examples=30, deadline=None)
@given(many=st.lists(TURNS, min_size=1, max_size=6), row_length=st.integers(80, 200))
def test_packed_rows_hold_each_conversation_apart_with_its_own_mask(many, row_length):
    items = conversations(many)
    rows = conversation_rows(items, tokenizer(), row_length, template="im_sep")
    expected = collections.Counter()
    for item in items:
        found = fit(item, tokenizer(), row_length, template="im_sep")[0]
        if found:
            expected[tuple(found.ids), tuple(found.mask[1:])] += 1
    batch, seen = rows.batch, collections.Counter()
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            here = batch.segment_ids[row] == segment
            assert np.array_equal(batch.positions[row, here], np.arange(here.sum()))
            seen[tuple(batch.tokens[row, here].tolist()), tuple((batch.weights[row, here] > 0).tolist()[:-1])] += 1
    assert seen == expected
    assert rows.conversations == sum(expected.values()) and rows.conversations + rows.too_long == len(items)
    assert rows.counted_tokens == batch.weights.sum() == sum(sum(mask) * n for (_, mask), n in expected.items())
    assert rows.padding == pytest.approx(np.mean(batch.segment_ids == 0))


def numbered(count, start):
    """Rows that can be told apart: one conversation a row."""
    items = [Conversation([{"role": "user", "content": f"{start + n:04d}"}, REPLY]) for n in range(count)]
    length = len(render(items[0].messages, tokenizer(), template="im_sep").ids)
    return conversation_rows(items, tokenizer(), length, template="im_sep")


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 99), data=st.data())
def test_epochs_are_exact_and_hosts_read_one_order(counts, seed, data):
    epochs = data.draw(st.lists(st.sampled_from([0.5, 1, 2, 2.5]), min_size=len(counts), max_size=len(counts)))
    sources = [numbered(count, 100 * n) for n, count in enumerate(counts)]
    assert all(len(source.batch.tokens) == count for source, count in zip(sources, counts, strict=True))
    mixture = mix(sources, epochs=epochs, seed=seed)
    run = mixture.batch_at(0, batch_size=mixture.block)
    seen = collections.Counter(map(bytes, run.tokens))
    for source, times in zip(sources, epochs, strict=True):
        found = [seen[bytes(row)] for row in source.batch.tokens]
        assert sum(found) == max(1, round(times * len(found))) and set(found) <= {int(times), int(np.ceil(times))}
    halves = [mixture.batch_at(3, batch_size=4, host=host, hosts=2).tokens for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), mixture.batch_at(3, batch_size=4).tokens)
    weighted = mix(sources, weights=epochs, seed=seed).batch_at(0, batch_size=1024)
    first = np.isin(list(map(bytes, weighted.tokens)), list(map(bytes, sources[0].batch.tokens))).sum()
    assert abs(first - 1024 * epochs[0] / sum(epochs)) < 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9), order=st.permutations(range(40)))
def test_the_split_depends_on_the_conversation_alone(seed, order):
    items = [Conversation([{"role": "user", "content": str(n)}, REPLY], origin=f"t{n // 4}" if n >= 20 else None)
             for n in range(40)]
    train, validation = split_conversations(items, 0.4, seed)
    assert len(train) + len(validation) == 40 and not split_conversations(items, 0.0, seed)[1]
    again = split_conversations([items[n] for n in order], 0.4, seed)[1]
    assert {str(one) for one in again} == {str(one) for one in validation}
    assert not {one.origin for one in train if one.origin} & {one.origin for one in validation}
    more = split_conversations(items, 0.6, seed)[1]
    assert {str(one) for one in validation} <= {str(one) for one in more}


def test_what_cannot_be_done_is_refused():
    items = conversations([[[ASK, CALL, RESULT, REPLY]]])
    with pytest.raises(ValueError, match="raise the row length"):
        conversation_rows(items, tokenizer(), 5, template="im_sep")
    with pytest.raises(ValueError, match="x, line 0: the chat format gemma"):
        conversation_rows(items, tokenizer(), 50, template="gemma")
    assert "gemma" in FORMATS
    source = numbered(2, 0)
    for settings_, words in ((dict(epochs=[1, 1]), "as many"), (dict(epochs=[0]), "above 0"),
                             (dict(epochs=[1], weights=[1]), "not both")):
        with pytest.raises(ValueError, match=words):
            mix([source], **settings_)
    with pytest.raises(ValueError, match="fraction"):
        split_conversations(items, 1.0)
