"""Reward models end to end, small: what fitting learns and refuses, what the measures see, jokes and a file."""

import dataclasses
import json
import random

import jax
import numpy as np
import pytest
from random_weights import random_weights

from configs import lab
from configs import reward_model as config_file
from experiments import reward_model as experiment
from experiments import reward_model_fit, reward_model_jokes, reward_model_judges
from experiments import reward_model_measure as measure
from experiments.reward_model_head import fit_pairs, head_reward, last_states
from experiments.taste import Start
from jaxllm.data.preferences import Ranking, write_rankings
from jaxllm.data.ranking_rows import ranking_rows
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.model.config import ModelConfig
from jaxllm.rl.reward_model import load_reward, score_rows
from jaxllm.train.checkpoint import save_model

WORDS = ("duck", "hen", "goose", "tea", "kettle", "train")


def rankings_of(count, seed=0, completions=3):
    """People who like ducks; now and then a tie."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        texts = tuple(" ".join(rng.choices(WORDS, k=rng.randint(2, 5))) for _ in range(completions))
        tiers = {}
        for k, text in enumerate(texts):
            tiers.setdefault(-text.split().count("duck"), []).append(k)
        found.append(Ranking(({"role": "user", "content": f"{WORDS[i % 6]} {i}"},), texts,
                             tuple(tuple(tiers[key]) for key in sorted(tiers))))
    return found


@pytest.fixture(scope="module")
def start():
    tokenizer = train_tokenizer([" ".join(WORDS) * 20], 270)
    model = ModelConfig(vocab_size=tokenizer.vocab_size, **lab.shape(16, layers=2, heads=2).to_dict(), max_positions=64)
    return Start(jax.tree.map(np.asarray, random_weights(model)), model,
                 dataclasses.replace(tokenizer, chat_template="im_sep"))


def settings(**changes):
    found = config_file.reward_config()
    found.update({"row_length": 48, "batch_size": 8, "least_steps": 30, "learning_rate": 1e-2, **changes})
    return found


def right(reward, rankings):
    rows = ranking_rows(rankings, reward.tokenizer, 48)
    scores, pairs = reward_model_fit.flat_scores(reward, rows), reward_model_fit.pair_indices(rows)
    return np.mean(scores[pairs[:, 0]] > scores[pairs[:, 1]])


def test_a_reward_model_learns_what_people_like(start):
    train, held_out = rankings_of(80), rankings_of(40, seed=1)
    before = jax.tree.map(np.copy, start.params)
    reward = reward_model_fit.fit(settings(), start, train, 3, validation=held_out)
    assert right(reward, held_out) > 0.9
    jax.tree.map(np.testing.assert_array_equal, before, start.params)
    scores = reward_model_fit.flat_scores(reward, ranking_rows(held_out, reward.tokenizer, 48))
    assert reward.mean == pytest.approx(scores.mean()) and reward.sd == pytest.approx(scores.std())
    nothing = reward_model_fit.fit(settings(), start, reward_model_jokes.shuffled(train, 0), 3, validation=held_out)
    assert right(nothing, held_out) < 0.75


SMALLER = settings(begin="random", loss="plackett_luce",
                   shape={**lab.shape(8, layers=1, heads=2).to_dict(), "max_positions": 64})


@pytest.mark.slow
def test_a_mesh_fits_the_same(start):
    train, split = rankings_of(80), SMALLER.copy_and_resolve_references()
    split.update({"mesh": (2, 2, 1), "microbatches": 2})
    one, other = (score_rows(reward_model_fit.fit(some, start, train, 0), [[5, 6, 7]]) for some in (SMALLER, split))
    np.testing.assert_allclose(other, one, atol=5e-3)


@pytest.mark.slow
def test_other_sizes_and_parts(start):
    """A smaller model from new weights; and the last block alone."""
    train = rankings_of(80)
    proxy = reward_model_fit.fit(SMALLER, start, train, 0)
    assert proxy.model.dim == 8 and right(proxy, train) > 0.7
    last = reward_model_fit.fit(settings(trained="1"), start, train, 0)
    before, after = start.params["blocks"]["mlp"]["up"], last.params["model"]["blocks"]["mlp"]["up"]
    assert np.array_equal(before[0], after[0]) and not np.array_equal(before[1], after[1])
    assert np.array_equal(start.params["embedding"]["tokens"], last.params["model"]["embedding"]["tokens"])


def test_the_head_alone(start, tmp_path, capsys):
    train, held_out = rankings_of(80), rankings_of(40, seed=1)
    some = settings(trained="head", layers=(1, 2))
    reward = reward_model_fit.fit(some, start, train, 0, validation=held_out)
    assert right(reward, held_out) > 0.55 and reward.model.layers in (1, 2)
    # What the head was fitted to is what the model computes.
    rows = ranking_rows(train, start.tokenizer, 48)
    flat = [row for ranking in rows.tokens for row in ranking]
    states = last_states(start, flat, (1, 2), tmp_path)
    found = head_reward(some, start, states, reward_model_fit.pair_indices(rows), reward_model_fit.pair_indices(rows))
    expected = states[found.model.layers - 1] @ np.asarray(found.params["score"]["weight"])
    np.testing.assert_allclose(score_rows(found, flat), expected, atol=1e-4)
    # Kept: a second time nothing is computed.
    capsys.readouterr()
    np.testing.assert_array_equal(last_states(start, flat, (1, 2), tmp_path), states)
    assert not capsys.readouterr().out


def test_judges_without_a_model():
    train, other = rankings_of(80), rankings_of(40, seed=1)
    texts, others = ([text for ranking in some for text in ranking.completions] for some in (train, other))
    pairs, other_pairs = reward_model_jokes.flat_pairs(train), reward_model_jokes.flat_pairs(other)
    unigram = reward_model_judges.unigram_scores(texts, pairs, others, other_pairs, others, (1e-2, 1.0))
    assert measure.hits(unigram, other_pairs).mean() > 0.99  # words are all there is to it
    length = reward_model_judges.length_scores(texts, pairs, ["duck", "hen hen hen"])
    assert abs(length[1]) == pytest.approx(3 * abs(length[0]))


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_pairs_are_fitted_as_by_scikit_learn(l2):
    """Bradley-Terry is logistic regression on differences, each in both orders, without an intercept."""
    linear = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    rng = np.random.default_rng(0)
    features, better = rng.normal(0, [1, 5, 0.2], (60, 3)).astype(np.float32), np.arange(0, 60, 2)
    difference = features[better] - features[better + 1]
    both, label = np.concatenate([difference, -difference]), np.repeat([1, 0], 30)
    model = linear.LogisticRegression(C=1 / (l2 * 60), fit_intercept=False, tol=1e-9).fit(both / both.std(0), label)
    np.testing.assert_allclose(fit_pairs(features, better, better + 1, l2), model.coef_[0] / both.std(0), rtol=2e-3)


def test_measures_of_judges_that_are_known():
    rng = np.random.default_rng(0)
    rankings = [Ranking((), ("a", "b c", "d e f"), ((1,), (2,), (0,))) for _ in range(60)]
    gold = np.tile([0.0, 2.0, 1.0], 60) + rng.normal(0, 0.2, 180)
    data = measure.held_out(rankings, gold)
    assert data.length[:3].tolist() == [1, 2, 3] and data.groups[:4].tolist() == [0, 0, 0, 1]
    perfect, worst = (measure.agreement(sign * gold, data) for sign in (1, -1))
    assert perfect["accuracy"] > 0.95 and perfect["gold accuracy"] == 1 and perfect["tau"] > 0.9
    assert worst["accuracy"] < 0.05 and worst["tau"] < -0.9 and worst["gold correlation"] == pytest.approx(-1)
    assert measure.agreement(np.zeros(180), data)["accuracy"] == 0.5  # a judge without an opinion
    biased = measure.length_bias(gold + 3 * data.length, data)
    assert biased["given gold"] > 0.95 and biased["longer worse"] < 0.1 and biased["longer better"] == 1
    assert abs(measure.length_bias(gold + rng.normal(0, 1, 180), data)["given gold"]) < 0.25
    assert measure.by_gold_margin(gold, data) == [1, 1, 1]


def test_disagreement_foresees_errors_only_where_it_is_about_them():
    rng = np.random.default_rng(1)
    data = measure.held_out([Ranking((), ("a", "b"), ((0,), (1,))) for _ in range(2000)], np.tile([1.0, 0.0], 2000))
    noise = np.repeat(rng.choice([0.1, 2.0], 2000), 2)  # some pairs are hard for every member
    members = {str(i): data.gold + noise * rng.normal(0, 1, 4000) for i in range(4)}
    found = measure.disagreement(members, data, 0)
    assert found["sd"] > 0.7 and found["sd within lead"] > 0.55 and abs(found["shuffled"] - 0.5) < 0.07
    assert found["mean accuracy"] > found["member accuracy"]


def small_config(tmp_path, **changes):
    config = config_file.get_config()
    config.update({"seeds": (0, 1), "cache": str(tmp_path / "cache"), "rankings": 8, "validation": 5, "test": 6,
                   "completions": 3, "members": 2, "counts": (4,), **changes})
    config.reward.update({"epochs": 1, "least_steps": 6, "row_length": 96})
    config.start.update({"talks": 20, "epochs": 3, "vocab_size": 512, "max_tokens": 8})
    config.start.shape.update(lab.shape(16, layers=1, heads=2))
    return config


@pytest.mark.slow
def test_jokes_end_to_end_and_again(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    experiment.main(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["agreement"]["gold"]["gold accuracy"][0] == 1 and len(found["curve"]["accuracy"]) == 2
    assert {"length", "unigram", "shuffled labels", "another person"} <= set(found["agreement"])
    text = (tmp_path / "run" / "report.md").read_text()
    for title in ("Agreement with held-out orders", "Calibration", "Ensemble", "Length", "By number of rankings"):
        assert f"## {title}" in text
    assert load_reward(tmp_path / "run" / "reward-1").row_length == 96
    # A second time nothing is drawn or fitted.
    monkeypatch.setattr(reward_model_jokes, "fit", None)
    monkeypatch.setattr(reward_model_jokes, "taste", None)
    experiment.main(config, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == found


@pytest.mark.slow
def test_a_file_in_folds(tmp_path, start):
    save_model(tmp_path / "model", start.params, start.model, start.tokenizer)
    write_rankings(tmp_path / "pairs.jsonl", rankings_of(60, completions=2))
    config = config_file.get_config(str(tmp_path / "pairs.jsonl"))
    config.start.model, config.folds, config.seeds = str(tmp_path / "model"), 3, (0, 1)
    config.reward.update({"layers": (1, 2), "row_length": 48, "template": ""})
    experiment.main(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    share, low, high = found["agreement"]["unigram"]["accuracy"]
    assert low <= share <= high and share > 0.9 and found["account"]["used"] == 60
    assert found["agreement"]["shuffled labels"]["accuracy"][0] < 0.8 < share
    assert load_reward(tmp_path / "run" / "reward-0").model.layers in (1, 2)


@pytest.mark.parametrize("change, message", [
    ({"seeds": ()}, "at least one seed"), ({"counts": (8,)}, "below config.rankings"), ({"members": 1}, "members=1"),
    ({"reward.begin": "x"}, "choose start or random"), ({"reward.trained": "0"}, "reward.trained='0'"),
    ({"reward.trained": "head"}, "needs reward.layers"), ({"reward.loss": "hinge"}, "choose one of bradley_terry"),
    ({"reward.learning_rate": 0.0}, "learning_rate=0.0 must be above 0"), ({"reward.centring": -1.0}, "centring=-1.0"),
    ({"reward.warmup_steps": 6}, "must exceed reward.warmup_steps"),
    ({"reward.row_length": 200}, "config.start.shape.max_positions"),
    ({"reward.begin": "random", "reward.shape.max_positions": 64}, "exceeds reward.shape"),
    ({"preferences": "x.jsonl", "folds": 2}, "3 or more"),
])
def test_bad_settings_leave_nothing_behind(tmp_path, change, message):
    config = small_config(tmp_path)
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        experiment.main(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sweep_and_a_file_are_configs_that_pass():
    experiment.check(config_file.get_config("pairs.jsonl"))
    for overrides in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict(overrides)
        experiment.check(config)
