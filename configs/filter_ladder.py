"""Is the curation right? Planted truth, labels of others, and the model that each stage leads to.

    export JAXLLM_LANGUAGE_MODEL=lid.176.ftz       # docs/curate.md says how to fetch it once
    python -m experiments.filter_ladder --workdir=runs/filter_ladder
    python -m experiments.filter_ladder --config.sections="('planted',)" --workdir=runs/filter_ladder

Expected: docs/filter_ladder.md, with every table. About 25 minutes on two CPU cores: planted 8, real 2, ablation 15.
Written: WORKDIR/<section>/report.html, report.md, results.json. A second run finds the curated webs of the first.
"""

import os

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) is the folder of real data."""
    config = ConfigDict()
    # Any of planted, real, ablation.
    config.sections = ("planted", "real", "ablation")
    # lid.176.ftz or lid.176.bin; "" = $JAXLLM_LANGUAGE_MODEL.
    config.language_model = ""
    # Folder with html/, lang/, pii/, quality/ as docs/filter_ladder.md lists them; "" leaves the section out.
    config.real_data = arg or os.environ.get("JAXLLM_TEST_DATA", "")
    # Processes of a curation, and where its hashed block lists are kept.
    config.workers = 2
    config.cache = "~/.cache/jaxllm/curate"
    # Draws for intervals by bootstrap.
    config.bootstrap = 1000

    config.planted = ConfigDict({
        # Worlds and webs: each seed is another of both.
        "seeds": (0, 1, 2),
        "world": "small",
        # Pages and WARC files of each.
        "pages": 2000,
        "files": 2,
        # Also those of the section "real".
        "recipes": ("fineweb", "fast"),
        # Article pages of each web on which the extractors are compared.
        "extraction_pages": 150,
        # Bins of Jaccard similarity; pairs below `least_jaccard` that share no bucket are not counted.
        "bins": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        "least_jaccard": 0.05})

    config.real = ConfigDict({
        # Labelled pages; 0 = all.
        "pages": 0,
        # Sentences of each language; 0 = all.
        "sentences": 0})

    config.ablation = ConfigDict({
        # Of the world and web, of the initial weights and of the order of the rows.
        "seeds": (0, 1, 2),
        "recipe": "fast",
        "world": "small",
        "pages": 1600,
        # Make-up of the web: weights of the kinds of page (jaxllm/data/world_web_pages.py). Half of it is trash.
        "shares": {"article": 0.36, "pii": 0.03, "near_duplicate": 0.15, "foreign": 0.12, "spam": 0.08, "symbols": 0.03,
                   "numbers": 0.03, "stub": 0.03, "links": 0.03, "code": 0.03, "lorem": 0.02, "few_sentences": 0.02,
                   "lines": 0.03, "blocked": 0.03, "empty": 0.01},
        # Clean text to be judged on: article pages of another world, which no web of a seed tells.
        "held_out_world": 1000,
        "held_out_pages": 120,
        # A control whose stage drops less than this share of the characters is left out: nothing to match.
        "least_mass": 0.002,
        # One tokenizer for all runs, trained on the extracted text of the first seed's web, trash and all.
        "vocab_size": 1024,
        # Of the model: every run takes steps x rows x length tokens.
        "dim": 64,
        "layers": 2,
        "heads": 4,
        "length": 128,
        "rows": 16,
        "steps": 200,
        "warmup_steps": 20,
        "learning_rate": 6e-3})
    return config


def sweep() -> list[dict]:
    """Does the ablation hold with more training?"""
    return [{"sections": ("ablation",), "ablation.steps": steps} for steps in (100, 200, 400)]
