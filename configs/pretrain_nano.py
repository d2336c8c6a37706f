"""Pretrain a model of 37 thousand parameters in seconds: for a smoke, and to see bugs early.

    python -m experiments.pretrain --config=configs/pretrain_nano.py

Expected: the band in configs/bands/pretrain_nano.json, of five seeds; a run says at its end how far it was off
(docs/expected_curves.md).
"""

from ml_collections import ConfigDict

from configs import pretrain_tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; every key is explained in configs/pretrain_tiny.py. `arg` is not used."""
    config = pretrain_tiny.get_config("nano")
    # Little text in short tokens, and Muon: so that a run of seconds leaves the frequencies of tokens behind and learns
    # what follows what. Before that, most bugs change nothing.
    config.data.sources, config.data.validation_fraction, config.data.processes = ("world:0:tiny",), 0.1, 1
    config.data.tokenizer.vocab_size = 320
    config.steps, config.batch_size, config.row_length, config.microbatches = 120, 8, 64, 2
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.warmup_steps = "muon", 1e-2, 16
    config.log_steps, config.validation_steps, config.sample_steps, config.checkpoint_steps = 4, 24, 0, 120
    config.validation_batches, config.sample_prompts, config.keep_checkpoints = 8, (), 1
    return config


def sweep() -> list[dict]:
    """Learning rates around the default."""
    return [{"optimizer.learning_rate": rate} for rate in (2e-3, 4e-3, 8e-3, 1.6e-2)]
