"""Preferences from files: the door's own form, what others publish, and what a crash leaves behind."""

import concurrent.futures
import gzip
import json
import lzma

import pytest

from jaxllm.data.preference_files import read_feedback
from jaxllm.data.preferences import (
    Ranking,
    append_line,
    append_ranking,
    drop_rankings,
    mend,
    open_preferences,
    read_preferences,
    read_prompts,
    read_rankings,
    split_rankings,
    write_rankings,
)

ASKED = ({"role": "user", "content": "A joke?"},)
ONE = Ranking(ASKED, ("a", "b", "c", "d"), ((2,), (0, 3), (1,)), "ada")


def put(path, *records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps(list(records)) if ".json" in path.suffixes else text)
    return path


def test_a_ranking_and_its_pairs():
    assert ONE.tiers == (1, 2, 0, 1)
    assert ONE.pairs() == [(2, 0), (2, 3), (2, 1), (0, 1), (3, 1)]
    for completions, ranking in ((("a",), ((0,),)), (("a", "b"), ((0,),)), (("a", "b"), ((0,), (0, 1))),
                                 (("a", "b"), ((0,), (2,))), (("a", "b"), ((0, 1), ()))):
        with pytest.raises(ValueError, match="ranking"):
            Ranking(ASKED, completions, ranking)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "r.jsonl"
    other = Ranking(({"role": "system", "content": "Kurz, é."}, *ASKED), ("x", "漢\nz"), ((1,), (0,)))
    write_rankings(path, [ONE])
    append_ranking(path, other, seconds=1.5)
    found = list(read_rankings(path))
    assert [(r.prompt, r.completions, r.ranking, r.annotator) for r in found] == [
        (r.prompt, r.completions, r.ranking, r.annotator) for r in (ONE, other)]
    assert found[1].where == f"{path}, line 2"
    assert json.loads(path.read_text().splitlines()[0])["ranking"] == [2, [0, 3], 1]
    assert drop_rankings(path, lambda record: record["annotator"] == "ada") == 1
    assert [r.completions for r in read_rankings(path)] == [other.completions]


def test_a_torn_line_goes_and_a_whole_one_stays(tmp_path):
    path = tmp_path / "r.jsonl"
    write_rankings(path, [ONE])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    append_ranking(path, ONE)
    assert path.read_bytes() == 2 * whole
    path.write_bytes(whole.rstrip(b"\n"))  # as an editor may leave it
    mend(path)
    assert path.read_bytes() == whole
    path.write_bytes(b'{"prompt": ' + b"x" * 100_000)
    mend(path)
    assert path.read_bytes() == b""


def _write_many(path, name):
    for i in range(60):
        append_line(path, {"who": name, "text": name * 3000, "i": i})
        if i % 20 == 7:  # the file is replaced under the other writers
            drop_rankings(path, lambda record, i=i: (record["who"], record["i"]) == (name, i))


def test_writers_do_not_interleave(tmp_path):
    path = tmp_path / "r.jsonl"
    with concurrent.futures.ThreadPoolExecutor(3) as pool:  # each opens the file anew, as processes would
        list(pool.map(_write_many, [path] * 3, "abc"))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [i for i in range(60) if i % 20 != 7]
    assert all([r["i"] for r in records if r["who"] == name] == kept for name in "abc")
    assert all(record["text"] == record["who"] * 3000 for record in records)


@pytest.mark.parametrize("record, sentence", [
    ({"prompt": "p", "completions": ["a", "b"], "ranking": [0]}, "must hold each of 0 to 1 once"),
    ({"prompt": "p", "completions": ["a", "b"], "ranking": [0, True]}, "must hold indices"),
    ({"prompt": "p", "completions": ["a", 1], "ranking": [0, 1]}, "must be a text, not int"),
    ({"prompt": "p", "completions": ["a"], "ranking": [0]}, "2 completions or more"),
    ({"prompt": [{"role": "bot", "content": ""}], "completions": ["a", "b"], "ranking": [0, 1]}, "the role 'bot'"),
    ({"prompt": "p", "completions": ["a", "b"], "ranking": [0, 1], "annotator": 3}, "annotator must be a text"),
    (["prompt"], "expected an object, got list"),
])
def test_a_bad_line_is_named(tmp_path, record, sentence):
    path = put(tmp_path / "r.jsonl", {"prompt": "p", "completions": ["a", "b"], "ranking": [[0, 1]]}, record)
    with pytest.raises(ValueError, match=f"r.jsonl, line 2: .*{sentence}"):
        read_preferences(path, "rankings")


def test_forms_of_chosen_and_rejected(tmp_path):
    """Every form gives the same ranking."""
    chosen, rejected = ({"role": "assistant", "content": text} for text in ("yes", "no"))
    wanted = (ASKED, ("yes", "no"), ((0,), (1,)))
    records = [{"prompt": "A joke?", "chosen": "yes", "rejected": "no"},
               {"prompt": list(ASKED), "chosen": [chosen], "rejected": [rejected]},
               {"prompt": "A joke?", "chosen": [*ASKED, chosen], "rejected": [*ASKED, rejected]},
               {"chosen": [*ASKED, chosen], "rejected": [*ASKED, rejected]},
               {"chosen": "\n\nHuman: A joke?\n\nAssistant: yes", "rejected": "\n\nHuman: A joke?\n\nAssistant: no"},
               {"instruction": "A joke?", "input": "", "chosen": "yes", "rejected": "no"},
               {"conversations": [{"from": "human", "value": "A joke?"}], "chosen": {"from": "gpt", "value": "yes"},
                "rejected": {"from": "gpt", "value": "no"}},
               {"prompt": "A joke?", "completions": ["yes", "no"], "ranking": [0, 1]}]
    for i, (record, suffix) in enumerate(zip(records, ("jsonl", "json", "jsonl.gz", "json.xz") * 2, strict=True)):
        (found,) = open_preferences(put(tmp_path / f"{i}.{suffix}", record))
        assert (found.prompt, found.completions, found.ranking) == wanted, record
    (found,) = open_preferences(put(tmp_path / "i.json", {**records[5], "input": "a cat", "system": "Be brief."}))
    assert [message["content"] for message in found.prompt] == ["Be brief.", "A joke?\n\na cat"]


