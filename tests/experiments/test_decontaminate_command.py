"""The decontamination command: what it writes, planted items, what each key changes, what it refuses."""

import json
import tarfile

import pytest

from configs import decontaminate as config_file
from experiments import decontaminate as experiment
from jaxllm.data.curate.decontaminate import load_index, scan

ITEMS = ["How many bells hang in the old tower of the church by the sea",
         "Name the three rivers that meet below the castle of the northern king and queen",
         "Too short"]
PASSAGE = "Name the three rivers, that meet below the castle of"


@pytest.fixture
def files(tmp_path):
    """Evaluation items, a corpus that holds the first whole and half of the second, a clean control."""
    lines = [{"question": item, "answer": f"It is known to few people that answer {i} is right and good"}
             for i, item in enumerate(ITEMS)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    half = f"{PASSAGE} someone."
    pages = [{"text": f"See:\n{ITEMS[0].upper()}?", "body": "nothing"},
             {"text": half, "body": ITEMS[1]},
             {"text": "A page of its own words.", "body": "nothing"}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    (tmp_path / "control.jsonl").write_text(json.dumps({"text": "No bells hang here.", "body": "x"}) + "\n")
    return tmp_path


def run(files, name="run", **changes):
    config = config_file.get_config(str(files / "corpus.jsonl"))
    config.update({"evaluations": (f"q={files}/items.jsonl#question",), "n": 8, "sizes": (5, 8)})
    config.update(changes)
    experiment.main(config, str(files / name))
    lists = [[json.loads(line) for line in (files / name / file).read_text().splitlines()]
             for file in ("contaminated.jsonl", "items.jsonl")]
    return *lists, json.loads((files / name / "report.json").read_text())["rows"]


def test_planted_items_are_found_and_pointed_at(files, capsys):
    documents, items, report = run(files, control=str(files / "control.jsonl"), truth="line")
    assert [document["id"] for document in documents] == ["corpus.jsonl:1", "corpus.jsonl:2"]
    whole, half = documents[0]["items"][0], documents[1]["items"][0]
    assert whole["item"] == "q/0" and whole["share"] == 1.0 and whole["passages"][0]["text"] == ITEMS[0].upper()
    assert half["item"] == "q/1" and half["passages"] == [
        {"start": 0, "end": len(PASSAGE), "text": PASSAGE}]
    assert [(row["grams"], row["documents"]) for row in items] == [(7, 1), (8, 1), (0, 0)]
    assert items[0]["share"] == 1.0 and items[1]["share"] == items[1]["best_share"] == 3 / 8 and not items[2]["share"]
    rows = {row["n"]: row for row in report}
    assert rows[8] == {"n": 8, "set": "q", "items": 3, "searched": 2, "found": 2, "found_half": 1, "control_found": 0,
                       "documents": 2, "control_documents": 0, "own_found": 2, "own_half": 1, "wrong_documents": 0}
    assert "| 8 | q | 3 | 2 | 2 | 1 |" in capsys.readouterr().out
    assert scan(ITEMS[0], load_index(files / "run" / "index"))[0].share == 1.0


def test_the_worlds_own_problems(tmp_path):
    config = config_file.get_config()
    config.sizes = (5,)
    experiment.main(config, str(tmp_path / "run"))
    rows = {(row["n"], row["set"]): row for row in json.loads((tmp_path / "run" / "report.json").read_text())["rows"]}
    assert rows[13, "in_documents"]["found"] == rows[13, "in_documents"]["searched"] > 50
    assert rows[13, "held_out"]["found"] == 0 < rows[5, "held_out"]["found"]


def filled(change, files):
    """The change with the folder's name where it says {files}."""
    names = {"files": files}
    return {key: value.format(**names) if isinstance(value, str) else
            tuple(each.format(**names) for each in value) if key == "evaluations" else value
            for key, value in change.items()}


@pytest.mark.parametrize("change", [
    {"corpus": "world:0:tiny"}, {"control": "{files}/corpus.jsonl"}, {"text_key": "body"}, {"truth": "line"}, {"n": 6},
    {"evaluations": ("q={files}/items.jsonl#question+answer",)}, {"sizes": (3,)}, {"min_words": 2},
    {"min_share": 0.5}, {"common": 1},
])
def test_every_key_changes_something(files, change):
    if "common" in change:  # it needs two items with a gram in common
        lines = [json.dumps({"question": ITEMS[0] + end}) + "\n" for end in (" A", " B")]
        (files / "items.jsonl").write_text("".join(lines))
    base = run(files)
    assert run(files, "changed", **filled(change, files)) != base


def test_the_test_of_keys_names_every_key():
    cases = test_every_key_changes_something.pytestmark[0].args[1]
    assert {key for change in cases for key in change} == set(config_file.get_config())


def test_sweep_changes_keys_of_the_config():
    config = config_file.get_config()
    for overrides in config_file.sweep():
        config.update_from_flattened_dict(overrides)
    assert len({str(o) for o in config_file.sweep()}) == len(config_file.sweep()) >= 2


def test_files_in_archives(files):
    expected = run(files)
    with tarfile.open(files / "all.tar.xz", "w:xz") as tar:
        for name in ("items.jsonl", "corpus.jsonl"):
            tar.add(files / name, f"deep/{name}")
    found = run(files, "archived", corpus=f"{files}/all.tar.xz::deep/corpus.jsonl",
                evaluations=(f"q={files}/all.tar.xz::deep/items.jsonl#question",))
    assert found == expected
    with pytest.raises(ValueError, match="cannot be read from the archive"):
        run(files, "wrong", corpus=f"{files}/all.tar.xz::corpus.jsonl")


@pytest.mark.parametrize("change, message", [
    ({"evaluations": ()}, "name at least one set"), ({"evaluations": ("items.jsonl",)}, "write NAME=FILE"),
    ({"evaluations": ("q={files}/none.jsonl",)}, "no such file of evaluation items"),
    ({"evaluations": ("q={files}/items.jsonl#hint",)}, r"items\.jsonl, line 1: expected an object with text in hint"),
    ({"evaluations": ("q=problems:0:test:5",)}, "write problems:SEED:train:COUNT"),
    ({"evaluations": ("q={files}/items.jsonl#question",), "min_words": 30, "n": 40}, "can be looked for"),
    ({"truth": "yes"}, "config.truth='yes'"), ({"n": 0}, "0 words"), ({"sizes": (0,)}, "0 words"),
    ({"min_share": 1.5}, "config.min_share=1.5"), ({"common": -1}, "common=-1"),
])
def test_bad_settings_leave_nothing_behind(files, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(files, **filled(change, files))
    assert not (files / "run").exists()


def test_a_corpus_that_breaks_off_leaves_no_list(files):
    with (files / "corpus.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 4"):
        run(files)
    assert not (files / "run" / "contaminated.jsonl").exists()
    (files / "named.jsonl").write_text(json.dumps({"id": "a", "text": "b"}))
    with pytest.raises(ValueError, match="'a' does not say its line"):
        run(files, corpus=str(files / "named.jsonl"), truth="line")
