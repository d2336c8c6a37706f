"""Every key of a reward model matters, and every key of the studies of reward models and of policy gradient."""

import json

import numpy as np
import pytest
from flip_keys import Flips, TracedJax, changed, digest, leaves, zeros
from flip_lab import MODEL, NANO, OTHER_PEOPLE, RANKINGS, SHAPE, START, numbers_of, patched_lab, under

from configs import policy_gradient as policy_config
from configs import reward_model as reward_config
from experiments import policy_gradient, reward_model, reward_model_file, reward_model_fit, reward_model_jokes, taste
from experiments.improve import Improved
from jaxllm.model.params import abstract_params
from jaxllm.rl.reward_model import Reward

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reward():
    config = changed(reward_config.reward_config(), {
        "row_length": 64, "batch_size": 4, "least_steps": 2, "warmup_steps": 1,
        **under("shape", NANO)})
    values = {"begin": "random", "trained": "1", "layers": (2,), "head_l2s": (0.1,), "template": "chatml",
              "loss": "plackett_luce", "row_length": 48, "batch_size": 8, "epochs": 2, "least_steps": 10,
              "mesh": (2, 1, 1), "microbatches": 2, "execution.dtype": "bfloat16", "execution.remat": "full",
              "execution.attention": "cudnn", **under("shape", {**SHAPE, "max_positions": 32})}
    drawn, head = {"begin": "random"}, {"trained": "head", "layers": (1,)}
    among = {**{f"shape.{key}": drawn for key in leaves(config.shape)}, "layers": head, "head_l2s": head}

    def run(flipped, facts):
        def learn(state, batch, frozen):
            facts.add("update", digest(batch, state.opt_state.hyperparams["learning_rate"]))
            return state, {"loss": 1.0, "skipped": 0, "accuracy": 0.5}

        def score_rows(reward, rows):
            facts.add("score", rows)
            return np.array([numbers_of(row).random() for row in rows])

        def last_states(start, rows, layers, kept):
            facts.add("states", rows, layers)
            return np.random.default_rng(0).random((len(layers), len(rows), MODEL.dim)).astype(np.float32)

        def init(model, key):
            facts.add("first weights", digest(str(abstract_params(model)), key))
            return zeros(abstract_params(model))
        traced = TracedJax(facts, step=learn)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reward_model_fit, "_compiled", reward_model_fit._compiled.__wrapped__)
            for name, stand_in in {"jax": traced, "score_rows": score_rows, "last_states": last_states,
                                   "init": init}.items():
                patch.setattr(reward_model_fit, name, stand_in)
            fitted = reward_model_fit.fit(flipped, START, RANKINGS[:8], 0, validation=RANKINGS[8:])
        facts.add("fitted", fitted.row_length, digest(fitted.mean, fitted.sd, fitted.temperature))
        traced.trace_rest()
    return Flips(config, run, values, among)


@pytest.mark.parametrize("key", leaves(reward_config.reward_config()))
def test_every_key_of_a_reward_model(key, reward):
    reward.check(key)



REWARD = Reward(START.params, MODEL, START.tokenizer, 200)


def noted_fit(facts):
    def fit(settings, start, rankings, seed, *, validation, label):
        facts.add("fit", seed, label, settings.loss, rankings, validation)
        return REWARD
    return fit


