"""Fine-tune the model of configs/pretrain_nano.py on conversations, in seconds: for a smoke, and to see bugs early.

    python -m experiments.pretrain --config=configs/pretrain_nano.py
    python -m experiments.sft --config=configs/sft_nano.py

Expected: the band in configs/bands/sft_nano.json, of five seeds over one base model, that of seed 0; a run says at its
end how far it was off (docs/expected_curves.md).
"""

from ml_collections import ConfigDict

from configs import sft


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; every key is explained in configs/sft.py. `arg` replaces the model."""
    config = sft.get_config(arg or "runs/pretrain_nano")
    config.steps, config.batch_size, config.microbatches = 80, 4, 2
    # Few conversations, which are read in no time, and a seventh of them held out.
    config.data.sources, config.data.validation_fraction = ("world:0:tiny",), 0.15
    # Some decay: without it nothing can be seen of what it pulls at.
    config.optimizer.learning_rate, config.optimizer.weight_decay = 4e-3, 0.1
    config.log_steps, config.validation_steps, config.sample_steps, config.checkpoint_steps = 4, 20, 0, 80
    config.validation_batches, config.sample_prompts, config.keep_checkpoints = 8, (), 1
    return config


def sweep() -> list[dict]:
    """Learning rates around the default."""
    return [{"optimizer.learning_rate": rate} for rate in (1e-3, 2e-3, 4e-3, 8e-3)]
