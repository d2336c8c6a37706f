"""Expected curves: what a band calls far off, that every bug is put in and taken out again, and the whole command."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import expected_curves as config_file
from configs import pretrain_nano
from experiments import expected_curves as experiment
from experiments import expected_curves_band as bands
from experiments import pretrain, training
from experiments.expected_curves_bugs import BUGS
from jaxllm.data import loader
from jaxllm.data.packing import Batch
from jaxllm.model import layers, transformer
from jaxllm.model.config import preset
from jaxllm.rl import policy_step
from jaxllm.train import optimizer, sharding, step
from jaxllm.train.metrics import Mean


def records(seed, shift=0.0, broken_at=None):
    """A made-up run: ten steps of a falling loss with noise, validated at the last."""
    noise = np.random.default_rng(seed).normal(0, 0.1, (2, 10))
    found = [{"step": n, "loss": 3 / n + noise[0, n - 1] + shift, "grad_norm": float(np.exp(noise[1, n - 1]))}
             for n in range(1, 11)]
    if broken_at:
        found[broken_at - 1]["loss"] = None  # as metrics.jsonl has what is not finite
    return [*found, {"step": 10, "validation_loss": 0.3 + noise[0, 0] + shift}]


@pytest.fixture
def band():
    return bands.make(pretrain_nano.get_config(), [records(seed) for seed in range(5)])


def test_a_band_is_the_mean_and_the_smoothed_sd(band):
    loss = {name: np.array(column) for name, column in band["metrics"]["loss"].items()}
    values = np.array([[r["loss"] for r in records(seed)[:10]] for seed in range(5)])
    assert np.allclose(loss["mean"], values.mean(0))
    assert np.isclose(loss["sd"][4], np.sqrt(values.var(0, ddof=1)[2:7].mean()))
    one = bands.deviation(band, records(7))
    t = (records(7)[4]["loss"] - loss["mean"][4]) / (loss["sd"][4] * np.sqrt(1.2))  # a new seed, five known
    sigmas = one.by_metric["loss"][1][4]
    assert stats.norm.cdf(sigmas) == pytest.approx(stats.t.cdf(t, loss["freedom"][4]))
    edge = bands.half_width(band, "loss", sigmas)[4]
    assert loss["mean"][4] + edge == pytest.approx(records(7)[4]["loss"])
    with pytest.raises(ValueError, match="at least three seeds"):
        bands.make(pretrain_nano.get_config(), [records(0)])
    with pytest.raises(ValueError, match="not finite in one of the runs"):
        bands.make(pretrain_nano.get_config(), [records(0), records(1), records(2, broken_at=3)])


def test_neighbouring_steps_know_more_of_an_sd_the_less_they_follow_each_other():
    """The spread of averaged variances of simulated seeds against that of a chi-squared of so many degrees."""
    rng, steps, seeds = np.random.default_rng(0), 40, 5
    for follow, expected in ((0.0, 20.0), (0.9, 5.43), (1.0, 4.0)):
        noise = rng.normal(size=(2000, seeds, steps))
        if follow == 1.0:
            noise[:] = noise[..., :1]
        for i in range(1, steps) if 0.0 < follow < 1.0 else ():
            noise[..., i] = follow * noise[..., i - 1] + np.sqrt(1 - follow**2) * noise[..., i]
        pooled = noise[..., 10:15].var(1, ddof=1).mean(1)
        assert 2 * pooled.mean()**2 / pooled.var() == pytest.approx(expected, rel=0.1)
        deviations = noise[:200] - noise[:200].mean(1, keepdims=True)
        told = [bands._freedom(seeds, 5, bands._autocorrelation(one)) for one in deviations]
        assert np.mean(told) == pytest.approx(expected, rel=0.15)


def test_what_is_the_same_for_all_seeds_has_room_for_rounding_and_no_more():
    def counted(tokens):
        return [{"step": n, "loss": 1.0, "tokens": tokens, "grad_norm/query": 0.5} for n in (1, 2, 3)]

    band = bands.make(pretrain_nano.get_config(), [counted(1024.0)] * 5)
    assert bands.deviation(band, counted(1023.0)).first_alarm(3.5) is None
    step, name, sigmas = bands.deviation(band, counted(512.0)).first_alarm(3.5)
    assert (step, name) == (1, "tokens") and sigmas > 5
    assert bands.deviation(band, counted(512.0)).first_alarm(3.5, bands.USUAL) is None


def test_alarms(band):
    assert bands.deviation(band, records(7)).first_alarm(3.5) is None
    assert bands.deviation(band, records(7, shift=3.0)).first_alarm(3.5)[:2] == (1, "loss")
    small = bands.deviation(band, records(7, shift=0.6))  # too little for a step, and enough for their mean
    assert small.first_alarm(3.5)[1] == "loss_so_far" and small.largest[2] == "loss_so_far"
    assert bands.deviation(band, records(7, broken_at=4)).first_alarm(1e9)[:2] == (4, "loss")


def test_a_run_says_how_far_it_was_off(band, tmp_path):
    config = pretrain_nano.get_config()
    bands.write(band, tmp_path / "bands" / "nano.json")

    def said(found, config=config):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
        return bands.verdict(config, tmp_path, tmp_path / "bands")

    assert said(records(7)).startswith("expected curve (nano, 5 seeds): at the end loss ")
    warning = said(records(7, shift=3.0))
    assert warning.startswith("WARNING") and f"first beyond {bands.SIGMAS:g} sigmas at step 1 (loss)" in warning
    config.seed, config.sample_steps = 8, 10  # neither changes the curve
    assert said(records(7), config)
    config.optimizer.learning_rate = 1e-4
    assert said(records(7), config) == ""


def test_the_shipped_band_is_of_the_shipped_config():
    for path in bands.FOLDER.glob("*.json"):
        name = path.stem
        config = config_file.get_config(name)
        assert bands.read(path)["settings"] == bands.settings(config.run), f"make {name}'s band anew"
    assert {path.stem for path in bands.FOLDER.glob("*.json")} >= {"pretrain_nano", "sft_nano", "policy_nano"}


PATCHED = [(sharding, "put_batch"), (transformer, "attend"), (transformer, "query_scale"), (layers, "rotate"),
           (optimizer, "decay_mask"), (training, "learning_rate_schedule"), (training, "make_optimizer"),
           (step, "accumulate_gradients"), (loader.Source, "batch_at"), (policy_step, "group_advantages")]


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_changes_one_function_and_leaves_no_trace(name):
    before = [getattr(*place) for place in PATCHED]
    with BUGS[name]():
        assert sum(getattr(*place) is not old for place, old in zip(PATCHED, before, strict=True)) == 1
    assert all(getattr(*place) is old for place, old in zip(PATCHED, before, strict=True))
    assert BUGS[name].__doc__.endswith(".")


def test_bugs_do_what_they_say(monkeypatch):
    rows = Batch(np.arange(8).reshape(1, 8), np.arange(1, 9).reshape(1, 8), np.zeros((1, 8), np.float32),
                 np.ones((1, 8), np.int32), np.zeros((1, 8), np.int32))
    monkeypatch.setattr(sharding, "put_batch", lambda rows, mesh: rows)
    seen = {}
    for name in ("off_by_one_target", "lost_loss_mask", "segments_lost", "positions_not_reset"):
        with BUGS[name]():
            seen[name] = sharding.put_batch(rows, None)
    assert seen["off_by_one_target"].targets[0, 0] == 2 and seen["lost_loss_mask"].weights.all()
    assert seen["segments_lost"].segment_ids is None and seen["positions_not_reset"].positions[0, -1] == 7

    def loss_fn(params, batch):
        return Mean(jnp.sum(params * batch), jnp.float32(batch.shape[0])), {}

    with BUGS["dropped_microbatch"]():
        gradient, _, _ = step.accumulate_gradients(loss_fn, jnp.float32(1), jnp.array([1.0, 3.0, 100.0, 100.0]), 2)
    assert gradient == 2.0
    rewards = jnp.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])  # three groups of four say nothing
    once = policy_step.group_advantages(rewards, kind="grpo")
    with BUGS["double_advantage_normalisation"]():
        twice = policy_step.group_advantages(rewards, kind="grpo")
    assert jnp.allclose(twice, once * 8**0.5, rtol=1e-2)  # the others' zeros make the scale smaller
    with BUGS["mixed_groups"]():
        mixed = policy_step.group_advantages(jnp.array([[1.0, 0.0], [1.0, 0.0]]), kind="grpo")
    assert not mixed.any()  # each column as a group says nothing
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
    tables = layers.rotary_tables(preset("nano"), jnp.arange(4)[None])
    length = jnp.linalg.norm(x)
    assert jnp.allclose(jnp.linalg.norm(layers.rotate(x, tables)), length)
    with BUGS["wrong_rotary_pairs"]():
        assert not jnp.allclose(jnp.linalg.norm(layers.rotate(x, tables)), length, rtol=1e-3)

    q, k, v = (jax.random.normal(jax.random.key(i), (1, 4, 2, 8)) for i in range(3))

    def first_moves():
        one, other = (transformer.attend(q, k, values, scale=1.0)[0, 0] for values in (v, v.at[0, 3].add(1.0)))
        return not bool((one == other).all())

    assert not first_moves()
    with BUGS["no_causal_mask"]():
        assert first_moves()


def test_the_command_makes_a_band_and_catches_a_bug(tmp_path, monkeypatch, capsys):
    ran = []

    def run(config, workdir):
        ran.append(config.seed)
        hot = training.learning_rate_schedule.__name__ == "<lambda>"
        path = pathlib.Path(workdir) / "metrics.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records(config.seed, shift=3.0 if hot else 0.0)))
        return True

    monkeypatch.setattr(pretrain, "main", run)
    config = config_file.get_config()
    config.update({"band": str(tmp_path / "band.json"), "make_band": True, "clean_seeds": (100, 101, 102),
                   "bugs": ("hot_without_warmup",), "bug_seeds": (100,)})
    experiment.main(config, str(tmp_path / "run"))
    numbers = json.loads((tmp_path / "run" / "results.json").read_text())
    assert numbers["hot_without_warmup"][0]["first_alarm"][:2] == [1, "loss"]
    assert [one["first_alarm"] for one in numbers["no bug"]] == [None] * 3
    assert "| hot without warmup | Ten times the learning rate, at once. | 1 of 1 | 1 |" in capsys.readouterr().out
    assert ran == [0, 1, 2, 3, 4, 100, 101, 102, 100]
    experiment.main(config, str(tmp_path / "run"))
    assert len(ran) == 9  # all were kept
    config.run.steps += 1
    config.make_band = False
    with pytest.raises(ValueError, match="band of other settings"):
        experiment.main(config, str(tmp_path / "run"))


@pytest.mark.parametrize("key, value, says", [
    ("bugs", ("gremlin",), "gremlin: choose from"), ("clean_seeds", (4, 100), r"seeds \[4\] are of the band"),
    ("band_seeds", (0, 1), "three seeds"), ("run.microbatches", 1, "at least 2 for dropped_microbatch")])
def test_bad_settings_are_refused(key, value, says):
    config = config_file.get_config().lock()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=says):
        experiment.check(config)
