"""Writes the made-up world as a small web: WARC files to curate, and the truth about every page.

    python -m experiments.world_web --workdir=runs/web

Needs the extra `curate` (pip install -e '.[curate]'). Under a minute on one CPU core. Written:

    runs/web/crawl-00000.warc.gz ...   one response record a page
    runs/web/truth.jsonl               a line a page: url, text to extract, kind, fate, group, personal data
    runs/web/blocked_domains.txt       hosts for the URL filter's own list
    runs/web/web.json                  the arguments and the number of pages of each kind

The same config writes the same bytes. Expected: 2,000 pages in 4 files, 49% of them articles.
"""

import dataclasses

from ml_collections import ConfigDict

from jaxllm.data.world_web import Shares


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the world's size."""
    config = ConfigDict()
    # The world whose documents the articles hold: its seed and its size, "tiny", "small" or "large".
    config.world_seed = 0
    config.world_size = arg or "small"
    # Seed of the web: sites, how documents are joined, what else there is.
    config.seed = 0
    # Number of pages; 0 writes as many as it takes to tell every document of the world.
    config.pages = 2000
    # Number of WARC files: the tasks that can curate them side by side.
    config.files = 4
    # Weights of the kinds of page; only their proportions count. See jaxllm.data.world_web.Shares.
    config.shares = ConfigDict(dataclasses.asdict(Shares()))
    # Whether half of the blocked pages bear a word of datatrove's own list of banned words in their address.
    config.banned_words = False
    return config


def sweep() -> list[dict]:
    """Returns sizes of web to compare, for figures of speed."""
    return [{"pages": pages, "files": max(1, pages // 500)} for pages in (500, 2000, 8000)]
