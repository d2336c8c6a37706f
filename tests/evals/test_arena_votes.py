"""Files of votes: ours, the Chatbot Arena's; and as arrays with what voters may like beside the player."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet
import pytest

from jaxllm.data.preferences import Ranking, read_rankings
from jaxllm.evals.arena import fit
from jaxllm.evals.arena_votes import Vote, append_vote, position_bias, read_votes, tally

ASKED = ({"role": "user", "content": "Why?"},)


def vote(texts=("one", "three"), ranking=((0,), (1,)), players=("a", "b"), prompt=ASKED, **more):
    return Vote(Ranking(prompt, texts, ranking, more.pop("annotator", "ada")), players, **more)


def test_votes_are_kept_as_preferences_and_read_back(tmp_path):
    file = tmp_path / "votes.jsonl"
    given = [vote(shown=(1, 0)), vote(ranking=((0, 1),), bad=True, said=(1.0, 0.0)),
             vote(("x", "y", "z"), ((2,), (0, 1)), ("a", "b", "c"))]
    for one in given:
        append_vote(file, one, seconds=1.5)
    found = read_votes(file)
    assert [(v.ranking.tiers, v.players, v.bad, v.shown, v.said) for v in found] == [
        (v.ranking.tiers, v.players, v.bad, v.shown, v.said) for v in given]
    assert [ranking.completions for ranking in read_rankings(file)] == [v.ranking.completions for v in given]
    assert [found[2].points(i, j) for i, j in ((0, 1), (0, 2), (2, 1))] == [0.5, 0.0, 1.0]
    tallied = tally(found)  # a ranking of three is three votes, in the group of its prompt
    assert tallied.players == ("a", "b", "c") and len(tallied.points) == 5 and len(set(tallied.groups)) == 1


def test_the_chatbot_arenas_form(tmp_path):
    def talk(*turns):
        return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, turns, strict=False)]

    records = [{"model_a": "x", "model_b": "y", "winner": winner, "judge": "arena_user_1",
                "conversation_a": talk("Hi", "Hello.", "More", "So."),
                "conversation_b": talk("Hi", "Ho.", "More", "No.")}
               for winner in ("model_a", "model_b", "tie", "tie (bothbad)")]
    file = tmp_path / "arena.json"
    file.write_text(json.dumps(records))
    found = read_votes(file)
    assert [v.points(0, 1) for v in found] == [1.0, 0.0, 0.5, 0.5] and [v.bad for v in found] == [False] * 3 + [True]
    assert found[0].ranking.completions == ("Hello.\n\nSo.", "Ho.\n\nNo.") and found[0].shown == (0, 1)
    assert [turn["content"] for turn in found[0].ranking.prompt] == ["Hi", "More"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "arena.parquet")  # as it is published
    assert [dataclasses.replace(v.ranking, where="") for v in read_votes(tmp_path / "arena.parquet")] == [
        dataclasses.replace(v.ranking, where="") for v in found]


@pytest.mark.parametrize("record, message", [
    ({"prompt": "?", "completions": ["a", "b"], "ranking": [0, 1]}, "line 2.*who wrote the completions"),
    ({"prompt": "?", "completions": ["a", "b"], "ranking": [0, 1], "players": ["a"]}, "line 2.*each of the 2"),
    ({"prompt": "?", "completions": ["a", "b"], "ranking": [0], "players": ["a", "b"]}, "line 2.*each of 0 to 1 once"),
    ({"prompt": "?", "completions": ["a", "b"], "ranking": [0, 1], "players": ["a", "b"], "shown": [0, 0]},
     "line 2.*shown"),
    ({"model_a": "x", "model_b": "y", "winner": "both"}, "line 2.*winner must be one of"),
    ({"cmp_key": "x_y", "instruction": "?", "response1": "a", "response2": "b", "annotator1": 3}, "must be 0, 1 or 2"),
    ({"prompt": "?", "completions": ["a", None], "ranking": [0, 1], "players": ["a", "b"]}, "line 2.*must be texts"),
    ([1], "expected an object"),
])
def test_what_is_no_vote_stops_with_file_and_line(tmp_path, record, message):
    file = tmp_path / "votes.jsonl"
    file.write_text("\n" + json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=message):
        read_votes(file)
    file.write_text("")
    with pytest.raises(ValueError, match="holds no vote"):
        read_votes(file)


def test_covariates_are_differences_and_do_not_know_who_is_first():
    texts = ("# Head\n- one\n- two\n**bold** text", "plain")
    votes = [vote(texts, shown=(0, 1)), vote(texts[::-1], ((1,), (0,)), shown=(0, 1)), vote(("same", "text"))]
    tallied = tally(votes, ("length", "headers", "lists", "bold", "position"))
    assert tallied.names == ("length", "headers", "lists", "bold", "position")
    length = (len(texts[0]) - 5) / (len(texts[0]) + 5)
    scale = np.sqrt(2 / 3)
    assert np.allclose(tallied.covariates[0], np.array([1.0] * 5) / scale)
    assert np.allclose(tallied.covariates[1], np.array([-1.0] * 4 + [1.0]) / scale) and length > 0
    assert not tallied.covariates[2].any()
    assert tally(votes[2:], ("length", "bold")).names == ()  # nothing differs: nothing to control
    with pytest.raises(ValueError, match="unknown covariates 'depth'"):
        tally(votes, ("depth",))
    other = [vote(prompt=({"role": "user", "content": str(i)},), ranking=((i % 3 == 0,), (i % 3 > 0,)),
                  texts=("word " * (i % 5), "word " * (i % 7)), shown=((0, 1), (1, 0))[i % 2]) for i in range(60)]
    turned = [Vote(Ranking(v.ranking.prompt, v.ranking.completions[::-1],
                           tuple(tuple(1 - k for k in tier) for tier in v.ranking.ranking), "ada"), v.players[::-1],
                   shown=tuple(1 - k for k in v.shown)) for v in other]
    one, two = (fit(tally(some, ("length", "position"))).parameters for some in (other, turned))
    assert np.allclose(one, two) and abs(one[2]) > 0.01


def test_position_bias_counts_the_changed_verdicts():
    said = [(1.0, 1.0)] * 5 + [(1.0, 0.0)] * 3 + [(0.5, 0.0)] + [(0.0, 1.0)]
    found = position_bias([vote(said=one) for one in said] + [vote()])
    assert (found.asked, found.same, found.first, found.second) == (10, 5, 4, 1)
    assert found.lean()[0] == 0.8 and found.lean()[1] < 0.5 < found.lean()[2]
