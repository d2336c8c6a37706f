"""How fast curation is beside datatrove's own example pipeline, on the same pages in one run.

    pip install -e '.[curate]'
    python -m experiments.curate_speed --config.folder=FOLDER_WITH_PAGES

Each side runs the passes over single pages (reading to the custom filters) as one task in a process of its own, in
turn; medians of the rounds are compared. Then both recipes run on one and on two processes. Expected: docs/curate.md.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) is the folder."""
    config = ConfigDict()
    # WARC, HTML or jsonl files; their pages are put into WARC files, from which every side reads. "" = a made-up web.
    config.folder = arg or ""
    # Pages of the made-up web.
    config.world_pages = 500
    # Each side so many times, the sides in turn.
    config.rounds = 3
    # Where the hashed block lists lie.
    config.cache = "~/.cache/jaxllm/curate"
    return config


def sweep() -> list[dict]:
    """The size of the made-up web: start-up weighs less on a larger one."""
    return [{"world_pages": pages} for pages in (500, 2000)]
