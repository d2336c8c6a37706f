"""Runs of RL against reward models, recorded once with all that any stop rule or plot asks of them later."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import lab, taste
from experiments.improve import improve
from experiments.reward_model_fit import fit
from experiments.reward_model_head import shallower
from jaxllm.data.chat import render
from jaxllm.data.preferences import Ranking
from jaxllm.data.world_taste import Human, prompt, rank, thing_of, things
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params, count_params
from jaxllm.model.transformer import forward
from jaxllm.rl.reward_model import Reward, score_texts

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of RL.

    Attributes:
      seed: of everything but the start model.
      split: "validation" or "test": of the things that it is looked at on.
      reward: (blocks, rankings) of the reward model, or None for the gold judge itself.
    """

    seed: int
    split: str
    reward: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Records:
    """All that was run.

    Attributes:
      pools: of each split, see `pool_of`.
      runs: every run but the rounds.
      chains: (seed, arm) -> the record of each round.
    """

    pools: dict[str, Record]
    runs: dict[Run, Record]
    chains: dict[tuple[int, str], list[Record]]


def record(config: ConfigDict, folder: pathlib.Path, run: Run) -> Record:
    """The run, made now or found.

    Returns:
      "looks": at step 0, config.look_steps, ...: "step", "kl" (nats per reply), and of the replies [Q][G] to the things
      of its split "texts", "gold", "taste" (what people feel about them on average), "proxy" (scores by the model that
      RL is run against) and "members" (scores by the reward models that it is not run against, [M][Q][G]).
      "pool": proxy scores [Q][N] of the pool of `pool_of`.
      "caught": what the last policy said of training things, see `_caught`.
      "accuracy", "ceiling": share of people's held-out choices that the reward model and the gold judge agree with.
      "parameters": of the reward model. "steps": reward, KL, entropy and length of every step's rollout.
    """
    settings = _settings(config)
    return lab.kept(folder / "kept", f"run-{run.seed}-{run.split}-{run.reward or 'gold'}".replace(" ", ""),
                    [settings, dataclasses.astuple(run)], functools.partial(_record, config, folder, run))


def _record(config: ConfigDict, folder: pathlib.Path, run: Run) -> Record:
    start, (blocks, count) = start_of(config), run.reward or config.proxy
    rankings = rankings_of(config, start, run.seed, count)
    proxy = _fit(config, start, blocks, rankings, run.seed)
    rng = random.Random(f"{run.seed}/members")
    members = [scorer(_fit(config, start, blocks, rng.choices(rankings, k=count), 1000 * (i + 1) + run.seed))
               for i in range(config.members)]
    if run.reward is None:
        return _optimise(config, start, run, taste.judge, [scorer(proxy), *members], "gold itself")
    pool = pool_of(config, folder, run.split)
    return {**_optimise(config, start, run, scorer(proxy), members, f"{blocks} blocks, {count} rankings"),
            **_agreement(config, start, proxy, run.seed), "parameters": count_params(proxy.model),
            "pool": scorer(proxy)(pool["things"], pool["texts"]).tolist()}


def rounds(config: ConfigDict, folder: pathlib.Path, seed: int, arm: str) -> list[Record]:
    """RL, what it found added to the rankings, a reward model learnt anew from the same start, RL again, and so on.

    Args:
      arm: "adversarial": the added rankings hold replies that gamed the last reward model; "ordinary": as many rankings
        of the start model's replies, the control.

    Returns:
      The record of each round. Round 0 is the plain run. Each has "seen": the mean score, by this round's reward model,
      of what the policies of this and all rounds before said at their end, in its own standard deviations.
    """
    settings = [_settings(config), config.rounds, seed, arm]
    return lab.kept(folder / "kept", f"rounds-{seed}-{arm}", settings,
                    functools.partial(_rounds, config, folder, seed, arm))


