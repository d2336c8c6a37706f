"""Over-optimisation seen, measured and stopped: a policy games a reward model of people's taste.

    python -m experiments.reward_hacking --workdir=runs/reward_hacking
    python -m experiments.reward_hacking --config=configs/reward_hacking.py:models/smollm2     # a published chat model

Expected, ten seeds: gold rises from -0.47 to -0.25 [-0.36, -0.14] and falls to -0.76 [-1.13, -0.39] while the proxy
rises to 1.27; stopped by 64 of people's choices a look, 0.03 [-0.06, 0.12] of the peak is lost, by none 0.47 [0.20,
0.74]. 51 CPU-minutes: 20 runs of RL and 6 rounds. docs/reward_hacking.md has what was measured. Written: report.html,
report.md, results.json, and kept/ with every run that is done, so that the same command goes on after a kill.
"""

from ml_collections import ConfigDict

from configs import policy_gradient, reward_model, taste


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the folder of a published chat model, nothing to train a small one."""
    config = ConfigDict()
    # Runs on which stop rules are scored, and others on which their thresholds are chosen. A seed stands for the
    # rankings, the reward models, the draws of RL and the choices of people; all share one start model.
    config.seeds = tuple(range(10, 20))
    config.validation_seeds = (100, 101, 102, 103)
    # How many of each are also optimised against the gold judge itself: nothing there to be gamed, the control.
    config.controls, config.validation_controls = 2, 1

    # The reward model of all those runs: how many of the start model's blocks it has, and rankings it learns from.
    config.proxy = (3, 800)
    # Other reward models, and on how many of the seeds each.
    config.other_proxies = ((1, 800), (3, 100), (3, 300))
    config.other_seeds = 1
    # Completions of a ranking.
    config.completions = 4
    # Further reward models of each run, from its rankings drawn anew with replacement: they watch, nothing is
    # optimised against them.
    config.members = 1
    # Rankings that no reward model learns from, for its accuracy.
    config.held_out = 40

    # Rounds in which the replies that gamed the reward model are ranked and added: this many rankings of two such
    # replies and two ordinary ones, on this many of the seeds. The control adds as many ordinary rankings.
    config.rounds, config.adversarial, config.round_seeds = 1, 64, 3

    # Steps between looks at a run, and replies drawn then to each held-out thing: those of the test split for `seeds`,
    # of the validation split for the others.
    config.look_steps = 5
    config.look_samples = 3
    # Replies of the start model to each of so many things, from which best-of-n is computed.
    config.pool, config.pool_things = 64, 20
    # People's choices between the best of n and one reply by chance, from which a KL budget is predicted.
    config.pool_labels = 384

    # People's choices asked for at each look, the first being the one that the rules are compared at; and how often
    # people are asked anew in order to score a rule (their noise, not the run's).
    config.labels = (64, 16, 32, 96)
    config.label_draws = 5
    # What may be left to gain when a rule stops in time, and what must be lost from the peak for a run to have fallen:
    # standard deviations of the gold score.
    config.tolerance, config.fall = 0.1, 0.25

    # The simulated person who ranks and chooses, see jaxllm.data.world_taste.Human.
    config.human = taste.get_config().human
    # The start model, a reward model and a run of RL: configs/taste.py, reward_model.py, policy_gradient.py.
    config.start = taste.start_config(arg)
    config.reward = reward_model.reward_config()
    config.reward.update({"row_length": 96, "epochs": 2})
    config.rl = rl_config()
    # Processes that make runs side by side.
    config.processes = 2
    # Where start models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"
    return config


def rl_config() -> ConfigDict:
    """RL that nothing holds back: no KL term, no guard. To see over-optimisation is what it is for.

    PPO: in pilots with GRPO and less data the gold score fell from the first looks on (docs/reward_hacking.md).
    """
    config = policy_gradient.without_folder(policy_gradient.policy_config())
    config.update({"algorithm": "ppo", "steps": 50, "prompts": 8, "samples": 8, "log_steps": 1000})
    config.sampler.max_tokens = 40
    config.policy.kl_in = "none"
    config.optimizer.learning_rate = 1.5e-4
    config.guard.update({"kl": 0.0, "entropy": 0.0, "truncated": 1.0})
    return config


def sweep() -> list[dict]:
    """The weight of the KL in the reward by the learning rate: does a penalty move the peak, or only the time to it?"""
    return [{"rl.policy.kl_in": "reward", "rl.policy.kl_coefficient": kl, "rl.optimizer.learning_rate": rate}
            for kl in (0.0, 0.02, 0.1) for rate in (1.5e-4, 3e-4)]
