"""Tasks: prompts, shots, controls, and records of every layout that test sets are published in."""

import dataclasses
import gzip
import json
import lzma
import tarfile

import pytest

from jaxllm.data.world import make_world
from jaxllm.evals import task_records, task_rows, task_world
from jaxllm.evals.task_table import BENCHMARKS, CORE, core_names, open_task
from jaxllm.evals.tasks import Item, Task, counterfactual, limited, pairs, prefix, shots_of

SUMS = tuple(Item((f"{a} + {b} =",), (str(a + b), str(a + b + 1), "x"), key=f"{a}+{b}")
             for a in range(4) for b in range(5))


def sums(**changes):
    return Task("sums", "choice", SUMS, **{"shots": 3, **changes})


def test_shots_are_drawn_for_each_item_and_never_the_item_itself():
    task = sums(shots=19)
    for i, item in enumerate(SUMS):
        shots = shots_of(task, i, seed=0)
        assert len(set(shots)) == 19 and item not in shots
    task = sums()
    assert shots_of(task, 3, 0) == shots_of(task, 3, 0) != shots_of(task, 3, 1) != shots_of(task, 4, 1)


def test_an_item_is_no_shot_of_its_own_where_the_pool_was_read_from_its_file(tmp_path):
    records = [{"question": f"{a} + 1?", "answer": f"So.\n#### {a + 1}"} for a in range(8)]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    task = open_task(f"gsm8k={tmp_path / 'gsm8k_train.jsonl'}", tmp_path, shots=7)
    for i, item in enumerate(task.items):
        assert item.contexts[0] not in prefix(task, i, 0) and len(shots_of(task, i, 0)) == 7


def test_prompt_is_header_shots_and_context():
    pool = (Item(("1 + 1 =",), ("3", "2"), (1,), subject="sums"), Item(("a",), ("b", "c"), subject="letters"))
    task = Task("t", "choice", (Item(("2 + 2 =",), ("5", "4"), (1,), subject="sums"),), shots=1, pool=pool, draw=False,
                header="On {subject}.\n\n", delimiter="\nAnswer: ")
    before = "On sums.\n\n1 + 1 =\nAnswer: 2\n\n"
    assert prefix(task, 0, 0) == before
    assert pairs(task, 0, 0) == [(f"{before}2 + 2 =\nAnswer:", " 5"), (f"{before}2 + 2 =\nAnswer:", " 4")]
    schema = Task("s", "schema", (Item(("It was Ann, so Ann", "It was Ann, so Bob"), ("left.",), (0,)),))
    assert pairs(schema, 0, 0) == [("It was Ann, so Ann", " left."), ("It was Ann, so Bob", " left.")]


def test_control_takes_the_informative_part_of_another_item_and_keeps_the_rest():
    for i, item in enumerate(SUMS):
        swapped = counterfactual(sums(), i, seed=0)
        assert swapped.contexts != item.contexts and swapped.contexts[0] in {other.contexts[0] for other in SUMS}
        assert dataclasses.replace(swapped, contexts=item.contexts) == item
    options = "\nA. red\nB. blue\nAnswer:"
    lettered = [task_records.own({"query": f"What colour is number {i}?{options}", "choices": ["A", "B"], "gold": 0},
                                 "") for i in range(5)]
    swapped = counterfactual(Task("t", "choice", tuple(lettered)), 0, 0)
    assert swapped.contexts[0] in {item.contexts[0] for item in lettered[1:]} and swapped.contexts[0].endswith(options)
    passages = [task_records.own({"query": f"Passage: {word}\nQuestion: is {word} big?", "choices": ["no", "yes"],
                                  "gold": 1}, "") for word in ("ants", "bees")]
    swapped = counterfactual(Task("t", "choice", tuple(passages)), 0, 0)
    assert swapped.contexts == ("Passage: bees\nQuestion: is ants big?",)
    twins = tuple(Item(("Ann met Bob, so Ann", "Ann met Bob, so Bob"), (word,), (i,)) for i, word in enumerate("xy"))
    assert counterfactual(Task("t", "schema", twins), 0, 0) is None  # only its twin, which says the opposite
    other = Item(("c", "d"), ("z",), (0,))
    assert counterfactual(Task("t", "schema", (*twins, other)), 0, 0).choices == ("z",)


@pytest.mark.parametrize(("changes", "words"), [
    ({"kind": "essay"}, "kinds are"), ({"metric": "greedy"}, "no metric 'greedy'"), ({"items": ()}, "no items"),
    ({"shots": 20}, "0 to 19"), ({"items": (Item(("a",), ("b", "c"), (2,)),), "shots": 0}, "the place of a right one"),
    ({"items": (Item(("a",), ("b", "")),), "shots": 0}, "empty"),
    ({"kind": "document", "items": (Item((), ("",)),), "shots": 0}, "empty"),
    ({"items": (Item(("a",), ("b", "c"), (1, 1)),), "shots": 0}, "more than once"),
    ({"items": (Item(("a", "b"), ("c", "d")),), "shots": 0}, "make no choice")])
