"""Few-shot's command: the mapping is in the prompt alone, the controls break it, what is written, what is refused."""

import collections
import json
import random

import jax
import pytest
from random_weights import random_weights

from configs import few_shot as config_file
from experiments import few_shot as experiment
from experiments import few_shot_tasks as tasks
from experiments.few_shot_tasks import KINDS, NUMBERS, REAL, SYMBOLIC
from jaxllm.data.tokenizer import train_tokenizer

TRAIN = {"steps": 2, "warmup_steps": 1, "batch_size": 4, "row_length": 32, "vocab_size": 300, "dim": 16, "layers": 1,
         "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp_dim": 16}


def config_of(**changes):
    config = config_file.get_config()
    config.update({"seeds": (0, 1), "shots": (0, 2), "prompts": 4, "batch": 8, **changes})
    config.train.update(TRAIN)
    return config


def solve_by_rule(task, problem):
    """The answer as the examples alone determine it."""
    kind = {word: name for name, words in KINDS.items() for word in words}
    if task == "look-up":
        return dict(problem.shown)[problem.key]
    if task == "classes":
        return {kind[key]: value for key, value in problem.shown}.get(kind[problem.key])
    key, value = problem.shown[0]
    return NUMBERS[NUMBERS.index(problem.key) + NUMBERS.index(value) - NUMBERS.index(key)]


@pytest.mark.parametrize("task", SYMBOLIC)
@pytest.mark.parametrize("shots", [2, 16])
def test_examples_determine_the_answer_and_random_labels_do_not(task, shots):
    rng = random.Random(0)
    made = [SYMBOLIC[task](shots, rng) for _ in range(200)]
    assert all(len(p.shown) == shots and len(dict(p.shown)) == shots for p in made)
    assert all(solve_by_rule(task, problem) == problem.answer for problem in made)
    assert all((problem.key in dict(problem.shown)) == (task == "look-up") for problem in made)
    random_labels = [problem.with_random_labels(rng) for problem in made]
    assert all([k for k, _ in a.shown] == [k for k, _ in b.shown] and a.answer == b.answer
               for a, b in zip(made, random_labels, strict=True))
    kept = [a[1] == b[1] for p, q in zip(made, random_labels, strict=True) for a, b in zip(p.shown, q.shown,
                                                                                            strict=True)]
    expected = {"classes": 1 / 2, "look-up": 1 / shots, "shift": 1 / 20}[task]
    assert abs(sum(kept) / len(kept) - expected) < 0.1


def test_the_same_key_has_other_values_in_other_prompts():
    rng = random.Random(0)
    for make in SYMBOLIC.values():
        values = collections.defaultdict(set)
        for _ in range(400):
            for key, value in make(4, rng).shown:
                values[key].add(value)
        assert min(map(len, values.values())) > 1


def test_words_and_lists_are_without_repetition():
    words = [word for words in KINDS.values() for word in words]
    assert len(set(words)) == len(words) and min(map(len, KINDS.values())) > tasks.MOST_SHOTS
    for pairs in (tasks.CAPITALS, tasks.OPPOSITES):
        assert len(dict(pairs)) == len(pairs) > tasks.MOST_SHOTS and all(len(pair) == 2 for pair in pairs)
    for make in REAL.values():
        problem = make(3, random.Random(0))
        assert problem.key not in dict(problem.shown)


def test_prompt_ends_where_the_answer_begins():
    problem = tasks.Problem((("fox", "bada"), ("pie", "dofo")), "fox", "bada", ("bada", "dofo"))
    assert problem.prompt(":") == "fox: bada\npie: dofo\nfox:"
    assert problem.prompt("") == "fox bada\npie dofo\nfox"


def test_broken_texts_hold_the_same_words_in_other_pairs():
    changed = 0
    for seed in range(50):
        whole, broken = (tasks.training_pairs(random.Random(seed), broken=b) for b in (False, True))
        assert [key for key, _ in whole] == [key for key, _ in broken]
        assert sorted(value for _, value in whole) == sorted(value for _, value in broken)
        changed += whole != broken
    assert changed > 25  # some are a single pair


@pytest.mark.parametrize("separator", ["", ":"])
def test_a_prompt_is_cut_into_tokens_where_the_training_text_is(separator):
    texts = [tasks.training_pairs(random.Random(seed), broken=False) for seed in range(40)]
    tokenizer = train_tokenizer([tasks.lines(pairs, separator) for pairs in texts], 400)
    for pairs in texts:
        problem = tasks.Problem(tuple(pairs[:-1]), *pairs[-1], ())
        asked = tokenizer.encode(problem.prompt(separator))
        assert tokenizer.encode(tasks.lines(pairs, separator)) == asked + tokenizer.encode(f" {problem.answer}\n")


def test_whole_answer_up_to_the_end_of_the_line_is_right(monkeypatch):
    said = [" bada\nfox:", " badada\n", " bad", "bada", "\n bada"]
    tokenizer = train_tokenizer(said, 263)
    rows = [tokenizer.encode(text) for text in said]
    monkeypatch.setattr(experiment, "unstack_blocks", lambda params: params)
    monkeypatch.setattr(experiment, "generate",
                        lambda *args, **settings: type("Found", (), {"rows": lambda self: rows})())
    problem = tasks.Problem((), "fox", "bada", ())
    assert experiment.solve((None, None, tokenizer), [problem] * 5, config_of()) == [True, False, False, True, False]


@pytest.mark.slow
def test_command_asks_every_model_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "init", lambda model, key: jax.device_put(random_weights(model)))
    experiment.main(config_of(), str(tmp_path))
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [(run["model"], run["seed"]) for run in runs] == [
        (name, seed) for seed in (0, 1) for name in ("trained on pairs", "trained on broken pairs", "never trained")]
    for run in runs:
        assert set(run["right"]) == set(experiment.LABELS)
        for by_task in run["right"].values():
            assert set(by_task) == set(SYMBOLIC)
            assert all(0 <= hits <= 4 for shots in by_task.values() for hits in shots.values())
            assert all(list(shots) == ["0", "2"] for shots in by_task.values())
    assert "| 2 |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().count("<svg") == len(SYMBOLIC)


@pytest.mark.parametrize(("changes", "error", "words"), [
    ({"shots": (0, 17)}, ValueError, "0 to 16"), ({"seeds": ()}, ValueError, "at least one"),
    ({"prompts": 0}, ValueError, "1 or more"), ({"model": "no/such"}, FileNotFoundError, "is no folder")])
def test_bad_settings_stop_before_any_work(changes, error, words, tmp_path):
    with pytest.raises(error, match=words):
        experiment.main(config_of(**changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
