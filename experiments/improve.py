"""One run of policy gradient: draw, reward, score, update, again; with checkpoints, a guard and a page that shows it.

`improve` is what experiments.policy_gradient and experiments.reward_hacking call, with any prompts and any reward.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.improve_record import Improved, Record
from experiments.live_page import Reply
from jaxllm.data.chat import end_of_turn, render
from jaxllm.data.permutation import shuffled
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.world_taste import prompt as taste_prompt
from jaxllm.data.world_taste import things
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params, abstract_params
from jaxllm.rl import policy_step
from jaxllm.rl.guard import Limits, breach, reason_to_stop
from jaxllm.rl.kl import adapt_kl
from jaxllm.rl.policy_settings import ALGORITHMS, PolicySettings
from jaxllm.rl.policy_step import PolicyModel, PolicyState
from jaxllm.rl.rollout import Sampler, SamplerSettings, stack, texts
from jaxllm.train import loop, sharding
from jaxllm.train.optimizer import learning_rate_schedule, make_optimizer
from jaxllm.train.step import init_state, make_train_step

# rewards [Q, G] of G replies to each of Q prompts, which are given by their names.
RewardFn = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]
# Called with the updates made and the weights after them, which are lent; a sentence that it returns stops the run.
Watch = Callable[[int, Params], str | None]
Prompts = Mapping[str, Sequence[Mapping[str, Any]]]


class Start(Protocol):
    """What a run begins with: weights, architecture, and a tokenizer that knows its chat format."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer


def improve(config: ConfigDict, start: Start, reward_fn: RewardFn, seed: int, *, prompts: Prompts | None = None,
            folder: pathlib.Path | None = None, watch: Watch | None = None, title: str = "Policy gradient",
            stop: loop.StopRequest | None = None) -> Improved:
    """Improves a model by a reward; prints progress lines.

    Args:
      config: as configs.policy_gradient.policy_config makes it.
      start: where the policy begins, and the reference of the KL.
      reward_fn: see `RewardFn`.
      seed: of the draws and their order.
      prompts: name -> conversation that ends with a message to the model; None: the taste task's training things.
      folder: where index.html, metrics.jsonl and checkpoints go, and from where the same call goes on; None keeps
        nothing.
      watch: see `Watch`; called with 0 before the first update and with n after each. Not for steps that a resumed run
        finds done.
      title: of the page.
      stop: looked at after every step; a request saves and ends.

    Raises:
      ValueError: a setting is out of range.
    """
    plan = make_plan(config, start)
    prompts = {thing: taste_prompt(thing) for thing in things("train")} if prompts is None else prompts
    mesh = make_mesh(config)
    with jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext():
        learner = Learner(config, plan, start, prompts, seed, mesh)
        with contextlib.closing(Record(config, folder, seed, title)) as record:
            learner.state = record.resume(learner.state)
            record.keep_rows(learner.done)
            reason = _run(learner, record, reward_fn, watch, stop)
            return Improved(record.rows, learner.params, record.finish(reason, learner.done, learner.state))


def _run(learner: Learner, record: Record, reward_fn: RewardFn, watch: Watch | None, stop: loop.StopRequest | None
         ) -> str:
    """Takes the steps that are left; returns why it ended before the last, or ""."""
    config, plan, reason = learner.config, learner.plan, ""
    if watch is not None and not learner.done:
        reason = watch(0, learner.params) or ""
    for number in range(learner.done + 1, config.steps + 1):
        if reason or stop is not None and stop.requested:
            break
        row, replies = learner.draw(number, reward_fn)
        if math.isfinite(row["reward"]):
            if not breach(row, (record.rows or [row])[0], plan.limits):
                record.save(number - 1, learner.state)  # the weights that drew this, vouched for only now
            learner.update(row)
        record.add(row, replies)
        reason = reason_to_stop(record.rows, plan.limits)
        if not reason and watch is not None:
            reason = watch(number, learner.params) or ""
    return reason


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config means for a model, worked out before anything is compiled."""

    settings: PolicySettings
    policy: PolicyModel
    sampler: SamplerSettings
    limits: Limits


def make_plan(config: ConfigDict, start: Start) -> Plan:
    """Raises ValueError for what is out of range."""
    if config.algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm is {config.algorithm!r}; choose one of {', '.join(ALGORITHMS)}")
    for key, least in (("steps", 1), ("prompts", 1), ("samples", 1), ("logit_chunks", 1), ("microbatches", 1),
                       ("log_steps", 1), ("checkpoint_steps", 0), ("keep_checkpoints", 1), ("page_seconds", 0)):
        if config[key] < least:
            raise ValueError(f"{key} is {config[key]}; it must be at least {least}")
    settings = dataclasses.replace(ALGORITHMS[config.algorithm], **{
        name: value for name, value in config.policy.items() if value is not None})
    rows, pieces = config.prompts * config.samples, settings.minibatches * config.microbatches
    if rows % pieces:
        raise ValueError(f"prompts x samples ({rows}) must be a multiple of policy.minibatches x microbatches "
                         f"({pieces})")
    if config.samples < 2 and settings.baseline in ("grpo", "dr_grpo", "rloo", "reinforce++_baseline"):
        raise ValueError(f"samples is 1; the baseline {settings.baseline} compares replies to one prompt: draw 2 or "
                         f"more")
    sampler = config.sampler
    if sampler.temperature <= 0:
        raise ValueError(f"sampler.temperature is {sampler.temperature}; greedy replies teach nothing, choose above 0")
    tokenizer, execution = start.tokenizer, Execution(**config.execution.to_dict())
    return Plan(
        settings=settings,
        policy=PolicyModel(start.model, execution, sampler.temperature, tokenizer.vocab_size, config.logit_chunks,
                           settings.critic if settings.baseline == "critic" else "none"),
        sampler=SamplerSettings(
            sampler.by, sampler.max_tokens, end_of_turn(tokenizer),
            SamplingSettings(sampler.temperature, sampler.top_k, sampler.top_p), tokenizer.vocab_size,
            dataclasses.replace(execution, dtype=sampler.dtype), sampler.weights, sampler.slots),
        limits=Limits(**config.guard.to_dict()))


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh of a config; sizes without -1 take the first devices."""
    devices = jax.devices() if -1 in config.mesh else jax.devices()[:math.prod(config.mesh)]
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch(config.prompts * config.samples, config.microbatches, mesh)
    return mesh


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """The programs of a run; runs of the same shapes share them."""

    optimizer: optax.GradientTransformation
    score: Callable[..., policy_step.Scores]
    batch: Callable[..., policy_step.PolicyBatch]
    step: Callable[..., Any]


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
    begin = functools.partial(policy_step.init_policy, config=policy.config, critic=policy.critic)
    state = jax.eval_shape(lambda params: init_state(begin(params), made), abstract_params(policy.config))
    layout = (sharding.state_shardings(state, policy.config, mesh), None) if mesh.size > 1 else None
    return _Compiled(made, jax.jit(policy.score), jax.jit(functools.partial(policy_step.make_batch, settings)),
                     jax.jit(step, donate_argnums=0, out_shardings=layout))