def test_a_task_that_cannot_be_asked_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Task(**{"name": "sums", "kind": "choice", "items": SUMS, "shots": 3, **changes})


RECORDS = {
    "arc_easy": [({"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
                  ("Question: Why?", ("a", "b"), (1,))),
                 ({"query": "Question: Why?\n", "choices": ["a", "b"], "gold": 1},
                  ("Question: Why?", ("a", "b"), (1,)))],
    "hellaswag": [({"activity_label": "Ski", "ctx_a": "[header] A man", "ctx_b": "the man", "label": "1",
                    "endings": ["a [title] b", "c"]}, ("Ski: A man The man", ("a. b", "c"), (1,)))],
    "mmlu": [({"question": "Why? ", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "high_school"},
              ("Why?\nA. a\nB. b\nC. c\nD. d\nAnswer:", ("A", "B", "C", "D"), (2,))),
             (["Why?", "a", "b", "c", "d", "C"],
              ("Why?\nA. a\nB. b\nC. c\nD. d\nAnswer:", ("A", "B", "C", "D"), (2,)))],
    "truthfulqa_mc1": [({"question": "Why?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}},
                        ("Q: Why?\nA:", ("a", "b"), (0,))),
                       (["T", "C", "Why?", "a", "a; c", "b; d", "url"], ("Q: Why?\nA:", ("a", "b", "d"), (0,)))],
    "truthfulqa_mc2": [(["T", "C", "Why?", "a", "a; c", "b; d", "url"],
                        ("Q: Why?\nA:", ("a", "c", "b", "d"), (0, 1)))],
    "lambada": [({"text": "so he left the house"}, ("so he left the", ("house",), (0,)))],
}


@pytest.mark.parametrize("name", RECORDS)
def test_every_published_layout_gives_the_same_item(name):
    for record, (context, choices, gold) in RECORDS[name]:
        item = BENCHMARKS[name].reader(record, "dir/high_school_val.csv, row 1")
        assert (item.contexts, item.choices, item.gold) == ((context,), choices, gold)
        assert item.subject == ("high school" if name == "mmlu" else "")


@pytest.mark.parametrize("record", [
    {"context": "c", "choices": ["a", "b"], "gold": 1}, {"context_options": ["c", "d"], "continuation": "e", "gold": 1},
    {"context": "c", "continuation": "e"}, {"prompt": "p", "answer": "4", "verifier": "number"}, {"text": "t"},
    {"prompt": [{"role": "user", "content": "p"}], "answer": "4", "verifier": "number", "reference": "2+2\n#### 4"}])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.xz", ".jsonl.gz"])
def test_own_format_tells_its_kind_in_any_file(record, suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    with {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)(path, "wt") as file:
        file.write((json.dumps(record) + "\n") * 3)
    task = open_task(f"mine={path}", limit=2)
    assert task.kind == task_records.kind_of(record) and len(task.items) == 2
    assert task.chance == (0.5 if task.kind in ("choice", "schema") else 0)


def test_a_bad_record_is_named_by_its_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"context": "c", "choices": ["a", "b"], "gold": 1}\n{"context": "c", "choices": ["a", "b"]}\n')
    with pytest.raises(ValueError, match=r"mine.jsonl, line 2: .*no field 'gold'"):
        open_task(f"mine={path}")
    path.write_text('{"context": "c", "choices": ["a", "b"], "gold": 1}\n{"text": "t"}\n')
    with pytest.raises(ValueError, match="of one kind, not choice, document"):
        open_task(f"mine={path}")
    path.write_text('{"context": "c", "choices": "ab", "gold": 1}\n')
    with pytest.raises(ValueError, match="line 1: .*choices must be a list of texts"):
        open_task(f"mine={path}")
    with pytest.raises(ValueError, match="name one of hellaswag"):
        open_task("unknown")
    with pytest.raises(FileNotFoundError, match="hf:Rowan/hellaswag:validation where there is a network"):
        open_task("hellaswag", tmp_path)


def test_rows_of_archives_tables_and_texts(tmp_path):
    (tmp_path / "a_val.csv").write_text('"one, two",3\n')
    (tmp_path / "b_val.csv").write_text('four,"5\n6"\n')
    (tmp_path / "c.txt").write_bytes("x\u2028z\r\ny\n".encode())  # a line's end of Unicode's is none of a file's
    with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as tar:
        for name in ("a_val.csv", "b_val.csv", "c.txt"):
            tar.add(tmp_path / name, f"val/{name}")
    found = list(task_rows.rows(f"{tmp_path}/set.tar.xz::val/*.csv"))
    assert [record for _, record in found] == [["one, two", "3"], ["four", "5\n6"]]
    assert found[1][0].endswith("set.tar.xz::val/b_val.csv, row 1")
    assert [record for _, record in task_rows.rows(tmp_path / "c.txt")] == ["x\u2028z", "y"]
    with pytest.raises(ValueError, match="no such file"):
        list(task_rows.rows(f"{tmp_path}/set.tar.xz::test/*.csv"))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(b"x" * 1000)[:40])
    with pytest.raises(ValueError, match="cut short or damaged"):
        list(task_rows.rows(tmp_path / "c.txt.xz"))


def test_rows_by_hugging_face_datasets(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "questions"
    folder.mkdir()
    record = {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2", "id": "q7"}
    (folder / "test.jsonl").write_text(json.dumps(record) + "\n")
    task = open_task(f"arc_easy=hf:{folder}:test")
    assert task.items == (Item(("Question: Why?",), ("a", "b"), (1,), key="q7"),)
    with pytest.raises(ValueError, match="cannot load it"):
        list(task_rows.rows(f"hf:{folder}:validation"))


def test_rows_by_tfds(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    import numpy as np
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = tmp_path / "tiny_questions" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"query": tfds.features.Text(), "gold": np.int64,
                                           "choices": tfds.features.Sequence(tfds.features.Text())})
    template = tfds.core.ShardedFileTemplate(folder, dataset_name="tiny_questions", split="test",
                                             filetype_suffix="array_record")
    writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
    writer.write(features.serialize_example(features.encode_example(
        {"query": "Question: Why?", "choices": ["a", "b"], "gold": 1})))
    writer.close()
    split = tfds.core.SplitInfo(name="test", shard_lengths=[1], num_bytes=100, filename_template=template)
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split],
                                       check_data=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    task = open_task("arc_easy=tfds:tiny_questions:test")
    assert task.items[0].choices == ("a", "b") and task.items[0].gold == (1,)


def test_facts_of_the_world_have_four_answers_of_one_kind_and_the_true_one_among_them():
    world = make_world(0, "tiny")
    truth = {f"{fact.entity.name}/{fact.attribute}": fact for fact in world.facts}
    for told in (True, False):
        task = task_world.facts_task(world, told=told)
        for item in task.items:
            fact = truth[item.key]
            assert (fact.band != "never") == told and len(set(item.choices)) == 4
            assert item.choices[item.gold[0]] == f"{fact.value}." and fact.entity.text in item.contexts[0]
        assert abs(sum(item.gold[0] for item in task.items) / len(task.items) - 1.5) < 0.4  # no place is preferred
    problems = open_task("world/problems=0:tiny", limit=5)
    assert problems.kind == "generation" and all(item.answer.isdigit() for item in problems.items)


def test_every_item_has_a_name_of_its_own(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": name}) + "\n"
                            for text, name in (("a", "x"), ("b", ""), ("c", "x"), ("d", "1"))))
    assert [item.key for item in open_task(f"mine={path}").items] == ["x", "1", "x, 2", "1, 3"]
    problems = open_task("world/problems=0:tiny")
    assert len({item.key for item in problems.items}) == len(problems.items) == 100


