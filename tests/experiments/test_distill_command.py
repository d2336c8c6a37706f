"""Distillation: every arm on an untrained pair, what is kept of a teacher, what each may spend, files, the tables."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from random_weights import random_weights

from configs import distill as config_file
from experiments import distill as experiment
from experiments import distill_report, distill_traces, practice, practice_runs
from experiments.distill_learn import from_traces, on_policy
from experiments.distill_traces import Pair, Traces, conversations, keep, write_conversations
from experiments.improve_record import Improved
from experiments.practice import Start
from jaxllm.data.conversation_readers import read_conversations
from jaxllm.data.verifiable import Task
from jaxllm.model.config import ModelConfig


def small_config(**changes):
    config = config_file.get_config()
    config.teacher.start.update({"kinds": ("2 steps",), "train": 6, "test": 2, "vocab_size": 290})
    config.rl.update({"steps": 6, "prompts": 4, "samples": 4})
    config.rl.sampler.max_tokens = 20
    config.on_policy.update({"prompts": 2, "samples": 1})  # as many as are asked: one program draws for all
    config.logits.top_k = 3
    config.traces.samples = 1
    config.update({"seeds": (0,), "looks": 1, "batch_size": 2, "row_length": 64, **changes})
    return config


@pytest.fixture(scope="module")
def pair():
    config = small_config()
    tokenizer = dataclasses.replace(practice.learn_tokenizer(config.teacher.start), chat_template="im_sep")
    model = ModelConfig(tokenizer.vocab_size, 16, 1, 2, 2, 8, 16, 128)  # of both, for the same reason
    teacher, student = (Start(jax.device_put(random_weights(model, i)), model, tokenizer) for i in range(2))
    train, asked = (practice.tasks(config.teacher.start, 0, part) for part in ("train", "test"))
    return Pair(teacher, student, train, asked, 64)


def solutions(pair):
    return Traces([(name, task.reference) for name, task in pair.train.items()], 12, 8, len(pair.train))


@pytest.mark.slow
def test_the_command_end_to_end(tmp_path, monkeypatch, pair, draw_no_more):
    config, practised = small_config(), []

    def improve(rl, start, reward_fn, seed, *, watch, prompts, title):
        practised.append(list(prompts) == list(pair.train))
        for number in range(rl.steps + 1):
            watch(number, start.params)
        return Improved([], start.params, "")

    monkeypatch.setattr(experiment, "make_pair", lambda config, seed: pair)
    monkeypatch.setattr(experiment, "teach", lambda config, pair, seed: solutions(pair))
    monkeypatch.setattr(experiment, "improve", improve)
    config.arms = ("traces", "logits", "on_policy", "rl")  # answers and shuffled are traces of other texts
    experiment.main(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())["runs"]
    budget = practice.rl_flops(pair.student.model, config.rl, pair.width) / 1e9
    for arm in config.arms:
        (run,), looked = found[arm], found[arm][0]["looks"]
        each = run["looks"][-1]["gflop"] - run["teacher_gflop"]
        assert len(looked) == 1 and budget * 0.8 < looked[-1]["gflop"] <= budget * (1 + 1e-9) and each > 0
    assert found["rl"][0]["teacher_gflop"] == 0.0 < found["traces"][0]["teacher_gflop"] < (
        found["logits"][0]["teacher_gflop"]) < found["on_policy"][0]["teacher_gflop"]
    assert "RL on the student" in (tmp_path / "run" / "report.md").read_text()
    read = read_conversations(tmp_path / "run" / "traces-0.jsonl")
    assert read.format == "openai" and [one.messages[1]["content"] for one in read.conversations] == [
        text for _, text in solutions(pair).kept]
    draw_no_more()
    experiment.main(config, str(tmp_path / "run"))  # all is kept: nothing is trained again
    assert practised == [True]


def test_what_is_kept_of_a_teacher(pair):
    (first, task), (second, _) = list(pair.train.items())[:2]
    right, wrong = task.reference, f"Answer:{(int(task.answer) + 1) % 10}."
    written = [(first, wrong, True), (first, f"So:\n{right}", False), (first, right, True), (first, right, True),
               (first, f"Answer:{task.answer}.", True), (second, "no", True)]
    found = keep(pair.train, written, 2)
    assert found.kept == [(first, right), (first, f"Answer:{task.answer}.")]
    assert found.counts() == {"drawn": 6, "right": 4, "kept": 2, "solved": 1}
    assert keep(pair.train, written, 1).kept == [(first, right)]


def test_what_the_arms_are_shown(pair, tmp_path):
    kept = [(name, f"{task.reference}{extra}") for name, task in pair.train.items() for extra in ("", " ")]
    kinds = {f"3 steps: {i}": Task(({"role": "user", "content": str(i)},), str(i), "exact") for i in range(3)}
    kept += [(name, f"trace {task.answer}") for name, task in kinds.items()]
    tasks = {**pair.train, **kinds}
    questions = [tasks[name].prompt[0]["content"] for name, _ in kept]
    shown = {arm: conversations(arm, tasks, kept, "Answer:{}.") for arm in ("traces", "answers", "shuffled")}
    for some in shown.values():
        assert [one.messages[0]["content"] for one in some] == questions
    said = {arm: [one.messages[1]["content"] for one in some] for arm, some in shown.items()}
    assert said["traces"] == [text for _, text in kept] and said["answers"][0] == f"Answer:{tasks[kept[0][0]].answer}."
    assert sorted(said["shuffled"]) == sorted(said["traces"])
    own = {name: {text for other, text in kept if other == name} for name in tasks}
    assert not any(text in own[name] for (name, _), text in zip(kept, said["shuffled"], strict=True))
    assert all(text.startswith("trace") == name.startswith("3") for (name, _), text in zip(kept, said["shuffled"],
                                                                                          strict=True))
    with pytest.raises(ValueError, match="too few problems of '3 steps'"):
        conversations("shuffled", tasks, kept[-1:], "")
    assert write_conversations(tmp_path / "a.jsonl", shown["answers"]) == len(kept)


def test_rows_and_costs(pair):
    config = small_config()
    shown = {arm: from_traces(config, pair, solutions(pair), arm, 0) for arm in ("traces", "answers")}
    trace, bare = (lessons.rows_at(0, None) for lessons in shown.values())
    text = pair.student.tokenizer.decode([int(t) for t in bare.targets[bare.weights > 0]])
    assert "Answer:" in text and "Work" not in text and trace.weights.sum() > bare.weights.sum()
    drawing = practice.flops(pair.teacher.model, 64, read=12 * 64)
    assert shown["traces"].before == drawing and not shown["traces"].by_teacher
    own = on_policy(config, pair, 0)
    assert own.by_student == practice.flops(pair.student.model, 64, read=2 * 64, learnt=2 * 64) and not own.before
    assert own.updates(10 * (own.by_teacher + own.by_student)) == 10 and own.updates(0.0) == 0


def test_published_models_and_a_file_of_tasks(real_data, monkeypatch, pair):
    config = config_file.get_config("gsm8k")
    config.files.update({"teacher": "big", "student": "small", "asked": 3, "train": 5,
                         "tasks": str(real_data("rl/gsm8k_train.jsonl.xz"))})
    experiment.check(config)
    wide = {name: dataclasses.replace(pair.student.model, max_positions=1024, layers=layers)
            for name, layers in (("big", 2), ("small", 1))}
    monkeypatch.setattr(distill_traces, "load_model", lambda folder: (None, wide[folder], pair.student.tokenizer))
    made = distill_traces.make_pair(config, 0)
    assert len(made.train) == 5 and len(made.asked) == 3 and made.teacher.model.layers == 2 and made.width % 16 == 0
    assert all(config.files.instruction in task.prompt[0]["content"] for task in made.train.values())
    assert not set(task.key for task in made.train.values()) & set(task.key for task in made.asked.values())
    monkeypatch.setattr(distill_traces, "load_model", lambda folder: (None, wide[folder], dataclasses.replace(
        pair.student.tokenizer, fingerprint=folder)))
    with pytest.raises(ValueError, match="different tokenizers"):
        distill_traces.make_pair(config, 0)


def test_the_student_begins_as_its_own_config_says(monkeypatch, pair):
    config, asked = small_config(cache="here"), []
    config.student.documents = (1, 2, 3)

    def run(road, seed, name):
        asked.append((road.start.to_dict(), name))
        return types.SimpleNamespace(made=pair.teacher)

    def beginning(road, seed):
        asked.append((road.start.to_dict(), road.cache))
        return pair.student

    monkeypatch.setattr(practice_runs, "run", run)
    monkeypatch.setattr(practice_runs, "beginning", beginning)
    made = distill_traces.make_pair(config, 0)
    (teacher, road), (student, cache) = asked
    assert (road, cache) == ("rl", "here") and teacher["documents"] == config.teacher.start.documents
    assert student["documents"] == (1, 2, 3) and student["shape"]["dim"] == 48 < teacher["shape"]["dim"]
    assert student["vocab_size"] == teacher["vocab_size"] and list(made.train) == list(pair.train) and made.width == 48


def test_tables_say_what_the_seeds_say():
    def run(accuracy, updates=5):
        look = {"accuracy": accuracy, "problems": 100, "worked": 1.0, "length": 9.0, "ended": 1.0, "gflop": 3.0}
        return {"looks": [look], "updates": updates, "teacher_gflop": 1.0, "seconds": 1.0,
                "traces": {"drawn": 4, "right": 3, "kept": 2, "solved": 1}}

    runs = {"teacher": [run(0.9, 0)] * 3, "start": [run(0.1, 0)] * 3, "traces": [run(x) for x in (0.8, 0.82, 0.81)],
            "answers": [run(x) for x in (0.2, 0.21, 0.22)], "rl": [run(x) for x in (0.9, 0.4, 0.8)]}
    found = distill_report.findings(small_config(seeds=(0, 1, 2)), runs)
    verdicts = {(claim.measure, claim.control): claim.verdict for claim in found.claims}
    names = distill_report.NAMES
    assert verdicts[names["traces"], names["answers"]] == "holds"
    assert verdicts[names["traces"], names["rl"]] == "not settled"
    np.testing.assert_allclose(found.numbers["gains"]["traces - answers"][0], 0.6)


@pytest.mark.parametrize("key, value, message", [
    ("arms", ("rl",), "name traces and some of"), ("seeds", (), "at least one seed"), ("part", "train", "ask on test"),
    ("traces.samples", 0, "config.traces.samples=0: choose 1"), ("rates.text", 0.0, "rates.text=0.0 must be above 0"),
    ("logits.divergence", "kl", "config.logits.divergence='kl'"), ("on_policy.beta", 1.0, "a beta between 0 and 1"),
    ("rl.microbatches", 3, "batch_size .2. must be a multiple"), ("rl.logit_chunks", 5, "must divide config.row_len"),
    ("looks", 9, "must not exceed config.rl.steps=6"), ("files.tasks", "a.jsonl", "go together"),
])
def test_wrong_settings_are_named(key, value, message):
    config = small_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        experiment.check(config)


def test_an_arm_that_cannot_pay_says_so(monkeypatch, pair):
    config = small_config()
    monkeypatch.setattr(experiment, "make_pair", lambda config, seed: pair)
    traces = dataclasses.replace(solutions(pair), drawn=10**6)
    monkeypatch.setattr(experiment, "teach", lambda config, pair, seed: traces)
    with pytest.raises(ValueError, match="0 updates of the arm traces"):
        experiment.run_arm(experiment.Study(config, 0), "traces")
