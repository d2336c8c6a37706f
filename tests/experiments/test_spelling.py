"""Spelling's command: balanced questions, words held out, what counts in the loss, real calls, what is written."""

import collections
import functools
import json
import random

import numpy as np
import pytest

from configs import spelling as config_file
from experiments import spelling as experiment
from experiments import spelling_questions as questions
from experiments.spelling_questions import TASKS, Example
from jaxllm.infer.tools import Tool

SMALL = {"seeds": (0, 1), "vocab_sizes": (263,), "words": 150, "held_out_tenths": 2, "most": 2, "steps": 30,
         "warmup_steps": 1, "batch_size": 4}
MODEL = {"dim": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp_dim": 16}
COUNT = Tool("python", "", {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
             lambda code: str(eval(code)))


def config_of(**changes):
    config = config_file.get_config()
    config.update({**SMALL, **changes})
    config.model.update(MODEL)
    return config


def flat(asked):
    return [example for question in asked for example in question]


@pytest.fixture(scope="module")
def material():
    return experiment.make_material(config_of(), 0)


def test_every_count_is_the_answer_equally_often_and_right(material):
    assert len(material.train) == 30 * 4
    for examples in (flat(questions.ask(material.words, 2, random.Random(0))), flat(material.test)):
        for task in TASKS[1:]:
            some = [example for example in examples if example.task == task]
            assert len(set(collections.Counter(example.count for example in some).values())) == 1
            assert {example.count for example in some} == {0, 1, 2}
            assert all(example.word.count(example.letter) == example.count for example in some)
            assert {(e.word, e.letter) for e in some} == {(e.word, e.letter) for e in examples if e.task == "count"}


def test_no_word_is_in_two_splits_and_the_split_does_not_hang_on_the_others(material):
    train, test = ({example.word for example in flat(asked)} for asked in (material.train, material.test))
    validation = {e.word for e in flat(experiment.make_material(config_of(split="validation"), 0).test)}
    assert train and test and validation and not train & test and not train & validation and not test & validation
    assert train | test | validation <= set(material.words)
    sides = collections.Counter(questions.split_of(f"w{i}", 3, 2) for i in range(5000))
    assert abs(sides["test"] - 1000) < 120 and abs(sides["validation"] - 1000) < 120


def test_distance_by_its_definition():
    @functools.cache
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    rng = random.Random(0)
    for _ in range(200):
        ours, theirs = ("".join(rng.choices("ab", k=rng.randint(0, 5))) for _ in range(2))
        assert questions.edit_distance(ours, theirs) == distance(ours, theirs)


@pytest.mark.parametrize("vocab", [263, 340])
def test_loss_counts_what_the_model_writes_and_no_result_of_a_tool(material, vocab):
    tokenizer = experiment.make_tokenizer(material, vocab)
    assert vocab > 263 or tokenizer.encode("ab") == [97, 98]
    example, spelled = Example("tool", "banana", "a", 3), Example("spell", "abc", "a", 1)
    prompt, rest, own = experiment.encode(example, tokenizer)
    assert tokenizer.decode(prompt) == '<|endoftext|>run "a" in "banana":'
    kept = [token for token, mine in zip(rest, own, strict=True) if mine]
    assert tokenizer.decode(rest) == ('<|tool_call|>"banana".count("a")<|tool_end|><|tool_result|>3<|tool_end|> 3'
                                      '<|endoftext|>')
    assert tokenizer.decode(kept) == '<|tool_call|>"banana".count("a")<|tool_end|> 3<|endoftext|>'
    rows = experiment.training_rows([(example, spelled)] * 3, tokenizer)
    assert len(rows.tokens) == 3 and not rows.tokens.shape[1] % 16
    assert rows.weights[0].sum() == len(kept) + len(tokenizer.encode(" a b c")) + 1


def test_row_n_holds_the_same_examples_with_every_vocabulary(material):
    tokenizers = [experiment.make_tokenizer(material, vocab) for vocab in (263, 340)]
    some = material.train[:10]
    rows = [experiment.training_rows(some, tokenizer) for tokenizer in tokenizers]
    assert len(rows[0].tokens) == len(rows[1].tokens) == 10
    for n in range(10):
        ours, theirs = (collections.Counter(tokenizer.decode(batch.tokens[n][batch.segment_ids[n] > 0]).split("<|end"))
                        for tokenizer, batch in zip(tokenizers, rows, strict=True))
        assert ours == theirs


def test_calls_are_run_and_the_answer_follows_their_result(material, monkeypatch):
    tokenizer = experiment.make_tokenizer(material, 263)
    special = tokenizer.special_tokens
    examples = [Example("tool", "banana", "a", 3), Example("tool", "pepper", "p", 3), Example("spell", "ab", "a", 1),
                Example("tool", "ab", "a", 1), Example("count", "ab", "a", 1)]

    def write(text, *tokens):
        return [*tokenizer.encode(text), *tokens]

    def generate(params, model, prompts, **settings):
        rows = []
        for prompt in map(tokenizer.decode, prompts):
            if "<|tool_result|>" in prompt:  # it says what it read
                said = prompt.split("<|tool_result|>")[1].removesuffix("<|tool_end|>")
                rows.append(write(f" {said}", tokenizer.end_of_text))
            elif 'in "banana"' in prompt:
                rows.append([special["<|tool_call|>"], *write('"banana".count("a")', special["<|tool_end|>"])])
            elif 'in "pepper"' in prompt:  # a wrong call gives a wrong answer
                rows.append([special["<|tool_call|>"], *write('"peper".count("p")', special["<|tool_end|>"])])
            else:
                rows.append(write(" a b" if "spell" in prompt else " 1", tokenizer.end_of_text))
        return type("Found", (), {"rows": lambda self: rows})()

    monkeypatch.setattr(experiment, "generate", generate)
    written, wrong = experiment.answers(None, None, tokenizer, examples, COUNT)
    assert written == [" 3", " 2", " a b", " 1", " 1"]  # the fourth did not call, but its answer stands
    assert wrong == pytest.approx(2 / 3)


@pytest.mark.slow
def test_command_measures_every_vocabulary_and_seed(tmp_path):
    pytest.importorskip("pydantic_monty")
    experiment.main(config_of(steps=2), str(tmp_path))
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [(run["vocab_size"], run["seed"]) for run in runs] == [(263, 0), (263, 1)]
    for run in runs:
        assert run["characters_per_token"] == 1.0 and set(run["error"]) == set(TASKS)
        assert run["error"]["spell"] > 0.5 and np.isfinite(run["letters_wrong"])  # two updates teach nothing
        assert run["guess_majority"] == pytest.approx(2 / 3)
    assert "263 (bytes)" in (tmp_path / "report.md").read_text() and "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("changes", "words"), [
    ({"vocab_sizes": (262,)}, "263 is the smallest"), ({"split": "train"}, "config.split"),
    ({"held_out_tenths": 5}, "1 to 4"), ({"steps": 0}, "1 or more")])
def test_bad_settings_stop_before_any_work(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        experiment.main(config_of(**changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_count_that_no_word_has_says_so():
    with pytest.raises(ValueError, match=r"lower config\.most"):
        questions.ask(["abc", "abd"], 2, random.Random(0))
