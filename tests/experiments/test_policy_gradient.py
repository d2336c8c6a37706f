"""Policy gradient at a size of seconds: it improves, resumes exactly, is stopped with a reason, and shows itself."""

import dataclasses
import json
import random
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from random_weights import random_weights

from configs import policy_gradient as config_file
from experiments import improve as loop
from experiments import policy_gradient, taste
from experiments.live_page import LivePage, Reply
from experiments.policy_gradient_judge import best_of_n, wins
from experiments.policy_gradient_report import claims, nearest
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.data.world_taste import joke, things
from jaxllm.model.config import preset
from jaxllm.rl.reward_model import Reward, init_reward, save_reward
from jaxllm.train.checkpoint import save_model
from jaxllm.train.loop import StopRequest

TOKENIZER = dataclasses.replace(train_tokenizer(["a joke about a thing, banana! " * 3], 280, "digits", SPECIAL_TOKENS),
                                chat_template="im_sep")
MODEL = preset("nano", layers=1, vocab_size=320)
START = taste.Start(jax.device_put(random_weights(MODEL)), MODEL, TOKENIZER)
PROMPTS = {name: [{"role": "user", "content": name}] for name in ("a", "b", "c")}
# Runs of the same steps, rate and shapes share their compiled programs, which are most of this file's time.
SMALL = {"steps": 14, "prompts": 2, "samples": 8, "sampler.max_tokens": 6, "log_steps": 100, "checkpoint_steps": 4,
         "page_seconds": 0.0, "optimizer.learning_rate": 2e-2, "optimizer.warmup_steps": 2,
         "policy.kl_coefficient": 0.0, "guard.kl": 0.0, "guard.entropy": 0.0, "guard.truncated": 1.0}
FAR_TOO_HIGH = {"optimizer.learning_rate": 0.3}
ADAPTIVE = {"policy.kl_target": 3.0, "policy.kl_coefficient": 0.01, "policy.kl_horizon": 32}
TIMES = ("seconds", "seconds_sampling", "seconds_rewarding", "seconds_scoring", "seconds_updating")


def settings(**changes):
    config = config_file.policy_config()
    config.update_from_flattened_dict({**SMALL, **changes})
    return config


def letters(names, said):
    """The share of ASCII letters; of a byte drawn at random, a fifth or so are."""
    return np.array([[np.mean([c.isascii() and c.isalpha() for c in text or "?"]) for text in row] for row in said])


def run(reward=letters, seed=0, start=START, folder=None, watch=None, stop=None, **changes):
    return loop.improve(settings(**changes), start, reward, seed, prompts=PROMPTS, folder=folder, watch=watch,
                        stop=stop)


def numbers(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize("name", [pytest.param("ppo", marks=pytest.mark.slow), "grpo", "reinforce"])
def test_algorithms_improve_the_reward(name):
    rows = run(algorithm=name, **(ADAPTIVE if name == "ppo" else {})).rows
    first, last = (np.mean([row["reward"] for row in some]) for some in (rows[:2], rows[-3:]))
    assert last > first + 0.3
    assert rows[-1]["kl"] > 0.5 > abs(rows[0]["kl"]) and rows[0]["sampler_gap_max"] < 1e-4
    assert all(np.isfinite(row[key]) for row in rows for key in ("entropy", "length", "ratio", "grad_norm"))
    if name == "ppo":
        assert max(row["explained_variance"] for row in rows) > 0.0 and rows[1]["clip_fraction"] > 0.0
    else:  # one update on its own rollout
        assert all(row["ratio"] == pytest.approx(1.0, abs=1e-5) and row["clip_fraction"] == 0.0 for row in rows)


def vowels(names, said):
    """1 where there is a vowel: every third group has none at first, and is drawn again."""
    return np.array([[float(any(c in "aeiou" for c in text)) for text in row] for row in said])


@pytest.mark.parametrize("name, reward, asked", [
    # All the state there is: weights, moments, value head, coefficient, order of the minibatches.
    ("ppo", letters, ADAPTIVE),
    # Groups drawn again, by the weights of the moment.
    pytest.param("dapo", vowels, {"policy.epochs": 2, "policy.minibatches": 2, "policy.resample": 3},
                 marks=pytest.mark.slow)])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, name, reward, asked):
    asked = {"algorithm": name, "reward": reward, **asked}
    whole = run(folder=tmp_path / "whole", **asked)
    stop = StopRequest()

    def ask(step, params):
        stop.requested = step == 3
    part = run(folder=tmp_path / "part", watch=ask, stop=stop, **asked)
    assert len(part.rows) == 3 and not part.stopped
    rest = run(folder=tmp_path / "part", **asked)
    assert numbers(rest.rows) == numbers(whole.rows)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), rest.params, whole.params)))
    if name == "ppo":
        assert len({row["kl_coefficient"] for row in rest.rows}) > 9
    else:
        assert {row["drawn"] for row in whole.rows} > {16} and max(row["clip_fraction"] for row in whole.rows) > 0.0
        assert np.mean([row["reward"] for row in whole.rows[-3:]]) > np.mean([row["reward"] for row in whole.rows[:3]])
    with pytest.raises(ValueError, match="other settings.*algorithm"):
        run(folder=tmp_path / "part", algorithm="grpo")


