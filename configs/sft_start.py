"""How should the control tokens of a chat format start in a model that never saw them? Three ways, measured.

    python -m experiments.sft_start                                  # three seeds
    python -m experiments.sft_start --config.steps="(20,)" --config.part=validation --workdir=runs/start_try

A base model of the world "lab" (configs/lab.py; trained once for each seed, then found in the cache) is fine-tuned
shortly on questions about people that it knows, and then asked about others that it knows as well, in a wording that no
text has. Expected: docs/sft.md; about 6 minutes on 2 CPU cores after the base models are there. Written: report.html,
report.md, results.json.
"""

from ml_collections import ConfigDict

from configs import lab


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the world's size."""
    config = ConfigDict()
    # One base model, split and order of the data for each.
    config.seeds = (0, 1, 2)
    # Of the world; the base model's sources are it.
    config.size = arg or "lab"
    config.base = lab.get_config(arg)
    # The starts that are compared: like, mean, untouched (experiments/sft_tokens.py).
    config.starts = ("like", "mean", "untouched")
    # Lengths of the fine-tuning, each a run of its own.
    config.steps = (10, 40, 160)
    config.batch_size = 8
    config.row_length = 128
    config.learning_rate = 5e-4
    config.warmup_steps = 5
    # People of the band "often" who are asked about and never trained on, in each of the two parts; and the part asked:
    # "test", or "validation" while something is still being chosen.
    config.asked_people = 40
    config.part = "test"
    return config


def sweep() -> list[dict]:
    """Learning rates, on the part that may choose."""
    return [{"learning_rate": rate, "part": "validation"} for rate in (2e-4, 5e-4, 1e-3)]
