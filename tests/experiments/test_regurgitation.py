"""Regurgitation's command: what is planted, what deduplication leaves, what is written, what is refused."""

import json

import numpy as np
import pytest

from configs import regurgitation as config_file
from experiments import regurgitation as experiment
from experiments import regurgitation_corpus as corpus

SMALL = {"seeds": (0, 1), "source": "world:{seed}:tiny", "vocab_size": 320, "copies": (0, 1, 5), "notes": 2,
         "unplanted_notes": 3, "prompt_tokens": 3, "rest_tokens": 4, "sizes": ((16, 1, 2),), "tokens": 4096,
         "row_length": 64, "batch_size": 8, "warmup_steps": 1, "validation_pages": 10}


def config_of(**changes):
    config = config_file.get_config()
    config.update({**SMALL, **changes})
    return config


@pytest.fixture(scope="module")
def corpora():
    return corpus.make_corpora(config_of(), 0)


def documents(batch):
    """Each segment of the rows as text, between its two ends."""
    for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            yield tokens[segments == segment].tolist()


def test_rows_hold_as_many_copies_as_planted_and_one_after_deduplication(corpora):
    for arm, expected in (("as it is", {0: 0, 1: 1, 5: 5}), ("deduplicated", {0: 0, 1: 1, 5: 1})):
        found = list(documents(corpora.rows[arm]))
        for copies, notes in corpora.notes.items():
            assert len(notes) == (2 if copies else 3)
            for note in notes:
                assert sum(ids[1:1 + len(note)] == note for ids in found) == expected[copies], (arm, copies)
            assert corpora.left[arm][copies] == len(notes) * expected[copies]


def test_both_arms_read_equally_many_rows_and_no_page_of_validation(corpora):
    first, second = corpora.rows.values()
    assert first.tokens.shape == second.tokens.shape == (64, 64)
    assert max(corpora.padding.values()) < 0.05
    held_out = {tuple(ids) for ids in documents(corpora.validation) if len(ids) > 20}
    seen = {tuple(ids) for rows in corpora.rows.values() for ids in documents(rows)}
    assert held_out and not held_out & seen


def test_equal_but_for_case_punctuation_and_space_is_one():
    texts = ["A note, here.", "b", "a note  here", "a note there", "B!"]
    assert list(corpus.deduplicate(texts)) == ["A note, here.", "b", "a note there"]


@pytest.mark.slow
def test_command_writes_every_arm_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    experiment.main(config_of(), str(tmp_path))
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [(run["arm"], run["seed"]) for run in runs] == [
        ("as it is", 0), ("deduplicated", 0), ("as it is", 1), ("deduplicated", 1)]
    for run in runs:
        assert sorted(note["copies"] for note in run["notes"]) == [0] * 3 + [1] * 2 + [5] * 2
        assert all(note["of"] == 4 and 0 <= note["matched"] <= 4 for note in run["notes"])
        assert all((note["exposure"] is None) == (note["copies"] == 0) for note in run["notes"])
        assert np.isfinite(run["validation_loss"])
    text = (tmp_path / "report.md").read_text()
    assert "Whole rest given back" in text and "| 5 |" in text and "<svg" in (tmp_path / "report.html").read_text()
    monkeypatch.setattr(experiment.lab, "train", None)  # all parts are kept: nothing is trained again
    experiment.main(config_of(), str(tmp_path))
    assert (tmp_path / "report.md").read_text().split("\n\n")[2:] == text.split("\n\n")[2:]  # but for the seconds


def test_memorized_notes_are_found(corpora, monkeypatch):
    """A model that has seen nothing else long enough gives its notes back: the whole road from rows to numbers."""
    notes = [note for copies, some in corpora.notes.items() if copies for note in some]
    end = corpora.tokenizer.end_of_text
    by_start = {tuple([end, *note[:3]]): note[3:] for note in notes}
    monkeypatch.setattr(experiment.lab, "train", lambda params, *args: params)
    monkeypatch.setattr(experiment, "continue_greedily", lambda params, model, tokenizer, prompts, most: [
        by_start.get(tuple(prompt), [0] * most) for prompt in prompts])
    run = experiment.measure(config_of(), corpora, (16, 1, 2), "as it is", 0)
    exact = experiment.by_copies([run], experiment.exact)
    assert exact == {0: [0.0], 1: [1.0], 5: [1.0]}


@pytest.mark.parametrize(("changes", "words"), [
    ({"copies": (1, 2)}, "begin with 0"), ({"copies": (0, 4, 2)}, "rising"), ({"tokens": 100}, "not one step"),
    ({"sizes": ((16, 1, 3),)}, "divisor of D"), ({"notes": 500}, "at most half"), ({"seeds": ()}, "at least one"),
    ({"rest_tokens": 0}, "1 or more"), ({"unplanted_notes": 1}, "2 or more")])
def test_bad_settings_stop_before_any_work(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        experiment.main(config_of(**changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_source_too_small_says_so():
    with pytest.raises(ValueError, match="larger source"):
        corpus.make_corpora(config_of(tokens=500_000), 0)
