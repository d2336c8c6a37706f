"""The arena's command: votes that are there, players and judges of several kinds, and what it reports."""

import json
import random
import types

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import rank as configs
from experiments import lab, rank, rank_judges, rank_players, rank_world, report
from jaxllm.data.preferences import Ranking
from jaxllm.data.world_taste import joke, thing_of
from jaxllm.evals.arena_votes import Vote, append_vote, read_votes


@pytest.fixture
def config():
    config = configs.get_config()
    config.rating.samples, config.rating.orders, config.replies.samples, config.world.things = 100, 5, 1, 16
    return config


@pytest.fixture
def sketches(monkeypatch):
    """What is drawn is drawn, and not rendered: that takes longer than all the rest."""
    def picture(draw, **settings):
        draw(Figure().subplots())
        return "<figure><svg></svg></figure>"

    monkeypatch.setattr(report, "picture", picture)


def write_votes(file, count=60):
    rng = random.Random(0)
    for i in range(count):
        players = rng.sample(["good", "fair", "poor"], 2)
        better = int(rng.random() < 1 / (1 + 4.0 ** (["good", "fair", "poor"].index(players[0])
                                                     - ["good", "fair", "poor"].index(players[1]))))
        append_vote(file, Vote(Ranking(({"role": "user", "content": str(i // 2)},),
                                       ("word " * rng.randint(1, 9), "word " * rng.randint(1, 9)),
                                       ((1 - better,), (better,)), rng.choice(["ada", "bo"])), tuple(players)))


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_file_of_votes_is_ranked(config, tmp_path, capsys):
    config.votes, config.rating.anchor = str(tmp_path / "votes.jsonl"), "fair"
    write_votes(tmp_path / "votes.jsonl")
    rank.main(config, str(tmp_path / "run"))
    board = results(tmp_path / "run")["board"]
    assert [row["name"] for row in board] == ["good", "fair", "poor"]
    assert board[1]["score"] == 1000 and board[1]["low"] == board[1]["high"] == 1000
    assert board[0]["low"] < board[0]["score"] < board[0]["high"] and board[0]["rank_low"] == 1
    assert sum(row["votes"] for row in board) == 120
    assert [row[0] for row in results(tmp_path / "run")["style"]] == ["length"]
    assert "60 votes on 30 prompts" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 2 and "at equal style</th>" in page
    config.rating.anchor = "nobody"
    with pytest.raises(ValueError, match="the players are fair, good, poor"):
        rank.main(config, str(tmp_path / "run"))
    config.rating.anchor, config.rating.prior = "", 0.0
    file = tmp_path / "sure.jsonl"
    sure = [Vote(Ranking(({"role": "user", "content": text},), ("a", "b"), ((0,), (1,)), ""), ("x", "y"))
            for text in "?!"]
    append_vote(file, sure[0])
    config.votes = str(file)
    with pytest.raises(ValueError, match="two prompts or more"):
        rank.main(config, str(tmp_path / "run"))
    append_vote(file, sure[1])
    with pytest.raises(ValueError, match="x lost no point"):
        rank.main(config, str(tmp_path / "run"))
    config.rating.prior = 0.1  # under which the strengths of all four would be finite
    append_vote(file, Vote(sure[0].ranking, ("u", "v")))
    with pytest.raises(ValueError, match="nothing compares u, v with x, y"):
        rank.main(config, str(tmp_path / "run"))


def joker(name, asked):
    """A player that tells the corpus's jokes; one pads them, one gives half of them."""
    def speak(prompts, samples, seed):
        asked.append(name)
        rng = random.Random(f"{name}/{seed}")
        said = [[joke(rng, thing_of(list(prompt))) for _ in range(samples)] for prompt in prompts]
        change = {rank_world.LONG: lambda text: text + " It was a Monday." * 4,
                  rank_world.LITTLE: lambda text: text[:40]}
        return [[change.get(name, str)(text) for text in row] for row in said]
    return speak


def test_the_worlds_arena_shows_what_a_voter_who_likes_length_does(config, tmp_path, monkeypatch, sketches, capsys):
    asked = []
    monkeypatch.setattr(rank_world, "players_of", lambda config: {
        name: ("v", joker(name, asked)) for name in rank_world.PLAYERS})
    config.world.voter.length_bias = 2.0
    rank.main(config, str(tmp_path))
    found = results(tmp_path)
    names = [row["name"] for row in found["board"]]
    assert names[-1] in (rank_world.LITTLE, rank_world.LONG)
    assert [row["name"] for row in found["likes_length"]["board"]][0] == rank_world.LONG
    assert [row["name"] for row in found["does_not"]["board"]][0] != rank_world.LONG
    claims = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["verdict"] for claim in claims] == ["holds", "holds", "not settled"]
    assert len(asked) == 6 and len(read_votes(next(tmp_path.glob("votes-*.jsonl")))) == 3 * 15 * 16
    out = capsys.readouterr().out
    assert "gold: 240 of 240 battles" in out and "A voter who likes length" in out
    rank.main(config, str(tmp_path))  # as after a kill at the end: nothing is asked or judged again
    assert len(asked) == 6 and results(tmp_path) == found and "of 0 battles" not in capsys.readouterr().out


def test_verifier_reward_and_model_judge(config, tmp_path, monkeypatch, sketches):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": f"{i} + 1?"}], "answer": str(i + 1),
                                         "verifier": "number"}) + "\n" for i in range(6)))
    config.prompts, config.players = str(tasks), ("right=x", "wrong=y")
    said = {"right": lambda i: f"#### {i + (i > 0)}", "wrong": lambda i: f"It is 100, #### {100 if i % 3 else i + 1}"}
    monkeypatch.setattr(rank_players, "open_players", lambda specs, settings, api: {
        name: ("v", lambda prompts, samples, seed, name=name: [
            [said[name](int(p[0]["content"].split()[0])) for _ in range(samples)] for p in prompts]) for name in said})
    config.judge.kind = "verifier"
    prompts = rank_judges.prompts_of(config)
    replies = [(prompts[i], said["right"](i), said["wrong"](i)) for i in range(6)]
    judge = rank_judges.judge_of(config, prompts)
    outcomes = [judge(rank.Battle(tuple(prompt), i, ("right", "wrong"), texts)) for i, (prompt, *texts) in
                enumerate(replies)]
    assert [(one.points, one.bad) for one in outcomes] == [(0.0, False), (1.0, False), (1.0, False), (0.5, False),
                                                            (1.0, False), (1.0, False)]
    rank.main(config, str(tmp_path / "run"))
    assert [row["name"] for row in results(tmp_path / "run")["board"]] == ["right", "wrong"]

    version = rank_judges.version_of(config)
    tasks.write_text(tasks.read_text().replace('"1"', '"7"', 1))  # another answer is another judge
    assert rank_judges.version_of(config) != version
    monkeypatch.setattr(rank_judges, "load_reward", lambda folder: None)
    monkeypatch.setattr(rank_judges, "score_texts", lambda found, prompts, texts, batch: np.array([[len(texts[0][0])]]))
    config.judge.kind, config.judge.reward = "reward", "reward/model"
    judge = rank_judges.judge_of(config, prompts)
    assert judge(rank.Battle(tuple(prompts[0]), 0, ("a", "b"), ("longer", "long"))).points == 1.0

    asked = []
    monkeypatch.setattr(rank_players.remote, "connect", lambda url, model, **more: (
        lambda prompt, temperature, most: asked.append((url, model, prompt)) or "A"))
    config.judge.kind, config.judge.model, config.judge.criterion = "model", "http://judge/v1#gpt", "Shorter is better."
    rank.main(config, str(tmp_path / "model"))
    assert results(tmp_path / "model")["position_bias"] == {"asked": 6, "same": 0, "first": 6, "second": 0}
    assert asked[0][:2] == ("http://judge/v1", "gpt") and "Shorter is better." in asked[0][2]
    monkeypatch.setattr(rank_players.remote, "connect", lambda *given, **more: lambda *asked: "Well.")
    with pytest.raises(ValueError, match="no verdict that can be read on any of 6 battles"):
        rank.main(config, str(tmp_path / "mumbles"))


