"""Files -> pages: what is a page, how it is decoded, what is counted as lost."""

import gzip
import json
import tarfile

import pytest

pytest.importorskip("datatrove", reason="needs the extra `curate`")

from jaxllm.data.curate.pages import Pages, decode, kind_of, why_no_page  # noqa: E402
from jaxllm.data.curate.recipe import Read  # noqa: E402
from jaxllm.data.curate.warc import Record  # noqa: E402

HTML = "<html><body><p>Some text.</p></body></html>"


def read(folder, **options):
    step = Pages(str(folder), options.pop("settings", Read()), **options)
    documents = list(step.run(None))
    return documents, {key: int(value.total) for key, value in step.stats.stats.items()}


def record(i, content=HTML.encode(), status="200 OK", http="Content-Type: text/html", warc=""):
    payload = f"HTTP/1.1 {status}\r\n{http}\r\n\r\n".encode() + content
    head = (f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/{i}\r\n"
            f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:{i}>\r\n{warc}"
            f"Content-Length: {len(payload)}\r\n\r\n")
    return gzip.compress(head.encode() + payload + b"\r\n\r\n")


def test_warc_pages_and_losses(tmp_path):
    latin = "<html><head><meta charset='iso-8859-1'></head><p>Gr\u00fc\u00dfe \u2013 caf\u00e9</p></html>"
    (tmp_path / "a.warc.gz").write_bytes(b"".join((
        record(0), record(1, status="404 Not Found"), record(2, http="Content-Type: application/pdf"),
        record(3, content=latin.encode("cp1252"), http="X: y"),
        record(4, http="Content-Type: text/xml", warc="WARC-Identified-Payload-Type: application/xhtml+xml\r\n"),
        record(5, content=b"x" * 5000), record(6)[:-9], record(7, content=b"  ", http="Content-Type: text/html"))))
    documents, stats = read(tmp_path, settings=Read(max_page_bytes=4000))
    assert [d.metadata["url"][-1] for d in documents] == ["0", "3", "4"]
    assert "Gr\u00fc\u00dfe \u2013 caf\u00e9" in documents[1].text
    assert {k: v for k, v in stats.items() if k.startswith("lost_")} == {
        "lost_status": 1, "lost_type": 1, "lost_too_large": 1, "lost_damaged": 1, "lost_empty": 1}
    assert documents[0].id == "<urn:0>" and documents[0].metadata["is_text"] is False
    assert documents[0].metadata["date"] == "2024-01-01T00:00:00Z"


def test_every_kind_of_file(tmp_path):
    (tmp_path / "b.html").write_text(HTML.replace("<body>", "<link rel='canonical' href='http://b.example/x'>"))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(
        [json.dumps({"text": "Plain.", "url": "http://c.example", "id": "7"}), json.dumps({"html": HTML}),
         '{"text": "cut', json.dumps({"other": 1})]).encode()))
    wet = (b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://w.example\r\nContent-Type: text/plain\r\n"
           b"WARC-Record-ID: <urn:w>\r\nContent-Length: 5\r\n\r\nWords\r\n\r\n")
    (tmp_path / "d.warc.wet.gz").write_bytes(gzip.compress(wet))
    documents, stats = read(tmp_path)
    assert [(d.metadata["url"], d.metadata["is_text"]) for d in documents] == [
        ("http://b.example/x", False), ("http://c.example", True), ("", False), ("http://w.example", True)]
    assert documents[1].id == "7" and documents[3].text == "Words" and stats["lost_damaged"] == 2


def test_tasks_share_the_files_and_https_needs_names(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.warc.gz").write_bytes(record(i))
    step = Pages(str(tmp_path), Read())
    parts = [[d.id for d in step.run(None, rank, 2)] for rank in range(2)]
    assert sorted(sum(parts, [])) == [f"<urn:{i}>" for i in range(5)] and len(parts[0]) == 3
    (tmp_path / "paths.txt").write_text("1.warc.gz\n4.warc.gz\n")
    assert [d.id for d in read(tmp_path, paths_file=str(tmp_path / "paths.txt"))[0]] == ["<urn:1>", "<urn:4>"]


def test_over_http(tmp_path):
    """The same files from a web server, as from data.commoncrawl.org."""
    import functools
    import http.server
    import threading

    (tmp_path / "a.warc.gz").write_bytes(record(0) + record(1))
    (tmp_path / "paths.txt").write_text("a.warc.gz\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        documents, _ = read(f"http://127.0.0.1:{server.server_port}", paths_file=str(tmp_path / "paths.txt"))
    finally:
        server.shutdown()
        server.server_close()
    assert [d.id for d in documents] == ["<urn:0>", "<urn:1>"]


def test_decode():
    assert decode("\ufeffa\u00e9".encode()) == "a\u00e9"
    assert decode("\u65e5\u672c\u8a9e\u306e\u30da\u30fc\u30b8".encode("shift_jis"),
                  "text/html; charset=Shift_JIS") == "\u65e5\u672c\u8a9e\u306e\u30da\u30fc\u30b8"
    long = "\u041e\u043d\u0430 \u043d\u0435 \u0437\u043d\u0430\u043b\u0430, \u0447\u0442\u043e \u0441\u043a\u0430\u0437"
    assert decode((long * 20).encode("cp1251")) == long * 20  # nothing declared: detected
    assert decode("Gr\u00fc\u00dfe".encode("latin-1"), "text/html; charset=no-such-code") is not None


def test_kinds():
    assert why_no_page(Record("response", {}, {":status": "200"}, b"  <!DOCTYPE html><p>")) == ""
    assert why_no_page(Record("response", {}, {":status": "200"}, b"%PDF-1.4")) == "type"
    with pytest.raises(ValueError, match="unknown kind of file"):
        kind_of("a.zip")


def test_same_text_as_datatrove_on_a_real_crawl(tmp_path, real_data):
    from datatrove.pipeline.readers import WarcReader

    pytest.importorskip("magic")
    with tarfile.open(real_data("html/commoncrawl_whirlwind.tar.xz")) as archive:
        data = archive.extractfile("whirlwind.warc.gz").read()
    (tmp_path / "a.warc.gz").write_bytes(data)
    (tmp_path / "b.warc.gz").write_bytes(real_data("html/dolma_sample-0000.warc.gz").read_bytes())
    theirs = {d.id: d.text for d in WarcReader(str(tmp_path)).run(None)}
    ours, _ = read(tmp_path)
    texts = {d.id: d.text for d in ours}
    assert len(theirs) > 10 and {id_: texts.get(id_) for id_ in theirs} == theirs
    # One page says no payload type, begins with white space, and libmagic takes it for plain text.
    assert [texts[id_].lstrip()[:15] for id_ in texts.keys() - theirs.keys()] == ["<!DOCTYPE html>"]