def _rounds(config: ConfigDict, folder: pathlib.Path, seed: int, arm: str) -> list[Record]:
    start, run, (blocks, count) = start_of(config), Run(seed, "test", tuple(config.proxy)), config.proxy
    known = rankings_of(config, start, seed, count)
    spare = rankings_of(config, start, 20_000 + seed, config.rounds * config.adversarial)
    found = [dict(record(config, folder, run))]
    score = scorer(_fit(config, start, blocks, known, seed))
    for number in range(config.rounds + 1):
        if number:
            added = spare[(number - 1) * config.adversarial:number * config.adversarial]
            known = known + (caught_rankings(config, found[-1]["caught"], f"{seed}/{number}")
                             if arm == "adversarial" else added)
            score = scorer(_fit(config, start, blocks, known, seed))
            found.append(_optimise(config, start, run, score, [], f"{arm}, round {number}"))
        asked = things(run.split)
        found[-1]["seen"] = [float(score(asked, one["looks"][-1]["texts"]).mean()) for one in found]
    return found


def start_of(config: ConfigDict) -> taste.Start:
    """The start model that all runs share."""
    return taste.start(config.start, 0, pathlib.Path(config.cache))


def _settings(config: ConfigDict) -> dict[str, Any]:
    """The part of the config that a run depends on."""
    keys = ("proxy", "completions", "members", "held_out", "adversarial", "look_steps", "look_samples", "pool",
            "pool_things", "human", "start", "reward", "rl")
    return {key: config.to_dict()[key] for key in keys}


Score = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]


def scorer(reward: Reward) -> Score:
    """(things [Q], texts [Q][G]) -> scores [Q, G] in standard deviations of the start model's replies."""
    return lambda asked, texts: score_texts(reward, [prompt(thing) for thing in asked], texts)


def _fit(config: ConfigDict, start: taste.Start, blocks: int, rankings: Sequence[Ranking], seed: int) -> Reward:
    label = f"reward model, {blocks} blocks, seed {seed}"
    return fit(config.reward, shallower(start, blocks), rankings, seed, label=label)


def _say(config: ConfigDict, start: taste.Start, params: Params, asked: Sequence[str], samples: int, seed: int
         ) -> list[list[str]]:
    drawn = taste.draw(params, start.model, start.tokenizer, asked, samples=samples, seed=seed,
                       max_tokens=config.rl.sampler.max_tokens)
    return [[answer.text for answer in row] for row in drawn]


def rankings_of(config: ConfigDict, start: taste.Start, seed: int, count: int) -> list[Ranking]:
    """Rankings of the start model's replies to training things."""
    rng, human = random.Random(f"{seed}/rankings"), Human(**config.human.to_dict())
    asked = [rng.choice(things("train")) for _ in range(count)]
    texts = _say(config, start, start.params, asked, config.completions, seed)
    return [rank(human, thing, some, random.Random(f"{seed}/rank/{i}"))
            for i, (thing, some) in enumerate(zip(asked, texts, strict=True))]


def pool_of(config: ConfigDict, folder: pathlib.Path, split: str) -> Record:
    """The start model's replies from which best-of-n is computed, for all seeds: "things", "texts", "gold", "taste"."""
    def make() -> Record:
        start, asked = start_of(config), list(things(split))[:config.pool_things]
        texts = _say(config, start, start.params, asked, config.pool, 5)
        return {"things": asked, "texts": texts, "gold": taste.judge(asked, texts).tolist(),
                "taste": _taste(config, asked, texts)}
    return lab.kept(folder / "kept", f"pool-{split}", _settings(config), make)


