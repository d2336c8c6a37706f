"""SFT to RL, learn or sharpen and RL from base at a size of seconds: every road is gone once, the reports hold."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from configs import from_base as base_configs
from configs import learn_or_sharpen as sharpen_configs
from configs import sft_to_rl as configs
from experiments import from_base, lab, learn_or_sharpen, practice, practice_problems, practice_runs, sft_to_rl
from jaxllm.data.verifiable import write_tasks
from jaxllm.model.params import init
from jaxllm.rl.rewards import Grade
from jaxllm.train.checkpoint import load_model, save_model

START = {"start.kinds": ("2 steps", "3 steps"), "start.train": 12, "start.validation": 4, "start.test": 4,
         "start.documents": (8, 8, 8), "start.demonstrations": 16, "start.epochs": 1}
TINY = {"dim": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp_dim": 32}
RL = {"rl.steps": 2, "rl.prompts": 8, "rl.samples": 2, "rl.log_steps": 100, "rl.optimizer.warmup_steps": 0,
      "rl.checkpoint_steps": 1, "watched": 1, "watched_samples": 2, "fractions": (1.0,), "seeds": (4,)}


def settings(made, cache, **changes):
    made.update_from_flattened_dict({**START, **RL, "cache": str(cache), **changes})
    made.start.shape.update(TINY)
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained():
    """The runs of fine-tuning and pretraining so far: what they were called, and their recipes."""
    return {}


@pytest.fixture(scope="module")
def study(cache, trained, tmp_path_factory):
    """The first command's folder; what it trained lies in the cache.

    Right is what so small a model can say, and `lab.train`, which has its own test, only reads its rows and moves the
    weights a little: its programs would be most of this file's time.
    """
    def train(params, model, source, recipe, label):
        assert source.batch_at(0, batch_size=recipe.batch_size).tokens.shape == (recipe.batch_size, source.length)
        trained[label] = recipe
        return jax.tree.map(lambda x: x * (1 + 0.01 * len(trained)), params)

    folder = tmp_path_factory.mktemp("sft_to_rl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(practice_problems, "grade", lambda kind, text, answer: Grade(float(len(text) % 2), text[:1], ""))
        patch.setattr(lab, "train", train)
        sft_to_rl.main(settings(configs.get_config(), cache, arms=("rl", "more_sft"), samples=2), str(folder))
        yield folder


@pytest.fixture
def nothing_is_trained(monkeypatch):
    monkeypatch.setattr(lab, "train", lambda *arguments, **named: pytest.fail("fine-tuned again"))
    monkeypatch.setattr(practice_runs, "improve", lambda *arguments, **named: pytest.fail("RL again"))


@pytest.mark.slow
def test_the_study_compares_every_road_with_rl(study, cache, trained):
    found = json.loads((study / "results.json").read_text())
    assert set(found["accuracy"]) == {"start", "rl", "more_sft"} and set(found["gain"]) == {
        "start", "more_sft"}
    for arm, gain in found["gain"].items():
        assert gain == [found["accuracy"]["rl"][0] - found["accuracy"][arm][0]]
    curve, control = found["curves"]["rl"][0], found["curves"]["more_sft"][0]
    assert [point["step"] for point in curve] == [0, 1, 2] and [point["step"] for point in control] == [0, 2]
    # the last point of either has cost the same, but for a part of an update
    config, (cost,) = settings(configs.get_config(), cache), found["costs"]
    assert curve[-1]["flops"] == cost["flops"] and 1 <= control[-1]["flops"] / cost["flops"]
    assert control[-1]["flops"] - cost["flops"] < cost["flops"] / (cost["sft_steps"] - 1)
    assert curve[0]["accuracy"] == control[0]["accuracy"]  # both begin with the start
    assert [name.partition(", seed")[0] for name in trained] == [
        "practice, base", "practice, fine-tuning", "more SFT, same demonstrations, 1 of RL's FLOPs"]
    assert trained["more SFT, same demonstrations, 1 of RL's FLOPs, seed 4"].steps == cost["sft_steps"]
    run = practice_runs.run(config, 4, "rl")
    first = practice_runs.beginning(config, 4)
    assert len(run.rows) == 2 and not run.stopped
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(run.made.params),
                                                        jax.tree.leaves(first.params), strict=True))
    text = (study / "report.md").read_text()
    assert "from under 0.5 to at least 0.8: missed" in text and "| RL after SFT |" in text


@pytest.mark.slow
def test_a_second_look_trains_nothing(study, cache, nothing_is_trained, tmp_path):
    sft_to_rl.main(settings(configs.get_config(), cache, arms=("rl", "more_sft"), samples=2), str(tmp_path))
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads((study / "results.json").read_text())


@pytest.mark.slow
def test_learn_or_sharpen_counts_the_same_models(study, cache, nothing_is_trained, tmp_path):
    config = settings(sharpen_configs.get_config(), cache, arms=("rl", "more_sft"), samples=2, problems=4, k=(1, 2),
                      vote_k=(1, 2))
    learn_or_sharpen.main(config, str(tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    for arm, (run,) in found["curves"].items():
        drawn = found["drawn"][arm][0]
        assert run["right"]["1"] == pytest.approx(np.mean(list(drawn["right"].values())) / 2)
        assert run["right"]["2"] == np.mean([count > 0 for count in drawn["right"].values()])
        assert len(drawn["right"]) == 8 and run["flawless"]["2"] <= run["right"]["2"]
    assert set(found["curves"]["start"][0]) == {"right", "flawless", "vote"} and "vote" not in found["curves"]["rl"][0]


@pytest.mark.slow
def test_from_base_asks_each_road_in_its_own_form(study, cache, tmp_path):
    config = settings(base_configs.get_config(), cache, arms=("rl", "chat"), samples=2)
    from_base.main(config, str(tmp_path))
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert all(len(run["rewards"]) == 2 for (run,) in runs.values())
    trained = practice_runs.run(config, 4, "rl").made
    tasks = practice.tasks(config.start, 4, "test")
    assert runs["rl"][0]["end"]["accuracy"] == practice.measure(trained, tasks, samples=2, temperature=1.0, seed=4,
                                                                max_tokens=config.start.max_tokens)["accuracy"]
    forms = {road: practice_runs.beginning(config, 4, road).tokenizer.chat_template for road in ("sft", "base", "chat")}
    assert forms == {"sft": "im_sep", "base": practice.DOCUMENT, "chat": "im_sep"}
    base, chat = (practice_runs.beginning(config, 4, road).params for road in ("base", "chat"))
    assert jax.tree.all(jax.tree.map(np.array_equal, base, chat))


@pytest.mark.slow
def test_a_published_model_practises_on_a_file_of_tasks(study, cache, tmp_path, capsys):
    config = settings(configs.get_config(), cache)
    made = practice_runs.beginning(config, 4)
    save_model(tmp_path / "chat", init(made.model, jax.random.key(1)), made.model, made.tokenizer)
    config.start.kinds, config.start.train = ("2 steps",), 40
    write_tasks(tmp_path / "tasks.jsonl", practice.tasks(config.start, 4, "train").values())
    config.update_from_flattened_dict({"model": str(tmp_path / "chat"), "tasks": str(tmp_path / "tasks.jsonl"),
                                       "verifier": "number", "instruction": ".", "asked": 8, "held_out": 0.5})
    sft_to_rl.main(config, str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [point["step"] for point in found["accuracy"]] == [0, 1, 2] and len(found["rows"]) == 2
    params, model, _ = load_model(tmp_path / "run" / "model")
    assert model == made.model and "8 are held out" in capsys.readouterr().out
    sft_to_rl.main(config, str(tmp_path / "run"))  # it is done: nothing is drawn again
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == found
    save_model(tmp_path / "base", params, model, dataclasses.replace(made.tokenizer, chat_template=None))
    config.model = str(tmp_path / "base")
    with pytest.raises(ValueError, match="no chat template"):
        sft_to_rl.main(config, str(tmp_path / "other"))


def test_where_the_start_catches_up():
    crossing = learn_or_sharpen.crossing
    assert crossing({1: 0.2, 4: 0.8, 16: 1.0}, {1: 0.5, 4: 0.5, 16: 0.5}) == pytest.approx(2.0)
    assert crossing({1: 0.1, 2: 0.2}, {1: 0.3, 2: 0.4}) == math.inf
    assert crossing({1: 0.2, 2: 0.3, 8: 0.9}, {1: 0.4, 2: 0.5, 8: 0.9}) == pytest.approx(8.0)
    assert learn_or_sharpen.newly({"a": 0, "b": 2, "c": 0}, {"a": 3, "b": 0, "c": 0}) == 1


@pytest.mark.parametrize("command, made, changes, sentence", [
    (sft_to_rl, configs, {"arms": ("coin",)}, "the first must be 'rl'"),
    (sft_to_rl, configs, {"part": "train"}, "ask validation or test"),
    (sft_to_rl, configs, {"model": "m"}, "name the file of tasks"),
    (sft_to_rl, configs, {"model": "m", "tasks": "t", "seeds": (0, 1)}, "improved once"),
    (sft_to_rl, configs, {"model": "m", "tasks": "t", "seeds": (0,), "verifier": "luck"}, "choose one of number"),
    (sft_to_rl, configs, {"model": "m", "tasks": "t", "seeds": (0,), "held_out": 0.0}, "hold out a share"),
    (learn_or_sharpen, sharpen_configs, {"k": (1, 512)}, "at most config.samples=256"),
    (learn_or_sharpen, sharpen_configs, {"arms": ("rl", "base")}, "begin at the fine-tuned model"),
    (learn_or_sharpen, sharpen_configs, {"samples": 2000}, "1 to 1000 times"),
    (from_base, base_configs, {"arms": ("rl", "coin")}, "with a reward for replies"),
    (from_base, base_configs, {"samples": 0}, "1 or more times")])
def test_what_cannot_be_is_refused(command, made, changes, sentence, tmp_path):
    config = made.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=sentence):
        command.main(config, str(tmp_path))


@pytest.mark.parametrize("arg", ["gsm8k", "gsm8k_8b", "world"])
def test_configs_of_other_sizes_are_in_order(arg):
    config = configs.get_config(arg)
    if arg == "world":
        practice_runs.check_runs(config, config.arms)
    else:
        config.model, config.tasks = "models/smollm2", "gsm8k_train.jsonl.xz"
        sft_to_rl.check(config)
    assert configs.sweep()
