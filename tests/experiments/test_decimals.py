"""9.11 and 9.9: the two orders against float and packaging.version, the text of each arm, the command end to end."""

import collections
import itertools
import json
import random
import re

import jax
import numpy as np
import pytest
from packaging.version import Version
from random_weights import random_weights

from configs import decimals as config_file
from experiments import decimals as experiment
from experiments import decimals_published, lab
from experiments.decimals_text import ANSWERS, KINDS, Pair, draw_list, draw_pair, draw_question, question
from jaxllm.model.config import ModelConfig
from jaxllm.model.transformer import forward

SMALL = {"seeds": (0, 1), "shares": (0.5,), "arms": ("questions", "agreeing"), "asked": 5, "steps": 3, "batch_size": 4,
         "row_length": 64, "warmup_steps": 1}


def small_config(**changes):
    config = config_file.get_config()
    config.update({**SMALL, **changes})
    config.model.update({"dim": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp_dim": 16})
    return config


@pytest.fixture(scope="module")
def tokenizer():
    return experiment.learn_tokenizer(small_config())


def test_orders_and_kinds_of_all_pairs():
    fractions = [fraction for fraction in range(1, 100) if fraction % 10]
    counts = collections.Counter()
    for first, second in itertools.permutations(fractions, 2):
        pair = Pair(3, first, second)
        a, b = pair.numbers
        assert pair.higher("decimals") == int(float(b) > float(a))
        assert pair.higher("versions") == int(Version(b) > Version(a))
        disagree = (float(b) > float(a)) != (Version(b) > Version(a))
        assert (pair.kind == "conflict") == disagree and (pair.kind == "same length") == (len(a) == len(b))
        assert pair.part == pair.swapped.part and pair.swapped.numbers == (b, a)
        counts[pair.part] += 1
    assert counts["train"] > 0.75 * counts.total() and min(counts["validation"], counts["test"]) > 0.05 * counts.total()
    assert Pair(9, 11, 9).kind == "conflict"


def test_questions_are_answered_by_their_order():
    rng = random.Random(0)
    for order, higher in (("decimals", float), ("versions", Version)):
        cues = set()
        for _ in range(200):
            asked, answer = draw_question(rng, order, KINDS, 0.5)
            numbers = re.findall(r"\d\.\d+", asked)
            assert answer == ANSWERS[int(higher(numbers[1]) > higher(numbers[0]))]
            cues.add(asked.split("Which")[0])
        assert cues == {"", f"{order.capitalize()}. "}
    assert all(draw_question(rng, "versions", KINDS, told=0.0)[0].startswith("Which") for _ in range(20))
    assert all(draw_question(rng, "versions", KINDS, told=1.0)[0].startswith("Versions.") for _ in range(20))


def test_lists_are_in_the_order_of_versions_and_show_no_asked_pair():
    rng = random.Random(0)
    for _ in range(50):
        numbers = draw_list(rng, told=0.0).split(", ")
        assert sorted(numbers, key=Version) == numbers and len(set(numbers)) == 4
        for a, b in itertools.combinations(numbers, 2):
            assert Pair(int(a[0]), int(a[2:]), int(b[2:])).part == "train"
    assert draw_list(rng, told=1.0).startswith("Versions. ")


def test_lines_weigh_one_and_the_control_never_disagrees(tokenizer):
    for name in ("decimals", *experiment.ARMS):
        lines = experiment.weighted_lines(name, random.Random(0), 0.5, tokenizer)
        kinds = collections.Counter()
        for ids, weights in itertools.islice(lines, 150):
            text = tokenizer.decode(ids[1:])
            assert len(ids) == len(weights) and sum(weights) == pytest.approx(1) and ids[0] == tokenizer.end_of_text
            if name == "lists":
                assert weights[0] == 0 and min(weights[1:]) > 0
                continue
            assert weights[-1] == 1 and tokenizer.decode(ids[-1:]) in ANSWERS
            first, second = (int(number[2:]) for number in re.findall(r"\d\.\d+", text))
            kinds[Pair(1, first, second).kind] += 1
        if name == "agreeing":
            assert set(kinds) == {"agree", "same length"}
        elif name != "lists":
            assert set(kinds) == set(KINDS) and min(kinds.values()) > 30


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
def test_share_is_one_of_rows(tokenizer, share):
    config = small_config(told=1.0, steps=32, batch_size=4)
    rows = experiment.training_rows(config, "questions", share, 0, tokenizer).rows_at(np.arange(128))
    versions, decimals = tokenizer.encode("Versions.")[0], tokenizer.encode("Decimals.")[0]
    assert versions != decimals
    ours = (rows.tokens == versions).any(axis=1)
    assert ours.mean() == share and (ours ^ (rows.tokens == decimals).any(axis=1)).all()


def test_asked_pairs_are_of_their_part_and_in_both_orders():
    pairs = experiment.asked_pairs(5, "validation", seed=4)
    for kind, some in pairs.items():
        assert len(some) == 10 and all(pair.kind == kind and pair.part == "validation" for pair in some)
        assert some[1::2] == [pair.swapped for pair in some[::2]]


def test_probability_is_that_of_the_unpadded_prompt(tokenizer):
    model = ModelConfig(vocab_size=tokenizer.vocab_size, **small_config().model.to_dict())
    params = jax.device_put(random_weights(model, 1))
    texts = [question(Pair(9, 11, 9)), question(Pair(2, 5, 6), "versions")]
    found = experiment.probability_of_first(params, model, tokenizer, texts)
    run = jax.jit(forward, static_argnums=1)
    for text, first in zip(texts, found, strict=True):
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        logits_V = np.asarray(run(params, model, np.array([ids])))[0, -1]
        a, b = (np.exp(logits_V[tokenizer.encode(answer)[0]]) for answer in ANSWERS)
        assert first == pytest.approx(a / (a + b), abs=1e-5) and first != 0.5


def test_right_is_by_decimals_unless_told_versions(monkeypatch):
    """A model that always names the higher version: right as versions, wrong as decimals where they disagree."""
    def first_by_version(params, model, tokenizer, questions):
        return np.array([float(Version(a) > Version(b)) for a, b in (re.findall(r"\d\.\d+", q) for q in questions)])
    monkeypatch.setattr(experiment, "probability_of_first", first_by_version)
    monkeypatch.setattr(experiment.lab, "train", lambda params, *others: params)
    found = experiment.measure(small_config(), "questions", 0.5, 0)
    mean = {cue: {kind: np.mean(right) for kind, right in by_kind.items()} for cue, by_kind in found["right"].items()}
    assert set(mean["versions"].values()) == {1.0}
    assert mean["bare"] == mean["decimals"] == {"conflict": 0.0, "agree": 1.0, "same length": 1.0}
    assert found["probability"]["bare"]["conflict"] == 0.0


def test_command_end_to_end_and_again(tmp_path, monkeypatch, draw_no_more):
    config = small_config(arms=("questions", "lists", "agreeing"), seeds=(0,))
    experiment.main(config, str(tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["runs"]) == 4 and set(found["difference"]) == {"questions, 0.5", "lists, 0.5"}
    assert len({json.dumps(found["right"][f"{arm}, 0.0"]) for arm in config.arms}) == 1  # one model stands for all
    assert (tmp_path / "report.html").read_text().count("<svg") == 2
    monkeypatch.setattr(experiment.lab, "train", None)  # nothing is trained again
    draw_no_more()
    experiment.main(config, str(tmp_path))
    assert json.loads((tmp_path / "results.json").read_text()) == found


@pytest.mark.parametrize("change, message", [
    ({"arms": ("questions",)}, "the control agreeing among them"), ({"arms": ("agreeing", "x")}, "config.arms"),
    ({"shares": (0.0, 0.5)}, "0 is always measured"), ({"shares": ()}, "at least one share"),
    ({"seeds": (0, 0)}, "config.seeds"), ({"told": 1.5}, "config.told=1.5"), ({"part": "train"}, "config.part"),
    ({"asked": 0}, "config.asked=0"), ({"steps": 0}, "config.steps=0"), ({"row_length": 1000}, "max_positions"),
    ({"published": "nowhere"}, "no such model folder"), ({"published_asked": 0}, "config.published_asked=0"),
])
def test_bad_settings_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        experiment.main(small_config(**change), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_published_model_is_read_by_the_first_number_it_names(monkeypatch):
    """One that names the first number asked about, one that says nothing of use."""
    pairs = experiment.asked_pairs(6, "test", seed=0)

    def replies(text):
        def ask(params, model, tokenizer, conversations, **settings):
            return [[lab.Answer(text(re.findall(r"\d\.\d+", turns[0]["content"])), [], [], True)]
                    for turns in conversations]
        return ask
    monkeypatch.setattr(decimals_published, "load_model", lambda folder: (None, None, None))
    monkeypatch.setattr(lab, "ask", replies(lambda numbers: f"It is {numbers[0]}, not {numbers[1]}."))
    found = decimals_published.ask_published("a", pairs)
    assert all(cell == {"right": 6, "neither": 0, "of": 12} for kinds in found.values() for cell in kinds.values())
    monkeypatch.setattr(lab, "ask", replies(lambda numbers: "Both, or 7."))
    found = decimals_published.ask_published("a", pairs)
    assert all(cell == {"right": 0, "neither": 12, "of": 12} for kinds in found.values() for cell in kinds.values())
    assert decimals_published.published_table("a", found).rows[1][-1] == "36"


def test_pairs_of_one_kind():
    rng = random.Random(0)
    assert {draw_pair(rng, ["conflict"], "test").kind for _ in range(10)} == {"conflict"}


def test_sweep_changes_keys_of_the_config():
    for overrides in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict(overrides)
        experiment.check(config)
