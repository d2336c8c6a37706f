"""The first step of a curation: WARC, WET, HTML and jsonl files -> pages, as datatrove's documents."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import cchardet
from datatrove.data import Document
from datatrove.io import DataFolder, get_datafolder
from datatrove.pipeline.readers.base import BaseDiskReader

from jaxllm.data.curate.recipe import Read
from jaxllm.data.curate.warc import Record, records

HTML_TYPES = ("text/html", "application/xhtml+xml")
SUFFIXES = (".warc", ".wet", ".html", ".htm", ".xhtml", ".jsonl")
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{2,40})""", re.I)
_CANONICAL = re.compile(r"""<link[^>]{0,200}?rel=["']canonical["'][^>]{0,200}?href=["']([^"'\s]{1,2000})["']""", re.I)


class Pages(BaseDiskReader):
    """Reads this task's files and yields pages; `metadata["is_text"]` marks those that need no extraction.

    Files: .warc(.gz), .wet(.gz) (or .warc.wet.gz), .html(.gz), .jsonl(.gz) with a field "html" or "text". Only HTTP
    responses with status 200 and HTML in them are pages; where a crawler wrote no WARC-Identified-Payload-Type, the
    response's own Content-Type counts, and where that is missing too, how the content begins.

    Args:
      data_folder: folder, or URL that fsspec understands (s3://bucket/..., https://host).
      settings: the recipe's `read`.
      paths_file: file with one path per line under the folder; needed for https, where nothing can be listed.
      glob_pattern: which files under the folder; None for all of a known kind.
      limit: at most so many pages per task; -1 for all.

    Statistics: `page`, and `lost_<reason>` for each page that is not passed on (too_large, truncated, damaged, status,
    type, undecodable, empty).
    """

    name = "pages"

    def __init__(self, data_folder: str, settings: Read, paths_file: str | None = None,
                 glob_pattern: str | None = None, limit: int = -1) -> None:
        super().__init__(data_folder, paths_file=paths_file or None, glob_pattern=glob_pattern or None, limit=limit)
        self.settings = settings

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Pages of this task's share of the files."""
        files = page_files(self.data_folder, self.paths_file or "", self.glob_pattern or "")
        for document in self.read_files_shard(files[rank::world_size]):
            self.update_doc_stats(document)
            yield document

    def read_file(self, filepath: str) -> Iterator[Document]:
        """Pages of one file."""
        suffix = kind_of(filepath)
        with self.data_folder.open(filepath, "rb") as stream:
            if suffix in (".warc", ".wet"):
                found = self._of_records(stream, filepath)
            else:
                plain = gzip.open(stream) if filepath.endswith(".gz") else stream
                found = self._of_lines(plain, filepath) if suffix == ".jsonl" else self._of_html(plain, filepath)
            while True:
                with self.track_time():
                    document = next(found, None)
                if document is None:
                    return
                self.stat_update("page")
                self.stat_update("bytes", value=document.metadata.pop("_bytes"))
                yield document

    def _of_records(self, stream, filepath: str) -> Iterator[Document]:
        for i, record in enumerate(records(stream, self.settings.max_page_bytes)):
            if lost := record.problem or why_no_page(record):
                self.stat_update(f"lost_{lost}")
                continue
            declared = record.http.get("content-type", "")
            metadata = {"url": _url(record.headers.get("warc-target-uri", "")),
                        "date": record.headers.get("warc-date", "")}
            yield from self._page(record.content, declared, record.headers.get("warc-record-id") or f"{filepath}/{i}",
                                  metadata, record.kind == "conversion")

    def _of_html(self, stream, filepath: str) -> Iterator[Document]:
        content = self._bounded(stream)
        if content is not None:
            yield from self._page(content, "", filepath, {"url": ""}, False)

    def _of_lines(self, stream, filepath: str) -> Iterator[Document]:
        """A line that is cut short or no object is counted and passed over, as a damaged record is."""
        for number, line in enumerate(io.BufferedReader(stream), 1):
            try:
                row = json.loads(line)
                is_text = "html" not in row
                text = row["text" if is_text else "html"]
                if not isinstance(text, str):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                self.stat_update("lost_damaged")
                continue
            if len(line) > self.settings.max_page_bytes:
                self.stat_update("lost_too_large")
                continue
            metadata = dict(row.get("metadata") or {})
            metadata["url"] = str(row.get("url") or metadata.get("url") or "")
            yield from self._document(text, str(row.get("id") or f"{filepath}:{number}"), metadata, is_text, len(line))

    def _bounded(self, stream) -> bytes | None:
        try:
            content = stream.read(self.settings.max_page_bytes + 1)
        except (OSError, EOFError):
            self.stat_update("lost_truncated")
            return None
        if len(content) > self.settings.max_page_bytes:
            self.stat_update("lost_too_large")
            return None
        return content

    def _page(self, content: bytes, content_type: str, id_: str, metadata: dict[str, Any],
              is_text: bool) -> Iterator[Document]:
        text = decode(content, content_type)
        if text is None:
            self.stat_update("lost_undecodable")
            return
        if not metadata["url"] and not is_text and (canonical := _CANONICAL.search(text)):
            metadata["url"] = canonical[1]
        yield from self._document(text, id_, metadata, is_text, len(content))

    def _document(self, text: str, id_: str, metadata: dict[str, Any], is_text: bool,
                  size: int) -> Iterator[Document]:
        if not text.strip():
            self.stat_update("lost_empty")
            return
        yield Document(text=text, id=id_, metadata=metadata | {"is_text": is_text, "_bytes": size})


