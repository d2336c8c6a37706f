"""Train = sample: a sampler that is not the trainer, in several ways and doses, against what RL makes of it.

    python -m experiments.train_sample_gap                                      # the study, three seeds
    python -m experiments.train_sample_gap --config.seeds="(100,)" --config.part=validation
    python -m experiments.train_sample_gap --config.mismatches="('stale=5','stale=20')" --config.repaired="()"

docs/train_sample_gap.md has what was measured. Written: report.html, report.md, results.json, and a file per run, so
that a command that was killed goes on where it was.
"""

from ml_collections import ConfigDict

from configs import policy_gradient, practice


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the family of problems, "dial" (default) or "world"."""
    config = ConfigDict()
    # Of the start, the problems and the draws.
    config.seeds = (0, 1, 2)
    # What is wrong with the sampler, one thing each: weights=SCHEME of jaxllm.model.quantize, temperature=T where the
    # trainer has rl.sampler.temperature, top_p=P, or stale=N: the weights of N updates ago. The control, "none", is
    # always run.
    config.mismatches = ("weights=int4", "temperature=1.5", "top_p=0.7", "stale=10")
    # Those that are also run with truncated importance weights: "token" or "sequence", up to rl.policy.importance_cap.
    config.repaired = ("weights=int4", "temperature=1.5", "top_p=0.7", "stale=10")
    config.importance = "token"
    # Held-out problems come from "test", or "validation" for choosing settings; replies to each at temperature 1.
    config.part = "test"
    config.samples = 2
    # Where start models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"

    config.start = practice.start_config(arg)
    # RL, see configs/policy_gradient.py; equal samples for all.
    config.rl = policy_gradient.without_folder(policy_gradient.policy_config())
    config.rl.steps, config.rl.prompts, config.rl.samples = 25, 8, 8
    config.rl.sampler.max_tokens = config.start.max_tokens
    config.rl.optimizer.learning_rate, config.rl.optimizer.final_fraction = 5e-4, 0.1
    config.rl.policy.kl_coefficient = 0.0
    config.rl.policy.importance_cap = 2.0
    # Nothing is stopped: what a mismatch does is what is asked.
    config.rl.guard.kl = config.rl.guard.entropy = 0.0
    config.rl.guard.truncated = 1.0
    return config


def sweep() -> list[dict]:
    """How stale the weights may be, and the cap of the weights that make up for it, on validation problems."""
    return [{"mismatches": (f"stale={updates}",), "repaired": (f"stale={updates}",),
             "rl.policy.importance_cap": cap, "part": "validation"} for updates in (2, 5, 10, 20) for cap in (2.0, 5.0)]
