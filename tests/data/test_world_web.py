"""The made-up web, checked from outside: by readers and filters that are not ours, and by searching its text."""

import collections
import dataclasses
import hashlib
import html
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxllm.data import world_words
from jaxllm.data.world import documents, make_world
from jaxllm.data.world_web import BLOCKED_DOMAINS, FATES, KINDS, Shares, jaccard, pages, write_web
from jaxllm.data.world_web_articles import ASIDES
from jaxllm.data.world_web_html import slug

EXTRA = "needs the extra `curate`"
COUNT = 400


@pytest.fixture(scope="module")
def tiny():
    return make_world(seed=0, size="tiny")


@pytest.fixture(scope="module")
def web(tiny):
    return list(pages(tiny, count=COUNT))


def test_the_same_arguments_give_the_same_pages_in_another_process(web):
    digest = hashlib.sha256(b"".join(page.html + repr(page).encode() for page in web[:60])).hexdigest()
    code = ("import hashlib\nfrom jaxllm.data.world import make_world\nfrom jaxllm.data.world_web import pages\n"
            "some = list(pages(make_world(0, 'tiny'), count=60))\n"
            "print(hashlib.sha256(b''.join(page.html + repr(page).encode() for page in some)).hexdigest())")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env=os.environ | {"PYTHONHASHSEED": "77"})
    assert out.stdout.strip() == digest
    other = list(pages(make_world(0, "tiny"), seed=1, count=60))
    assert not {page.html for page in other} & {page.html for page in web}


def test_every_kind_is_there_in_its_share(web):
    counts = collections.Counter(page.kind for page in web)
    assert set(counts) == set(KINDS)
    for kind, share in dataclasses.asdict(Shares()).items():
        assert abs(counts[kind] - share * COUNT) <= 0.02 * COUNT, kind
    assert {page.fate for page in web} <= set(FATES)
    assert {"utf-8", "iso-8859-1", "shift_jis"} == {page.charset for page in web}
    assert len({page.url for page in web}) == len({page.record_id for page in web}) == COUNT
    only = list(pages(make_world(0, "tiny"), count=30, shares=Shares(**dict.fromkeys(KINDS, 0.0) | {"stub": 1.0})))
    assert {page.kind for page in only} == {"stub"}


def test_text_stands_in_the_html_and_the_furniture_does_not_stand_in_the_text(web):
    for page in web:
        bare = html.unescape(re.sub(r"<[^>]+>", "\n", page.html.decode(page.charset)))
        words = collections.Counter(bare.split())
        missing = collections.Counter(word for word in page.text.replace(" | ", " ").split()) - words
        assert not missing, (page.url, missing)
        assert "cookie" not in page.text.lower() and "All rights reserved" not in page.text
        assert len(words) > len(set(page.text.split())) + 10


def test_a_whole_web_tells_every_document_once(tiny):
    """Every run of six words of the documents stands in the articles, as often as there or oftener."""
    def runs(texts):
        split = [re.findall(r"\w+", text) for text in texts]
        return collections.Counter(tuple(words[i:i + 6]) for words in split for i in range(len(words) - 5))

    shares = Shares(**dict.fromkeys(KINDS, 0.0) | {"article": 1.0})
    told = [page.text for page in pages(tiny, count=None, shares=shares)]
    told_runs = runs(told)
    wanted = runs(part for page in documents(tiny) for part in page.text.split("\n\n"))
    short = {run for run, count in wanted.items() if told_runs[run] < count}
    assert not short, f"{len(short)} runs of words, as {sorted(short)[:3]}"
    once = tiny.select(band="once", kind="thing", attribute="year")
    assert all(sum(fact.entity.name in text and fact.value in text for text in told) >= 1 for fact in once)
    with_two = pages(tiny, count=len(told) + 5, shares=shares)  # then a second turn begins
    assert sum(1 for _ in with_two) == len(told) + 5


def test_words_of_the_site_hold_no_value_of_a_fact():
    values = {value for table in world_words.VALUES.values() for group in table.values() for value in group}
    told = {word for text in ASIDES for word in re.findall(r"\w+", text)} & values
    assert not told


