"""Every key of a run of policy gradient matters: each is flipped, and the run does something else or refuses it."""

import contextlib
import dataclasses
import functools
import itertools
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flip_keys import Flips, NotedCheckpoints, TracedJax, changed, digest, leaves
from random_weights import random_weights

from configs import policy_gradient, policy_nano
from experiments import expected_curves_policy, improve_learner, improve_record, live_page, taste
from experiments.improve import Improved, improve, make_mesh
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.infer.tool_loop import Transcript
from jaxllm.model.config import preset
from jaxllm.rl import rollout, tool_rollout
from jaxllm.rl.policy_step import PolicyBatch, Scores

pytestmark = pytest.mark.slow

TOKENIZER = dataclasses.replace(train_tokenizer(["a joke about a thing, banana! " * 3], 280, "digits", SPECIAL_TOKENS),
                                chat_template="im_sep")
MODEL = preset("nano", layers=1, vocab_size=320)
START = taste.Start(random_weights(MODEL), MODEL, TOKENIZER)
PROMPTS = {name: [{"role": "user", "content": name}] for name in "abcd"}
REPLY = [65, 66, 67, 68]
KL, ENTROPY = {2: 60.0, 3: 60.0}, {1: 1.0}  # by step, else 1 and 0.5: beyond the guard, but not for long

AS_IT_IS = {"steps": 5, "prompts": 2, "samples": 4, "sampler.max_tokens": 6, "log_steps": 2, "checkpoint_steps": 2,
            "optimizer.warmup_steps": 1}
VALUES = {
    "algorithm": "rloo", "mesh": (2, 1, 1), "microbatches": 2, "logit_chunks": 2, "optimizer.name": "muon",
    "optimizer.schedule": "cosine", "execution.dtype": "bfloat16", "execution.remat": "full",
    "execution.attention": "cudnn", "guard.kl": 0.5, "guard.entropy": 0.6, "guard.truncated": 0.4, "guard.patience": 2,
    "sampler.by": "engine", "sampler.dtype": "bfloat16", "sampler.weights": "int8", "tools.names": ("calculator",),
    "tools.max_length": 32,
    "policy.baseline": "rloo", "policy.whiten": True, "policy.objective": "reinforce", "policy.ratio": "sequence",
    "policy.clip_low": 0.3, "policy.clip_high": 0.3, "policy.dual_clip": 3.0, "policy.average": "token",
    "policy.epochs": 2, "policy.minibatches": 2, "policy.kl_in": "none", "policy.kl_kind": "k1",
    "policy.kl_coefficient": 0.2, "policy.kl_target": 3.0, "policy.kl_horizon": 10, "policy.critic": "own",
    "policy.value_coefficient": 0.2, "policy.value_clip": 0.3, "policy.discount": 0.9, "policy.gae_decay": 0.5,
    "policy.entropy_coefficient": 0.1, "policy.importance": "token", "policy.importance_cap": 1.5,
    "policy.mask_truncated": True, "policy.resample": 1, "policy.overlong": 0.5,
}
CRITIC, TOOLS = {"algorithm": "ppo"}, {"sampler.by": "engine", "tools.names": ("calculator",)}
AMONG = {
    **dict.fromkeys(("policy.critic", "policy.value_coefficient", "policy.value_clip", "policy.discount",
                     "policy.gae_decay"), CRITIC),
    "tools.names": {"sampler.by": "engine"},
    **dict.fromkeys(("tools.calls", "tools.describe", "tools.max_length"), TOOLS),
    "policy.kl_horizon": {"policy.kl_target": 3.0}, "policy.importance_cap": {"policy.importance": "token"},
}


class NotedEngine:
    """An engine that says the same to every request."""

    def __init__(self, facts, params, config, **how):
        self.facts = facts
        facts.add("engine", how)

    def load(self, params):
        pass

    def run(self, requests):
        self.facts.add("requests", requests)
        done = SimpleNamespace(tokens=REPLY, logp=[0.0] * 4, sampling_logp=[0.0] * 4, finish="stop")
        return [done] * len(requests)


