"""The policy that a run trains, and the two halves of its step: draw and update."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.improve_draw import Drawing
from experiments.improve_plan import Converse, Plan, Prompts, RewardFn, Start
from experiments.live_page import Reply
from jaxllm.model.params import Params, abstract_params
from jaxllm.rl import policy_step
from jaxllm.rl.kl import adapt_kl
from jaxllm.rl.policy_settings import PolicySettings
from jaxllm.rl.policy_step import PolicyModel, PolicyState
from jaxllm.rl.rollout import stack
from jaxllm.train import sharding
from jaxllm.train.optimizer import learning_rate_schedule, make_optimizer
from jaxllm.train.step import TrainState, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """The programs of a run; runs of the same shapes share them."""

    begin: Callable[[Params], TrainState]
    score: Callable[..., policy_step.Scores]
    batch: Callable[..., policy_step.PolicyBatch]
    step: Callable[..., Any]


@functools.lru_cache(maxsize=8)
def _score(policy: PolicyModel) -> Callable[..., policy_step.Scores]:
    """Apart from the rest, which is another program for each algorithm."""
    return jax.jit(policy.score)


@functools.lru_cache(maxsize=8)
def _compiled(policy: PolicyModel, settings: PolicySettings, max_tokens: int, optimizer: tuple[tuple[str, Any], ...],
              updates: int, microbatches: int, mesh: Mesh) -> _Compiled:
    asked = dict(optimizer)
    schedule = learning_rate_schedule(asked.pop("schedule"), asked.pop("learning_rate"), total_steps=updates,
                                      warmup_steps=asked.pop("warmup_steps"),
                                      final_fraction=asked.pop("final_fraction"))
    made = make_optimizer(asked.pop("name"), schedule, **asked)
    step = make_train_step(policy_step.policy_objective(policy, settings, max_tokens), made, microbatches=microbatches,
                           learning_rate=schedule)

    def begin(start: Params) -> TrainState:
        return init_state(policy_step.init_policy(jax.tree.map(jnp.copy, start), policy.config, policy.critic), made)
    state = jax.eval_shape(begin, abstract_params(policy.config))
    layout = (sharding.state_shardings(state, policy.config, mesh), None) if mesh.size > 1 else None
    return _Compiled(jax.jit(begin), _score(policy), jax.jit(functools.partial(policy_step.make_batch, settings)),
                     jax.jit(step, donate_argnums=0, out_shardings=layout))


class Learner:
    """The policy that a run trains, and its two halves of a step: `draw` and `update`."""

    def __init__(self, config: ConfigDict, plan: Plan, start: Start, prompts: Prompts, seed: int, mesh: Mesh,
                 converse: Converse | None = None) -> None:
        self.config, self.plan, self.seed, self.mesh = config, plan, seed, mesh
        self.drawing = Drawing(config, plan, start, prompts, seed, converse)
        self._programs = _compiled(plan.policy, plan.settings, plan.sampler.max_tokens,
                                   tuple(sorted(config.optimizer.to_dict().items())),
                                   config.steps * plan.settings.updates, config.microbatches, mesh)
        self._reference = self._placed(start.params)
        self.state = self._placed(PolicyState(self._programs.begin(self._reference),
                                              np.float32(plan.settings.kl_coefficient)))

    @property
    def done(self) -> int:
        """Steps taken."""
        return int(self.state.train.step) // self.plan.settings.updates

    @property
    def params(self) -> Params:
        """The policy's weights; the next update takes their memory."""
        return self.state.train.params["model"]

    def _placed(self, tree: Any) -> Any:
        """A tree that holds parameters, laid out over the mesh; committed, so that the first step compiles for all."""
        if self.mesh.size == 1:
            return jax.device_put(tree, self.mesh.devices.flat[0])
        return jax.device_put(tree, sharding.state_shardings(tree, self.plan.policy.config, self.mesh))

    def _rows(self, tree: Any) -> Any:
        """Arrays of rows, spread over the mesh."""
        return sharding.put_batch(tree, self.mesh) if self.mesh.size > 1 else tree

    def draw(self, number: int, reward_fn: RewardFn) -> tuple[dict[str, float], list[Reply]]:
        """Draws the rollout of step `number`, has it rewarded and scores it.

        Returns:
          The step's row, with all that is known before the update (see `Drawing.draw` and `policy_step.describe`;
          "seconds_scoring"), and the replies.
        """
        groups, row = self.drawing.draw(number, self.params, reward_fn)
        begun = time.perf_counter()
        rollout = stack([one for group in groups for one in group.rows], self.drawing.width)
        scores = jax.device_get(self._programs.score(self.state.train.params, self._reference,
                                                     self._rows(rollout.tokens)))
        self._pending = rollout, scores, self.drawing.shaped(groups)
        row |= {**policy_step.describe(scores, rollout), "kl_coefficient": float(self.state.kl_coefficient),
                "updates": self.plan.settings.updates, "skipped": 0, "tokens": int(rollout.mask.sum()),
                "seconds_scoring": time.perf_counter() - begun}
        return row, [Reply(number, group.name, text, float(reward)) for group in groups
                     for text, reward in zip(group.texts, group.rewards_G, strict=True)]

    def update(self, row: dict[str, float]) -> None:
        """Learns from the rollout that was drawn last; adds to its row what the updates said, on average."""
        begun, settings = time.perf_counter(), self.plan.settings
        rollout, scores, rewards_QG = self._pending
        batch = jax.device_get(self._programs.batch(rollout, scores, rewards_QG, self.state.kl_coefficient))
        said = []
        train = self.state.train
        for epoch in range(settings.epochs):
            order = np.arange(len(batch.mask))
            if settings.minibatches > 1:
                order = np.random.default_rng((self.seed, int(row["step"]), epoch)).permutation(order)
            for part in np.split(order, settings.minibatches):
                train, metrics = self._programs.step(train, self._rows(jax.tree.map(lambda x: x[part], batch)))  # noqa: B023
                said.append(metrics)
        said = jax.device_get(said)
        row.update({name: float(np.mean([one[name] for one in said])) for name in said[0]
                    if name != "tokens" and "skipped" not in name})
        row["skipped"] = min(int(said[-1]["skipped_in_a_row"]), settings.updates)
        row["importance"] = float(batch.importance[rollout.mask].mean())
        if (size := policy_step.advantage_size(batch)) is not None:
            row["advantage"] = size
        if settings.baseline == "critic":
            row["explained_variance"] = policy_step.explained_variance(scores, batch.returns, rollout.mask)
        coefficient = self.state.kl_coefficient
        if settings.kl_target:
            coefficient = jnp.float32(adapt_kl(float(coefficient), row["kl"], settings.kl_target, settings.kl_horizon,
                                               len(rollout.mask)))
        self.state = PolicyState(train, coefficient)
        row["seconds_updating"] = time.perf_counter() - begun
        row["seconds"] = sum(row[f"seconds_{part}"] for part in ("sampling", "rewarding", "scoring", "updating"))
