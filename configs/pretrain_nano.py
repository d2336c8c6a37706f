"""Pretrain a model of 43 thousand parameters in seconds: for a smoke, and to see bugs early.

    python -m experiments.pretrain --config=configs/pretrain_nano.py

Expected: the band in configs/bands/pretrain_nano.json, of five seeds; a run says at its end how far it was off
(docs/expected_curves.md).
"""

from ml_collections import ConfigDict

from configs import pretrain_tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; every key is explained in configs/pretrain_tiny.py. `arg` is not used."""
    config = pretrain_tiny.get_config("nano")
    # As small as a model can be that uses its context after seconds, and Muon, which gets there in half the tokens that
    # AdamW needs: before that, most bugs change nothing.
    config.model.max_positions = 128
    config.data.tokenizer.vocab_size, config.data.validation_fraction, config.data.processes = 512, 0.05, 1
    config.steps, config.batch_size, config.microbatches = 240, 4, 2
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.warmup_steps = "muon", 1e-2, 24
    config.log_steps, config.validation_steps, config.sample_steps, config.checkpoint_steps = 8, 24, 0, 240
    config.validation_batches, config.sample_prompts, config.keep_checkpoints = 8, (), 1
    return config


def sweep() -> list[dict]:
    """Learning rates around the default."""
    return [{"optimizer.learning_rate": rate} for rate in (2.5e-3, 5e-3, 1e-2, 2e-2)]
