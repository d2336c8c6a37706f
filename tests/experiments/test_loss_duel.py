"""Loss duel: angles that are known, replies that are counted, and the study on runs made up."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import loss_duel as config_file
from experiments import loss_duel as experiment
from experiments import practice
from experiments.improve import Improved
from experiments.loss_duel_angles import compare
from experiments.loss_duel_report import SHUFFLED
from jaxllm.rl.policy_settings import ALGORITHMS
from jaxllm.rl.policy_step import Scores
from jaxllm.rl.rollout import Rollout

Q, G, T, V = 4, 4, 5, 7


@dataclasses.dataclass(frozen=True)
class Table:
    """A policy that is a table [T, V] of logits; its value head knows nothing."""

    critic: str = "none"
    config = dataclasses.make_dataclass("Config", [("dim", int, 1)])()

    def outputs(self, params, tokens):
        logp = jnp.take_along_axis(jax.nn.log_softmax(params["model"])[None], tokens[..., None], 2)[..., 0]
        return logp, jnp.zeros(tokens.shape), jnp.zeros(tokens.shape)


def test_angles_that_are_known():
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(0, V, (Q * G, T)), rng.integers(2, T + 1, Q * G)
    mask = (np.arange(T) >= 1) & (np.arange(T) < lengths[:, None])
    zero, start = np.zeros(mask.shape, np.float32), jnp.asarray(rng.normal(size=(T, V)), jnp.float32)
    old = Table().outputs({"model": start}, tokens)[0]
    names = ["grpo", "gspo", "dr_grpo", "rloo"]
    chosen = {name: dataclasses.replace(ALGORITHMS[name], kl_in="none", value_coefficient=0.0) for name in names}
    losses = {name: (settings, np.eye(Q, G) + np.arange(G)) for name, settings in chosen.items()}
    found = compare(Table(), losses, T, Rollout(tokens, mask, zero, zero, lengths, np.ones(Q * G, bool)),
                    Scores(old, zero, old, jnp.asarray(zero)), {"start": start, "moved": start + 0.5 * start**2})
    for point, one in found.items():
        cosines = dict(zip(names, map(lambda row: dict(zip(names, row, strict=True)), one["cosines"]), strict=True))
        np.testing.assert_allclose(np.array(one["cosines"]), np.array(one["cosines"]).T, atol=1e-9)
        np.testing.assert_allclose(np.diag(one["cosines"]), 1.0)
        # RLOO's advantages are Dr. GRPO's times G / (G - 1); a ratio of 1 is nothing to clip, by token or by row.
        for a, b in (("rloo", "dr_grpo"), ("gspo", "grpo")):
            assert (cosines[a][b] == pytest.approx(1.0, abs=1e-5)) == (point == "start"), (point, a, b)
        assert abs(cosines["grpo"]["rloo"]) < 1 - 1e-5  # averaged otherwise
        assert all(-1 <= half <= 1 for half in one["halves"]) and len(one["norms"]) == len(names)


def small(**changes):
    config = config_file.get_config()
    config.update_from_flattened_dict({
        "algorithms": ("grpo", "dapo"), "start.documents": (8, 8, 8), "start.train": 3, "start.test": 2,
        "start.validation": 2, "rl.steps": 4,
        "rl.prompts": 2, "rl.samples": 3, "part": "validation", **changes})
    return config


def test_the_study_counts_replies_and_finds_what_was_made_up(tmp_path, monkeypatch, draw_no_more):
    calls = []

    def improve(rl, made, reward, seed, *, prompts, watch, title):
        """Draws twice as much as is asked for with dapo, and moves by the rewards' order."""
        calls.append(title)
        arm, names = title.split(",")[0], list(prompts)[:rl.prompts]
        said = [[prompts[name][0]["content"]] * rl.samples for name in names]
        rows, stopped, step = [], "", 0
        while step < rl.steps and not stopped:
            step += 1
            for _ in range(1 + (rl.algorithm == "dapo")):
                assert reward(names, said).shape == (2, 3)
            rows.append({**dict.fromkeys(experiment.KEPT, 0.25), "drawn": 6.0 * (1 + (rl.algorithm == "dapo"))})
            stopped = watch(step, made.params) or ""
        level = {"grpo": 0.6, "dapo": 0.8, SHUFFLED: 0.2}[arm] + 0.01 * seed
        return Improved(rows, {"level": level}, f"{stopped}; this run keeps no checkpoints" if stopped else "")

    def angles(config, seed):
        names = ["grpo", "dapo", SHUFFLED]
        one = {"cosines": np.eye(3).tolist(), "halves": [0.5] * 3, "norms": [1.0] * 3, "ratio": 0.1}
        return {"names": names, "points": {"start": one, "moved": one}}

    monkeypatch.setattr(experiment, "improve", improve)
    monkeypatch.setattr(experiment, "angles", angles)
    monkeypatch.setattr(practice, "start", lambda settings, seed, cache: practice.Start({}, None, None))
    monkeypatch.setattr(practice, "measure", lambda made, *_, **__: {"accuracy": made.params.get("level", 0.2)})
    experiment.main(small(), str(tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    one = found["summary"]
    assert {arm: (one[arm]["steps"], one[arm]["drawn"]) for arm in one} == {
        "grpo": (4, 24), "dapo": (2, 24), SHUFFLED: (4, 24)}
    assert not any(run["stopped"] for some in found["runs"].values() for run in some)
    assert found["verdict"] == ("Above the control beyond chance: grpo, dapo. Better than grpo beyond chance: dapo; "
                                "worse: none.")
    report = (tmp_path / "report.html").read_text()
    assert report.count("<svg") == 4 and "two halves of the dump" in report
    monkeypatch.setattr(experiment, "improve", None)  # a second time nothing is run
    draw_no_more()
    experiment.main(small(), str(tmp_path))


def test_shuffled_rewards_are_the_same_rewards_elsewhere():
    def reward(names, said):
        return np.arange(12.0).reshape(3, 4)
    mixed = experiment.Counted(reward, shuffle=0)
    first, second = mixed("abc", [[""] * 4] * 3), mixed("abc", [[""] * 4] * 3)
    assert mixed.drawn == 24 and sorted(first.ravel()) == list(range(12)) and (first != second).any()
    assert (experiment.Counted(reward)("abc", [[""] * 4] * 3) == reward(0, 0)).all()


@pytest.mark.parametrize("change, message", [
    ({"algorithms": ("magic",)}, "name some of"), ({"control": "ppo"}, "the control among them"),
    ({"seeds": ()}, "at least one seed"),
    ({"dump_prompts": 1}, "dump_prompts=1"), ({"part": "train"}, "validation or test"), ({"samples": 0}, "samples=0")])
def test_bad_settings_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        experiment.main(small(**change), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_every_sweep_passes_the_checks():
    for overrides in config_file.sweep():
        config = config_file.get_config()
        config.update_from_flattened_dict(overrides)
        experiment.check(config)