def page_files(folder: str | DataFolder, paths_file: str = "", pattern: str = "") -> list[str]:
    """The files to read, in order: those named, those that match, or all of a kind that can be read.

    Raises:
      FileNotFoundError: there is none. ValueError: one that was asked for is of another kind, or a web server would
        have to be asked what it has.
    """
    found = get_datafolder(folder)
    if paths_file:
        head, tail = os.path.split(paths_file)
        with get_datafolder(head or ".").open(tail, "rt", compression="infer") as file:
            files = [line.strip() for line in file if line.strip()]
    elif not found.is_local() and str(folder).startswith("http"):
        raise ValueError(f"{folder}: a web server lists no files; name them in inputs.paths_file, one a line")
    else:
        files = found.list_files(glob_pattern=pattern or None) if found.isdir("") else []
    if paths_file or pattern:
        for file in files:
            kind_of(file)
    else:
        files = [file for file in files if file.removesuffix(".gz").endswith(SUFFIXES)]
    if not files:
        raise FileNotFoundError(f"no input: {paths_file or found.path}{f' with pattern {pattern}' if pattern else ''} "
                                f"has no file of pages ({', '.join(SUFFIXES)}, each also with .gz)")
    return files


def kind_of(path: str) -> str:
    """The suffix that decides how a file is read: ".warc", ".wet", ".html" or ".jsonl".

    Raises:
      ValueError: another suffix.

    >>> kind_of("CC-MAIN-1.warc.wet.gz")
    '.wet'
    """
    stem = path.removesuffix(".gz")
    for suffix in SUFFIXES:
        if stem.endswith(suffix):
            return ".html" if suffix in (".htm", ".xhtml") else suffix
    raise ValueError(f"{path}: unknown kind of file; pages are read from {', '.join(SUFFIXES)}, each also with .gz")


def why_no_page(record: Record) -> str:
    """"" for a page, else "status" (not 200) or "type" (not HTML, not text)."""
    if record.kind == "conversion":
        return "" if record.headers.get("content-type", "text/plain").startswith("text/plain") else "type"
    if record.http.get(":status") != "200":
        return "status"
    declared = (record.headers.get("warc-identified-payload-type")
                or record.http.get("content-type", "").partition(";")[0]).strip().lower()
    if declared:
        return "" if declared in HTML_TYPES else "type"
    start = record.content[:1024].lstrip().lower()
    return "" if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start else "type"


def decode(content: bytes, content_type: str = "") -> str | None:
    """Bytes of a page as text: UTF-8 if they are, else as declared (header, then meta), else as detected.

    >>> decode("Gr\u00fc\u00dfe".encode("latin-1"), "text/html; charset=ISO-8859-1")
    'Gr\u00fc\u00dfe'
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    declared = content_type.lower().partition("charset=")[2].split(";")[0].strip(" \"'")
    in_page = _CHARSET.search(content[:4096])
    for charset in (declared, in_page[1].decode("ascii", "replace") if in_page else "", None):
        if charset is None:
            charset = cchardet.detect(content)["encoding"]
        if not charset or charset.lower().replace("-", "") in ("utf8", "none"):
            continue
        try:
            # The web's "latin-1" is Windows' code page, as browsers read it (WHATWG Encoding, section 4.2).
            return content.decode("cp1252" if charset.lower() in ("iso-8859-1", "latin1", "ascii") else charset)
        except (UnicodeDecodeError, LookupError):
            continue
    return None


def _url(uri: str) -> str:
    return uri.strip("<>")
