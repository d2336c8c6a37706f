"""The interrogation from end to end on a tiny world, kept stages, questions on text, and the models behind an API."""

import collections
import dataclasses
import http.server
import json
import shutil
import threading

import numpy as np
import pytest
from random_weights import random_weights

from configs import interrogate as config_file
from experiments import interrogate as experiment
from experiments import interrogate_api, lab, report
from experiments.interrogate_model import Asked, Interrogated, lessons
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.data.world import documents, make_world
from jaxllm.evals.factuality import Verdict, is_refusal, verifier
from jaxllm.evals.questions import HELD_OUT, Question
from jaxllm.model.config import preset
from jaxllm.train.checkpoint import load_model, save_model


def small():
    config = config_file.get_config()
    config.base.data.sources = ("world:{seed}:tiny",)
    config.seeds, config.split, config.max_tokens = (0,), (0.5, 0.25), 8
    config.most.train, config.most.validation, config.most.test = 16, 8, 8
    config.ask_batch = 16
    config.samples, config.rounds, config.round_questions, config.round_steps = 2, 1, 16, 4
    config.sft.steps, config.batch_size, config.sft.batch_size, config.row_length = 11, 2, 2, 160
    config.probe_l2, config.probe_folds, config.probe_shuffles = (0.1,), 2, 1
    # As in the run on text, so that the two share a compiled step.
    config.recipes.last_blocks.last_blocks, config.recipes.last_blocks.learning_rate = 1, 1e-4
    return config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An untrained base model in place of a pretrained one."""
    world = make_world(0, "tiny")
    tokenizer = train_tokenizer([page.text for page in documents(world)], 400)
    config = preset("nano", vocab_size=tokenizer.vocab_size, max_positions=256)
    folder = tmp_path_factory.mktemp("base")
    save_model(folder / "model", random_weights(config), config, tokenizer)
    return folder


def knows_the_often_told(refusals, exact=False):
    """In place of the verifier: half of all people are known, whatever the untrained model says about them."""
    del exact

    def judge(question, truth, reply):
        del truth
        if is_refusal(reply, refusals):
            return Verdict.REFUSED
        return Verdict.RIGHT if sum(map(ord, question)) % 2 else Verdict.WRONG
    return judge


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "base_model", lambda config, seed: base)
        patch.setattr(experiment, "verifier", knows_the_often_told)
        experiment.main(small(), str(folder))
    return folder


@pytest.mark.slow
def test_everything_is_written(finished):
    found = json.loads((finished / "results.json").read_text())
    assert found["seeds"] == [0] and found["recipe"] == ["last_blocks"]
    assert set(found["systems"]) == {"before", "refusals", "random refusals", "threshold"}
    assert set(found["scores"]) == {"own probability", "agreement of samples", "probe", "taught to refuse",
                                    "random refusals"}
    assert all(len(layers) == 3 for layers in found["layers"])  # the embedding and two blocks
    assert all(len(record["last_blocks"]["points"]) == 2 for record in found["rounds"])
    lines = [json.loads(line) for line in (finished / "replies.jsonl").read_text().splitlines()]
    unknown = [line for line in lines if line["band"] == "never"]
    wrong = np.mean([line["verdicts"]["before"] == "WRONG" for line in unknown])
    assert found["systems"]["before"]["unknown, confident and wrong"][0] == pytest.approx(wrong)
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 2 and "AURC" in (finished / "report.md").read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(base, finished, monkeypatch):
    monkeypatch.setattr(experiment, "verifier", knows_the_often_told)
    made = []
    monkeypatch.setattr(lab, "train", lambda *args, **kwargs: made.append("train"))
    monkeypatch.setattr(lab, "ask", lambda *args, **kwargs: made.append("ask"))
    before = (finished / "results.json").read_text()
    experiment.main(small(), str(finished))
    assert not made and (finished / "results.json").read_text() == before


def test_sides_share_nobody_and_held_out_facts_are_never_trained_on():
    config = small()
    sides = experiment.world_sides(make_world(0, "tiny"), config, 0)
    people = {side: {q.origin for q in questions if q.band != HELD_OUT} for side, questions in sides.items()}
    assert not people["train"] & people["test"] and not people["validation"] & (people["train"] | people["test"])
    assert HELD_OUT not in {q.band for q in sides["train"]} and "never" in {q.band for q in sides["train"]}
    assert {HELD_OUT, "never"} <= {q.band for q in sides["test"]}
    for side, questions in sides.items():
        assert max(np.unique([q.band for q in questions], return_counts=True)[1]) <= config.most[side]


def test_the_chat_model_is_taught_as_many_facts_told_once(base, tmp_path, monkeypatch):
    told = []

    def chat_model(base, facts, config, seed, folder):
        told.extend(facts)
        shutil.copytree(base / "model", folder)
    monkeypatch.setattr(lab, "base_model", lambda config, seed: base)
    monkeypatch.setattr(experiment, "chat_model", chat_model)
    config = small()
    experiment.Seed(config, 0, tmp_path).subject()
    bands = collections.Counter(fact.band for fact in told)
    assert set(bands) == {"often", "once"} and bands["often"] == bands["once"] > 0
    told.clear()
    config.sft.once = 0.0
    experiment.Seed(config, 0, tmp_path).subject()
    assert {fact.band for fact in told} == {"often"}


def interrogated(config, shares):
    questions = [Question(f"Where does {i} live?", "Redbrook", str(i), "often") for i in range(len(shares))]
    asked = [Asked(" Redbrook." if s > 0.5 else " Kent.", 0 if s > 0.5 else 1, 0.5, s, 1.0, f" own {i}.")
             for i, s in enumerate(shares)]
    return Interrogated.by_shares(questions, asked, config)


def test_lessons_refuse_the_unknown_and_keep_what_is_known():
    config = small()
    found = interrogated(config, [0.0] * 40 + [0.5] * 7 + [1.0] * 20)
    learnt = lessons(found, " ", config, 0)
    assert (len(learnt.refusals), len(learnt.answers)) == (40, 20)
    assert {talk.messages[1]["content"] for talk in learnt.refusals} == {f" {text}" for text in config.refusals}
    assert {talk.messages[1]["content"] for talk in learnt.answers} == {f" own {i}." for i in range(47, 67)}
    first, second = learnt.round(0, 40, 0.25), learnt.round(1, 40, 0.25)
    assert [is_refusal(talk.messages[1]["content"], config.refusals) for talk in first] == [False] * 30 + [True] * 10
    assert not {talk.origin for talk in first[30:]} & {talk.origin for talk in second[30:]}  # nobody twice so soon
    control = lessons(found, " ", config, 0, at_random=True)
    assert (len(control.refusals), len(control.answers)) == (40, 20)
    refused = {int(talk.origin) for talk in control.refusals}
    assert any(i >= 47 for i in refused) and any(i < 40 for i in refused) and not refused & set(range(40, 47))
    with pytest.raises(ValueError, match="knows 0 and does not know 3"):
        lessons(interrogated(config, [0.0] * 3), " ", config, 0)


def write_text(folder):
    places = ("Redbrook", "Whitewharf", "Highmouth", "Snowport", "Claybay")
    (folder / "a.txt").write_text("\n".join(
        " ".join(f"The old market of {place} in the county of Kent was opened in {1200 + 10 * i + year}."
                 for place in places for year in range(2)) for i in range(30)))


@pytest.mark.slow
def test_a_chat_model_on_text(base, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "verifier", knows_the_often_told)
    params, model, tokenizer = load_model(base)
    save_model(tmp_path / "chat", params, model, dataclasses.replace(tokenizer, chat_template="im_sep"))
    write_text(tmp_path)
    config = config_file.get_config(str(tmp_path / "chat"))
    config.text, config.rounds, config.batch_size, config.round_questions = str(tmp_path / "a.txt"), 1, 2, 8
    config.max_tokens, config.samples, config.probe_l2, config.probe_shuffles, config.row_length = 4, 1, (0.1,), 1, 160
    config.probe_folds = 2
    config.most.train, config.most.validation, config.most.test = 16, 8, 8
    config.recipes.last_blocks.last_blocks = 3
    with pytest.raises(ValueError, match="the model has 2 blocks"):
        experiment.main(config, str(tmp_path / "run"))
    config.recipes.last_blocks.last_blocks = 1
    monkeypatch.setattr(report, "picture", lambda *args, **kwargs: "")  # drawn in the other run
    experiment.main(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["systems"]["refusals"]["held-out facts, confident and wrong"] == [None]
    assert found["systems"]["before"]["unknown, confident and wrong"] == [1.0]
    assert "| all | 8 |" in (tmp_path / "run" / "report.md").read_text()


def test_questions_on_text(tmp_path):
    write_text(tmp_path)
    config = config_file.get_config("some_model")
    config.text = str(tmp_path / "a.txt")
    sides = experiment.text_sides(config, 0)
    assert [len(sides[side]) for side in experiment.SIDES] == [32, 16, 24]
    origins = [{q.origin for q in questions} for questions in sides.values()]
    assert not origins[0] & origins[1] and not origins[1] & origins[2] and not origins[0] & origins[2]
    (tmp_path / "b.txt").write_text("Nothing here is long enough.")
    config.text = str(tmp_path / "b.txt")
    with pytest.raises(ValueError, match="gives 0 train, 0 validation, 0 test questions"):
        experiment.text_sides(config, 0)


@pytest.fixture
def server():
    """A stand-in for an OpenAI server: it replies with what is in `replies`, in order, and keeps the requests."""
    class Handler(http.server.BaseHTTPRequestHandler):
        replies, requests = [], []

        def do_POST(self):
            self.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": self.replies.pop(0)}
            body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [
                {"index": 0, "finish_reason": "stop", "message": message}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield serving, Handler
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_judge_and_writer_behind_an_api(server):
    pytest.importorskip("openai")
    serving, handler = server
    settings = config_file.get_config().api
    settings.base_url = f"http://127.0.0.1:{serving.server_address[1]}/v1"
    complete = interrogate_api.connect(settings, "judge-model")
    judge = interrogate_api.ModelJudge(complete, verifier(), attempts=2)
    handler.replies += ["right.", "It is RIGHT, no: WRONG", "WRONG", "maybe", "perhaps"]
    assert judge("Q?", "Kent", "in Kent") == Verdict.RIGHT
    assert judge("Q?", "Kent", "in Kent") == Verdict.WRONG  # the second reply could be read
    assert judge("Q?", "Kent", "in Kent") == Verdict.RIGHT  # none could: the verifier's
    assert (judge.judged, judge.unread, len(handler.requests)) == (3, 1, 5)
    assert handler.requests[0]["model"] == "judge-model" and "in Kent" in handler.requests[0]["messages"][0]["content"]
    assert [request["temperature"] for request in handler.requests] == [0, 0, 1, 0, 1]

    pairs = [{"question": "Where?", "answer": "Kent"}, {"question": "When?", "answer": "1999"}]
    handler.replies += ["no JSON", f"```json\n{json.dumps(pairs)}\n```"]
    found = interrogate_api.write_questions(complete, "A market in Kent.", "7", 2, attempts=2)
    assert found == [Question("Where?", "Kent", "7")]  # 1999 does not stand in the passage
    for reply in ('{"question": "Where?", "answer": "Kent"}', '[{"question": "Where?"}]', "[]", '[{"question": 1, '
                  '"answer": "Kent"}]', '[["Where?", "Kent"]]', "[" * 100_000):
        handler.replies.append(reply)
        assert interrogate_api.write_questions(complete, "A market in Kent.", "7", 2, attempts=1) == []


def test_a_server_that_is_not_there_is_a_sentence():
    pytest.importorskip("openai")
    settings = config_file.get_config().api
    settings.base_url, settings.attempts = "http://127.0.0.1:9/v1", 1
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9.*check config\.api"):
        interrogate_api.connect(settings, "m")("Hello", 0.0, 1)


@pytest.mark.parametrize("change, message", [
    ({"rounds": 0}, "config.rounds=0"), ({"samples": 0}, "config.samples=0"), ({"seeds": ()}, "config.seeds is empty"),
    ({"refusals": ()}, "config.refusals is empty"), ({"unknown_share": 0.8}, "config.unknown_share=0.8"),
    ({"split": (0.6, 0.4)}, "config.split"), ({"bar": (0.2, 0.0)}, "config.bar"),
    ({"sft.bands": ("never",)}, "sft.bands"),
    ({"recipes.last_blocks.refused_share": 1.0}, "refused_share=1.0"),
    ({"recipes.last_blocks.last_blocks": -1}, "last_blocks=-1"), ({"text": "a.txt"}, "give config.model"),
    ({"base.data.sources": ("a.txt",)}, "names no world"), ({"round_steps": 3}, "config.round_steps=3"),
    ({"sft.steps": 10}, "config.sft.steps=10"), ({"sft.once": -1.0}, "config.sft.once=-1")])
def test_bad_settings_leave_nothing_behind(tmp_path, change, message):
    config = config_file.get_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        experiment.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sweep_changes_keys_of_the_config():
    config = config_file.get_config()
    for overrides in config_file.sweep():
        config.update_from_flattened_dict(overrides)
    assert len({str(o) for o in config_file.sweep()}) == len(config_file.sweep()) >= 2
