"""What the gold judge says of a policy's jokes about held-out things, and of best-of-n on the start model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments import taste
from experiments.improve import Plan, RewardFn
from jaxllm.data.chat import render
from jaxllm.data.world_taste import prompt
from jaxllm.model.params import Params
from jaxllm.rl.kl import best_of_n_kl, best_of_n_mean
from jaxllm.rl.policy_step import PolicyModel, describe
from jaxllm.rl.rollout import Sampler, stack, texts

SHOWN = 3  # jokes kept from either end of the reward
_score = jax.jit(PolicyModel.score, static_argnums=0)


def judge(plan: Plan, start: taste.Start, params: Params, reward_fn: RewardFn, asked: Sequence[str], samples: int,
          seed: int, start_gold: Sequence[Sequence[float]] | None = None, batch: int = 64) -> dict[str, Any]:
    """Draws jokes about things and asks both judges.

    Args:
      plan: of the run: the sampler's settings.
      start: the start model, for the KL.
      params: of the policy.
      reward_fn: the reward model's judgement.
      asked: the things.
      samples: jokes about each.
      seed: of the draws; the same for the start and what came of it, so that they differ by the weights alone.
      start_gold: [thing][sample], for "win_rate".
      batch: rows that are drawn and scored together.

    Returns:
      "gold", "proxy": [thing][sample]; "kl" nats a reply, "entropy" nats a token, "length" tokens, "truncated" share;
      "distinct": share of different jokes; "best", "worst": jokes by the reward, each [reward, gold, text]; "win_rate":
      how often a joke is better than one of the start's about the same thing, ties half.
    """
    policy = PolicyModel(plan.policy.config, plan.policy.execution, plan.policy.temperature, plan.policy.valid_vocab)
    ids = [render(prompt(thing), start.tokenizer, add_generation_prompt=True).ids for thing in asked]
    width = min(max(map(len, ids)) + plan.sampler.max_tokens, start.model.max_positions)
    sampler = Sampler(start.model, plan.sampler)
    sampler.load(params)
    rows, scores, together = [], [], max(1, batch // samples)
    padded = [*ids, *ids[:-len(ids) % together]]  # whole batches, so that one program serves all
    for first in range(0, len(padded), together):
        drawn = sampler.draw(padded[first:first + together], samples, seed, 10**6 + first)
        scores.append(jax.device_get(_score(policy, {"model": params}, start.params, stack(drawn, width).tokens)))
        rows += drawn
    count = len(asked) * samples
    seen = describe(jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *scores), stack(rows[:count], width))
    said = texts(rows[:count], start.tokenizer, plan.sampler.stop_tokens)
    groups = [said[i * samples:(i + 1) * samples] for i in range(len(asked))]
    gold_QG, proxy_QG = taste.judge(asked, groups), np.asarray(reward_fn(asked, groups), np.float64)
    order = np.argsort(-proxy_QG.ravel(), kind="stable")
    flat = [[float(proxy_QG.ravel()[i]), float(gold_QG.ravel()[i]), said[i]] for i in order]
    found = {"gold": gold_QG.tolist(), "proxy": proxy_QG.tolist(), "best": flat[:SHOWN], "worst": flat[-SHOWN:],
              "distinct": len(set(said)) / count,
             **{name: seen[name] for name in ("kl", "entropy", "length", "truncated")}}
    return found if start_gold is None else {**found, "win_rate": float(wins(gold_QG, np.array(start_gold)).mean())}


def wins(gold_QG: np.ndarray, start_QS: np.ndarray) -> np.ndarray:
    """[Q, G]: share of the start's S jokes about the same thing that each joke is better than; ties count half.

    >>> wins(np.array([[1.0, 0.0]]), np.array([[0.0, 0.5]])).tolist()
    [[1.0, 0.25]]
    """
    above = gold_QG[:, :, None] - start_QS[:, None, :]
    return ((above > 0) + 0.5 * (above == 0)).mean(axis=2)


def best_of_n(pool: dict[str, Any], start_QS: np.ndarray) -> list[dict[str, Any]]:
    """For n = 1 ... N: what the reward model's best of n is worth.

    Returns:
      "n", "kl" (nats, exact where no two jokes tie), "golds" of each thing and their mean "gold", "proxy", "win_rate"
      against jokes of the start.
    """
    gold_QN, proxy_QN = np.array(pool["gold"]), np.array(pool["proxy"])
    won_QN = wins(gold_QN, start_QS)

    def point(n: int) -> dict[str, Any]:
        gold_Q = best_of_n_mean(proxy_QN, n, gold_QN)
        return {"n": n, "kl": best_of_n_kl(n), "golds": gold_Q.tolist(), "gold": float(gold_Q.mean()),
                "proxy": float(best_of_n_mean(proxy_QN, n).mean()),
                "win_rate": float(best_of_n_mean(proxy_QN, n, won_QN).mean())}

    return [point(n) for n in range(1, gold_QN.shape[1] + 1)]
