"""Loss duel: all policy-gradient algorithms at equal samples on one task, and the angles between their gradients.

    python -m experiments.loss_duel                                             # the study, three seeds
    python -m experiments.loss_duel --config.seeds="(100,)" --config.part=validation
    python -m experiments.loss_duel --config.algorithms="('grpo','gspo')" --config.rl.policy.minibatches=8

docs/loss_duel.md has what was measured. Written: report.html, report.md, results.json, and a file per run, so that a
command that was killed goes on where it was.
"""

from ml_collections import ConfigDict

from configs import policy_gradient, practice


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the family of problems, "dial" (default) or "world"."""
    config = ConfigDict()
    # Of the start, the problems and the draws.
    config.seeds = (0, 1, 2)
    # Rows of jaxllm.rl.policy_settings.ALGORITHMS.
    config.algorithms = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce", "reinforce++", "ppo")
    # The one that is also run on rewards in a random order.
    config.control = "grpo"
    # Held-out problems come from "test", or "validation" for choosing settings; replies to each at temperature 1.
    config.part = "test"
    config.samples = 1
    # The dump of rollouts whose gradients are compared: prompts, and replies to each; and the updates by `control` on
    # it, after which they are compared again, when ratios are no longer 1.
    config.dump_prompts, config.dump_samples, config.dump_updates = 16, 8, 8
    # Where start models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"

    config.start = practice.start_config(arg)
    # RL, see configs/policy_gradient.py. Its steps, prompts and samples are the budget of replies: a run that draws
    # further prompts (dapo) takes fewer steps.
    config.rl = policy_gradient.without_folder(policy_gradient.policy_config())
    del config.rl["algorithm"]  # each of config.algorithms in turn
    config.rl.steps, config.rl.prompts, config.rl.samples = 15, 8, 8
    # Longer than a right reply, so that the overlong shaping (dapo: of the last fifth) is about nothing else.
    config.rl.sampler.max_tokens = config.start.max_tokens * 7 // 5
    config.rl.optimizer.learning_rate = 2e-4
    # For all alike: updates of a rollout, so that clips have something to do, and no KL to the start.
    config.rl.policy.epochs, config.rl.policy.minibatches = 1, 4
    config.rl.policy.kl_in = "none"
    config.rl.guard.kl = config.rl.guard.entropy = 0.0
    config.rl.guard.truncated = 1.0
    return config


def sweep() -> list[dict]:
    """Learning rate by the updates of a rollout, on validation problems."""
    return [{"rl.optimizer.learning_rate": rate, "rl.policy.minibatches": updates, "part": "validation"}
            for rate in (1e-4, 2e-4, 4e-4) for updates in (1, 4)]
