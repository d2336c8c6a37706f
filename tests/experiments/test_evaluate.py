"""The command: two models side by side on a mesh, controls, differences, CORE's mean, contamination, refusals."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from random_weights import random_weights

from configs import benchmark_evaluate as benchmark_config
from configs import evaluate as config_file
from experiments import benchmark_evaluate, evaluate, evaluate_report
from experiments.evaluate_harness import Answers
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.evals.contamination import Overlap
from jaxllm.evals.evaluation import Result
from jaxllm.evals.intervals import wilson
from jaxllm.evals.tasks import Item, Task
from jaxllm.model.config import ModelConfig
from jaxllm.train.checkpoint import save_model

CONFIG = ModelConfig(vocab_size=304, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_dim=32, max_positions=64)
WORDS = "the cat sat on the mat and the dog sat on the cat again".split()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models' folders, differing in the seed."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, 275)
    for name, seed in (("a", 0), ("b", 1)):
        save_model(folder / name, random_weights(CONFIG, seed), CONFIG, tokenizer)
    return str(folder / "a"), str(folder / "b")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "mine.jsonl"
    path.write_text("".join(json.dumps({"context": " ".join(WORDS[i:i + 4]), "choices": [WORDS[i + 4], "xyz"],
                                        "gold": 0}) + "\n" for i in range(9)))
    return path


def config_of(**changes):
    config = config_file.get_config()
    config.update({"limit": 6, "batch_tokens": 64, **changes})
    return config


def test_command(models, questions, tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(" ".join(WORDS))
    config = config_of(models=models, tasks=(f"mine={questions}", f"texts={corpus}"), corpus=str(corpus),
                       overlap_words=5)
    evaluate.main(config, str(tmp_path / "run"))
    text = (tmp_path / "run" / "report.md").read_text()
    for heading in ("## Scores", "## Difference on the same items", "## All metrics", "## Contamination"):
        assert heading in text
    assert "a: swapped" in text and "0.500" in text  # chance of two candidates
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["models"] == ["a", "b"] and set(found["tasks"]) == {"mine", "texts"}
    assert found["tasks"]["mine"]["a"]["items"] == 6 and found["tasks"]["mine"]["a"]["control"]
    assert found["tasks"]["texts"]["a"]["metric"] == "bits_per_byte" and found["tasks"]["texts"]["a"]["control"] is None
    assert (tmp_path / "run" / "report.html").read_text().count("<svg") == 1
    capsys.readouterr()
    monkeypatch.setattr(evaluate, "load_model", None)  # nothing is loaded for what is done
    evaluate.main(config, str(tmp_path / "run"))
    assert "mine: 0." not in capsys.readouterr().out
    assert (tmp_path / "run" / "report.md").read_text().split("\n", 4)[4] == text.split("\n", 4)[4]


def results_of(values, chance, name):
    return Result(name, "choice", "acc_token", chance, [str(i) for i in range(len(values))], {"acc_token": values},
                  [1.0] * len(values), [None] * len(values), 1, 0.0)


def test_core_is_the_mean_of_scores_centred_at_chance():
    rng = np.random.default_rng(0)
    first = results_of((rng.random(400) < 0.7).astype(float).tolist(), 0.25, "core/arc_easy")
    second = results_of((rng.random(100) < 0.62).astype(float).tolist(), 0.62, "core/boolq")
    means = [(np.mean(first.scores["acc_token"]) - 0.25) / 0.75, (np.mean(second.scores["acc_token"]) - 0.62) / 0.38]
    table = evaluate_report.core(["m"], [[first, second]], ["core/squad"])
    assert [row[1] for row in table.rows[1:3]] == [f"{value:.3f}" for value in means]
    mean, low, high = map(float, re.findall(r"-?[\d.]+", table.rows[-1][1]))
    assert mean == pytest.approx(np.mean(means), abs=1e-3) and "core/squad" in table.note
    # The spread of the same mean over draws of items.
    draws = [np.mean([(rng.choice(result.scores["acc_token"], len(result.keys)).mean() - result.chance)
                      / (1 - result.chance) for result in (first, second)]) for _ in range(2000)]
    assert high - low == pytest.approx(2 * 1.96 * np.std(draws), rel=0.1)


def test_score_without_the_items_that_were_found():
    result = results_of([1.0, 0.0, 1.0], 0.5, "t")
    assert evaluate_report.without(result, Overlap("t", 3, 3, {"0": 1.0}, 1)).startswith("0.500")
    assert evaluate_report.without(result, Overlap("t", 3, 3, {"0": 1.0, "1": 0.3, "2": 1.0}, 1)) == "none left"


def test_perplexity_is_shown_and_nats_are_kept():
    result = Result("t", "continuation", "perplexity", 0.0, ["0", "1"], {"perplexity": [1.0, 2.0]}, [1.0, 1.0],
                    [None, None], 1, 0.0)
    assert evaluate_report.cell(result).startswith(f"{math.exp(1.5):.3f}")


@pytest.mark.parametrize(("changes", "error", "words"), [
    ({"models": ("no/such",)}, FileNotFoundError, "is no folder"),
    ({"models": ("lab", "lab")}, ValueError, "different"),
    ({"tasks": ()}, ValueError, "at least one"), ({"dtype": "int8"}, ValueError, "choose one of"),
    ({"limit": -1}, ValueError, "at least 0"), ({"batch_tokens": 0}, ValueError, "at least 1"),
    ({"mesh": (3, 1, 1)}, ValueError, "devices"),
    ({"tasks": ("world/facts=0:tiny", "world/facts=1:tiny")}, ValueError, "more than once"),
    ({"corpus": "no/such"}, FileNotFoundError, "no such file or folder"),
    ({"tasks": ("core",), "data": "no/such"}, FileNotFoundError, "no task of CORE")])
def test_bad_settings_stop_before_any_work(changes, error, words, tmp_path):
    with pytest.raises(error, match=words):
        evaluate.main(config_of(**changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("verifier", "answer", "words"), [
    ("nubmer", "4", "unknown verifier"), ("number", "four", "is not one number"), ("judge", "4", "missing 2 required"),
    ("ifeval", "18", "subscriptable")])
def test_replies_that_nothing_could_grade_are_refused_before_they_are_written(verifier, answer, words, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", "answer": a, "verifier": v}) + "\n"
                            for a, v in (("4", "number"), (answer, verifier))))
    with pytest.raises(ValueError, match=f"task mine, item 1: no reply can be graded .*{words}"):
        evaluate.main(config_of(tasks=(f"mine={path}",)), str(tmp_path / "run"))


def test_what_has_changed_is_measured_anew(models, tmp_path):
    corpus = tmp_path / "corpus.txt"
    config = config_of(models=models, corpus=str(corpus), overlap_words=5)
    task = Task("t", "document", (Item((), (" ".join(WORDS),), key="k"),))
    for text, found in (("nothing", {}), (" ".join(WORDS), {"k": 1.0})):
        corpus.write_text(text)
        assert evaluate.kept_overlaps(config, tmp_path / "run", [task], None)[0].found == found
    shutil.copytree(models[0], tmp_path / "model")
    before = evaluate.stamp(config, str(tmp_path / "model"))
    assert before == evaluate.stamp(config, str(tmp_path / "model"))
    with open(tmp_path / "model" / "tokenizer" / "tokenizer_config.json", "a") as file:
        file.write("\n")
    assert evaluate.stamp(config, str(tmp_path / "model")) != before


def test_instructions_are_counted_among_other_generations():
    asked = {"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    task = Task("t", "generation", (Item(("p",), (), answer="4", verifier="number"),
                                    Item(("p",), (), answer=json.dumps(asked), verifier="ifeval")))
    result = Result("t", "generation", "score", 0.0, ["0", "1"], {"score": [1.0, 1.0]}, [1.0] * 2, [None] * 2, 1, 0.0,
                    replies=["4", "no comma"])
    assert [row[-1][-6:] for row in evaluate_report.instructions(["m"], [task], [[result]]).rows[1:]] == [" (1/1)"] * 4


def test_benchmark_tells_gaps_and_scores_that_differ():
    task = Task("t", "choice", (Item(("a",), ("b", "c")), Item(("d",), ("e", "f"))))
    ours = Result("t", "choice", "acc", 0.5, ["0", "1"], {"acc": [1.0, 0.0], "acc_norm": [1.0, 1.0]}, [1.0, 1.0],
                  [None, None], 1, 0.0, logp=[-1.0, -2.0, -3.0, -4.0])
    theirs = Answers([[(-1.0, True), (-2.5, False)], [(-3.0, False), (-4.0, False)]],
                     {"acc": [1.0, 1.0], "acc_norm": [1.0, 1.0]})
    found = benchmark_evaluate.compared(task, ours, theirs)
    assert found["gap"] == 0.5 and found["scores"]["acc_norm"]["differ"] == 0
    acc = found["scores"]["acc"]
    assert (acc["ours"][0], acc["theirs"][0], acc["differ"]) == (0.5, 1.0, 1) and acc["theirs"][1] == wilson(2, 2)[0]
    config = benchmark_config.get_config()
    seconds = {benchmark_evaluate.OURS: [(9.0, 9.0), (1.0, 2.0)], benchmark_evaluate.THEIRS: [(3.0, 6.0), (3.0, 8.0)]}
    report = benchmark_evaluate.findings_of(config, {"t": 100}, seconds, [found])
    assert report.tables[0].rows[1][1] == "100" and report.tables[0].rows[-1][1:3] == ["3.00", "4.00"]
    config.rounds = 0
    assert [table.title for table in benchmark_evaluate.findings_of(config, {"t": 100}, seconds, [found]).tables] == [
        "Equality"]
    config.limit = 0
    with pytest.raises(ValueError, match="config.limit"):
        benchmark_evaluate.check(config)


def test_benchmark_takes_the_mass_of_the_other_sides_log_likelihoods():
    task = Task("t", "choice", (Item(("a",), ("b", "c", "d"), (0, 2)),), metric="mass")
    ours = Result("t", "choice", "mass", 0.5, ["0"], {"acc": [1.0], "mass": [0.75]}, [1.0], [None], 1, 0.0,
                  logp=[math.log(0.5), math.log(0.25), math.log(0.25)])
    for other, differ in ((0.25, 0), (0.2, 1)):
        logp = [math.log(0.5), math.log(other), math.log(0.25)]
        found = benchmark_evaluate.compared(task, ours, Answers([[(one, False) for one in logp]], {"acc": [1.0]}))
        assert found["scores"]["mass"]["theirs"][0] == pytest.approx(0.75 / (0.75 + other))
        assert found["scores"]["mass"]["differ"] == differ


def test_benchmark_compares_replies_by_one_verifier(tmp_path):
    asked = [{"prompt": "p", "instruction_id_list": [name], "kwargs": [{}]} for name in (
        "punctuation:no_comma", "change_case:english_lowercase")]
    task = Task("t", "generation", tuple(Item(("p",), (), answer=json.dumps(one), verifier="ifeval") for one in asked))
    ours = Result("t", "generation", "score", 0.0, ["0", "1"], {"score": [1.0, 1.0]}, [1.0] * 2, [None] * 2, 1, 0.0,
                  replies=["one", "two"])
    found = benchmark_evaluate.compared(task, ours, Answers([["one, two"], ["two"]], {}))
    assert found["replies_differ"] == 1 and found["scores"]["score"]["differ"] == 1
    assert benchmark_evaluate.equality([found]).rows[1][2:4] == ["1 replies differ", "score"]
    pytest.importorskip("lm_eval", reason="needs the extra `harness`")
    config = benchmark_config.get_config()
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": "4", "verifier": "number"}) + "\n")
    config.tasks = (f"mine={path}",)
    with pytest.raises(ValueError, match="config.rounds=0"):
        benchmark_evaluate.main(config, str(tmp_path))


def test_a_score_is_claimed_beside_its_control_item_by_item():
    """Ten items right by reading, two of them without; an item without a control is left out, and so is a loss."""
    def result(task, metric, values, control):
        return Result(task, "choice", metric, 0.25, [str(i) for i in range(len(values))], {metric: values},
                      [1.0] * len(values), control, 0, 0.0)

    read = result("reads", "acc", [1.0] * 12, [0.0] * 9 + [1.0, 1.0, None])
    blind = result("blind", "acc", [1.0, 0.0] * 6, [0.0, 1.0] * 6)
    loss = result("text", "bits_per_byte", [1.0, 2.0], [None, None])
    first, second = evaluate_report.claims(["model"], [[read, blind, loss]])
    assert first.verdict == "holds" and first.over == "11 items" and first.lead[0] == pytest.approx(9 / 11)
    assert second.verdict == "not settled" and second.measured[0] == second.controlled[0] == 0.5
