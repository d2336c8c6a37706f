"""Pretrain a Llama-3 on a pod; `arg` is the size: 1b, 3b, 8b, 70b or 405b.

    python -m experiments.pretrain --config=configs/pretrain_llama3.py:8b --dry_run
    python -m experiments.pretrain --config=configs/pretrain_llama3.py:8b --distributed \
        --config.data.sources="('gs-mounted/fineweb/*.parquet',)" --workdir=/shared/runs/llama3_8b

Not run at this size; `--dry_run` is (docs/pretrain.md has its output). docs/scale.md says how a Slurm job, a GKE job
and a TPU pod start it.

Source: Grattafiori et al., The Llama 3 Herd of Models, 2024, table 3 (learning rates, batch of 4M tokens).
"""

from ml_collections import ConfigDict

from configs import pretrain_tiny

LEARNING_RATES = {"1b": 3e-4, "3b": 3e-4, "8b": 3e-4, "70b": 1.5e-4, "405b": 8e-5}
MESHES = {"1b": (1, 16, 1), "3b": (1, 32, 1), "8b": (1, 64, 1), "70b": (1, 128, 4), "405b": (1, 128, 8)}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the size `arg` ("8b")."""
    size = arg or "8b"
    config = pretrain_tiny.get_config(f"llama3_{size}")
    # 4M tokens a step; 250,000 steps are a trillion tokens.
    config.steps = 250_000
    config.batch_size = 512
    config.row_length = 8192
    config.mesh = MESHES[size]
    config.execution.dtype = "bfloat16"
    config.execution.scan = True
    config.execution.remat = "full"
    config.loss_chunks = 32
    config.data.sources = ("",)
    config.data.validation_fraction = 0.0001
    config.data.processes = 64
    config.data.tokenizer.name = "cl100k_base"
    config.optimizer.learning_rate = LEARNING_RATES[size]
    config.optimizer.warmup_steps = 8000
    config.optimizer.final_fraction = 0.01
    config.z_loss = 1e-4
    config.log_steps = 10
    config.validation_steps = 1000
    config.sample_steps = 5000
    config.checkpoint_steps = 1000
    return config


def sweep() -> list[dict]:
    """How the step's memory answers to rematerialisation, with --dry_run."""
    return [{"execution.remat": name} for name in ("none", "dots", "full")]