@pytest.mark.parametrize("changes, reward, words", [
    ({**FAR_TOO_HIGH, "optimizer.warmup_steps": 12, "guard.kl": 5.0}, letters, "start model exploded"),
    ({**FAR_TOO_HIGH, "optimizer.warmup_steps": 12, "guard.entropy": 0.5}, letters, "entropy died"),
    ({"guard.truncated": 0.2}, letters, "replies were cut off"),
    ({}, lambda names, said: letters(names, said) + np.nan, "reward is not finite")])
def test_a_run_that_goes_wrong_is_stopped_and_says_where_to_go_back_to(tmp_path, changes, reward, words):
    calls = []

    def late(names, said):  # the first rollout is in order, so that there is something to go back to
        calls.append(1)
        return reward(names, said) if len(calls) > 2 else letters(names, said)
    found = run(late, folder=tmp_path, **{"guard.patience": 2, "checkpoint_steps": 1, **changes})
    assert words in found.stopped and len(found.rows) < 14
    state = "no weights after the start model's" if "cut off" in words else f"{tmp_path.absolute()}/checkpoints/"
    assert state in found.stopped
    if "checkpoints" in state:
        step = int(found.stopped.rsplit("/", 1)[1])
        assert (tmp_path / "checkpoints" / str(step)).is_dir() and 1 <= step < len(found.rows)
        drawn = found.rows[step]  # by the weights of that checkpoint
        assert np.isfinite(drawn["reward"]) and ("exploded" not in words or drawn["kl"] <= 5.0)
    assert "stopped: " in (tmp_path / "index.html").read_text()


def test_a_sampler_of_8_bits_is_corrected_and_a_watch_may_stop():
    seen = []
    found = run(watch=lambda step, params: seen.append(step) or ("enough" if step == 2 else None),
                **{"sampler.weights": "int8", "policy.importance": "token"})
    assert seen == [0, 1, 2] and found.stopped.startswith("enough") and len(found.rows) == 2
    assert all(row["sampler_gap"] > 1e-5 and row["importance"] != 1.0 for row in found.rows)


@pytest.mark.slow
def test_a_mesh_changes_nothing():
    """Up to rounding, which Adam's steps of 2e-2 make larger where a gradient is almost zero."""
    alone, many = (run(prompts=4, samples=4, mesh=mesh, watch=lambda step, params: "enough" if step == 2 else None)
                   for mesh in ((1, 1, 1), (2, 2, 2)))
    assert len(alone.rows) == 2
    for one, other in zip(numbers(alone.rows), numbers(many.rows), strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), alone.params, jax.device_get(many.params))


