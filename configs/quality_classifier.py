"""Train a quality classifier on labelled documents and measure it on documents that it has not seen.

    python -m experiments.quality_classifier                                       # plumbing, no download
    python -m experiments.quality_classifier --config=configs/quality_classifier.py:labels.jsonl --workdir=runs/mine

The default labels are no finding: pages of the embedded world that teach against those that do not, told apart by their
layout; expected AUC 0.98 to 1, permuted labels 0.4 to 0.6, under a minute on 2 CPU cores. docs/quality.md has human
labels. Written:

    runs/quality_classifier/classifier/   the head, fitted on all documents (quality.load_classifier)
    runs/quality_classifier/scores.jsonl  held-out score of every document, per seed
    runs/quality_classifier/report.md .json .html
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the labels."""
    config = ConfigDict()
    # Labelled documents: a .jsonl, .json (also .gz, .xz, .zst) or .parquet file or a folder of them; or
    # "world:SEED[:SIZE]", whose pages are labelled by their style.
    config.labels = arg or "world:0:tiny"
    # The fields with the text and with the label (a number: 0 to 5, or 0 and 1).
    config.text_key = "text"
    config.label_key = "label"
    # Of the world: the styles labelled 1; the others are 0.
    config.good_styles = ("encyclopedia", "list", "problem", "questions", "register", "study")
    # A text is good from this label on, for the AUC and for the logistic head. FineWeb-Edu: 3 of 0 to 5.
    config.positive_from = 0.5

    # A model folder or run folder, whose mean hidden states are the features; "": hashed words.
    config.model = ""
    # Of hashed words: 2^bits buckets.
    config.bits = 18
    # Of a model: tokens of each document that it reads, and documents at a time.
    config.max_tokens = 256
    config.batch_size = 16
    # Of either: how much of a document is looked at.
    config.max_characters = 20_000

    # "logistic" (good or not) or "ridge" (the label itself, as FineWeb-Edu).
    config.loss = "logistic"
    # Pull of the weights to zero.
    config.l2 = 1e-3
    # Limits of Newton's method: steps, and the gradient's norm at which it ends.
    config.max_steps = 30
    config.tolerance = 1e-5

    # Each document is scored by a head that learnt from the other folds; seeds cut the folds anew.
    config.folds = 5
    config.seeds = (0, 1, 2)
    # Control: so many times the labels are permuted and all is done again; AUC must be near 0.5.
    config.permutations = 20
    # Draws of documents for the interval of the AUC.
    config.bootstrap_samples = 1000
    # The cost per document is the median over so many passes.
    config.timing_passes = 3
    return config


def sweep() -> list[dict]:
    """Pull of the weights by loss: does the AUC hang on the default?"""
    return [{"l2": l2, "loss": loss} for loss in ("logistic", "ridge") for l2 in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)]
