"""Angles between the gradients that policy-gradient losses have on one and the same dump of rollouts."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from experiments import practice
from experiments.improve import Learner, make_mesh, make_plan
from experiments.loss_duel_report import SHUFFLED
from jaxllm.model.params import Params
from jaxllm.rl import policy_step
from jaxllm.rl.policy_settings import ALGORITHMS, PolicySettings
from jaxllm.rl.policy_step import PolicyBatch, PolicyModel, Scores
from jaxllm.rl.rollout import Rollout, stack


def angles(config: ConfigDict, seed: int) -> dict[str, Any]:
    """Draws the dump of a seed by its start and compares the losses' gradients there, and after some updates on it.

    What is compared are the losses: settings as the runs have them, less the shaping of rewards; of a method with a
    critic the gradient of its policy loss, by a critic that knows nothing yet.

    Returns:
      "names": the algorithms, and SHUFFLED: the control's loss on rewards in a random order. "points": for "start" and
      "moved" each "cosines" [M][M] between whole gradients, "halves" [M]: the cosine of a loss's gradients on the two
      halves of the dump's prompts, "norms" [M], "ratio": mean |log(p / p_old)| of a token, nats.
    """
    made = practice.start(config.start, seed, pathlib.Path(config.cache))
    tasks = practice.tasks(config.start, seed, "train")
    rl = ConfigDict(copy.deepcopy(config.rl.to_dict()))
    rl.update({"algorithm": config.control, "steps": 1, "prompts": config.dump_prompts, "samples": config.dump_samples})
    rl.policy.update({"epochs": config.dump_updates, "minibatches": 1})
    rl.optimizer.warmup_steps = 0
    plan, reward = make_plan(rl, made), practice.reward(tasks)
    learner = Learner(rl, plan, made, practice.prompts(tasks), seed, make_mesh(rl))
    row, _ = learner.draw(1, reward)
    learner.update(row)
    groups, _ = learner.drawing.draw(1, made.params, reward)  # the same again: draws are a function of weights and seed
    rollout = stack([one for group in groups for one in group.rows], learner.drawing.width)
    rewards_QG = np.stack([group.rewards_G for group in groups])
    shuffled_QG = np.random.default_rng(seed).permutation(rewards_QG.ravel()).reshape(rewards_QG.shape)
    score = jax.jit(plan.policy.score)
    scores, moved = (score({"model": params}, made.params, rollout.tokens) for params in (made.params, learner.params))
    apart = float(np.abs(np.asarray(moved.logp - scores.logp))[rollout.mask].mean())
    scores = dataclasses.replace(scores, values=jnp.zeros_like(scores.logp))
    own = {name: value for name, value in config.rl.policy.items() if value is not None}
    losses = {name: (dataclasses.replace(ALGORITHMS[config.control if name == SHUFFLED else name],
                                         **{**own, "value_coefficient": 0.0}),
                     shuffled_QG if name == SHUFFLED else rewards_QG) for name in (*config.algorithms, SHUFFLED)}
    found = compare(plan.policy, losses, plan.sampler.max_tokens, rollout, scores,
                    {"start": made.params, "moved": learner.params})
    for point, ratio in (("start", 0.0), ("moved", apart)):
        found[point]["ratio"] = ratio
    return {"names": list(losses), "points": found}


_make_batch = jax.jit(policy_step.make_batch, static_argnames="settings")


def compare(model: PolicyModel, losses: Mapping[str, tuple[PolicySettings, np.ndarray]], max_tokens: int,
            rollout: Rollout, scores: Scores, points: Mapping[str, Params]) -> dict[str, dict[str, Any]]:
    """The gradients of losses at several points, compared.

    Args:
      model: the policy.
      losses: name -> what it computes, and the rewards [Q, G] that it is given.
      max_tokens: of a reply.
      rollout: the dump.
      scores: of the policy that drew it; values for those with a critic.
      points: name -> the policy's weights there.

    Returns:
      point -> "cosines", "halves" and "norms", see `angles`.
    """
    found: dict[str, list[list[np.ndarray]]] = {point: [] for point in points}
    for settings, rewards_QG in losses.values():
        batch = _make_batch(settings, rollout, scores, jnp.asarray(rewards_QG), 0.0)
        gradient = _gradient(model, settings, max_tokens)
        for point, params in points.items():
            found[point].append([gradient(params, piece) for piece in (batch, *_halves(batch))])
    return {point: _compared(gradients) for point, gradients in found.items()}


def _gradient(model: PolicyModel, settings: PolicySettings, max_tokens: int
              ) -> Callable[[Params, PolicyBatch], np.ndarray]:
    """(weights, batch) -> the gradient of a loss by the policy's weights, [N] in float64."""
    critic = settings.critic if settings.baseline == "critic" else "none"
    objective = policy_step.policy_objective(dataclasses.replace(model, critic=critic), settings, max_tokens)

    @jax.jit
    def found(params: Params, batch: PolicyBatch) -> jax.Array:
        policy = policy_step.init_policy(params, model.config, critic)
        gradient = jax.grad(lambda model: objective({**policy, "model": model}, batch)[0].value)(params)
        return ravel_pytree(gradient)[0]
    return lambda params, batch: np.asarray(found(params, batch), np.float64)


def _halves(batch: PolicyBatch) -> tuple[PolicyBatch, PolicyBatch]:
    """The batch twice, with the rows of one half of the prompts, and of the other, alone counted."""
    first_B1 = (np.arange(len(batch.mask)) < len(batch.mask) // 2)[:, None]
    return batch.replace(mask=batch.mask & first_B1), batch.replace(mask=batch.mask & ~first_B1)


def _compared(gradients: list[list[np.ndarray]]) -> dict[str, Any]:
    """Cosines of the whole gradients with each other, and of each one's halves; norms of the whole ones."""
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
    return {"cosines": [[cosine(one[0], other[0]) for other in gradients] for one in gradients],
            "halves": [cosine(first, second) for _, first, second in gradients],
            "norms": [float(np.linalg.norm(whole)) for whole, *_ in gradients]}
