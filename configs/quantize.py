"""What fewer bits cost and save: perplexity, log-probabilities, bytes and speed of a model in each scheme.

    python -m experiments.quantize --config.model=runs/pretrain_tiny --workdir=runs/quantize
    python -m experiments.quantize --config.model=runs/smollm2 --config.text=wikitext2_valid.txt.xz

Expected: the control row (float32 against itself, by another route) at 0.000% and gaps of float32's rounding; bfloat16
and int8 within half a percent of perplexity, an int8 cache too; int8_dynamic some percent; int4 by plain rounding 5 to
20, more for a small model. docs/quantize.md has the table. 6 minutes for 135M parameters and --config.tokens=1024 on
two CPU cores.
Written: quantize.md, quantize.json, report.html.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the model folder."""
    config = ConfigDict()
    # A model folder, or a run folder that holds one.
    config.model = arg or "runs/pretrain_tiny"
    # Text that the model was not trained on: anything that docs/sources.md lists.
    config.text = "world:1:tiny"

    # What is compared with float32: WEIGHTS or WEIGHTS/CACHE. Weights: float32, bfloat16, int8 (a scale per output),
    # int8_dynamic (activations in 8 bits too), int4 (a scale per output and group). Cache: float32, bfloat16, int8 (a
    # scale per position and head).
    config.variants = ("bfloat16", "int8", "int8_dynamic", "int4", "float32/int8", "int8/int8")
    # Inputs that share a scale in int4.
    config.group = 32
    # dtype of the activations: "float32" or "bfloat16".
    config.dtype = "float32"

    # Tokens scored, in blocks of `length` that each start with an empty cache; the interval is over the blocks.
    config.tokens = 16_384
    config.length = 256
    # Blocks scored together; bounds memory (logits of batch x length tokens).
    config.batch = 4
    # Draws of blocks, with replacement, for the 95% interval.
    config.bootstrap_samples = 2000
    # Of the bootstrap.
    config.seed = 0

    # Greedy generation: tokens/s for each of these numbers of rows, () for none; each variant in turn, `rounds` times,
    # and medians.
    config.speed_batches = (1, 32)
    config.speed_prompt = 32
    config.speed_new = 32
    config.rounds = 3
    return config


def sweep() -> list[dict]:
    """Group sizes of int4."""
    return [{"group": group, "variants": ("int4",), "speed_batches": ()} for group in (16, 32, 64)]