class Learner:
    """The policy that a run trains, and its two halves of a step: `draw` and `update`."""

    def __init__(self, config: ConfigDict, plan: Plan, start: Start, prompts: Prompts, seed: int, mesh: Mesh) -> None:
        self.config, self.plan, self.seed, self.mesh, self.tokenizer = config, plan, seed, mesh, start.tokenizer
        self.names = list(prompts)
        self.prompt_ids = {name: render(messages, start.tokenizer, add_generation_prompt=True).ids
                     for name, messages in prompts.items()}
        longest = max(map(len, self.prompt_ids.values())) + plan.sampler.max_tokens
        if longest > start.model.max_positions:
            raise ValueError(f"the longest prompt and sampler.max_tokens ({plan.sampler.max_tokens}) make {longest} "
                             f"tokens; the model has {start.model.max_positions} positions")
        multiple = math.lcm(16, config.logit_chunks)
        self.width = -(-longest // multiple) * multiple
        if self.width > start.model.max_positions:
            self.width = start.model.max_positions // config.logit_chunks * config.logit_chunks
        self._programs = _compiled(plan.policy, plan.settings, plan.sampler.max_tokens,
                                   tuple(sorted(config.optimizer.to_dict().items())),
                                   config.steps * plan.settings.updates, config.microbatches, mesh)
        self._sampler = Sampler(start.model, dataclasses.replace(plan.sampler, capacity=self.width))
        self._reference = self._placed(start.params)
        params = policy_step.init_policy(jax.tree.map(jnp.copy, self._reference), start.model, plan.policy.critic)
        self.state = self._placed(PolicyState(init_state(params, self._programs.optimizer),
                                              jnp.float32(plan.settings.kl_coefficient)))

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
          The step's row, with all that is known before the update (see `policy_step.describe`; "reward" and "reward_sd"
          over the rollout, "seconds_sampling", "seconds_rewarding", "seconds_scoring"), and the replies.
        """
        config, begun = self.config, time.perf_counter()
        first = (number - 1) * config.prompts
        chosen = [self.names[i] for i in shuffled(np.arange(first, first + config.prompts), len(self.names), self.seed)]
        self._sampler.load(self.params)
        drawn = self._sampler.draw([self.prompt_ids[name] for name in chosen], config.samples, self.seed, number)
        said = texts(drawn, self.tokenizer, self.plan.sampler.stop_tokens)
        sampled = time.perf_counter()
        groups = [said[i:i + config.samples] for i in range(0, len(said), config.samples)]
        rewards_QG = np.asarray(reward_fn(chosen, groups), np.float32)
        rewarded = time.perf_counter()
        rollout = stack(drawn, self.width)
        scores = jax.device_get(self._programs.score(self.state.train.params, self._reference,
                                                     self._rows(rollout.tokens)))
        self._pending = rollout, scores, rewards_QG
        row = {"step": number, "reward": float(rewards_QG.mean()), "reward_sd": float(rewards_QG.std()),
               **policy_step.describe(scores, rollout), "kl_coefficient": float(self.state.kl_coefficient),
               "updates": self.plan.settings.updates, "skipped": 0, "tokens": int(rollout.mask.sum()),
               "seconds_sampling": sampled - begun, "seconds_rewarding": rewarded - sampled,
               "seconds_scoring": time.perf_counter() - rewarded}
        asked = [name for name in chosen for _ in range(config.samples)]
        return row, [Reply(number, *parts) for parts in zip(asked, said, rewards_QG.ravel().tolist(), strict=True)]

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
        if settings.baseline == "critic":
            row["explained_variance"] = policy_step.explained_variance(scores, batch.returns, rollout.mask)
        coefficient = self.state.kl_coefficient
        if settings.kl_target:
            coefficient = jnp.float32(adapt_kl(float(coefficient), row["kl"], settings.kl_target, settings.kl_horizon,
                                               len(rollout.mask)))
        self.state = PolicyState(train, coefficient)
        row["seconds_updating"] = time.perf_counter() - begun
        row["seconds"] = sum(row[f"seconds_{part}"] for part in ("sampling", "rewarding", "scoring", "updating"))
