"""The door of verifiable tasks, its readers, and sentences with file and line for what is malformed."""

import json
import random

import pytest

from jaxllm.data.verifiable import Task, read_tasks, split_tasks, world_tasks, write_tasks

DOOR = {"prompt": [{"role": "user", "content": "6 x 7?"}], "answer": "42", "verifier": "number"}
GSM8K = {"question": "How many?", "answer": "She has 48/2 = <<48/2=24>>24.\nThat is <<1000+24=1024>>1,024.\n#### 1,024"}
SVAMP = {"ID": "1", "Body": "Ann has 3 pens", "Question": "How many has she?", "Equation": "( 3.0 + 0.5 )",
         "Answer": 3.5}
CHECK = ("import math\nMETADATA = {'author': 'x'}\n\ndef check(candidate):\n    one = 1\n"
         "    assert candidate(one) == 2\n    for i in range(3):\n        assert candidate(i) == i + 1\n")
HUMANEVAL = {"task_id": "HumanEval/x", "prompt": "def add(x):\n", "entry_point": "add",
             "canonical_solution": "    return x + 1\n", "test": CHECK}


def file_of(tmp_path, *records, name="tasks.jsonl"):
    path = tmp_path / name
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return path


def test_the_door_gives_back_what_was_written(tmp_path):
    tasks = [Task(({"role": "system", "content": "Short."}, {"role": "user", "content": "\u00bd?"}), "0.5", "number"),
             Task(({"role": "user", "content": "Why?"},), "", "format_strict", reference="<think>a</think>")]
    path = tmp_path / "tasks.jsonl"
    assert write_tasks(path, tasks) == 2
    found = list(read_tasks(path))
    assert [(t.prompt, t.answer, t.verifier, t.reference) for t in found] == [
        (t.prompt, t.answer, t.verifier, t.reference) for t in tasks]
    assert found[1].where == f"{path}, line 2" and found[0].key != found[1].key
    asked = list(read_tasks(path, instruction="Use <answer>."))
    assert asked[0].prompt[1]["content"] == "\u00bd?\n\nUse <answer>." and asked[0].prompt[0]["content"] == "Short."


def test_published_formats_are_found_by_their_fields(tmp_path):
    gsm8k, = read_tasks(file_of(tmp_path, GSM8K))
    assert (gsm8k.answer, gsm8k.verifier) == ("1024", "number")
    assert gsm8k.reference == "She has 48/2 = 24.\nThat is 1,024.\n#### 1024"
    svamp, = read_tasks(file_of(tmp_path, json.dumps([SVAMP]), name="svamp.json"))
    assert svamp.prompt[0]["content"] == "Ann has 3 pens. How many has she?" and svamp.answer == "3.5"
    task, = read_tasks(file_of(tmp_path, HUMANEVAL))
    answer = json.loads(task.answer)
    assert (answer["entry_point"], answer["prefix"], len(answer["tests"])) == ("add", "def add(x):\n", 2)
    for number, test in enumerate(answer["tests"]):  # each by itself: right code passes, wrong code does not
        exec(test, {"candidate": lambda x: x + 1})
        with pytest.raises(AssertionError):
            exec(test, {"candidate": lambda x, wrong=number: x + 1 + (x == 1)})
    assert "METADATA" not in task.answer and task.key == "HumanEval/x"


@pytest.mark.parametrize("record, message", [
    ({**DOOR, "prompt": []}, "prompt must be a list of messages"), ({**DOOR, "prompt": "?"}, "prompt must be a list"),
    ({**DOOR, "answer": 42}, "answer must be a text"), ({**DOOR, "verifier": " "}, "verifier must be a text"),
    ({**DOOR, "prompt": [{"role": "assistant", "content": "42"}]}, "ends with the assistant's message"),
    ({**DOOR, "prompt": [{"role": "nobody", "content": "42"}]}, "not a task of the format door"),
    ({**DOOR, "reference": 3}, "reference must be a text"), ({**GSM8K, "answer": "no mark"}, "must end with ####"),
    ({**GSM8K, "answer": "so\n#### many"}, "must end with ####"), ({**SVAMP, "Answer": "3"}, "Answer must be a number"),
    ({**HUMANEVAL, "test": "def check(candidate):\n    pass\n"}, "check asserts nothing"),
    ({**HUMANEVAL, "test": "x = 1\n"}, "no function check"), ({**HUMANEVAL, "test": "def (:"}, "not a task of the"),
    ({"text": "x"}, "no known format has the fields 'text'"), ("[1]", "expected an object"), ("{", "not valid JSON")])
def test_a_malformed_record_is_named_by_file_and_line(tmp_path, record, message):
    good = {"text": "x"} if record == {"text": "x"} else record if isinstance(record, str) else (
        DOOR if "verifier" in record else GSM8K if "question" in record else SVAMP if "Body" in record else HUMANEVAL)
    path = file_of(tmp_path, DOOR if isinstance(good, str) else good, record)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_tasks(path))
    line = 1 if record == {"text": "x"} else 2
    assert f"{path}, line {line}" in str(caught.value)


def test_files_that_are_not_there_empty_or_of_another_format(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(read_tasks(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="holds no record"):
        list(read_tasks(file_of(tmp_path)))
    with pytest.raises(ValueError, match="unknown format 'gsm'"):
        list(read_tasks(file_of(tmp_path, GSM8K), "gsm"))
    with pytest.raises(ValueError, match="line 1: not a task of the format svamp .no field 'Answer'"):
        list(read_tasks(file_of(tmp_path, GSM8K), "svamp"))


def test_real_files(real_data):
    for name, count, verifier in (("rl/gsm8k_train.jsonl.xz", 7473, "number"), ("rl/svamp.json.xz", 1000, "number"),
                                  ("eval/HumanEval.jsonl.xz", 164, "code")):
        tasks = list(read_tasks(real_data(name)))
        assert len(tasks) == count and {task.verifier for task in tasks} == {verifier}
        assert "<<" not in "".join(task.reference for task in tasks)


def test_world_tasks_keep_the_worlds_split():
    train, held_out = world_tasks(0, 200), world_tasks(0, 200, "held_out", instruction="Think.")
    assert not {task.key for task in train} & {task.key for task in held_out}
    assert world_tasks(0, 200) == train != world_tasks(1, 200)
    assert all(task.prompt[0]["content"].endswith("\n\nThink.") for task in held_out)
    assert all(task.reference.endswith(f"Answer: {task.answer}.") for task in train)
    with pytest.raises(ValueError, match="count is 0"):
        world_tasks(0, 0)


def test_a_split_depends_on_the_task_alone():
    tasks = world_tasks(0, 400)
    train, held_out = split_tasks(tasks, 0.3, seed=1)
    assert 0.2 < len(held_out) / len(tasks) < 0.4 and not {t.key for t in train} & {t.key for t in held_out}
    mixed = random.Random(0).sample(tasks, 100)
    assert {task.where for task in split_tasks(mixed, 0.3, seed=1)[1]} == {
        task.where for task in mixed} & {task.where for task in held_out}
    assert split_tasks(tasks, 0.3, seed=2)[1] != held_out
    with pytest.raises(ValueError, match="must lie in"):
        split_tasks(tasks, 1.0)