def noted_scores(reward, rows):
    return np.array([numbers_of(row).random() for some in rows.tokens for row in some])


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    file = folder / "rankings.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": list(one.prompt), "completions": one.completions,
                                          "ranking": one.ranking}) for one in RANKINGS))
    config = changed(reward_config.get_config(), {
        "seeds": (0,), "cache": "cache", "rankings": 6, "validation": 3, "test": 3, "completions": 3, "members": 2,
        "counts": (3,), "folds": 3, "reward.row_length": 128})
    values = {"seeds": (1,), "cache": "another", "counts": (4,), "preferences": str(file), "limit": 10,
              "unigram_l2s": (1e3,), **under("human", OTHER_PEOPLE)}
    among = dict.fromkeys(("folds", "limit"), {"preferences": str(file)})

    def run(flipped, facts):
        def begin(settings, seed, cache):
            facts.add("start", seed, cache)
            return START
        with pytest.MonkeyPatch.context() as patch:
            patched_lab(patch, facts, folder)
            patch.setattr(taste, "start", begin)
            for module in (reward_model_jokes, reward_model_file):
                patch.setattr(module, "fit", noted_fit(facts))
                patch.setattr(module, "flat_scores", noted_scores)
                patch.setattr(module, "save_reward", lambda folder, reward: None)
            patch.setattr(reward_model, "findings_of", lambda config, runs, account: facts.add(
                "found", account, [(name, digest(scores)) for run in runs
                                   for name, scores in run.scores.items()]))
            patch.setattr(reward_model, "write", lambda *_: None)
            reward_model.main(flipped, str(folder / "run"))
    return Flips(config, run, values, among)


OWN = [key for key in leaves(reward_config.get_config()) if not key.startswith(("start.", "reward."))]


@pytest.mark.parametrize("key", OWN)
def test_every_key_of_the_study_of_reward_models(key, rewards):
    rewards.check(key)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    for name in "ab":
        talks = [{"messages": [{"role": "user", "content": f"{name}{n * '?'}"}, {"role": "assistant", "content": "!"}]}
                 for n in range(1, 9)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, talks)))
    published = {"seeds": (0,), "algorithms": ("grpo",), "model": "a model", "prompts": str(folder / "a.jsonl"),
                 "reward": "a reward", "max_prompt_tokens": 24}
    config = changed(policy_config.get_config(), {
        "seeds": (0,), "algorithms": ("grpo", "ppo"), "judged": 2, "judged_samples": 2, "best_of": 4, "cache": "cache",
        "people.rankings": 4, "people.validation": 2, "people.completions": 3})
    values = {"seeds": (1,), "algorithms": ("rloo",), "control": "ppo", "part": "validation", "cache": "another",
              "model": "another", "prompts": str(folder / "b.jsonl"), "reward": "another", "max_prompt_tokens": 21}
    among = dict.fromkeys(("model", "prompts", "reward", "max_prompt_tokens"), published)

    def run(flipped, facts):
        def begin(settings, seed, cache):
            facts.add("start", settings.model, seed, cache if cache != folder else "")
            return START

        def judge(plan, start, params, reward, asked, samples, seed, **how):
            facts.add("judge", asked, samples, seed, sorted(how))
            return {"gold": [[1.0] * samples for _ in asked], "win_rate": 0.5, "proxy": [1.0], "kl": 1.0}

        def improve(rl, start, reward, seed, *, prompts=None, **how):
            facts.add("improve", rl.algorithm, seed, prompts, how["title"])
            return Improved([], START.params, "")

        def load_reward(place):
            facts.add("reward", place.name if place.parent != folder else "")
            return REWARD
        with pytest.MonkeyPatch.context() as patch:
            patched_lab(patch, facts, folder)
            patch.setattr(taste, "start", begin)
            for name, stand_in in {
                    "judge": judge, "improve": improve, "load_reward": load_reward, "fit": noted_fit(facts),
                    "save_reward": lambda *_: None, "save_model": lambda *_: None, "best_of_n": lambda pool, gold: [],
                    "findings": lambda config, runs: None, "write": lambda *_: None}.items():
                patch.setattr(policy_gradient, name, stand_in)
            policy_gradient.main(flipped, str(folder))
    return Flips(config, run, values, among)


STUDY = [key for key in leaves(policy_config.get_config())
         if not key.startswith(("start.", "reward_model.", "rl.", "people.human"))]


@pytest.mark.parametrize("key", STUDY)
def test_every_key_of_the_study_of_policy_gradient(key, policies):
    policies.check(key)
