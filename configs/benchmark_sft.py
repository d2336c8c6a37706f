"""Fine-tuning beside TRL's SFTTrainer: real tokens a second and padding, same model, conversations and machine.

    pip install -e '.[peers]'           # torch, transformers, trl; without them our side alone is measured
    python -m experiments.benchmark_sft --config.data.sources="('dolly.jsonl',)" --workdir=runs/benchmark_sft

Every rival reads the same tokens, made here: what is measured is packing or padding, the loss on the assistant's words,
backward and AdamW. A measurement is a whole reading of the conversations, so rates count the same real tokens whatever
is padded. Expected: docs/sft.md; about 10 minutes on 2 CPU cores. Written: report.html, report.md, results.json.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the source."""
    config = ConfigDict()
    config.data = ConfigDict()
    # Conversations as in configs/sft.py, and how many of them make a reading, drawn by the seed; one that does not fit
    # a row whole is left out.
    config.data.sources = (arg or "world:0:tiny",)
    config.data.conversations = 256
    config.data.seed = 0
    # Of the byte-level BPE that is trained on them.
    config.vocab_size = 4096

    # A Llama with random weights: width, layers, heads, width of the MLP.
    config.dim = 256
    config.layers = 4
    config.heads = 4
    config.mlp_dim = 768
    # Tokens of a row, and rows of an update.
    config.row_length = 512
    config.batch_size = 8

    # Our ways, "unrolled" or "scan".
    config.ours = ("unrolled", "scan")
    # TRL's: conversations padded to the longest of a batch, `batch_size` a batch, with gradient checkpointing ("as it
    # comes") or without ("padded"), or four times as many ("padded, large batch"); packed by "bfd" or "wrapped" (which
    # cuts conversations and lets them attend to each other).
    config.peers = ("as it comes", "padded", "padded, large batch", "packed bfd", "packed wrapped")
    # Times that each is measured, in turn.
    config.rounds = 5
    # Threads that PyTorch computes with; 0 = the physical cores, which JAX takes by itself.
    config.threads = 0
    return config


def sweep() -> list[dict]:
    """Row lengths: the longer, the more padding costs."""
    return [{"row_length": length} for length in (256, 512, 1024)]
