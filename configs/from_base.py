"""RL without fine-tuning (R1-Zero): on the base itself, beside RL after SFT at equal samples.

    python -m experiments.from_base
    python -m experiments.from_base --config.seeds="(0,)" --config.part=validation

The base is asked in the form of its documents, or by the chat format that it has never seen; with and without a reward
for the form. RL after SFT is that of experiments.sft_to_rl, found in the cache where that has run by the same settings.
docs/from_base.md has what was measured. Written: report.html, report.md, results.json.
"""

from ml_collections import ConfigDict

from configs import sft_to_rl


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is "world" for the study on word problems."""
    config = sft_to_rl.study_config(arg)
    # Roads of experiments/practice_runs.py that are rewarded for right answers, "rl" first; "chat_form" is another.
    config.arms = ("rl", "base", "base_form", "chat")
    # Held-out problems come from "test", or "validation" for choosing settings; replies to each at temperature 1.
    config.part = "test"
    config.samples = 4
    return config


def sweep() -> list[dict]:
    """Learning rates for the base, on validation problems."""
    return [{"rl.optimizer.learning_rate": rate, "part": "validation", "arms": ("rl", "base")}
            for rate in (1e-4, 3e-4, 1e-3)]
