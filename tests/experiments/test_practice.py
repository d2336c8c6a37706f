"""Practice problems: split by their numbers, judged, rewarded, and what a run of them costs."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import practice as configs
from configs import sft_to_rl as run_configs
from experiments import practice, practice_runs
from experiments.practice import judge, reward
from jaxllm.data.chat import render
from jaxllm.data.verifiable import Task
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import count_params

SETTINGS = configs.start_config()
SETTINGS.documents, SETTINGS.demonstrations = (40, 40, 40), 60
TASK = Task(({"role": "user", "content": "dial:6 first*3 second*9"},), "2", "exact",
            "Work: first:6*3=8 second:8*9=2\nAnswer:2.", "dial 6 *3 *9")


def test_what_is_asked_was_never_shown():
    """Of problems of two steps and more no numbers are in two parts; only "train" is in documents or demonstrations."""
    keys = {part: {task.key for task in practice.tasks(SETTINGS, 3, part).values()}
            for part in ("train", "validation", "test")}
    assert len(keys["test"]) > 200
    assert not keys["train"] & keys["validation"] and not (keys["train"] | keys["validation"]) & keys["test"]
    shown = [text.partition("\n")[0] for text in practice.documents(SETTINGS, 3)]
    shown += [talk.messages[0]["content"] for talk in practice.demonstrations(SETTINGS, 3)]
    asked = {name.partition(": ")[2] for part in ("validation", "test") for name in practice.tasks(SETTINGS, 3, part)}
    assert len(shown) == 180 and not asked & set(shown)
    for name, task in practice.tasks(SETTINGS, 3, "test").items():
        told = judge(task, task.reference)
        assert told.right and told.worked and told.form and told.flawless
        assert task.reference.count("=") == int(name[0])


def test_a_document_is_its_prompt_and_its_reply():
    """The base is asked in exactly the tokens that stood before a solution in its documents."""
    tokenizer = practice.learn_tokenizer(SETTINGS)
    asked = dataclasses.replace(tokenizer, chat_template=practice.DOCUMENT)
    texts = practice.documents(SETTINGS, 0)
    rows = practice.document_rows(texts[:1], tokenizer, SETTINGS.row_length, 0).batch
    question, _, solution = texts[0].partition("\n")
    prompt = render([{"role": "user", "content": question}], asked, add_generation_prompt=True).ids
    whole = [*prompt, *tokenizer.encode(solution), tokenizer.end_of_text]
    assert rows.tokens[0, :len(whole)].tolist() == whole
    counted = rows.targets[0][rows.weights[0] > 0].tolist()
    assert counted == [*tokenizer.encode(solution), tokenizer.end_of_text]
    assert len(tokenizer.encode("user")) == len(tokenizer.encode("assistant")) == 1
    half = np.mean(["Work" in text for text in texts])
    assert 0.35 < half < 0.65
    share = [np.mean(["Work" in talk.messages[1]["content"] for talk in practice.demonstrations(SETTINGS, 0, worked)])
             for worked in (0.0, None, 1.0)]
    assert share[0] == 0.0 and 0.1 < share[1] < 0.45 and share[2] == 1.0


@pytest.mark.parametrize("text, right, worked, form, flawless", [
    ("Work: first:6*3=8 second:8*9=2\nAnswer:2.", True, True, True, True),
    ("Work: first:6*3=8 second:8*9=7\nAnswer:2.", True, True, True, False),  # a lucky end
    ("Work: first:6*3=8 second:8*9=2\nAnswer:7.", False, True, True, False),
    ("Work: first:6*3=2\nAnswer:2.", True, False, True, False),  # a step left out
    ("Answer:2.", True, False, False, False), ("Answer:3. Answer:2.", True, False, False, False),
    ("Answer:2. Answer:3.", False, False, False, False),  # the last word counts
    ("Work: first:6*3=8 second:8*9=2", False, True, False, False), ("", False, False, False, False)])
def test_replies_are_judged(text, right, worked, form, flawless):
    told = judge(TASK, text)
    assert (told.right, told.worked, told.form, told.flawless) == (right, worked, form, flawless)
    rewards = reward({"a": TASK}, {"right": 1.0, "form": 0.25, "worked": 0.5})(["a"], [[text, ""]])
    assert rewards.tolist() == [[right + 0.25 * form + 0.5 * worked, 0.0]]


def test_a_coin_is_fair_and_knows_nothing():
    toss = practice_runs.coin(0.3, seed=1)
    said = [[str(i) for i in range(50)] for _ in range(100)]
    rewards = toss(["p"] * 100, said)
    assert rewards.shape == (100, 50) and set(np.unique(rewards)) == {0.0, 1.0}
    assert abs(rewards.mean() - 0.3) < 0.03
    assert np.array_equal(rewards, toss(["p"] * 100, said))  # a run that is resumed gets the same
    said[0][0] = "other"
    assert 0.3 < np.mean(rewards != toss(["p"] * 100, said)) < 0.55  # 2 x .3 x .7: all is drawn anew


def test_flops_are_two_and_six_a_weight():
    model = ModelConfig(vocab_size=SETTINGS.vocab_size, **SETTINGS.shape.to_dict())
    weights = count_params(model)  # the tied embedding is the head's product
    attention = 4 * model.layers * model.heads * model.head_dim * 64
    norms = (2 * model.layers + 1) * model.dim
    assert practice.flops(model, 64, read=10) == pytest.approx(10 * (2 * (weights - norms) + attention))
    assert practice.flops(model, 64, learnt=10) == 3 * practice.flops(model, 64, read=10)
    rl = run_configs.run_config().rl
    rl.steps, rl.prompts, rl.samples = 7, 2, 4
    assert practice.rl_flops(model, rl, 64) == practice.flops(model, 64, read=6 * 7 * 8 * 64)


@pytest.mark.parametrize("changes, sentence", [
    ({"start.kinds": ("7 steps",)}, "name some of 1 step, 2 steps"),
    ({"start.documents": (5,)}, "for each of the 3 kinds"), ({"start.test": 0}, "start.test=0: choose 1"),
    ({"start.worked": 1.5}, "a share in"), ({"start.row_length": 256}, "exceeds start.shape.max_positions"),
    ({"start.epochs": 0}, "start.epochs=0 must be above 0"), ({"seeds": (1, 1)}, "each once"),
    ({"watched": 0}, "config.watched=0"), ({"fractions": (1.0, 0.5)}, "rising shares"),
    ({"rl.sampler.max_tokens": 8}, "both bound a reply")])
def test_what_cannot_be_is_refused(changes, sentence):
    config = run_configs.run_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=sentence):
        practice_runs.check_runs(config, ("rl",))
    with pytest.raises(ValueError, match="name some of rl, more_sft"):
        practice_runs.check_runs(run_configs.run_config(), ("road",))
    with pytest.raises(ValueError, match="weigh some of right"):
        reward({}, {"luck": 1.0})


def test_solutions_stand_so_many_lines_below_their_problems():
    settings = configs.start_config()
    near, far = (practice.documents(ConfigDict({**settings.to_dict(), "lines": lines, "documents": (20, 20, 20)}), 0)
                 for lines in (1, 3))
    assert not any("\n\n" in text for text in near)
    assert {text.count("\n\n\n") + text.count("\n\n") for text in far} == {0, 1, 2}
    assert [text.replace("\n\n\n", "\n").replace("\n\n", "\n") for text in far] == near  # and nothing else differs
