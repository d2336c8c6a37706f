"""Pretrain GPT-2 on real text with accelerators; `arg` is the size: 124m, 355m, 774m or 1558m.

    python -m experiments.pretrain --config=configs/pretrain_gpt2.py:124m \
        --config.data.sources="('fineweb/*.parquet',)" --workdir=runs/gpt2_124m

Expected (not run here; llm.c and nanoGPT report it): 124M on 10 billion tokens of FineWeb reaches a validation loss
near 3.28. Tokens per step, learning rates and the 10-billion-token horizon follow llm.c's scripts/run_gpt2_124M.sh.

Sources: Radford et al., Language Models are Unsupervised Multitask Learners, 2019; Karpathy, llm.c, 2024.
"""

from ml_collections import ConfigDict

from configs import pretrain_tiny

# Learning rates of the GPT-3 paper's table 2.1 for models of these sizes.
LEARNING_RATES = {"124m": 6e-4, "355m": 3e-4, "774m": 2.5e-4, "1558m": 2e-4}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the size `arg` ("124m")."""
    size = arg or "124m"
    config = pretrain_tiny.get_config(f"gpt2_{size}")
    # 524,288 tokens a step; 19,073 steps are 10 billion tokens.
    config.steps = 19_073
    config.batch_size = 512
    config.row_length = 1024
    # On one 80 GB GPU; with n of them on the data axis, divide by n.
    config.microbatches = 16 if size == "124m" else 32
    config.execution.dtype = "bfloat16"
    config.execution.scan = True
    config.execution.remat = "none" if size == "124m" else "dots"
    config.loss_chunks = 8
    config.data.sources = ("",)
    config.data.documents = "concatenate"
    config.data.validation_fraction = 0.001
    config.data.processes = 16
    config.data.tokenizer.name = "gpt2"
    config.optimizer.learning_rate = LEARNING_RATES.get(size, 2e-4)
    config.optimizer.warmup_steps = 700
    config.optimizer.final_fraction = 0.0
    config.log_steps = 10
    config.validation_steps = 250
    config.validation_batches = 20
    config.sample_steps = 1000
    config.checkpoint_steps = 1000
    return config


def sweep() -> list[dict]:
    """AdamW against Muon over learning rates."""
    return [{"optimizer.name": name, "optimizer.learning_rate": rate}
            for name in ("adamw", "muon") for rate in (3e-4, 6e-4, 1.2e-3)]