def _taste(config: ConfigDict, asked: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
    human = Human(**config.human.to_dict())
    return [[human.taste(thing, text) for text in some] for thing, some in zip(asked, texts, strict=True)]


def caught_rankings(config: ConfigDict, caught: Record, seed: str) -> list[Ranking]:
    """People's order of two replies that please the reward model most and two ordinary ones, for each thing."""
    rng, human, found = random.Random(f"{seed}/caught"), Human(**config.human.to_dict()), []
    for thing, texts, scores, plain in zip(*(caught[key] for key in ("things", "texts", "scores", "ordinary")),
                                           strict=True):
        best = [texts[i] for i in np.argsort(scores)[-2:]]
        found.append(rank(human, thing, [*best, *plain], rng))
    return found


def _agreement(config: ConfigDict, start: taste.Start, proxy: Reward, seed: int) -> Record:
    """How often the reward model, and the gold judge, side with people in pairs that were not learnt from."""
    held_out = rankings_of(config, start, 10_000 + seed, config.held_out)
    asked, texts = [thing_of(list(one.prompt)) for one in held_out], [one.completions for one in held_out]
    tiers = np.array([[next(t for t, tier in enumerate(one.ranking) if k in tier) for k in range(len(one.completions))]
                      for one in held_out])
    better = tiers[:, :, None] < tiers[:, None, :]
    found = {}
    for name, scores in (("accuracy", scorer(proxy)(asked, texts)), ("ceiling", taste.judge(asked, texts))):
        found[name] = float((scores[:, :, None] > scores[:, None, :])[better].mean())
    return found


def _optimise(config: ConfigDict, start: taste.Start, run: Run, score: Score, members: Sequence[Score], label: str
              ) -> Record:
    """RL with looks at it."""
    asked, looks = things(run.split), []

    def watch(step: int, params: Params) -> None:
        if step % config.look_steps:
            return
        answers = taste.draw(params, start.model, start.tokenizer, asked, samples=config.look_samples,
                             max_tokens=config.rl.sampler.max_tokens, seed=1_000_000 + 1000 * run.seed + step)
        texts = [[answer.text for answer in row] for row in answers]
        looks.append({
            "step": step, "kl": kl_of(params, start, asked, answers), "texts": texts,
            "gold": taste.judge(asked, texts).tolist(), "taste": _taste(config, asked, texts),
            "proxy": np.asarray(score(asked, texts)).tolist(),
            "members": [member(asked, texts).tolist() for member in members]})

    done = improve(config.rl, start, score, run.seed, watch=watch)
    first, last = looks[0], looks[-1]
    print(f"seed {run.seed}, {label}: KL {last['kl']:.1f}, proxy {np.mean(first['proxy']):.2f} -> "
          f"{np.mean(last['proxy']):.2f}, gold {np.mean(first['gold']):.2f} -> highest "
          f"{max(np.mean(look['gold']) for look in looks):.2f} -> {np.mean(last['gold']):.2f}", flush=True)
    return {"looks": looks, "caught": _caught(config, start, done.params, score, run.seed),
            "steps": [{key: row[key] for key in ("step", "reward", "kl", "entropy", "length")} for row in done.rows]}


def _caught(config: ConfigDict, start: taste.Start, params: Params, score: Score, seed: int) -> Record:
    """Replies of the last policy to training things with their scores, and two of the start model's to each."""
    asked = random.Random(f"{seed}/asked").choices(things("train"), k=config.adversarial)
    texts = _say(config, start, params, asked, 4, seed + 1)
    return {"things": asked, "texts": texts, "scores": np.asarray(score(asked, texts)).tolist(),
            "ordinary": _say(config, start, start.params, asked, 2, seed + 2)}


def kl_of(params: Params, start: taste.Start, asked: Sequence[str], answers: Sequence[Sequence[lab.Answer]]) -> float:
    """KL(policy || start) per reply, nats, on the policy's own replies.

    At every token that was drawn the KL of the two whole distributions, summed over the reply: the mean over samples is
    that of the log-ratio of drawn tokens, with much less noise and never negative.

    References: Amini, Vieira, Cotterell, Better estimation of the KL divergence between language models, 2025,
    https://arxiv.org/abs/2504.10637
    """
    prompts = [render(prompt(thing), start.tokenizer, add_generation_prompt=True).ids for thing in asked]
    rows = [(ids, answer.tokens) for ids, some in zip(prompts, answers, strict=True) for answer in some]
    width = 16 * math.ceil(max(len(ids) + len(own) for ids, own in rows) / 16)
    tokens_BT, mask_BT = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, (ids, own) in enumerate(rows):
        tokens_BT[i, :len(ids) + len(own)] = [*ids, *own]
        mask_BT[i, len(ids) - 1:len(ids) + len(own) - 1] = True  # where the next token is drawn
    kl_BT = _token_kl(params, start.params, start.model, tokens_BT)
    return float(np.where(mask_BT, kl_BT, 0.0).sum(1).mean())


@functools.partial(jax.jit, static_argnums=2)
def _token_kl(params: Params, reference: Params, model: ModelConfig, tokens_BT: jax.Array) -> jax.Array:
    """KL of the next token's distributions, [B, T]; logits of sixteen rows in memory at a time."""
    def of_row(tokens_T: jax.Array) -> jax.Array:
        logp, logq = (jax.nn.log_softmax(forward(p, model, tokens_T[None], execution=lab.EXECUTION)[0])
                      for p in (params, reference))
        return jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1)
    return jax.lax.map(of_row, tokens_BT, batch_size=16)
