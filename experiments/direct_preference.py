"""DPO, IPO and KTO on the same pairs, judged by the gold judge; the settings: configs/direct_preference.py.

Each seed makes a start model, has its replies ranked, and trains one policy per arm on the pairs. A policy is looked at
on its way: what it writes to held-out prompts is judged, and its distance from the start model measured on it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import lab, launch, taste
from experiments.direct_preference_report import SHUFFLED, findings, loss_of, name_of
from experiments.findings import write
from experiments.taste import Start
from jaxllm.data.chat import render
from jaxllm.data.preferences import Ranking, open_preferences, split_rankings
from jaxllm.data.world_taste import Human, prompt, rank, thing_of, things
from jaxllm.evals.probe import reply_logp
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params
from jaxllm.rl.direct_step import LOSSES, Pairs, direct_objective, orders, ranking_pairs
from jaxllm.rl.policy_step import PolicyModel
from jaxllm.train.optimizer import learning_rate_schedule, make_optimizer
from jaxllm.train.step import init_state, make_train_step

ARMS = (*LOSSES, *(f"{loss}{SHUFFLED}" for loss in LOSSES if loss != "sft"))


def main(config: ConfigDict, workdir: str) -> None:
    """Trains and judges every arm for every seed, and writes the report."""
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in ("start", *config.arms)}
    for seed in config.seeds:
        task = functools.cache(functools.partial(make_task, config, seed, folder))
        for arm in runs:
            settings = {**config.to_dict(), "arms": arm, "seeds": seed, "cache": None}
            looks = lab.kept(folder / "kept", f"{arm}-{seed}", settings, lambda arm=arm, task=task: run(task(), arm))
            runs[arm].append(looks)
            print(f"{name_of(arm)}, seed {seed}: {told(looks[-1])}; {time.perf_counter() - begun:.0f} s in all",
                  flush=True)
    write(findings(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be measured, before anything is trained."""
    taste.check_start(config.start)
    unknown = [arm for arm in config.arms if arm not in ARMS]
    if unknown or not config.arms or len(set(config.arms)) < len(config.arms):
        raise ValueError(f"config.arms={config.arms}: name some of {', '.join(ARMS)}, each once")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    if config.part not in ("validation", "test"):
        raise ValueError(f"config.part={config.part!r}: judge on test, or on validation to choose settings")
    for key in ("steps", "batch_size", "row_length", "microbatches", "logit_chunks", "looks", "judged",
                "judged_samples", "max_tokens"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if config.looks > config.steps:
        raise ValueError(f"config.looks={config.looks} must not exceed config.steps={config.steps}")
    if config.batch_size % config.microbatches or config.row_length % config.logit_chunks:
        raise ValueError(f"config.microbatches={config.microbatches} must divide config.batch_size="
                         f"{config.batch_size}, and config.logit_chunks={config.logit_chunks} config.row_length="
                         f"{config.row_length}")
    for loss, rate in config.learning_rate.items():
        if not rate > 0.0:
            raise ValueError(f"config.learning_rate.{loss}={rate} must be above 0")
    data = config.data
    if not data.sources and (min(data.rankings, data.held_out_rankings) < 1 or data.completions < 2):
        raise ValueError(f"config.data.rankings={data.rankings} and held_out_rankings={data.held_out_rankings} must be "
                         f"1 or more, and config.data.completions={data.completions} 2 or more")
    if data.sources and not 0.0 < data.held_out < 1.0:
        raise ValueError(f"config.data.held_out={data.held_out} must lie between 0 and 1")
    if not config.beta > 0.0:
        raise ValueError(f"config.beta={config.beta} must be above 0")


@dataclasses.dataclass(frozen=True)
class Task:
    """What every arm of a seed shares.

    Attributes:
      config, seed, start: as given and made.
      pairs, held_out: to learn from, and from other prompts.
      logp, held_out_logp: float64 [P, 3] of their replies under the start model.
      prompts: conversations that policies reply to when looked at.
      replies: the start model's, [Q][G].
    """

    config: ConfigDict
    seed: int
    start: Start
    pairs: Pairs
    held_out: Pairs
    logp: np.ndarray
    held_out_logp: np.ndarray
    prompts: list[Sequence[dict[str, Any]]]
    replies: list[list[lab.Answer]]

    @property
    def judged(self) -> bool:
        """Whether there is a gold judge."""
        return not self.config.data.sources


def make_task(config: ConfigDict, seed: int, folder: pathlib.Path) -> Task:
    """Makes or reads what the arms of a seed share."""
    start = taste.start(config.start, seed, config.cache)
    if config.row_length > start.model.max_positions:
        raise ValueError(f"config.row_length={config.row_length} exceeds the model's max_positions="
                         f"{start.model.max_positions}")
    ranked, held_out, prompts = (from_files if config.data.sources else from_people)(config, start, seed)
    pairs, held_out_pairs = (ranking_pairs(some, start.tokenizer, config.row_length, seed)
                             for some in (ranked, held_out))
    print(f"seed {seed}: {len(ranked)} rankings, {len(pairs)} pairs ({pairs.left_out} left out); held out "
          f"{len(held_out_pairs)} pairs", flush=True)
    logp, held_out_logp = (pair_logp(start.params, start, some) for some in (pairs, held_out_pairs))
    replies = draw(start.params, start, config, prompts, seed)
    return Task(config, seed, start, pairs, held_out_pairs, logp, held_out_logp, prompts, replies)


def from_people(config: ConfigDict, start: Start, seed: int) -> tuple[list[Ranking], list[Ranking], list]:
    """(rankings about training things, rankings about held-out ones, prompts about held-out ones)."""
    human, rng = Human(**config.data.human.to_dict()), random.Random(f"{seed}/direct preference")
    held_out = things(config.part)
    found = []
    wanted = ((config.data.rankings, things("train")), (config.data.held_out_rankings, held_out))
    for part, (count, among) in enumerate(wanted):
        asked = [thing for _ in range(math.ceil(count / len(among))) for thing in rng.sample(among, len(among))][:count]
        drawn = taste.draw(start.params, start.model, start.tokenizer, asked, samples=config.data.completions,
                           max_tokens=config.max_tokens, seed=1000 * seed + part)
        found.append([rank(human, thing, [answer.text for answer in some], rng)
                      for thing, some in zip(asked, drawn, strict=True)])
    return found[0], found[1], [prompt(thing) for thing in held_out[:config.judged]]


def from_files(config: ConfigDict, start: Start, seed: int) -> tuple[list[Ranking], list[Ranking], list]:
    """The same from files; prompts that are too long to be replied to are not asked."""
    rankings = [ranking for source in config.data.sources for ranking in open_preferences(source)]
    train, held_out = split_rankings(rankings, config.data.held_out, seed)
    room = config.row_length - config.max_tokens
    prompts = {str(ranking.prompt): list(ranking.prompt) for ranking in held_out}
    short = [messages for messages in prompts.values()
             if len(render(messages, start.tokenizer, add_generation_prompt=True).ids) <= room]
    if not train or not short:
        raise ValueError(f"{len(rankings)} rankings leave {len(train)} to learn from and {len(short)} held-out prompts "
                         f"of at most {room} tokens; give more data, or change config.data.held_out="
                         f"{config.data.held_out} or config.row_length={config.row_length}")
    return train, held_out, short[:config.judged]


def draw(params: Params, start: Start, config: ConfigDict, prompts: list, seed: int) -> list[list[lab.Answer]]:
    """Replies at temperature 1, [Q][G]."""
    return lab.ask(params, start.model, start.tokenizer, prompts, samples=config.judged_samples, temperature=1.0,
                   max_tokens=config.max_tokens, seed=1000 * seed + 2)


def pair_logp(params: Params, start: Start, pairs: Pairs) -> np.ndarray:
    """Log-probability of the replies of each pair, float64 [P, 3], nats."""
    rows = [(tuple(ids), tuple(reply)) for ids, replies in zip(pairs.prompts, pairs.replies, strict=True)
            for reply in replies]
    once = list(dict.fromkeys(rows))  # a reply stands in several pairs
    found = reply_logp(params, start.model, *zip(*once, strict=True), execution=lab.EXECUTION)
    logp = dict(zip(once, found.tolist(), strict=True))
    return np.array([logp[row] for row in rows]).reshape(-1, 3)


def run(task: Task, arm: str) -> list[dict[str, float]]:
    """Trains an arm and looks at it on its way; the last look comes after the last update."""
    if arm == "start":
        return [look(task, task.start.params, 0, task.replies)]
    config, begun = task.config, time.perf_counter()
    optimizer, step = _compiled(task.start.model, loss_of(arm), config.learning_rate[loss_of(arm)], config.beta,
                                config.steps, config.microbatches, config.logit_chunks)
    pairs, logp = task.pairs, task.logp
    if arm.endswith(SHUFFLED):
        swap = np.random.default_rng((task.seed, 1)).random(len(pairs)) < 0.5
        pairs, logp = pairs.swapped(swap), np.where(swap[:, None], logp[:, [1, 0, 2]], logp)
    multiple = math.lcm(16, config.logit_chunks)
    width = min(-(-pairs.longest // multiple) * multiple, config.row_length)
    state = init_state(jax.tree.map(jnp.copy, task.start.params), optimizer)
    looks, at = [], {round(config.steps * (n + 1) / config.looks) for n in range(config.looks)}
    for number, index in enumerate(orders(len(pairs), config.batch_size, config.steps, task.seed), 1):
        state, metrics = step(state, pairs.batch(index, logp, width))
        if number in at:
            if not math.isfinite(float(metrics["loss"])) or int(metrics["skipped"]):
                raise ValueError(f"{arm}: loss {float(metrics['loss'])} after {number} steps; lower "
                                 f"config.learning_rate.{loss_of(arm)}")
            looks.append(look(task, state.params, number))
    print(f"{name_of(arm)}: {config.steps} steps, last loss {float(metrics['loss']):.3f}, "
          f"{time.perf_counter() - begun:.0f} s", flush=True)
    return looks


@functools.lru_cache(maxsize=8)
def _compiled(model: ModelConfig, loss: str, rate: float, beta: float, steps: int, microbatches: int, chunks: int
              ) -> tuple[optax.GradientTransformation, Callable]:
    schedule = learning_rate_schedule("linear", rate, warmup_steps=min(10, steps - 1), total_steps=steps,
                                      final_fraction=0.1)
    optimizer = make_optimizer("adamw", schedule, weight_decay=0.0)
    policy = PolicyModel(model, lab.EXECUTION, chunks=chunks)
    step = make_train_step(direct_objective(policy, loss, beta=beta), optimizer, microbatches=microbatches)
    return optimizer, jax.jit(step, donate_argnums=0)


def look(task: Task, params: Params, step: int, replies: list[list[lab.Answer]] | None = None) -> dict[str, float]:
    """A policy after so many updates.

    Returns:
      "step"; "kl" to the start model in nats a reply, on the policy's own replies; "tokens" of a reply; "distinct", the
      share of different replies; "margin", the mean of beta (log-ratio of the chosen less that of the rejected) over
      held-out pairs, and "accuracy", the share above 0; and where there is a gold judge "gold", its mean, and "wins",
      the share of replies that it prefers to the start model's to the same prompt (ties half).
    """
    start, config = task.start, task.config
    replies = draw(params, start, config, task.prompts, task.seed) if replies is None else replies
    flat = [answer for some in replies for answer in some]
    asked = [render(messages, start.tokenizer, add_generation_prompt=True).ids for messages in task.prompts]
    before = reply_logp(start.params, start.model, [ids for ids in asked for _ in range(config.judged_samples)],
                        [answer.tokens for answer in flat], execution=lab.EXECUTION)
    log_ratio = pair_logp(params, start, task.held_out) - task.held_out_logp
    margin = config.beta * (log_ratio[:, 0] - log_ratio[:, 1])
    found = {"step": step, "kl": float(np.mean([sum(answer.logp) for answer in flat] - before)),
             "tokens": float(np.mean([len(answer.tokens) for answer in flat])),
             "distinct": len({answer.text for answer in flat}) / len(flat),
             "margin": float(margin.mean()), "accuracy": float((margin > 0.0).mean())}
    if task.judged:
        mine, theirs = (taste.judge([thing_of(messages) for messages in task.prompts],
                                    [[answer.text for answer in some] for some in drawn])
                        for drawn in (replies, task.replies))
        lead = mine[:, :, None] - theirs[:, None, :]
        found |= {"gold": float(mine.mean()), "wins": float(((lead > 0.0) + 0.5 * (lead == 0.0)).mean())}
    return found


def told(found: dict[str, float]) -> str:
    """A look in a line."""
    gold = f"gold {found['gold']:.2f}, wins {found['wins']:.3f}, " if "gold" in found else ""
    return f"{gold}KL {found['kl']:.2f}, held-out margin {found['margin']:.3f} ({found['accuracy']:.3f} right)"


if __name__ == "__main__":
    launch.run(main, default_config="configs/direct_preference.py")
