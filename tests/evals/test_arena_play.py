"""Battles: replies and votes that survive a kill, and judges that are asked in both orders."""

import json

import numpy as np
import pytest

from jaxllm.evals.arena_judges import ModelJudge, by_score
from jaxllm.evals.arena_play import SAME, Battle, Outcome, battles_of, draw_replies, play, votes_on
from jaxllm.evals.arena_votes import position_bias, read_votes

PROMPTS = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]


def replies_of(players="abc", samples=2):
    return {name: [[f"{name} {i} {k}" for k in range(samples)] for i in range(len(PROMPTS))] for name in players}


def test_replies_are_drawn_once_and_a_kill_loses_none(tmp_path):
    asked = []

    def speak(prompts, samples, seed):
        asked.append((len(prompts), seed))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [[f"{prompt[0]['content']}\u2028{seed} {k}" for k in range(samples)] for prompt in prompts]

    file = tmp_path / "replies.jsonl"
    with pytest.raises(KeyboardInterrupt):
        draw_replies({"a": ("v1", speak)}, PROMPTS, file, samples=2, together=2)
    with open(file, "a") as torn:
        torn.write('{"key": "')
    found = draw_replies({"a": ("v1", speak)}, PROMPTS, file, samples=2, together=2)
    assert [count for count, _ in asked] == [2, 1, 1] and [len(row) for row in found["a"]] == [2, 2, 2]
    assert draw_replies({"a": ("v1", speak)}, PROMPTS, file, samples=2) == found and len(asked) == 3
    draw_replies({"a": ("v2", speak), "b": ("v1", speak)}, PROMPTS, file, samples=2)
    assert len(asked) == 5 and asked[3][1] != asked[4][1]  # other weights, and the same weights under another name
    draw_replies({"a": ("v1", speak)}, PROMPTS, file, samples=2, seed=1)
    assert len(asked) == 6 and asked[5][1] not in [seed for _, seed in asked[:5]]


def test_every_pair_meets_on_every_prompt_and_sample():
    battles = battles_of(PROMPTS, replies_of())
    assert len(battles) == 3 * 3 * 2 and len({battle.name for battle in battles}) == 18
    assert all(battle.completions[0].startswith(battle.players[0]) for battle in battles)
    some = battles_of(PROMPTS, replies_of(), most=6)
    assert [sum(battle.players == pair for battle in some) for pair in (("a", "b"), ("a", "c"), ("b", "c"))] == [2] * 3
    more = battles_of(PROMPTS, replies_of("abcd"))
    assert {battle.name for battle in battles} < {battle.name for battle in more}
    assert battles != battles_of(PROMPTS, replies_of(), seed=1)


@pytest.mark.parametrize("together", [1, 4])
def test_each_vote_is_kept_and_asked_for_once(tmp_path, together):
    replies = replies_of()
    replies["a"][0][0] = replies["b"][0][0] = "the same"
    battles, file, asked = battles_of(PROMPTS, replies), tmp_path / "votes.jsonl", []

    def judge(battle):
        asked.append(battle.name)
        if len(asked) == 7:
            raise OSError("gone")
        return Outcome(float(battle.completions[0] > battle.completions[1]))

    with pytest.raises(OSError, match="gone"):
        play(battles, judge, file, "judge", together=together)
    kept = len(file.read_text().splitlines())
    assert kept >= 6
    votes = play(battles, judge, file, "judge", together=together)
    assert len(votes) == 18 and len(read_votes(file)) == 18 and len(asked) - 17 <= together
    assert [vote.ranking.annotator for vote in votes].count(SAME) == 1
    again = play(battles, None, file, "judge")
    assert [(v.players, v.points(0, 1)) for v in again] == [(v.players, v.points(0, 1)) for v in votes]
    assert len(votes_on(battles, file, ("nobody",))) == 0
    assert len(play(battles[:5], lambda battle: Outcome(0.5), file, "other")) == 5


def test_scores_decide_with_ties_and_both_bad():
    judge = by_score(lambda number, text: float(text), tie=0.5, bad=1.0)
    battle = [Battle(tuple(PROMPTS[0]), 0, ("a", "b"), texts) for texts in (("3", "1"), ("3", "3.4"), ("1", "0.6"))]
    assert [judge(one) for one in battle] == [Outcome(1.0), Outcome(0.5), Outcome(0.5, bad=True)]


def test_a_model_is_asked_in_both_orders(tmp_path):
    """Of three judges one knows, one always takes what it sees first, one cannot be understood."""
    def shown(prompt):
        case = json.loads(prompt.split("\n\n")[-1])
        return case["reply A"], case["reply B"]

    battles = battles_of(PROMPTS, replies_of())
    knows = ModelJudge(lambda prompt, temperature, most: "A." if shown(prompt)[0] < shown(prompt)[1] else "b")
    votes = play(battles, knows, tmp_path / "knows.jsonl", "model", together=3)
    assert {vote.points(0, 1) for vote in votes} == {1.0} and position_bias(votes).same == 18
    first = play(battles, ModelJudge(lambda *asked: "A"), tmp_path / "first.jsonl", "model")
    assert {vote.points(0, 1) for vote in first} == {0.5}
    bias = position_bias(first)
    assert (bias.asked, bias.same, bias.first, bias.second) == (18, 0, 18, 0)
    bad = play(battles[:1], ModelJudge(lambda *asked: "BAD"), tmp_path / "bad.jsonl", "model")
    assert bad[0].bad and bad[0].said == (0.5, 0.5)
    said = []
    mumbles = ModelJudge(lambda *asked: said.append(asked) or "Well, A is longer", attempts=2)
    assert play(battles[:2], mumbles, tmp_path / "none.jsonl", "model") == []
    assert mumbles.unread == 2 and len(said) == 8 and np.unique([asked[1] for asked in said]).tolist() == [0.0, 1.0]