def test_the_page_is_whole_at_every_update_and_text_is_only_text(tmp_path):
    page = LivePage(tmp_path / "index.html", "a <run>", 3, seconds=0.0)
    replies = [Reply(1, "p", f"</script><b>{i}", float(i)) for i in range(20)] + [Reply(1, "p", "none", float("nan"))]
    page.update([{"step": 1, "reward": 0.5, "kl": float("nan")}], replies)
    html, live = (tmp_path / "index.html").read_text(), (tmp_path / "live.js").read_text()
    assert "a &lt;run&gt;" in html and html.count("</script>") == 1
    data = json.loads(live.removeprefix("show(").removesuffix(");\n"))
    assert data["columns"]["reward"] == [0.5] and data["columns"]["kl"] == [None] and data["state"] == "running"
    assert [reply["reward"] for reply in data["replies"]] == [19, 18, 17, 16, 2, 1, 0, None]
    page.finish([{"step": n} for n in range(1, 4)])
    assert '"state": "done"' in (tmp_path / "index.html").read_text() + (tmp_path / "live.js").read_text()


def test_wins_and_best_of_n_against_draws():
    gold, start = np.array([[0.0, 1.0, 2.0, 3.0]]), np.array([[1.0, 1.5]])
    assert wins(gold, start).tolist() == [[0.0, 0.25, 1.0, 1.0]]
    points = best_of_n({"gold": gold, "proxy": gold}, start)
    rng = np.random.default_rng(0)
    drawn = [max(rng.choice(4, 2, replace=False)) for _ in range(4000)]
    assert points[1]["gold"] == pytest.approx(np.mean(drawn), abs=0.05) and points[3]["gold"] == 3.0
    assert all([point["gold"]] == point["golds"] for point in points)  # of one thing
    assert points[0]["kl"] == 0.0 and points[0]["win_rate"] == pytest.approx(np.mean([0, 0.25, 1, 1]))
    assert nearest(points, 0.2)["n"] == 3 and nearest(points, 99.0)["n"] == 4


def study_config(**changes):
    config = config_file.get_config()
    config.update_from_flattened_dict({
        "seeds": (0, 1), "algorithms": ("grpo",), "judged": 3, "judged_samples": 2, "best_of": 2, "start.talks": 8,
        "start.epochs": 1, "start.vocab_size": 300, "people.rankings": 4, "people.validation": 4,
        "people.completions": 3, **changes})
    config.rl.update_from_flattened_dict({**SMALL, "steps": 2, "optimizer.warmup_steps": 0})
    return config


