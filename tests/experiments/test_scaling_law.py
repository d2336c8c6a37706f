"""The scaling law: the fit against known laws, branches against whole runs, and the report on planted losses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import scaling_law as config_file
from experiments import scaling_law as experiment
from experiments import scaling_law_run as one_run
from experiments.scaling_law_fit import fit, nearest
from experiments.scaling_law_report import bends
from experiments.sweep_plan import DONE
from jaxllm.data.loader import Source
from jaxllm.data.packing import Batch
from jaxllm.train.optimizer import learning_rate_schedule


def test_the_fit_finds_chinchillas_law_again():
    """The law of Besiroglu et al., 2024, over the sizes and tokens of Hoffmann et al."""
    sizes = np.array([(n, d) for n in np.geomspace(7e7, 1.6e10, 6) for d in np.geomspace(5e9, 5e11, 5)])
    losses = 1.8172 + 482.01 / sizes[:, 0]**0.3478 + 2085.43 / sizes[:, 1]**0.3658
    law = fit(sizes, losses)
    assert np.allclose([law.floor, *law.exponents], [1.8172, 0.3478, 0.3658], rtol=1e-3)
    assert np.allclose(np.exp(law.log_scales), [482.01, 2085.43], rtol=1e-2)
    assert np.allclose(law(sizes), losses, rtol=1e-6)
    losses[7] *= 2  # one run that went wrong hardly moves it: the loss is Huber's
    assert np.allclose(fit(sizes, losses)(np.delete(sizes, 7, 0)), np.delete(losses, 7), rtol=2e-3)


def test_a_law_of_one_size_and_the_nearest():
    compute = np.geomspace(1e6, 1e9, 8)[:, None]
    law = fit(compute, 1.5 + 300 / compute[:, 0]**0.5)
    assert np.isclose(law.floor, 1.5, rtol=1e-3) and np.isclose(law.exponents[0], 0.5, rtol=1e-3)
    with pytest.raises(ValueError, match="cannot fix the 3 parameters"):
        fit(compute[:2], np.ones(2))
    sizes = np.array([(1.0, 1.0), (10.0, 10.0)])
    assert nearest(sizes, np.array([3.0, 2.0]), np.array([(2.0, 4.0), (9.0, 4.0)])).tolist() == [3.0, 2.0]


def run_config(**changes):
    config = config_file.get_config().run
    config.update({"dim": 8, "layers": 1, "batch_size": 2, "row_length": 8, "warmup_steps": 2, "budgets": (5, 10),
                   **changes})
    return config


def test_the_rate_is_the_librarys_schedule():
    config = run_config()
    expected = learning_rate_schedule("wsd", config.learning_rate, warmup_steps=2, total_steps=10, final_fraction=0.0,
                                      decay_fraction=0.2)
    found = [one_run.rate(config, jnp.asarray(count), jnp.float32(10)) for count in range(10)]
    assert np.allclose(found, [expected(count) for count in range(10)], atol=1e-9)
    assert one_run.rate(config, jnp.asarray(100), jnp.inf) == np.float32(config.learning_rate)


@dataclasses.dataclass
class Numbers(Source):
    """Rows of seeded tokens."""

    length: int = 8
    segmented: bool = False

    def rows_at(self, examples):
        tokens = np.stack([np.random.default_rng(int(i)).integers(0, 16, 9) for i in examples]).astype(np.int32)
        return Batch(tokens[:, :-1], tokens[:, 1:], np.ones((len(tokens), 8), np.float32))


def test_a_branch_is_the_run_of_its_budget():
    config = run_config()
    model = one_run.model_config(config, 16)
    branches = dict(one_run.at_budgets(config, model, Numbers()))
    whole = dict(one_run.at_budgets(run_config(budgets=(10,)), model, Numbers()))[10]
    assert list(branches) == [5, 10] and int(branches[5].step) == 5
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), branches[10].params, whole.params)))


class Planted:
    """A pool whose runs obey a law, with a little noise."""

    def __init__(self, parallel):
        assert parallel == 1

    def start(self, waiting):
        for point in waiting:
            dim, seed = point.config.dim, point.seed
            params, noise = 500 * dim, np.random.default_rng(100 * dim + seed).normal(0, 1e-3)
            tokens = {budget: budget * point.config.batch_size * point.config.row_length
                      for budget in point.config.budgets}
            losses = {str(budget): (1.5 + 60 / params**0.45 + 900 / count**0.6) * np.exp(noise)
                      for budget, count in tokens.items()}
            (point.folder / "results.json").write_text(json.dumps({
                "params": params, "flops_per_token": 6.0 * params, "corpus_tokens": 10**6, "vocab_size": 512,
                "losses": losses}))
            (point.folder / DONE).write_text("{}")
        return [Over(point) for point in waiting]


@dataclasses.dataclass
class Over:
    point: object

    def running(self):
        return False


def test_a_planted_law_is_foreseen_better_than_by_the_controls(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "Here", Planted)
    config = config_file.get_config().lock()
    config.bootstrap = 2
    experiment.main(config, str(tmp_path / "run"))
    numbers = json.loads((tmp_path / "run" / "results.json").read_text())
    errors = numbers["held_out_error"]
    assert errors["law"][2] < 0.01 < errors["nearest"][1] and errors["compute"][1] > errors["law"][2]
    assert np.allclose(numbers["fits"]["law"]["exponents"], [0.45, 0.6], atol=0.1)
    text = (tmp_path / "run" / "report.md").read_text()
    assert "The law is better than a law of compute alone and better than the nearest" in text
    assert text.count("| 96 |") == 5 and text.count("1,572,864") == 5  # the largest width, and the largest budget
    assert "it speeds up at 0 of 8 budgets" in text
    assert (tmp_path / "run" / "sweep" / "table.parquet").exists()
    held = experiment.held_out(config)
    assert held.sum() == 9 and held[-1].all() and held[:, -1].all()


def test_a_fall_that_speeds_up_is_counted():
    tokens = [100, 200, 400, 800, 1600]
    slows, speeds = [4.0, 3.0, 2.5, 2.3, 9.0], [4.0, 3.9, 3.5, 3.4, 0.1]
    seen = np.array([[True, True, True, True, False]] * 2 + [[False] * 5])
    assert bends({"tokens": tokens, "losses": [[slows], [speeds], [speeds]]}, seen) == (1, 4)
    # A power law has one slope over log D however its budgets are spaced, and an offset makes it slow down.
    tokens = [100, 300, 400, 1600]
    losses = [[[0.1 + 20 / count**0.5 for count in tokens]]]
    assert bends({"tokens": tokens, "losses": losses}, np.ones((1, 4), bool)) == (0, 2)


def test_the_beginning_is_left_out_and_no_held_out_loss_is_asked():
    config = config_file.get_config()
    config.widths, config.seeds, config.run.budgets, config.regime = (16, 32, 64), (0, 1), (1, 2, 3, 4, 5), 0.5
    losses = np.full((3, 2, 5), 2.0)  # of guessing: log 512 = 6.2, half of it is 3.1
    losses[1, :, 0] = 3.0, 3.3
    losses[2] = losses[:, :, 4] = 5.0
    data = {"vocab_size": 512, "losses": losses.tolist()}
    seen, asked = experiment.parts(config, data)
    assert seen.tolist() == [[False, True, True, True, False]] * 2 + [[False] * 5]
    assert asked.tolist() == [[False] * 4 + [True]] * 2 + [[False] + [True] * 4]
    losses[0, :, 1:3] = 4.0
    with pytest.raises(ValueError, match="at 1 of the budgets of the fit all its widths have a loss below 3.12 nats"):
        experiment.parts(config, {**data, "losses": losses.tolist()})


@pytest.mark.parametrize("key, value, says", [
    ("widths", (32, 16), "must ascend"), ("seeds", (), "at least one seed"), ("held_widths", 4, "too little to fit"),
    ("run.budgets", (10, 96), "longer than warmup_steps"), ("run.dim", 18, "multiple of twice the heads"),
    ("huber", 0.0, "above 0"), ("regime", 0.0, "share of the loss of guessing"),
    ("run.optimizer", "sgd", "choose one of adamw, muon")])
def test_bad_settings_are_refused(key, value, says):
    config = config_file.get_config().lock()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=says):
        experiment.check(config)


def test_sweep_passes_the_check():
    for overrides in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict(overrides)
        experiment.check(config)
