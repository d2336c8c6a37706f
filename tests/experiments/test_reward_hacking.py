"""Over-optimisation: the KL, people's choices and the budget, thresholds from other seeds, and the command end to end.

The command runs on a stand-in for the language model, whose replies gain a funny word every few steps: what it must
find is known, and nothing is compiled.
"""

import dataclasses
import itertools
import json
import math
import random
import zlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from random_weights import random_weights
from scipy.special import log_softmax

from configs import reward_hacking as config_file
from experiments import reward_hacking as experiment
from experiments import reward_hacking_claims as claiming
from experiments import reward_hacking_report as tables
from experiments import reward_hacking_rules as rules
from experiments import reward_hacking_runs as runs
from experiments import reward_hacking_stops as stops
from experiments import taste
from experiments.claims import HOLDS, OPEN, Claim
from experiments.lab import Answer
from jaxllm.data import world_taste
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.model.config import ModelConfig
from jaxllm.model.transformer import forward
from jaxllm.rl import stopping


def small_config(tmp_path, **changes):
    config = config_file.get_config()
    config.update({"seeds": (0, 1, 2), "validation_seeds": (100, 101), "controls": 2, "validation_controls": 1,
                   "proxy": (2, 8), "other_proxies": ((1, 6),), "other_seeds": 1, "rounds": 2, "round_seeds": 2,
                   "adversarial": 5, "completions": 3, "members": 1, "held_out": 4, "look_steps": 2,
                   "look_samples": 3, "pool": 16, "pool_things": 8, "pool_labels": 40, "labels": (24, 8),
                   "label_draws": 1, "processes": 1, "cache": str(tmp_path / "cache"), **changes})
    config.rl.steps = 16
    return config


# ---------------------------------------------------------------- a stand-in for models