def test_a_limit_draws_the_same_items_for_everyone():
    assert limited(SUMS, 5) == limited(SUMS, 5) and len(limited(SUMS, 5)) == 5
    assert limited(SUMS, None) == limited(SUMS, 100) == SUMS
    assert limited(SUMS, 5, seed=1) != limited(SUMS, 5)


def test_the_real_test_sets(real_data):
    folder = real_data("eval")
    there, missing = core_names(folder)
    assert missing == ["core/squad", "core/coqa"] and len(there) == 20 == len(CORE) - 2
    # Numbers of the archive's MANIFEST and of the papers.
    for name, count in {"hellaswag": 5000, "truthfulqa_mc1": 400, "humaneval": 164, "ifeval": 541}.items():
        assert len(open_task(name, folder).items) == count
    mmlu = open_task("mmlu", folder)
    assert len(mmlu.items) == 1531 and len({item.subject for item in mmlu.items}) == 57
    assert all({shot.subject for shot in shots_of(mmlu, i, 0)} == {mmlu.items[i].subject} for i in range(0, 1531, 100))
    boolq = open_task("core/boolq", folder, limit=3)
    assert boolq.chance == 0.62 and prefix(boolq, 0, 0).count("Passage:") == 10
    assert len(boolq.pool) == 3270 and boolq.metric == "acc_token"