def test_near_duplicates_cover_the_range_of_jaccard(web):
    def grams(text):
        words = re.sub(r"[^\w\s]", " ", text.lower()).split()
        return {" ".join(words[i:i + 5]) for i in range(len(words) - 4)}

    groups = collections.defaultdict(list)
    for page in web:
        if page.group:
            groups[page.group].append(page)
    copies = []
    for first, *rest in groups.values():
        assert (first.kind, first.fate, first.jaccard) == ("article", "keep", 1.0)
        for page in rest:
            one, two = grams(first.text), grams(page.text)
            assert page.jaccard == pytest.approx(len(one & two) / len(one | two), abs=0.02)
            assert page.kind == "near_duplicate" and (page.edit_rate > 0 or page.text == first.text)
            copies.append(page)
    found = [page.jaccard for page in copies]
    assert len(copies) > 30
    for low in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        assert any(low <= value <= low + 0.1 for value in found), low
    assert {page.fate for page in copies} == {"minhash", "either", "keep"}
    assert all((page.fate == "minhash") == (page.jaccard >= 0.85) for page in copies)


def test_unrelated_articles_are_far_apart(web):
    texts = [page.text for page in web if page.fate == "keep" and page.kind in ("article", "pii")][:90]
    apart = [jaccard(one, two) for one, two in itertools.combinations(texts, 2)]
    assert max(apart) < 0.35, "MinHash would take these for duplicates"


def test_personal_data_is_planted_and_decoys_are_told_apart(web):
    planted = [page for page in web if page.pii]
    assert {kind for page in planted for kind, _ in page.pii} == {"email", "ip", "phone"}
    assert {kind for page in planted for kind, _ in page.decoys} == {"private_ip", "version"}
    for page in web:
        assert (page.kind == "pii") == bool(page.pii)
        assert all(value in page.text for _, value in page.pii + page.decoys)
        if not page.pii:
            assert "@" not in page.text


def test_blocked_pages_stand_on_blocked_hosts_or_bear_a_banned_word(tiny):
    shares = Shares(**dict.fromkeys(KINDS, 0.0) | {"blocked": 1.0})
    for page in pages(tiny, count=40, shares=shares):
        assert page.url.split("/")[2] in BLOCKED_DOMAINS
    found = {page.url.split("/")[3] == "zzbannedzz"
             for page in pages(tiny, count=40, shares=shares, banned_words=("zzbannedzz",))
             if page.url.split("/")[2] not in BLOCKED_DOMAINS}
    assert found == {True}


def test_bad_arguments_say_what_to_change(tiny, tmp_path):
    with pytest.raises(ValueError, match="0 or more"):
        next(pages(tiny, count=-1))
    with pytest.raises(ValueError, match="not all 0"):
        Shares(**dict.fromkeys(KINDS, 0.0))
    with pytest.raises(ValueError, match="wants one of article"):
        Shares(article=0.0)
    pytest.importorskip("warcio", reason=EXTRA)
    with pytest.raises(ValueError, match="1 or more"):
        write_web(tiny, tmp_path, files=0)


def test_without_the_extra_the_error_names_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "warcio.warcwriter", None)
    monkeypatch.setitem(sys.modules, "warcio.statusandheaders", None)
    with pytest.raises(ImportError, match=re.escape("pip install -e '.[curate]'")):
        write_web(tiny, tmp_path / "web", pages=3)
    assert not (tmp_path / "web").exists()


