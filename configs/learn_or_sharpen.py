"""Does RL teach, or sharpen what the start could already do? pass@1 to pass@256 before and after, with controls.

    python -m experiments.learn_or_sharpen
    python -m experiments.learn_or_sharpen --config.samples=64 --config.seeds="(0,)" --config.part=validation

Models that experiments.sft_to_rl has trained by the same settings are found in the cache. Expected: one try after RL is
worth more than 16 before it, and 256 before it solve all that RL solves. docs/learn_or_sharpen.md has what was
measured. Written: report.html, report.md, results.json.
"""

from ml_collections import ConfigDict

from configs import sft_to_rl


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is "world" for the study on word problems."""
    config = sft_to_rl.study_config(arg)
    # Roads of experiments/practice_runs.py that begin at the fine-tuned model; "rl" first.
    config.arms = ("rl", "coin", "form")
    # Problems asked of each kind, where they come from, and replies to each at temperature 1.
    config.problems = 12
    config.part = "test"
    config.samples = 256
    # k of pass@k, rising from 1, at most `samples`; and of maj@k, which is exact and slow for a large k.
    config.k = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    config.vote_k = (1, 2, 4, 8, 16, 32)
    return config


def sweep() -> list[dict]:
    """How far RL goes, by its steps: does what it loses at large k grow with what it gains at small k?"""
    return [{"rl.steps": steps, "part": "validation", "arms": ("rl",)} for steps in (20, 60, 180)]