@pytest.fixture
def stand_in(monkeypatch):
    """Weights are (tries, stuffing): a reply is the best of so many jokes behind so many funny words.

    RL against the gold judge raises the first alone; against a reward model, which counts funny words, first the one
    and then the other. Returns the list of what reward models were asked to learn.
    """
    learnt = []

    def draw(params, model, tokenizer, things, *, samples, seed, max_tokens, **others):
        rng, (tries, stuffing) = random.Random(f"{seed}/{len(things)}"), params

        def text(thing):
            best = max((world_taste.joke(rng, thing) for _ in range(tries)), key=lambda s: world_taste.gold(thing, s))
            return " ".join(["banana"] * round(stuffing * rng.uniform(0.5, 1.5)) + [best])
        return [[Answer(text(thing), [0], [0.0], True) for _ in range(samples)] for thing in things]

    def improve(config, start, reward_fn, seed, *, watch):
        honest, rows = reward_fn is taste.judge, []
        for step in range(config.steps + 1):
            params = 1 + (step // 4 if honest else min(step // 2, 2)), 0.0 if honest else max(step - 5, 0) * 0.6
            watch(step, params)
            rows.append({"step": step, "reward": 0.0, "kl": sum(params) - 1, "entropy": 1.0, "length": 20.0})
        return SimpleNamespace(rows=rows[1:], params=params)

    def fit(config, start, blocks, rankings, seed):
        learnt.append((len(rankings), seed, [one.completions for one in rankings]))
        return SimpleNamespace(model=ModelConfig(8, 8, blocks, 1, 1, 8, 8, 8), seed=seed)

    def scorer(reward):
        def score(text):
            return world_taste.funny_words(text) + zlib.crc32(f"{reward.seed}{text}".encode()) % 100 / 200
        return lambda asked, texts: np.array([[score(text) for text in some] for some in texts])
    start = taste.Start((1, 0.0), None, None)
    for name, value in (("improve", improve), ("_fit", fit), ("scorer", scorer), ("start_of", lambda config: start),
                        ("kl_of", lambda params, start, things, answers: sum(params) - 1.0)):
        monkeypatch.setattr(runs, name, value)
    monkeypatch.setattr(runs.taste, "draw", draw)
    for module in (runs, tables):
        monkeypatch.setattr(module, "things", lambda split: world_taste.things(split)[:8])
    return learnt


@pytest.mark.slow
def test_command_end_to_end_and_again(tmp_path, stand_in, monkeypatch, draw_no_more):
    config = small_config(tmp_path, rounds=1)
    experiment.main(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    page, text = ((tmp_path / "run" / name).read_text() for name in ("report.html", "report.md"))
    assert page.count("<svg") == 4 and "banana banana banana" in text and " nan" not in text

    curve = found["curves"]["2 blocks, 8 rankings"]["rl"]
    assert len(curve) == 3 and len(curve[0]["d"]) == 9
    gold = np.mean([one["gold"] for one in curve], axis=0)
    assert gold.max() > 0.5 > -1 > gold[-1] and curve[0]["proxy"][-1] > 3  # gamed: the proxy rose to the end
    scored = found["rules"]
    assert set(stops.families(config)) < set(scored)
    assert all(len(one["gamed"]["regrets"]) == 3 for one in scored.values())
    never, law = scored["the last step"], scored["law of choices"]
    assert never["gamed"]["missed"] == 1 and never["gamed"]["regret"][0] > 1 and never["honest"]["too_early"] == 0
    assert law["gamed"]["regret"][0] < 0.5
    assert law["gamed"]["labels"] > 24 and scored["fixed step"]["gamed"]["labels"] == 0
    assert set(found["by_labels"]["law of choices"]) == {"8", "24"}

    # A second time nothing is made.
    monkeypatch.setattr(runs, "improve", None)
    draw_no_more()
    experiment.main(config, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == found


def test_one_seed_claims_what_its_things_say(tmp_path, stand_in):
    config = small_config(tmp_path, seeds=(0,), validation_seeds=(100,), controls=1, validation_controls=0,
                          other_proxies=(), other_seeds=0, rounds=0, round_seeds=0, labels=(16,))
    experiment.main(config, str(tmp_path / "run"))
    said = [Claim.from_json(one) for one in json.loads((tmp_path / "run" / "claims.json").read_text())]
    assert [claim.verdict for claim in said] == [HOLDS] * 4
    worse, blind, honest, stopped = said
    assert worse.controlled[0] == pytest.approx(honest.controlled[0]) and worse.controlled[0] < -1 < worse.measured[0]
    assert blind.measured[0] > blind.controlled[0] + 3 and honest.measured[0] > 0.5
    assert stopped.measured[0] > stopped.controlled[0] + 1 and "16 choices" in stopped.measure
    assert all(claim.over == "8 things" for claim in said)


def test_nothing_is_claimed_of_a_run_that_is_not_gamed(tmp_path):
    config = small_config(tmp_path, seeds=(0,), controls=0, labels=(12,))
    looks = [{"gold": [[level] * 3] * 4, "proxy": [[level] * 3] * 4} for level in (0.0, 1.0, 1.0)]
    records = runs.Records({}, {runs.Run(0, "test", (2, 8)): {"looks": looks}}, {})
    said = claiming.claims(config, records, {claiming.RULE: [{"keep": 2}]})
    assert [claim.verdict for claim in said] == [OPEN, OPEN]  # and nothing of the rule: all replies were asked about


def test_a_stop_is_read_on_replies_that_nobody_was_asked_about():
    gold_QG = [[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]]  # rows: thing 0, thing 1, thing 0 again, ...
    assert claiming.unasked({"gold": gold_QG}, 2).tolist() == [1.5, 3.5]
    assert claiming.unasked({"gold": gold_QG}, 5).tolist() == [4.0]
    assert claiming.unasked({"gold": gold_QG}, 6).tolist() == []


def test_a_peak_is_not_read_on_the_things_that_chose_it():
    gold_KQ = np.array([[0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 5.0, 0.0], [0.0, 5.0, 0.0, 5.0]])  # noise of each half
    assert claiming.peak(gold_KQ).tolist() == [2, 1, 2, 1]


def test_rounds_add_what_gamed_the_reward_model_or_as_many_ordinary_rankings(tmp_path, stand_in):
    config = small_config(tmp_path)
    found = {arm: runs.rounds(config, tmp_path, 0, arm) for arm in experiment.ARMS}
    assert [len(one) for one in found.values()] == [3, 3]
    assert {count for count, seed, _ in stand_in if seed == 0} == {8, 13, 18}  # 5 more in each round
    assert [len(one["seen"]) for one in found["adversarial"]] == [1, 2, 3]
    last = found["adversarial"][0]["caught"]
    caught = runs.caught_rankings(config, last, "0/1")
    for ranking, texts, scores in zip(caught, last["texts"], last["scores"], strict=True):
        best = sorted(scores)[-2:]
        assert [scores[texts.index(text)] for text in ranking.completions[:2]] == best
    counts = np.array([[world_taste.funny_words(text) for text in ranking.completions] for ranking in caught])
    assert (counts[:, :2].min(1) > counts[:, 2:].max(1)).all()
    assert sum(ranking.ranking[-1][0] in (0, 1) for ranking in caught) >= 4  # people do not fall for it
    ordinary = stand_in[-1][-1]  # the last that was learnt from: the control's
    assert max(world_taste.funny_words(text) for texts in ordinary for text in texts) < 8


def test_validation_and_test_share_neither_seeds_nor_things(tmp_path):
    config = config_file.get_config()
    made = experiment.runs_of(config)
    assert len(set(made)) == len(made) == 10 + 4 + 2 + 1 + 3
    seeds = {split: {run.seed for run in made if run.split == split} for split in ("test", "validation")}
    assert not seeds["test"] & seeds["validation"] and seeds["test"] == set(config.seeds)


# ---------------------------------------------------------------- parts


def test_kl_is_the_sum_over_a_reply_of_the_distributions_kl():
    """Against a loop in float64 over the tokens of each reply; 0 for the start itself."""
    texts = [message["content"] for talk in world_taste.talks(0, 200) for message in talk]
    tokenizer = dataclasses.replace(train_tokenizer(texts, 300, "digits"), chat_template="im_sep")
    model = ModelConfig(tokenizer.vocab_size, 16, 1, 2, 2, 8, 16, 128)
    first, second = (jax.device_put(random_weights(model, seed)) for seed in (0, 1))
    start, asked = taste.Start(first, model, tokenizer), world_taste.things("test")[:2]
    rng = np.random.default_rng(0)
    answers = [[Answer("", rng.integers(0, 256, length).tolist(), [], True)] for length in (3, 11)]
    run, expected = jax.jit(forward, static_argnums=1), []
    for thing, (answer,) in zip(asked, answers, strict=True):
        ids = runs.render(world_taste.prompt(thing), tokenizer, add_generation_prompt=True).ids
        rows = np.array([[*ids, *answer.tokens, *[0] * (80 - len(ids) - len(answer.tokens))]])
        p, q = (log_softmax(np.asarray(run(params, model, rows), np.float64), axis=-1) for params in (second, first))
        places = slice(len(ids) - 1, len(ids) + len(answer.tokens) - 1)
        expected.append((np.exp(p) * (p - q))[0, places].sum())
    assert runs.kl_of(second, start, asked, answers) == pytest.approx(np.mean(expected), rel=1e-3)
    assert runs.kl_of(first, start, asked, answers) == pytest.approx(0, abs=1e-4)


def test_choices_are_those_of_rank(tmp_path):
    """Shares of wins and ties between two texts, by `rank` one by one and by `choices` at once."""
    config, thing = small_config(tmp_path), world_taste.things("test")[0]
    rng = random.Random(1)
    human = world_taste.Human(**config.human.to_dict())
    jokes = [world_taste.joke(rng, thing) for _ in range(30)]
    # Apart by about the noise, where the shares tell most of it.
    texts = min(itertools.combinations(jokes, 2), key=lambda pair: abs(
        human.taste(thing, pair[0]) - human.taste(thing, pair[1]) - human.noise))
    ranked = [world_taste.rank(human, thing, texts, rng).ranking for _ in range(4000)]
    shares = [np.mean([r == order for r in ranked]) for order in (((0,), (1,)), ((0, 1),), ((1,), (0,)))]
    taste_KM = np.repeat([[human.taste(thing, text)] for text in texts], 4000, axis=1)
    wins = stops.choices(config, taste_KM, np.random.default_rng(0))[0, 1]
    assert [np.mean(wins == value) for value in (1, 0.5, 0)] == pytest.approx(shares, abs=0.035)


def test_the_budget_is_where_best_of_n_ceases_to_please(tmp_path):
    """A proxy that people share has no limit that matters; one that they turn from has one, well before."""
    config = small_config(tmp_path, pool_labels=4000)
    proxy_QN = np.random.default_rng(0).normal(size=(10, 64))
    good, gamed = proxy_QN, 2 * proxy_QN - 1.5 * np.maximum(proxy_QN, 0)**2
    limits = [stops.kl_limit(config, {"pool": proxy_QN.tolist()}, {"taste": taste_QN.tolist()},
                             np.random.default_rng(1)) for taste_QN in (good, gamed)]
    assert limits[1] < 2.5 < limits[0]
    assert stops.kl_limit(config, {}, {}, np.random.default_rng(1)) == math.inf


def test_a_threshold_is_the_one_with_the_least_regret_on_both_kinds_of_runs(tmp_path):
    config, steps = small_config(tmp_path), np.arange(8) * 4

    def run(gold):
        history = SimpleNamespace(step=steps, until=lambda count: SimpleNamespace(step=steps[:count]))
        return stops.Watched([history], np.array([gold, gold], float))
    gamed, honest = run([0, 1, 2, 3, 2, 1, 0, -1]), run([0, 1, 2, 3, 4, 5, 6, 7])
    config.look_steps, config.rl.steps = 4, 40
    fixed = stops.families(config)["fixed step"]
    assert stops.choose(config, fixed, 0, [gamed], []) == 12
    assert stops.choose(config, fixed, 0, [gamed], [honest]) == 12  # a step later loses 1 and gains 1: the first wins
    assert stops.choose(config, fixed, 0, [gamed], [run(2 * honest.gold_HK[0])]) == 28
    assert stops.regret(config, stopping.fixed_step(20), [gamed, honest]) == pytest.approx((2 + 2) / 2)


def test_the_verdict_is_about_rules_that_need_no_other_runs():
    def one(share, needs):
        return {"gamed": {"in_time": share}, "needs": needs}
    said = rules.verdict({"fixed step": one(1.0, "other runs"), "law of choices": one(0.5, "labels")})
    assert "No rule but a fixed stop" in said
    assert "law of choices" in rules.verdict({"law of choices": one(0.9, "labels"), "x": one(0.8, "labels")})
    assert rules.verdict({"x": one(None, "labels")}) == "No run fell."


@pytest.mark.parametrize("change, message", [
    ({"validation_seeds": (2, 100)}, "none twice"), ({"seeds": ()}, "one or more"), ({"controls": 4}, "controls=4"),
    ({"proxy": (4, 8)}, "start model's 3"), ({"other_proxies": ((2, 8),)}, "different pairs"),
    ({"members": 0}, "members"), ({"labels": (1000,)}, "replies of a look"),
    ({"pool_labels": 3}, "power of 2"), ({"look_steps": 6}, "three times"),
    ({"fall": 0.0}, "above 0"), ({"processes": 0}, "processes"), ({"rounds": -1}, "rounds")])
def test_bad_settings_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        experiment.main(small_config(tmp_path, **change), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sweep_and_a_published_model_are_configs_that_pass():
    for overrides in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict(overrides)
        experiment.check(config)
    experiment.check(config_file.get_config("models/smollm2"))