def noted_draws(facts):
    """What samples in the place of `generate` and of conversations with tools: half of the replies are cut off."""
    def generate(params, config, prompts, *, key, samples_per_prompt, **how):
        facts.add("generate", prompts, digest(key), samples_per_prompt, how)
        rows = len(prompts) * samples_per_prompt
        noughts = jax.numpy.zeros((rows, how["max_tokens"]))
        return SimpleNamespace(logp=noughts, sampling_logp=noughts, stopped=jax.numpy.arange(rows) % 2 == 0,
                               rows=lambda: [REPLY] * rows)

    def talk(engine, conversations, tools, tokenizer, **how):
        facts.add("conversations", conversations, [tool.name for tool in tools], how)
        return [Transcript(REPLY, [False, False, True, True], [0.0] * 4, [0.0] * 4, 2,
                           [{"role": "assistant", "content": "A"}], "stop", 1, True) for _ in conversations]
    return generate, talk


def answers(facts):
    """What scores, shapes and learns in the place of the programs, which are traced afterwards."""
    number = itertools.count(1)

    def score(params, reference, tokens):
        step = next(number)
        ones = np.ones(tokens.shape, np.float32)
        return Scores(ones, ones * ENTROPY.get(step, 0.5), ones - KL.get(step, 1.0) / len(REPLY),
                      ones if "value" in params else None)

    def make_batch(rolled, scores, rewards_QG, kl_coefficient):
        facts.add("rewards", digest(rewards_QG, kl_coefficient))
        ones = np.ones(rolled.tokens.shape, np.float32)
        return PolicyBatch(rolled.tokens, rolled.mask, *[ones] * 6, ones[:, :1])

    def step(train, batch):
        facts.add("update", digest(batch.tokens))
        return train.replace(step=train.step + 1), {"loss": 1.0, "grad_norm": 1.0, "skipped_in_a_row": 0}
    return {"score": score, "make_batch": make_batch, "step": step}


@functools.cache
def score_of(policy):
    """One function for equal policies, so that its trace is found again."""
    return policy.score


def reward(names, said):
    return np.array([[len(name) + n for n, _ in enumerate(row)] for name, row in zip(names, said, strict=True)])


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder, runs = tmp_path_factory.mktemp("every_key"), itertools.count()

    def run(config, facts):
        traced, (generate, talk) = TracedJax(facts, **answers(facts)), noted_draws(facts)
        clock = itertools.count()
        page = SimpleNamespace(STYLE="", write_text=lambda path, text: facts.add("page", path.name))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(improve_learner, "jax", traced)
            patch.setattr(improve_learner, "_compiled", improve_learner._compiled.__wrapped__)
            patch.setattr(improve_learner, "_score", lambda policy: traced.jit(score_of(policy)))
            for module in (rollout, tool_rollout):
                patch.setattr(module, "Engine", functools.partial(NotedEngine, facts))
                patch.setattr(module, "jax", TracedJax(facts))
            patch.setattr(rollout, "generate", generate)
            patch.setattr(tool_rollout, "run_with_tools", talk)
            patch.setattr(improve_record, "Checkpoints", functools.partial(NotedCheckpoints, facts))
            patch.setattr(improve_record, "print", lambda line, flush: facts.add(re.sub(r" [\d.]+ s$", "", line)),
                          raising=False)
            patch.setattr(live_page, "time", SimpleNamespace(monotonic=lambda: next(clock), time=lambda: 0.0))
            patch.setattr(live_page, "report", page)
            improve(config, START, reward, 0, prompts=PROMPTS, folder=folder / str(next(runs)))
        mesh = make_mesh(config)
        with jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext():
            traced.trace_rest()
    return Flips(changed(policy_gradient.policy_config(), AS_IT_IS), run, VALUES, AMONG)


@pytest.mark.parametrize("key", leaves(policy_gradient.policy_config()))
def test_every_key_of_policy_gradient(key, policy):
    policy.check(key)


def test_the_seed_of_the_smallest_policy(monkeypatch, tmp_path):
    """The one key of configs/policy_nano.py beside those of its run: of the first weights and of the draws."""
    told = []
    monkeypatch.setattr(expected_curves_policy, "init", lambda model, key: told.append(digest(key)))
    monkeypatch.setattr(expected_curves_policy, "improve", lambda rl, start, reward, seed, **_: (
        told.append(seed) or Improved([], None, "")))
    for seed in (0, 1):
        config = policy_nano.get_config()
        config.seed = seed
        expected_curves_policy.main(config, str(tmp_path))
    assert told[0] != told[2] and told[1::2] == [0, 1]
