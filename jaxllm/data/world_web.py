"""The made-up world as a small web: pages with planted ground truth, and the same as WARC files.

Half of the pages are articles that hold the documents of the world between menus, banners and comments. The rest is
what a crawl holds besides: near duplicates, spam, tables, stubs, code, other languages, blocked sites, empty pages. Of
each page it is known which text an extractor should find, which stage of curation should drop it, and what personal
data stands in it.

>>> from jaxllm.data.world import make_world
>>> page = next(page for page in pages(make_world(0, "tiny"), count=50) if page.kind == "spam")
>>> page.fate, page.html.startswith(b"<!DOCTYPE")
('gopher_repetition', True)
"""

import contextlib
import dataclasses
import datetime
import io
import json
import os
import pathlib
from collections.abc import Sequence

from jaxllm.data import world_web_pages
from jaxllm.data.world_table import World
from jaxllm.data.world_web_pages import (
    BLOCKED_DOMAINS,
    EDIT_RATES,
    FATES,
    HARDLY,
    KINDS,
    SURELY,
    Page,
    Shares,
    edited,
    jaccard,
    pages,
)

__all__ = ("BLOCKED_DOMAINS", "EDIT_RATES", "FATES", "HARDLY", "KINDS", "SURELY", "Page", "Shares", "edited", "jaccard",
           "pages", "write_web")


def write_web(world: World, folder: str | os.PathLike, *, seed: int = 0, pages: int | None = 2000, files: int = 4,
              shares: Shares = Shares(), banned_words: Sequence[str] = ()) -> dict[str, int]:
    """Writes a web as WARC files, in the manner of Common Crawl, with its truth beside them.

    `crawl-00000.warc.gz`, ... hold one response record a page, each a gzip member of its own; `truth.jsonl` holds a
    line a page: every field of Page but `html`, with `record_id` (the record's WARC-Record-ID) and `file`. The bytes
    depend on the arguments alone (and on the zlib that compresses).

    Args:
      world, seed, shares, banned_words: see `pages`.
      folder: made where it is missing.
      pages: number of pages, or None for as many as tell the whole world.
      files: number of WARC files; page i stands in file i % files.

    Returns:
      dict: kind -> number of pages.

    Raises:
      ValueError: fewer than one file, or a negative number of pages.
      ImportError: when warcio is missing; names the extra to install.
      FileExistsError: when the folder holds a web already.
    """
    try:
        from warcio.statusandheaders import StatusAndHeaders
        from warcio.warcwriter import WARCWriter
    except ImportError:
        raise ImportError("writing WARC files needs warcio: pip install -e '.[curate]'") from None
    if files < 1:
        raise ValueError(f"files={files}: choose 1 or more")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"crawl-{i:05}.warc.gz" for i in range(files)]
    held = sorted(path.name for path in folder.glob("crawl-*.warc.gz")) or [
        name for name in ("truth.jsonl",) if (folder / name).exists()]
    if held:
        raise FileExistsError(f"{folder} holds a web already ({held[0]}): remove it or choose another folder")
    counts = dict.fromkeys(KINDS, 0)
    with _all_or_nothing([folder / name for name in (*names, "truth.jsonl")]) as (*crawls, truth):
        writers = [WARCWriter(crawl, gzip=True) for crawl in crawls]
        for i, page in enumerate(world_web_pages.pages(world, seed, pages, shares=shares, banned_words=banned_words)):
            http = StatusAndHeaders("200 OK", [
                ("Content-Type", f"text/html; charset={page.charset}"), ("Content-Length", str(len(page.html))),
                ("Server", "world")], protocol="HTTP/1.1")
            writers[i % files].write_record(writers[i % files].create_warc_record(
                page.url, "response", payload=io.BytesIO(page.html), length=len(page.html), http_headers=http,
                warc_headers_dict={"WARC-Record-ID": page.record_id, "WARC-Date": _date(i),
                                   "WARC-Identified-Payload-Type": "text/html"}))
            line = {"record_id": page.record_id, "file": names[i % files]} | {
                field.name: getattr(page, field.name) for field in dataclasses.fields(page) if field.name != "html"}
            truth.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            counts[page.kind] += 1
    return counts


def _date(index: int) -> str:
    """A second later for each page from the first of January 2026 on: nothing depends on the clock."""
    return (datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=index)).isoformat() + "Z"


@contextlib.contextmanager
def _all_or_nothing(paths: Sequence[pathlib.Path]):
    """Binary files under temporary names, renamed when all is written and removed when something fails."""
    temporary = [path.with_name(path.name + ".tmp") for path in paths]
    try:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(open(path, "wb")) for path in temporary]
        for path, final in zip(temporary, paths, strict=True):
            os.replace(path, final)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
