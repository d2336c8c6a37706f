"""A damaged record costs itself and is counted; the records after it are read."""

import gzip
import io
import zlib

import pytest

pytest.importorskip("warcio", reason="needs the extra `curate`")

from jaxllm.data.curate.warc import records  # noqa: E402

LIMIT = 100_000


def record(i, body=None, kind="response", encoding=None):
    body = f"<html><p>page {i}</p></html>".encode() if body is None else body
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    if encoding:
        http += b"Content-Encoding: " + encoding + b"\r\n"
    payload = http + b"\r\n" + body if kind == "response" else body
    head = (f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.example/{i}\r\n"
            f"WARC-Record-ID: <urn:{i}>\r\nContent-Length: {len(payload)}\r\n\r\n").encode()
    return head + payload + b"\r\n\r\n"


def read(data):
    return [(r.headers.get("warc-record-id", "")[5:-1], r.problem, len(r.content))
            for r in records(io.BytesIO(data), LIMIT)]


def size(i):
    return len(f"<html><p>page {i}</p></html>")


def test_one_member_a_record_and_one_for_all_and_none():
    parts = [record(i) for i in range(5)]
    wanted = [(str(i), "", size(i)) for i in range(5)]
    assert read(b"".join(map(gzip.compress, parts))) == wanted
    assert read(gzip.compress(b"".join(parts))) == wanted
    assert read(b"".join(parts)) == wanted


@pytest.mark.parametrize("cut", [1, 12, 60, 150])
def test_member_cut_short_in_the_middle_of_the_file(cut):
    parts = [gzip.compress(record(i)) for i in range(4)]
    parts[1] = parts[1][:-cut]
    got = read(b"".join(parts))
    assert [row for row in got if not row[1]] == [("0", "", size(0)), ("2", "", size(2)), ("3", "", size(3))]
    assert len([row for row in got if row[1]]) == 1


def test_file_cut_short_at_its_end():
    data = b"".join(gzip.compress(record(i)) for i in range(3))
    got = read(data[:-20])
    assert got[:2] == [("0", "", size(0)), ("1", "", size(1))] and [row[1] for row in got[2:]] == ["truncated"]


def test_wrong_bytes_and_a_false_beginning_inside():
    body = b"<html>" + b"\x1f\x8b\x08 no member " * 50 + b"</html>"
    # Stored blocks keep the false beginnings as they are.
    packer = zlib.compressobj(0, zlib.DEFLATED, 31)
    stored = bytearray(packer.compress(record(1, body)) + packer.flush())
    whole = gzip.compress(record(0)) + bytes(stored) + gzip.compress(record(2))
    assert read(whole) == [("0", "", size(0)), ("1", "", len(body)), ("2", "", size(2))]
    stored[-6] ^= 255  # its checksum
    assert [row[1:] for row in read(gzip.compress(record(0)) + bytes(stored) + gzip.compress(record(2)))] == [
        ("", size(0)), ("damaged", 0), ("", size(2))]


def test_large_pages_are_never_held(monkeypatch):
    bomb = gzip.compress(b"a" * (LIMIT * 50))
    assert len(bomb) < LIMIT
    data = b"".join(gzip.compress(part) for part in (
        record(0), record(1, b"x" * (LIMIT + 1)), record(2, bomb, encoding=b"gzip"), record(3)))
    assert read(data) == [("0", "", size(0)), ("1", "too_large", 0), ("2", "too_large", 0), ("3", "", size(3))]


def test_text_records_of_wet_and_rubbish():
    assert read(gzip.compress(record(7, b"Some text.", kind="conversion"))) == [("7", "", 10)]
    assert read(b"") == []
    assert all(problem for _, problem, _ in read(b"this is not a crawl" * 100))
    assert [row[1] for row in read(gzip.compress(b"this is not a crawl" * 100))] == ["damaged"]
    assert read(gzip.compress(record(1)) + bytes(1000)) == [("1", "", size(1))]
