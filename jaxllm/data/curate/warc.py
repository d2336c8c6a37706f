"""WARC and WET records out of files that may be damaged: a bad record costs itself, never the file.

Crawls are compressed record by record, each a gzip member. A member that is cut short, or whose bytes are wrong, is
passed over by looking for the next one that begins a record.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

_MAGIC = b"\x1f\x8b\x08"
_BEGINNING = b"WARC/"
_CHUNK = 1 << 16
# Compressed bytes of a member that are kept to look for the next one in, when this one turns out to be damaged.
_KEEP = 1 << 26


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of interest.

    Attributes:
      kind: "response" (HTTP) or "conversion" (text, as in WET); "" when nothing could be read.
      headers: of the record, names in lower case.
      http: headers of the HTTP response, names in lower case, and ":status".
      content: the payload, without transfer and content encodings.
      problem: why there is no content: "truncated", "damaged" or "too_large"; else "".
    """

    kind: str
    headers: dict[str, str]
    http: dict[str, str]
    content: bytes
    problem: str = ""


_NOTHING = Record("", {}, {}, b"")


def records(stream: BinaryIO, max_bytes: int) -> Iterator[Record]:
    """Response and conversion records of a WARC or WET file, compressed or not.

    Args:
      stream: the file, opened in binary; read once, front to back.
      max_bytes: a payload larger than this is not held in memory and comes as "too_large".
    """
    start = stream.read(len(_BEGINNING))
    if start == _BEGINNING:
        yield from _parse(_Joined(start, stream), max_bytes)
        return
    if start and not start.startswith(_MAGIC):
        yield dataclasses.replace(_NOTHING, problem="damaged")
        return
    members = _Members(start, stream)
    while members.next():
        if members.skipped:
            yield dataclasses.replace(_NOTHING, problem="damaged")
        last = None
        for record in _parse(members, max_bytes):
            if last is not None:
                yield last
            last = record
        members.drain()
        # Only the end of a member tells whether its bytes were whole, so its last record waits for it.
        if members.damaged and (last is None or not last.problem):
            last = dataclasses.replace(last or _NOTHING, content=b"", problem=members.damaged)
        if last is not None:
            yield last
    if members.skipped:
        yield dataclasses.replace(_NOTHING, problem="damaged")


def _parse(stream, max_bytes: int) -> Iterator[Record]:
    """Records of one stretch of decompressed bytes."""
    try:
        for record in ArchiveIterator(stream):
            if record.rec_type in ("response", "conversion"):
                yield _read(record, max_bytes)
    except (ArchiveLoadFailed, EOFError, ValueError, zlib.error):
        # warcio has many ways to say that these bytes are no record; which one does not matter to the next.
        yield dataclasses.replace(_NOTHING, problem="damaged")


def _read(record, max_bytes: int) -> Record:
    headers = {name.lower(): value for name, value in record.rec_headers.headers}
    http = {}
    if record.http_headers is not None:
        http = {name.lower(): value for name, value in record.http_headers.headers}
        http[":status"] = record.http_headers.get_statuscode()
    kept = Record(record.rec_type, headers, http, b"")
    if int(headers.get("content-length") or 0) > max_bytes:
        return dataclasses.replace(kept, problem="too_large")
    try:
        # A small record may unpack to a large page: never more than one byte beyond the limit is read.
        content = record.content_stream().read(max_bytes + 1)
    except (zlib.error, EOFError, ValueError):
        return dataclasses.replace(kept, problem="damaged")
    if len(content) > max_bytes:
        return dataclasses.replace(kept, problem="too_large")
    if record.raw_stream.limit > 0:  # bytes that the record's Content-Length promised
        return dataclasses.replace(kept, problem="truncated")
    return dataclasses.replace(kept, content=content)


class _Joined(io.RawIOBase):
    """The first bytes again in front of the rest."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start, self._stream = start, stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._start:
            head, self._start = self._start, b""
            return head
        return self._stream.read(size)


class _Members(io.RawIOBase):
    """The gzip members of a stream, each read like a file of its own; `next()` moves on to the next.

    Attributes:
      damaged: "truncated" (the file ends in it) or "damaged" when this member ended badly, else "".
      skipped: where this member was looked for, something else came first.
    """

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._raw, self._stream = bytearray(start), stream  # compressed bytes not yet used up
        self._seen = bytearray()  # those of this member that have been
        self._inflate = None
        self.damaged, self.skipped = "", False

    def readable(self) -> bool:
        return True

    def next(self) -> bool:
        """Finds the start of the next member."""
        clean = not self.damaged  # else what follows is the rest of the bad member
        self._seen, self.damaged, self.skipped = bytearray(), "", False
        while True:
            found = self._raw.find(_MAGIC)
            if found >= 0 and self._begins_record(found):
                self._pass_over(found, clean)
                self._inflate = zlib.decompressobj(31)
                return True
            # After the last place looked at; the last two bytes may be the start of a beginning.
            self._pass_over(found + 1 if found >= 0 else max(len(self._raw) - 2, 0), clean)
            if found < 0 and not self._fill():
                self._pass_over(len(self._raw), clean)
                return False

    def _pass_over(self, count: int, clean: bool) -> None:
        self.skipped |= clean and any(self._raw[:count])  # files may be padded with zeros
        del self._raw[:count]

    def _begins_record(self, at: int) -> bool:
        """Whether the bytes there unpack to what a record begins with; chance gives three magic bytes now and then."""
        while len(self._raw) - at < 1024 and self._fill():
            pass
        try:
            return zlib.decompressobj(31).decompress(bytes(self._raw[at:at + 1024]), 5) == _BEGINNING
        except zlib.error:
            return False

    def read(self, size: int = -1) -> bytes:
        """Up to `size` decompressed bytes of this member; b"" at its end, good or bad."""
        want = _CHUNK if size is None or size < 0 else min(size, _CHUNK)
        while self._inflate is not None:
            data = self._inflate.unconsumed_tail or bytes(self._take())
            if not data and not self._inflate.unconsumed_tail:
                self._end_badly("truncated")
                return b""
            try:
                out = self._inflate.decompress(data, want)
            except zlib.error:
                self._end_badly("damaged")
                return b""
            if self._inflate.eof:
                self._raw[:0] = self._inflate.unused_data
                self._inflate = None
            if out:
                return out
        return b""

    def drain(self) -> None:
        """Reads on to the end of this member."""
        while self.read():
            pass

    def _take(self) -> bytearray:
        if not self._raw and not self._fill():
            return bytearray()
        data, self._raw = self._raw, bytearray()
        if len(self._seen) + len(data) <= _KEEP:
            self._seen += data
        return data

    def _end_badly(self, how: str) -> None:
        """Gives back what followed this member's first byte: the next member may have begun in it."""
        self.damaged = how
        self._inflate = None
        self._raw[:0] = self._seen[1:]
        self._seen = bytearray()

    def _fill(self) -> bool:
        data = self._stream.read(_CHUNK)
        self._raw += data
        return bool(data)