@pytest.mark.slow
def test_the_study_end_to_end_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(taste, "start", lambda settings, seed, cache: START)
    monkeypatch.setattr(policy_gradient, "fit", lambda settings, start, rankings, seed, **others: Reward(
        init_reward(start.params, start.model, jax.random.key(len(rankings[0].completions) + seed)), start.model,
        start.tokenizer, MODEL.max_positions))
    config = study_config()
    policy_gradient.main(config, str(tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["summary"]) == {"start", "grpo", "shuffled labels"} and "win_rate" in found["summary"]["grpo"]
    report = (tmp_path / "report.html").read_text()
    assert report.count("<svg") == 3 and "The control" in report
    monkeypatch.setattr(policy_gradient, "improve", None)  # a second time nothing is run
    policy_gradient.main(config, str(tmp_path))
    assert json.loads((tmp_path / "results.json").read_text()) == found


def test_shuffled_labels_are_the_same_jokes_in_no_order(tmp_path, monkeypatch):
    learnt = {}

    def draw(params, model, tokenizer, asked, samples, **others):
        rng = random.Random(0)
        return [[SimpleNamespace(text=joke(rng, thing)) for _ in range(samples)] for thing in asked]

    def fit(settings, start, rankings, seed, *, label, **others):
        learnt[label] = rankings
        return Reward(init_reward(START.params, MODEL), MODEL, TOKENIZER, 64)
    monkeypatch.setattr(taste, "draw", draw)
    monkeypatch.setattr(policy_gradient, "fit", fit)
    config = study_config(**{"people.rankings": 60, "people.human.noise": 0.0})
    for shuffled in (False, True):
        policy_gradient.learn_reward(config, lambda: START, 0, shuffled, tmp_path)
    real, other = learnt.values()
    agrees = []
    for one, two in zip(real, other, strict=True):
        assert sorted(one.completions) == sorted(two.completions) and one.prompt == two.prompt
        agrees.append(one.completions[one.ranking[0][0]] == two.completions[two.ranking[0][0]])
    assert 0.1 < np.mean(agrees) < 0.6  # a third by chance


def test_a_published_model_and_a_file_of_conversations(tmp_path):
    save_model(tmp_path / "model", START.params, MODEL, TOKENIZER)
    save_reward(tmp_path / "reward", Reward(init_reward(START.params, MODEL, jax.random.key(1)), MODEL, TOKENIZER, 64))
    lines = [{"messages": [{"role": "user", "content": "hi " * n}, {"role": "assistant", "content": "no"}]}
             for n in (1, 2, 3, 60)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_file.get_config("real")
    config.update({"model": str(tmp_path / "model"), "prompts": str(tmp_path / "talks.jsonl"),
                   "reward": str(tmp_path / "reward"), "max_prompt_tokens": 20})
    small = config_file.policy_config().to_dict()
    config.rl.update({key: small[key] for key in ("execution", "sampler", "mesh", "logit_chunks", "microbatches")})
    config.rl.update_from_flattened_dict(SMALL)
    policy_gradient.main(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(found["rows"]) == 14 and (tmp_path / "run" / "model" / "params").is_dir()
    config.max_prompt_tokens = 2
    with pytest.raises(ValueError, match="max_prompt_tokens"):
        policy_gradient.main(config, str(tmp_path / "other"))


@pytest.mark.parametrize("change, message", [
    ({"algorithms": ("magic",)}, "name some of"), ({"seeds": ()}, "at least one seed"), ({"model": "x"}, "go together"),
    ({"part": "train"}, "validation or test"), ({"best_of": 1}, "config.best_of=1"),
    ({"people.completions": 1}, "completions 1"), ({"start.epochs": 0}, "start.epochs")])
def test_bad_settings_of_the_study_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        policy_gradient.main(study_config(**change), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change, message", [
    ({"algorithm": "magic"}, "choose one of ppo"), ({"steps": 0}, "steps is 0"), ({"samples": 1}, "draw 2 or more"),
    ({"sampler.temperature": 0.0}, "greedy"), ({"policy.minibatches": 3}, "multiple of"),
    ({"sampler.max_tokens": 60}, "64 positions"), ({"guard.patience": 0}, "guard"),
    ({"algorithm": "reinforce", "samples": 1, "policy.resample": 2, "prompts": 16}, "always equal"),
    ({"tools.names": ("hammer",)}, "name some of calculator"), ({"tools.names": ("calculator",)}, "by the engine"),
    ({"tools.max_length": 65}, "0 to 64 tokens")])
def test_bad_settings_of_a_run(change, message):
    with pytest.raises(ValueError, match=message):
        run(**change)


def test_every_algorithm_and_sweep_passes_the_checks():
    for overrides in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict(overrides)
        policy_gradient.check(config)
        assert isinstance(loop.make_plan(policy_gradient.rl_of(config, config.algorithms[0]), START), loop.Plan)
    assert isinstance(config_file.get_config("real"), ConfigDict) and things("test")


def test_the_rankings_are_said_to_teach_of_the_algorithm_that_has_the_control():
    def run(gold):
        return [{"gold": [[gold, gold]] * 4, "kl": 0.0, "best_of_n": [{"n": 1, "kl": 0.0, "golds": [gold] * 4}]}]

    runs = {"start": run(0.0), "ppo": run(3.0), "grpo": run(2.0), "shuffled labels": run(1.0)}
    config = ConfigDict({"algorithms": ("ppo", "grpo"), "control": "grpo", "seeds": (0,)})
    better, taught, _ = claims(config, runs)
    assert (better.measure[:3], better.measured[0]) == ("ppo", 3.0)
    assert (taught.measure, taught.measured[0], taught.controlled[0]) == ("grpo", 2.0, 1.0)
    config.algorithms, config.control = ("ppo",), "ppo"
    assert claims(config, runs)[1].measured[0] == 3.0
