"""Writes the made-up world as WARC files with the truth about every page beside them.

    python -m experiments.world_web --workdir=runs/web
"""

from __future__ import annotations

import json
import pathlib
import time

from ml_collections import ConfigDict

from experiments import launch, report
from jaxllm.data.world import make_world
from jaxllm.data.world_web import BLOCKED_DOMAINS, Shares, write_web


def main(config: ConfigDict, workdir: str) -> None:
    """Writes the web into the run folder and prints how many pages of each kind it holds.

    Raises:
      ValueError: a setting is out of range, or the extra `curate` is missing.
      FileExistsError: the folder holds a web already.
    """
    if config.pages < 0:
        raise ValueError(f"config.pages={config.pages}: choose 1 or more, or 0 for the whole world")
    folder = pathlib.Path(workdir)
    started = time.perf_counter()
    try:
        words = package_banned_words() if config.banned_words else ()
        counts = write_web(make_world(config.world_seed, config.world_size), folder, seed=config.seed,
                           pages=config.pages or None, files=config.files,
                           shares=Shares(**config.shares.to_dict()), banned_words=words)
    except ImportError as error:
        raise ValueError(str(error)) from None
    report.write_text(folder / "blocked_domains.txt", "\n".join(BLOCKED_DOMAINS) + "\n")
    report.write_text(folder / "web.json", json.dumps({"config": config.to_dict(), "pages": counts}, indent=2) + "\n")
    for kind, number in counts.items():
        print(f"{kind:16}{number:6}")
    print(f"{sum(counts.values())} pages in {time.perf_counter() - started:.1f} s: {folder}")


def package_banned_words() -> tuple[str, ...]:
    """Returns the words that alone make datatrove's URL filter drop a page, from the list in its package.

    Raises:
      ImportError: when datatrove is missing; names the extra to install.
    """
    try:
        from datatrove.utils._import_utils import ASSETS_PATH
    except ImportError:
        raise ImportError("config.banned_words needs datatrove: pip install -e '.[curate]'") from None
    lines = pathlib.Path(ASSETS_PATH, "banned_words.txt").read_text(encoding="utf-8").splitlines()
    return tuple(sorted(word for word in (line.strip() for line in lines) if word.isascii() and word.isalpha()))


if __name__ == "__main__":
    launch.run(main, default_config="configs/world_web.py")
