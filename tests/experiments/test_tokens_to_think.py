"""Tokens to think: problems against arithmetic, arms that differ in order alone, grading, the command end to end."""

import collections
import json
import random
import re
from types import SimpleNamespace

import pytest

from configs import tokens_to_think as config_file
from experiments import tokens_to_think as experiment
from experiments.tokens_to_think_problems import (
    DIAL_KINDS,
    PARTS,
    draw,
    equations,
    kinds_of,
    make_dial_problem,
    part_of,
)

SMALL = {"seeds": (0, 1), "kinds": ("1 step", "2 steps"), "problems": (20, 20), "asked": 6, "ask_batch": 16,
         "batch_size": 4, "row_length": 64, "warmup_steps": 1, "deeper_layers": 2}


def small_config(**changes):
    config = config_file.get_config()
    config.update({**SMALL, **changes})
    config.model.update({"dim": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp_dim": 16})
    return config


@pytest.fixture(scope="module")
def tokenizer():
    return experiment.learn_tokenizer(small_config())


def test_every_step_of_a_dial_problem_is_arithmetic():
    rng = random.Random(1)
    for turns in range(1, len(DIAL_KINDS) + 1):
        for _ in range(50):
            problem = make_dial_problem(rng, turns)
            shown = int(re.match(r"dial:(\d)", problem.question)[1])
            asked = re.findall(r" (\w+)([+*]\d)", problem.question)
            worked = re.findall(r" (\w+):(\d)([+*]\d)=(\d)", problem.steps)
            assert len(asked) == len(worked) == turns == equations(problem)
            for (ordinal, turn), (name, before, same_turn, after) in zip(asked, worked, strict=True):
                assert (ordinal, turn, shown) == (name, same_turn, int(before))
                assert int(after) == eval(f"{shown}{turn}") % 10  # noqa: S307
                shown = int(after)
            assert shown == problem.answer and problem.kind == kinds_of("dial")[turns - 1]


def test_no_turn_can_be_left_out():
    """From every two digits that a dial may show, the same turns lead to two digits."""
    ends = collections.defaultdict(dict)
    for seed in range(4000):
        problem = make_dial_problem(random.Random(seed), 1)
        ends[problem.question[len("dial:0"):]][problem.question[len("dial:")]] = problem.answer
    assert len(ends) == 9 + 3
    assert all(len(set(end.values())) == len(end) == 10 for end in ends.values())


@pytest.mark.parametrize("family, kind", [("dial", "2 steps"), ("dial", "3 steps"), ("world", "two_items"),
                                          ("world", "collection")])
def test_parts_share_no_numbers(family, kind):
    keys = {part: {problem.key for seed in (0, 1) for problem in draw(family, kind, part, 60, seed)}
            for part in PARTS}
    assert all(len(some) > 10 for some in keys.values())
    assert not any(keys[a] & keys[b] for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")))
    assert draw(family, kind, "test", 5, 3) == draw(family, kind, "test", 5, 3) != draw(family, kind, "test", 5, 4)


def test_the_world_calls_them_train_and_held_out_as_well():
    for part in PARTS:
        for problem in draw("world", "one_item", part, 20, 0):
            assert part_of(problem) == part and problem.split == ("train" if part == "train" else "held_out")


def test_arms_differ_in_order_alone(tokenizer):
    for problem in draw("dial", "2 steps", "train", 10, 0):
        question, work, answer = map(tokenizer.encode, experiment.parts(problem))
        sequences = {arm: experiment.sequence(arm, problem, tokenizer) for arm in experiment.ARMS}
        end = tokenizer.end_of_text
        assert sequences["answer_first"] == ([end, *question], [*answer, *work, end]) == sequences["deeper"]
        assert sequences["steps_first"] == ([end, *question], [*work, *answer, end])
        given, written = sequences["filler"]
        filler = given[1 + len(question):]
        assert len(filler) == len(work) and len(set(filler)) == 1 and not set(filler) & {*question, *work, *answer}
        assert written == sequences["answer_first"][1]


def test_rows_hold_every_problem_once_and_count_what_is_written(tokenizer):
    problems = draw("dial", "2 steps", "train", 30, 0)
    rows = {arm: experiment.training_rows(arm, problems, tokenizer, 64, 0).batch for arm in experiment.ARMS}
    assert rows["answer_first"].tokens.shape == rows["steps_first"].tokens.shape
    written = sum(len(experiment.sequence("filler", problem, tokenizer)[1]) for problem in problems)
    assert {int(batch.weights.sum()) for batch in rows.values()} == {written}
    assert sorted(rows["answer_first"].tokens.ravel()) == sorted(rows["steps_first"].tokens.ravel())
    # The end of text before a question is never a target, the one behind the last part always.
    counted = rows["filler"].targets[rows["filler"].weights > 0]
    assert tokenizer.encode("~")[0] not in counted and (counted == tokenizer.end_of_text).sum() == 30
    with pytest.raises(ValueError, match="raise config.row_length"):
        experiment.training_rows("filler", problems, tokenizer, 20, 0)


def test_only_the_number_behind_answer_counts(tokenizer, monkeypatch):
    problems = draw("dial", "1 step", "test", 4, 0)
    digit = [problem.answer for problem in problems]
    said = [f" Work: first:1+1=2 Answer:{digit[0]}.", f" Work:{problems[1].steps}",  # right steps and no answer
            f" Answer:{(digit[2] + 1) % 10}. Work:{problems[2].steps}", f" Answer:{digit[3]}. Answer:77."]
    rows = [tokenizer.encode(text) for text in said]

    def drawn(params, model, prompts, **settings):
        assert settings["settings"].temperature == 0 and len(prompts) == 4
        return SimpleNamespace(rows=lambda: rows)
    monkeypatch.setattr(experiment, "generate", drawn)
    model = experiment.ModelConfig(vocab_size=tokenizer.vocab_size, **small_config().model.to_dict())
    found = {arm: experiment.ask(arm, None, model, tokenizer, problems, 4) for arm in experiment.ARMS}
    assert found["steps_first"].right == [1, 0, 0, 1]
    # Before its answer, an arm with steps or filler computes about as much, and answer first far less.
    assert found["steps_first"].flops == found["filler"].flops > 1.5 * found["answer_first"].flops


@pytest.mark.parametrize("low, mean, high, words", [
    (0.3, 0.4, 0.5, "reached, the whole interval is above"), (0.1, 0.4, 0.7, "reached, the interval holds it"),
    (0.1, 0.2, 0.3, "missed, the interval holds it"), (0.0, 0.1, 0.2, "missed, the whole interval is below")])
def test_the_bar(low, mean, high, words):
    config = small_config()
    gain = {"1 step": (0.9, 0.9, 0.9), "2 steps": (mean, low, high)}
    said = experiment.verdict(config, gain, {"1 step": 1, "2 steps": 2})
    assert words in said and "(2 steps)" in said and "1 step)" not in said
    assert "was not measured" in experiment.verdict(config, {"1 step": (0, 0, 0)}, {"1 step": 1})


def test_what_each_arm_is_given(monkeypatch):
    """Nothing is trained or asked here: models, tokens and FLOPs are known before."""
    monkeypatch.setattr(experiment.lab, "train", lambda params, *others: params)
    monkeypatch.setattr(experiment, "generate", lambda params, model, prompts, **settings: SimpleNamespace(
        rows=lambda: [[0]] * len(prompts)))
    config = small_config()
    run = {arm: experiment.measure(config, arm, 0) for arm in experiment.ARMS}
    assert run["answer_first"]["train_tokens"] == run["steps_first"]["train_tokens"] == run["deeper"]["train_tokens"]
    assert len({found["counted_tokens"] for found in run.values()}) == 1
    assert run["deeper"]["parameters"] > run["answer_first"]["parameters"] == run["filler"]["parameters"]
    assert run["deeper"]["answer_mflop"] > 1.2 * run["answer_first"]["answer_mflop"]
    assert run["filler"]["equations"] == {"1 step": 1, "2 steps": 2}
    assert all(found["right"] == {"1 step": [0] * 6, "2 steps": [0] * 6} for found in run.values())


@pytest.mark.slow
def test_command_end_to_end_and_again(tmp_path, monkeypatch, draw_no_more):
    config = small_config(arms=("answer_first", "steps_first"))
    experiment.main(config, str(tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["accuracy"]) == set(config.arms) and set(found["gain"]) == {"steps_first"}
    assert all(len(run["right"]["2 steps"]) == 6 for runs in found["runs"].values() for run in runs)
    assert "<svg" in (tmp_path / "report.html").read_text()
    # A second time nothing is trained; a seed more is one seed's work.
    asked = []
    monkeypatch.setattr(experiment, "measure", lambda config, arm, seed: (
        asked.append((arm, seed)) or found["runs"][arm][0]))
    draw_no_more()
    experiment.main(config, str(tmp_path))
    assert not asked and json.loads((tmp_path / "results.json").read_text()) == found
    config.seeds = (0, 1, 2)
    experiment.main(config, str(tmp_path))
    assert asked == [(arm, 2) for arm in config.arms]


@pytest.mark.parametrize("change, message", [
    ({"arms": ("answer_first",)}, "needs answer_first and steps_first"),
    ({"arms": ("answer_first", "steps_first", "magic")}, "name some of answer_first"),
    ({"kinds": ("one_item",)}, "config.kinds"), ({"kinds": ()}, "one kind or more"),
    ({"problems": (5,)}, "for each of the 2 kinds"), ({"problems": (5, 0)}, "config.problems"),
    ({"seeds": ()}, "config.seeds"), ({"seeds": (1, 1)}, "config.seeds"), ({"part": "train"}, "config.part='train'"),
    ({"asked": 0}, "config.asked=0"),
    ({"deeper_layers": 1}, "must exceed config.model.layers"), ({"row_length": 512}, "max_positions"),
    ({"family": "riddles"}, "unknown family"),
])
def test_bad_settings_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        experiment.main(small_config(**change), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sweep_and_the_world_are_configs_that_pass():
    experiment.check(config_file.get_config("world"))
    for overrides in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict(overrides)
        experiment.check(config)
