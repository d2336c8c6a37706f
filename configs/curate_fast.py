"""The stages of FineWeb at several times the speed: resiliparse extracts, blingfire cuts words.

    python -m experiments.curate --config=configs/curate_fast.py --workdir=runs/curate_fast

Resiliparse keeps lists and tables that trafilatura drops, so that more text meets the filters; what was moved for it,
and what the two recipes keep of the same pages, is in docs/curate.md. Every other key: configs/curate_fineweb.py.
"""

from ml_collections import ConfigDict

from configs import curate_fineweb


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) is the folder to read."""
    config = curate_fineweb.get_config(arg)
    config.recipe.name = "fast"
    config.recipe.words = "blingfire"
    config.recipe.extract.extractor = "resiliparse"
    # Blingfire cuts off more punctuation marks, each a word without letters.
    config.recipe.gopher_quality.min_words_with_letters = 0.77
    # Captions and menus that resiliparse keeps come twice; the paper's value.
    config.recipe.fineweb.max_duplicate_line_characters = 0.1
    config.recipe.minhash.hash = "xxhash"
    return config


def sweep() -> list[dict]:
    """As for the faithful recipe."""
    return curate_fineweb.sweep()
