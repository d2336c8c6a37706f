"""Policy gradient in seconds: GRPO on a random model that is rewarded for replies that begin with a vowel.

    python -m experiments.expected_curves_policy

Expected: the band in configs/bands/policy_nano.json, of five seeds; a run says at its end how far it was off
(docs/expected_curves.md).
"""

from ml_collections import ConfigDict

from configs import policy_gradient


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of experiments.expected_curves_policy; `arg` is not used."""
    config = ConfigDict()
    # Of the weights that the policy starts from and of the draws.
    config.seed = 0
    # One run of policy gradient, explained in configs/policy_gradient.py.
    config.rl = policy_gradient.policy_config()
    config.rl.steps, config.rl.prompts, config.rl.samples, config.rl.sampler.max_tokens = 40, 8, 8, 4
    config.rl.optimizer.learning_rate, config.rl.optimizer.warmup_steps = 5e-3, 4
    config.rl.policy.kl_coefficient = 0.0
    config.rl.guard.update({"kl": 0.0, "entropy": 0.0, "truncated": 1.0})  # no reply of four tokens ends by itself
    config.rl.checkpoint_steps, config.rl.page_seconds = 0, 3600.0
    return config


def sweep() -> list[dict]:
    """Learning rates around the default."""
    return [{"rl.optimizer.learning_rate": rate} for rate in (2e-3, 5e-3, 1e-2)]
