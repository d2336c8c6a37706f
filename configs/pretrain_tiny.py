"""Pretrain a small Llama-like model on the embedded world, minutes on two CPU cores.

    python -m experiments.pretrain
    python -m experiments.pretrain --config.data.sources="('stories.jsonl.gz',)" --workdir=runs/stories
    python -m experiments.pretrain --config=configs/pretrain_tiny.py:small     # another preset

Expected: validation loss 1.026 [1.018, 1.033] nats a token, 0.443 [0.440, 0.446] bits a byte after 1.2M tokens (five
seeds, 2026-11-22; one minute on two cores of an AMD EPYC, 4.5 on two busy ones of an Intel Xeon). configs/bands has the
band of these seeds, beside which a run says at its end how far off it was.

Every key that any pretraining run has is here; the other pretrain_*.py files change some of them.
"""

import dataclasses

from ml_collections import ConfigDict, config_dict

from experiments.sweep_points import product, seeds, values
from jaxllm.model.config import preset


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) names a model preset, "tiny" by default."""
    config = ConfigDict()
    # Of the initial weights and of the order of the data; two runs with one seed are equal bit for bit on a CPU.
    config.seed = 0
    # Updates of the weights, each on batch_size rows of row_length tokens (over all devices and hosts).
    config.steps = 1200
    config.batch_size = 8
    config.row_length = 128
    # Pieces of a batch whose gradients are summed before the update; saves memory, changes nothing else.
    config.microbatches = 1
    # Devices along (data, fsdp, tensor); -1 is the rest. Batches are split over data x fsdp, weights and optimizer
    # over fsdp x tensor.
    config.mesh = (-1, 1, 1)

    config.model = model_fields(arg or "tiny")
    # The vocabulary is the tokenizer's, rounded up to a multiple of this (128 suits accelerators and meshes).
    config.vocab_multiple = 128

    training(config)
    _data(config)
    _along_the_way(config)
    return config


def training(config: ConfigDict) -> None:
    """How the model is run and trained: keys of every experiment that trains with `experiments.training.Run`."""
    config.execution = ConfigDict()
    # Activations and products: float32 or bfloat16. Weights and optimizer are float32 whatever this is.
    config.execution.dtype = "float32"
    # Layers by lax.scan (compiles once) or unrolled (faster on a CPU while there are few).
    config.execution.scan = False
    # What the backward pass recomputes: none, dots (all but matrix products), full.
    config.execution.remat = "none"
    # Attention: auto, xla, cudnn (NVIDIA, bfloat16), splash (TPU).
    config.execution.attention = "auto"
    # Pieces of a row whose logits stand in memory at a time; divides row_length.
    config.loss_chunks = 1

    config.optimizer = ConfigDict()
    # adamw, or muon (orthogonalised momentum for the blocks' matrices, AdamW for the rest).
    config.optimizer.name = "adamw"
    # Highest learning rate, the steps to reach it, and how it falls: cosine, linear, or wsd (stable, then decay).
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.schedule = "cosine"
    # The last learning rate as a fraction of the highest; and, for wsd, the share of steps that decay.
    config.optimizer.final_fraction = 0.1
    config.optimizer.decay_fraction = 0.2
    # Adam's moments (beta1 is Muon's momentum too) and the constant beside the root of the second.
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.95
    config.optimizer.epsilon = 1e-8
    # Pull of matrices to zero, times the learning rate; norms and biases are left out.
    config.optimizer.weight_decay = 0.1
    # Global norm to which a gradient is cut; 0 = not.
    config.optimizer.clip_norm = 1.0
    # Weight of log(Z)^2 in the loss; keeps logits from drifting in bfloat16.
    config.z_loss = 0.0
    # Moving average of the weights; 0 = none. With one, it is what is validated, sampled and written as the model.
    config.ema_decay = 0.0
    # Steps in a row that may be skipped because loss or gradient is not finite, before the run gives up.
    config.max_skips = 10


def _data(config: ConfigDict) -> None:
    """What it reads."""
    config.data = ConfigDict()
    # Where text comes from (docs/sources.md): files, folders, globs, "tfds:NAME", "world:SEED[:SIZE]".
    config.data.sources = ("world:0",)
    # Share of each source in every block of rows; () is equal shares.
    config.data.weights = ()
    # The field that holds the text in jsonl, parquet and TFDS.
    config.data.text_key = "text"
    # Share of each source's documents held out for validation, by a hash of the document.
    config.data.validation_fraction = 0.02
    # "separate": attention stays inside a document; "concatenate": rows are one stream of text.
    config.data.documents = "separate"
    # Processes that tokenise, and tokens per shard file.
    config.data.processes = 2
    config.data.shard_tokens = 100_000_000
    # Where tokenizers and shards are kept between runs, under names that say from what they were made.
    config.data.cache = "~/.cache/jaxllm"
    config.data.tokenizer = ConfigDict()
    # "train" (on the sources), a tiktoken encoding (gpt2, cl100k_base ...) or a tokenizer folder.
    config.data.tokenizer.name = "train"
    # Of a trained one: its size, how text is cut (gpt2, gpt4, digits, o200k), documents of each source it sees.
    config.data.tokenizer.vocab_size = 2048
    config.data.tokenizer.pattern = "digits"
    config.data.tokenizer.documents = 20_000


def _along_the_way(config: ConfigDict) -> None:
    """What is written while it trains."""
    # Steps between progress lines, validations, samples and checkpoints (each is also done at the end).
    config.log_steps = 20
    config.validation_steps = 200
    config.sample_steps = 600
    config.checkpoint_steps = 300
    # Batches per validation; 0 = the whole held-out part.
    config.validation_batches = 24
    # Checkpoints kept besides the best one.
    config.keep_checkpoints = 2
    # Prompts to continue along the way ("" begins a new document), tokens each, and the temperature.
    config.sample_prompts = ("", "Once upon a time")
    config.sample_tokens = 80
    config.sample_temperature = 0.7
    # Project of Weights & Biases; "" = not used.
    config.wandb_project = ""


def model_fields(name: str) -> ConfigDict:
    """The fields of a model preset as a ConfigDict, without vocab_size, which the tokenizer decides."""
    fields = dataclasses.asdict(preset(name))
    del fields["vocab_size"]
    config = ConfigDict({key: value for key, value in fields.items() if value is not None})
    if fields["query_scale"] is None:
        config.query_scale = config_dict.placeholder(float)
    if fields["rope_scaling"] is None:
        config.rope_scaling = config_dict.placeholder(dict)
    return config


def sweep() -> list[dict]:
    """Learning rate by seed: is the default on the plateau?"""
    return product(values("optimizer.learning_rate", (1e-3, 2e-3, 4e-3, 8e-3)), seeds(3))
