"""One run of policy gradient: draw, reward, score, update, again; with checkpoints, a guard and a page that shows it.

`improve` is what the experiments with RL call, with any prompts and any reward. What it is given stands in
improve_plan, what a step draws in improve_draw, how it learns in improve_learner, what it leaves behind in
improve_record.
"""

from __future__ import annotations

import contextlib
import math
import pathlib

import jax
from ml_collections import ConfigDict

from experiments.improve_draw import tools_of
from experiments.improve_learner import Learner
from experiments.improve_plan import Converse, Plan, Prompts, RewardFn, Start, Watch, make_mesh, make_plan
from experiments.improve_record import Improved, Record, check_folder
from jaxllm.data.world_taste import prompt as taste_prompt
from jaxllm.data.world_taste import things
from jaxllm.rl.guard import breach, reason_to_stop
from jaxllm.train import loop

__all__ = ["Converse", "Improved", "Learner", "Plan", "Prompts", "RewardFn", "Start", "Watch", "improve", "make_mesh",
           "make_plan"]


def improve(config: ConfigDict, start: Start, reward_fn: RewardFn, seed: int, *, prompts: Prompts | None = None,
            folder: pathlib.Path | None = None, watch: Watch | None = None, title: str = "Policy gradient",
            stop: loop.StopRequest | None = None, converse: Converse | None = None) -> Improved:
    """Improves a model by a reward; prints progress lines.

    Args:
      config: as configs.policy_gradient.policy_config makes it; without a folder also as without_folder does.
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
      converse: draws the conversations, see `Converse`; None: one reply by the sampler of the config, or a conversation
        with the tools that it names.

    Raises:
      ValueError: a setting is out of range.
    """
    plan = make_plan(config, start)
    if folder is not None:
        check_folder(config)
    prompts = {thing: taste_prompt(thing) for thing in things("train")} if prompts is None else prompts
    mesh = make_mesh(config)
    with jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext(), tools_of(config, plan, start) as tools:
        learner = Learner(config, plan, start, prompts, seed, mesh, converse or tools)
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