def test_what_teaches_nothing_is_counted(tmp_path):
    human = "\n\nHuman: {}\n\nAssistant: {}"
    path = put(tmp_path / "hh.jsonl", *[{"chosen": chosen, "rejected": rejected} for chosen, rejected in (
        (human.format("q", "a"), human.format("q", "b")), (human.format("q", "a"), human.format("other", "b")),
        (human.format("q", "a"), human.format("q", "a")), (human.format("q", "a") + "\n\nHuman: and?", "\n\nHuman: q"),
        (human.format("", "a"), human.format("", "b")), (human.format("q", ""), human.format("q", "b")))])
    found = read_preferences(path)
    assert [r.completions for r in found.rankings] == [("a", "b"), ("", "b")]
    assert found.skipped == {"different prompts": 1, "equal completions": 1, "no answer": 1, "empty prompt": 1}
    assert found.format == "dialogue"
    with pytest.raises(ValueError, match='line 1: .*must begin with'):
        read_preferences(put(tmp_path / "x.jsonl", {"chosen": "a", "rejected": "b"}))
    with pytest.raises(ValueError, match="no known format of preferences has the fields 'text'"):
        read_preferences(put(tmp_path / "y.jsonl", {"text": "a"}))
    with pytest.raises(ValueError, match="annotator2 must be 0, 1 or 2, not 3"):
        read_preferences(put(tmp_path / "z.jsonl", {"instruction": "q", "response1": "a", "response2": "b",
                                                    "annotator1": 0, "annotator2": 3}))


def test_unpaired_verdicts(tmp_path):
    answer = {"role": "assistant", "content": "yes"}
    path = put(tmp_path / "kto.jsonl", {"messages": [*ASKED, answer], "label": True},
               {"prompt": "A joke?", "completion": "yes", "label": False},
               {"prompt": list(ASKED), "completion": [answer], "label": True},
               {"instruction": "A joke?", "input": "", "output": "yes", "kto_tag": False},
               {"messages": list(ASKED), "label": True})
    found = read_feedback(path)
    assert [(f.prompt, f.completion, f.desirable) for f in found.feedback] == [
        (ASKED, "yes", verdict) for verdict in (True, False, True, False)]
    assert found.skipped == {"no answer": 1}
    with pytest.raises(ValueError, match="line 1: .*true or false, not 1"):
        read_feedback(put(tmp_path / "b.jsonl", {"messages": [*ASKED, answer], "label": 1}))


def test_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("A joke?\n\n Another\u2028one? \n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == [list(ASKED), [{"role": "user", "content": "Another\u2028one?"}]]
    path = put(tmp_path / "p.jsonl", {"prompt": "A joke?"},
               {"messages": [*ASKED, {"role": "assistant", "content": "yes"}]})
    assert read_prompts(path) == [list(ASKED)] * 2
    with pytest.raises(ValueError, match="line 1: not a prompt"):
        read_prompts(put(tmp_path / "q.jsonl", {"text": "A joke?"}))


def test_a_prompt_falls_on_one_side():
    rankings = [Ranking(({"role": "user", "content": f"{i // 3}"},), ("a", "b"), ((0,), (1,)), str(i))
                for i in range(600)]
    training, validation = split_rankings(rankings, 0.25, seed=1)
    sides = [{r.prompt[0]["content"] for r in side} for side in (training, validation)]
    assert not sides[0] & sides[1] and len(training) + len(validation) == 600 and 90 < len(validation) < 210
    assert split_rankings(rankings[::-1], 0.25, seed=1)[1] == validation[::-1]


def test_published_files(real_data):
    """Counts of what is in the files: hh-rlhf, PandaLM's votes, DPO and KTO as they are passed on."""
    hh = read_preferences(real_data("pref/hh_harmless_test_0000_1499.jsonl.xz"))
    assert (len(hh.rankings), hh.skipped, hh.format) == (1499, {"different prompts": 1}, "dialogue")
    first = hh.rankings[0]
    assert [m["role"] for m in first.prompt] == ["user", "assistant"] * 2 + ["user"] and len(first.completions) == 2
    assert first.prompt[0]["content"] == "what are some pranks with a pen i can do?"
    assert first.completions[0].startswith("No, sorry!  All of these involve a pen")
    votes = read_preferences(real_data("pref/pandalm_testset_999x3_votes.json.xz"))
    assert len(votes.rankings) == 3 * 999 and {r.annotator for r in votes.rankings} == {
        f"annotator{i}" for i in (1, 2, 3)}
    assert all(isinstance(text, str) for r in votes.rankings for text in r.completions)  # some are JSON's true
    assert votes.rankings[0].ranking == ((1,), (0,)) and votes.rankings[0].prompt[0]["content"].endswith("let me know.")
    dpo = read_preferences(real_data("pref/dpo_en_demo_300.json.xz"))
    assert (len(dpo.rankings), dpo.format) == (300, "sharegpt")
    instructions = read_preferences(real_data("pref/rasbt_preference_1100.json.xz"))
    assert (len(instructions.rankings), instructions.skipped) == (1094, {"equal completions": 6})
    kto = read_feedback(real_data("pref/kto_en_demo_300.json.xz"))
    assert (len(kto.feedback), sum(f.desirable for f in kto.feedback), kto.skipped) == (300, 150, {})