def test_people_judge_on_the_page(config, tmp_path, monkeypatch, sketches):
    battling = pytest.importorskip("jaxllm.serve.battling", reason="needs the extra `serve`")
    monkeypatch.setattr(rank_world, "players_of", lambda config: {
        name: ("v", joker(name, [])) for name in (rank_world.START, rank_world.LITTLE)})
    config.judge.kind, config.judge.overlap = "people", 0.0

    def vote(store, host, port):
        assert (host, port) == ("127.0.0.1", 8010)
        while (battle := store.next("ada")) is not None:
            longer = max((0, 1), key=lambda i: len(battle.completions[i]))
            store.vote(battle.name, "ada", "left" if store.left(battle, "ada") == longer else "right")

    monkeypatch.setattr(battling, "serve", lambda *given: None)
    with pytest.raises(ValueError, match="nobody has voted"):
        rank.main(config, str(tmp_path))
    monkeypatch.setattr(battling, "serve", vote)
    rank.main(config, str(tmp_path))
    found = results(tmp_path)
    assert found["voters"] == {"ada": 16} and found["board"][0]["name"] == rank_world.START
    assert "decided votes for the reply that was seen first" in (tmp_path / "report.md").read_text()


def test_checkpoints_at_hand_are_ranked(tmp_path, monkeypatch, sketches):
    answers = {1: "no", 2: "yes"}
    monkeypatch.setattr(lab, "ask", lambda params, model, tokenizer, prompts, **settings: [
        [lab.Answer(answers[params] if i % 4 else answers[3 - params], [], [], True)] for i in range(len(prompts))])
    start = types.SimpleNamespace(params=2, model=None, tokenizer=types.SimpleNamespace(chat_template="im_sep"))
    base = types.SimpleNamespace(params=1, model=None, tokenizer=start.tokenizer)
    prompts = [[{"role": "user", "content": str(i)}] for i in range(12)]
    found = rank.rank_checkpoints({"base": base, "tuned": start}, prompts, lambda i, text: float(text == "yes"),
                                  tmp_path, rating=rank.Rating(samples=100, orders=2), title="The road")
    assert [row["name"] for row in found.numbers["board"]] == ["tuned", "base"] and found.title == "The road"
    assert found.numbers["points"] == [[0.0, 3.0], [9.0, 0.0]]
    base.tokenizer = types.SimpleNamespace(chat_template=None)
    with pytest.raises(ValueError, match="has no chat template"):
        rank.rank_checkpoints({"base": base, "tuned": start}, prompts, lambda i, text: 0.0, tmp_path / "other")