def test_warc_and_truth_agree_and_are_the_same_bytes_twice(tiny, tmp_path):
    archive = pytest.importorskip("warcio.archiveiterator", reason=EXTRA)
    one, two = tmp_path / "one", tmp_path / "two"
    counts = write_web(tiny, one, pages=60, files=3)
    write_web(tiny, two, pages=60, files=3)
    names = sorted(path.name for path in one.iterdir())
    assert names == ["crawl-00000.warc.gz", "crawl-00001.warc.gz", "crawl-00002.warc.gz", "truth.jsonl"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    truth = [json.loads(line) for line in (one / "truth.jsonl").read_text(encoding="utf-8").splitlines()]
    assert collections.Counter(line["kind"] for line in truth) == {kind: n for kind, n in counts.items() if n}
    expected = {page.record_id: page for page in pages(tiny, count=60)}
    read = {}
    for path in sorted(one.glob("*.warc.gz")):
        assert path.read_bytes().count(b"\x1f\x8b\x08\x00\x00\x00\x00\x00") >= 20, "a gzip member a record"
        with open(path, "rb") as file:
            for record in archive.ArchiveIterator(file, check_digests="raise"):
                head = record.rec_headers
                read[head["WARC-Record-ID"]] = (path.name, head["WARC-Target-URI"], record.content_stream().read())
                assert (record.rec_type, record.http_headers.get_statuscode()) == ("response", "200")
                assert head["WARC-Identified-Payload-Type"] == "text/html"
                assert re.fullmatch(r"2026-01-01T00:\d\d:\d\dZ", head["WARC-Date"])
    assert len(truth) == len(read) == 60
    for line in truth:
        page = expected[line["record_id"]]
        assert read[line["record_id"]] == (line["file"], line["url"], page.html)
        assert (line["text"], line["fate"], line["charset"]) == (page.text, page.fate, page.charset)
        assert tuple(map(tuple, line["pii"])) == page.pii
    with pytest.raises(FileExistsError, match="holds a web already"):
        write_web(tiny, one, pages=3)


def test_a_failure_leaves_no_file(tiny, tmp_path, monkeypatch):
    pytest.importorskip("warcio", reason=EXTRA)
    from jaxllm.data import world_web_pages

    def breaks(*args, **kwargs):
        yield next(pages(tiny, count=1))
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(world_web_pages, "pages", breaks)
    with pytest.raises(RuntimeError):
        write_web(tiny, tmp_path, pages=3)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_web(tmp_path):
    pytest.importorskip("warcio", reason=EXTRA)
    from configs.world_web import get_config, sweep
    from experiments.world_web import main

    config = get_config("tiny")
    config.pages, config.files = 20, 2
    main(config, str(tmp_path))
    assert (tmp_path / "blocked_domains.txt").read_text().split() == list(BLOCKED_DOMAINS)
    assert sum(json.loads((tmp_path / "web.json").read_text())["pages"].values()) == 20
    assert len((tmp_path / "truth.jsonl").read_text(encoding="utf-8").splitlines()) == 20
    assert [entry["files"] for entry in sweep()] == [1, 4, 16]
    config.pages = -1
    with pytest.raises(ValueError, match="for the whole world"):
        main(config, str(tmp_path / "other"))


def test_the_real_filters_do_what_the_truth_says(web):
    """Trafilatura, then the filters of datatrove: clean pages survive, and trash falls at its stage."""
    pytest.importorskip("datatrove", reason=EXTRA)
    pytest.importorskip("spacy", reason=EXTRA)
    trafilatura = pytest.importorskip("trafilatura", reason=EXTRA)
    from datatrove.data import Document
    from datatrove.pipeline import filters

    stages = {"gopher_repetition": filters.GopherRepetitionFilter(), "gopher_quality": filters.GopherQualityFilter(),
              "c4": filters.C4QualityFilter(filter_no_terminal_punct=False),
              "fineweb": filters.FineWebQualityFilter()}

    def stage(page):
        text = trafilatura.extract(page.html.decode(page.charset), favor_precision=True, include_comments=False,
                                   deduplicate=False)
        if not text:
            return "extract"
        document = Document(text=text, id=page.url)
        return next((name for name, step in stages.items() if step.filter(document) is not True), "keep")

    table = collections.defaultdict(collections.Counter)
    for page in web[:200]:
        # Other stages drop the foreign and the blocked before these; enough of each kind, for the time it takes.
        if page.kind not in ("foreign", "blocked") and table[page.kind].total() < 12:
            table[page.kind][stage(page)] += 1
    fates = {page.kind: page.fate for page in web}
    for kind, counts in table.items():
        fate = "keep" if kind in ("article", "pii", "near_duplicate") else fates[kind]
        share = counts[fate] / counts.total()
        assert share >= (0.9 if fate == "keep" else 0.75), (kind, counts)


def test_slug_is_fit_for_an_address():
    assert slug("The old mill, part 7!") == "the-old-mill-part-7" and slug("日本") == "page"
    assert pathlib.PurePosixPath(slug("x" * 200)).name == "x" * 60
