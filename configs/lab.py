"""The base model that the laboratory's experiments start from: a config of experiments.pretrain on the world "lab".

    python -m experiments.pretrain --config=configs/lab.py --config.data.sources="('world:0:lab',)"

Experiments take it as `config.base` and train it once for each seed (experiments/lab.py), with "{seed}" filled in.
"""

from ml_collections import ConfigDict

from configs import pretrain_tiny


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; every key is explained in configs/pretrain_tiny.py. `arg` is the world's size."""
    config = pretrain_tiny.get_config()
    config.data.sources = (f"world:{{seed}}:{arg or 'lab'}",)
    config.data.tokenizer.vocab_size = 1024
    config.model.update(shape(96, layers=4))
    # Small batches: on so little text the number of updates counts most.
    config.batch_size, config.row_length, config.steps = 4, 128, 4400
    config.model.max_positions = 256
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.warmup_steps = "muon", 3e-3, 100
    config.log_steps, config.validation_steps, config.sample_steps, config.checkpoint_steps = 200, 2200, 0, 1100
    return config


def shape(dim: int, layers: int, heads: int = 4) -> ConfigDict:
    """The fields of a small model's shape: as many kv heads as heads, an MLP of three times the width."""
    return ConfigDict({"dim": dim, "layers": layers, "heads": heads, "kv_heads": heads, "head_dim": dim // heads,
                       "mlp_dim": 3 * dim})