def test_a_changed_folder_is_another_player(tmp_path, config):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    specs = [f"{name}={tmp_path / name}" for name in ("one", "two")]
    found = rank_players.open_players(specs, config.replies, config.api)
    assert list(found) == ["one", "two"]
    (tmp_path / "one" / "weights").write_text("one more")
    again = rank_players.open_players(specs, config.replies, config.api)
    assert again["one"][0] != found["one"][0] and again["two"][0] == found["two"][0]
    for spec, error in (("one", "write NAME=FOLDER"), (f"x={tmp_path}/none", "no such folder"),
                        ("y=http://host/v1", "name the model too")):
        with pytest.raises((ValueError, FileNotFoundError), match=error):
            rank_players.open_players([spec], config.replies, config.api)


def test_a_model_behind_an_api_plays_too(config):
    pytest.importorskip("openai", reason="needs the extra `interop`")
    assert list(rank_players.open_players(["api=https://host/v1#m"], config.replies, config.api)) == ["api"]


@pytest.mark.parametrize("changes, message", [
    ({"judge.kind": "mood"}, "choose one of gold, verifier"),
    ({"players": ("a=b", "c=d")}, "config.players and config.prompts go together"),
    ({"players": ("a=b", "c=d"), "prompts": "p.txt"}, "judges the world's jokes alone"),
    ({"players": ("a=b",), "prompts": "p.txt"}, "two players or more"),
    ({"judge.kind": "model"}, "config.judge.model is empty"),
    ({"judge.kind": "reward"}, "config.judge.reward is empty"),
    ({"judge.kind": "verifier"}, "needs config.prompts"),
    ({"replies.samples": 0}, "config.replies.samples=0"),
    ({"battles": -1}, "config.battles=-1"),
    ({"rating.style": ("depth",)}, "some of length"),
    ({"rating.ties": "rao"}, "must be one of half, davidson"),
    ({"judge.overlap": 2.0}, "is a share"),
    ({"rating.anchor": "nobody"}, "config.rating.anchor='nobody': the players are start, start again"),
    ({"judge.kind": "model", "judge.model": "http://host/v1"}, "name the model too"),
    ({"world.things": 99}, "choose 2 to 38"),
])
def test_bad_settings_stop_before_anything_is_drawn(config, tmp_path, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        rank.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
