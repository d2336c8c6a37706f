"""How often must a text stand in the corpus before a model gives it back word for word, and what does deduplication do?

    python -m experiments.regurgitation
    python -m experiments.regurgitation --config.sizes="((256, 6, 8), (512, 8, 8))" --config.tokens=20_000_000

Notes of random words are planted as pages of their own among the world's, each with a known number of copies. Models
of several sizes read the corpus, and as many tokens of the corpus without its duplicates. docs/regurgitation.md has
what came out: all notes with 128 copies from the two larger models, none after deduplication. 8 minutes on one CPU
core.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the source."""
    config = ConfigDict()
    # Of the notes, the weights and the order of the data; each is a whole run of every arm.
    config.seeds = (0, 1, 2)
    # The pages among which notes are planted (docs/sources.md); "{seed}" stands for the seed. They must be enough for
    # config.tokens without any note.
    config.source = arg or "world:{seed}:small"
    # Of the tokenizer, trained on those pages.
    config.vocab_size = 1024

    # Copies of a note in the corpus, and how many notes have so many. 0: never planted, the control.
    config.copies = (0, 1, 2, 4, 8, 16, 32, 64, 128)
    config.notes = 8
    # Of notes with 0 copies; those with copies are ranked among them (exposure).
    config.unplanted_notes = 64
    # Tokens of a note that the model is given, and those behind them that it must give back.
    config.prompt_tokens = 6
    config.rest_tokens = 12

    # Models: (D, layers, heads); the MLP has 3 D.
    config.sizes = ((32, 2, 2), (64, 3, 4), (128, 4, 4))
    # Tokens that every model reads, once each, in every arm.
    config.tokens = 300_000
    config.row_length = 128
    config.batch_size = 4
    config.warmup_steps = 20
    config.learning_rate = 4e-3
    config.weight_decay = 0.1
    # Pages held out for the validation loss.
    config.validation_pages = 200
    return config


def sweep() -> list[dict]:
    """Longer prompts and slower learning: is the curve the setting's or the copies'?"""
    return [{"prompt_tokens": prompt, "learning_rate": rate} for prompt in (3, 6, 9) for rate in (2e-3, 4e-3)]
