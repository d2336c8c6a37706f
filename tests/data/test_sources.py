"""Every format that open_source reads, written with other tools, and every way it can be bad."""

import gzip
import json
import lzma
import os
import pathlib
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from jaxllm.data import source_files
from jaxllm.data.document import Document
from jaxllm.data.sources import open_source

RECORDS = [
    {
        "text": "The first page.\nIt has two lines.",
        "id": "a1",
        "metadata": {"lang": "en"},
        "extra": 1,
    },
    {"text": "Zweite Seite: Grüße, 世界 🌍", "id": 7, "url": "https://example.org"},
    {"text": "   "},
    {"text": "The last page."},
]
TEXTS = [RECORDS[0]["text"], RECORDS[1]["text"], RECORDS[3]["text"]]


def _zstd(path, data: bytes):
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)


PACK = {
    "": lambda path, data: path.write_bytes(data),
    ".gz": lambda path, data: path.write_bytes(gzip.compress(data)),
    ".xz": lambda path, data: path.write_bytes(lzma.compress(data)),
    ".zst": _zstd,
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_in_every_packing(tmp_path, suffix, packing):
    lines = suffix == ".jsonl"
    text = "\n".join(map(json.dumps, RECORDS)) + "\n\n" if lines else json.dumps(RECORDS, indent=1)
    path = tmp_path / f"pages{suffix}{packing}"
    PACK[packing](path, text.encode())
    documents = list(open_source(str(path)))
    assert [document.text for document in documents] == TEXTS
    last = "4" if lines else "3"
    assert [document.id for document in documents] == ["a1", "7", f"{path.name}:{last}"]
    assert documents[0].metadata == {"lang": "en"}
    assert documents[1].metadata == {"url": "https://example.org"}


def test_json_of_strings_and_of_lines(tmp_path):
    (tmp_path / "strings.json").write_text(json.dumps(["one", "two"]))
    (tmp_path / "lines.json").write_text('{"text": "three"}\n{"text": "four"}\n')
    source = open_source(str(tmp_path))
    assert [document.text for document in source] == ["three", "four", "one", "two"]
    assert [document.id for document in source] == [
        "lines.json:1",
        "lines.json:2",
        "strings.json:0",
        "strings.json:1",
    ]


def test_a_source_starts_anew(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    source = open_source(str(tmp_path / "a.txt"))
    assert list(source) == list(source) == [Document("one\n\ntwo", "a.txt:1")]


def test_folder_of_txt_is_read_in_order(tmp_path):
    for name in ("b.txt", "a/z.txt", ".hidden/c.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [document.id for document in open_source(str(tmp_path))] == ["a/z.txt:1", "b.txt:1"]


def test_txt_mark_line_ends_and_separator(tmp_path):
    (tmp_path / "a.txt").write_bytes(
        b"\xef\xbb\xbfone\r\nmore\r\n<|endoftext|>\r\n\r\ntwo\n<|endoftext|>\n"
    )
    assert list(open_source(str(tmp_path / "a.txt"))) == [
        Document("one\nmore", "a.txt:1"),
        Document("two", "a.txt:4"),
    ]


def test_large_txt_is_cut_at_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "TXT_CHARS", 100)
    paragraphs = [f"paragraph {n} " + "word " * 12 for n in range(20)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs))
    documents = list(open_source(str(path)))
    assert "\n\n".join(document.text for document in documents) == path.read_text()
    assert len(documents) == 10 and max(len(document.text) for document in documents) < 200
    assert [document.id for document in documents[:2]] == ["book.txt:1", "book.txt:5"]


def test_endless_line_is_read_in_pieces(tmp_path):
    text = (
        "x" + "é世🌍" * 100_000
    )  # no line end; the pieces of 65,536 bytes cut characters of every length
    path = tmp_path / "line.txt"
    path.write_text(text)
    documents = list(open_source(str(path)))
    assert "".join(document.text for document in documents) == text
    limit = 4 * source_files.TXT_CHARS + source_files._CHUNK_BYTES
    assert all(len(document.text) <= limit for document in documents)


def _write_parquet(path, records=RECORDS, **options):
    rows = [
        {
            "text": r["text"],
            "id": str(r.get("id", "")),
            "metadata": {"lang": "en"},
            "vector": [1.0, 2.0],
        }
        for r in records
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def test_parquet_folder_as_a_hugging_face_snapshot(tmp_path):
    (tmp_path / "data").mkdir()
    _write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", row_group_size=1)
    _write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("# A data set")
    documents = list(open_source(str(tmp_path)))
    assert [document.text for document in documents] == TEXTS * 2
    assert documents[2].id == "data/train-00000-of-00002.parquet:3"
    assert documents[0].id == "a1" and documents[0].metadata == {"lang": "en"}
    assert [d.text for d in open_source(str(tmp_path / "data" / "*1-of*.parquet"))] == TEXTS


def test_parquet_reads_the_wanted_columns_only(tmp_path, monkeypatch):
    _write_parquet(tmp_path / "a.parquet")
    asked = []
    whole = pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        "iter_batches",
        lambda self, **kwargs: asked.append(kwargs["columns"]) or whole(self, **kwargs),
    )
    assert len(list(open_source(str(tmp_path / "a.parquet")))) == 3
    assert asked == [["text", "id", "metadata"]]


def test_text_key(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n')
    assert next(iter(open_source(str(tmp_path / "a.jsonl"), text_key="body"))).text == "one"


def test_glob_and_sorted_order(tmp_path):
    for name in ("00001.jsonl.gz", "00000.jsonl.gz"):
        PACK[".gz"](tmp_path / name, json.dumps({"text": name}).encode())
    source = open_source(str(tmp_path / "*.jsonl.gz"))
    assert [document.text for document in source] == ["00000.jsonl.gz", "00001.jsonl.gz"]
    assert [document.id for document in source] == ["00000.jsonl.gz:1", "00001.jsonl.gz:1"]
    assert len(source.files) == 2


def test_world_source():
    documents = list(open_source("world:3:tiny"))
    assert documents[0].id == "world/3/0" and len(documents) > 300


BAD = {
    "empty.txt": (b" \n\n", "the corpus is empty"),
    "empty.jsonl": (b"", "the corpus is empty"),
    "empty.json": (b"[]", "the corpus is empty"),
    "latin.txt": (
        "ok\nfünf\n".encode("latin1"),
        r"latin\.txt, line 2: byte 1 \(0xfc\) is not UTF-8",
    ),
    "cut.txt": ("ok\nfünf".encode()[:-3], r"cut\.txt, line 2: byte 0 \(0xc3\) is not UTF-8"),
    "latin.jsonl": (
        b'{"text": "a"}\n{"text": "\xfc"}\n',
        r"latin\.jsonl, line 2: byte 10 \(0xfc\) is not UTF-8",
    ),
    "latin.json": (b'["\xfc"]', r"latin\.json: byte 2 \(0xfc\) is not UTF-8"),
    "bad.jsonl": (b'{"text": "a"}\n\n{"text": "b"\n', r"bad\.jsonl, line 3: not valid JSON"),
    "deep.jsonl": (b"[" * 200_000 + b"\n", r"deep\.jsonl, line 1: not valid JSON"),
    "bad.json": (b'[\n{"text": "a"},\n{"text" "b"}]', r"bad\.json, line 3: not valid JSON"),
    "number.json": (b"5", "must hold an array"),
    "key.jsonl": (
        b'{"body": "a", "id": 1}\n',
        r"line 1: no field 'text'; the record has 'body', 'id'",
    ),
    "type.jsonl": (b'{"text": ["a"]}\n', "the field 'text' holds list, not text"),
    "null.jsonl": (b'{"text": null}\n', "the field 'text' holds NoneType, not text"),
    "list.jsonl": (b'["a"]\n', "line 1: expected an object"),
    "pair.jsonl": (b'{"text": "a\\ud83d"}\n', "line 1: character 1 is half of a surrogate pair"),
    "broken.jsonl.gz": (
        gzip.compress(b'{"text": "a"}\n' * 9000)[:-30],
        "compressed file is cut short or damaged",
    ),
    "flipped.txt.gz": (
        gzip.compress(b"abc" * 99)[:12] + b"\x00\xff\x13" * 9,
        "cut short or damaged",
    ),
    "plain.jsonl.gz": (b'{"text": "a"}\n', "after line 0"),
    "broken.jsonl.xz": (lzma.compress(b'{"text": "a"}\n' * 9000)[:-40], "cut short or damaged"),
    "plain.txt.zst": (b"no zstd here", "cut short or damaged"),
    "broken.parquet": (b"PAR1 and then nothing", "not a whole parquet file"),
    "page.html": (b"<p>", "unknown suffix"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_refused_in_a_sentence(tmp_path, name):
    data, message = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        list(open_source(str(tmp_path / name)))
    assert name in str(caught.value)


def test_truncated_zstd(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    _zstd(path, b"".join(b'{"text": "%d"}\n' % (n * n) for n in range(90_000)))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="a.jsonl.zst"):
        list(open_source(str(path)))


def test_bad_parquet_columns(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a\.parquet: no field 'text'; the columns are 'body', 'n'"
    ):
        list(open_source(str(tmp_path / "a.parquet")))
    with pytest.raises(ValueError, match=r"a\.parquet, row 0: the field 'n' holds int"):
        list(open_source(str(tmp_path / "a.parquet"), text_key="n"))


def test_bad_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_source(str(tmp_path / "nothing.txt"))
    with pytest.raises(FileNotFoundError, match="no file matches"):
        open_source(str(tmp_path / "*.txt"))
    with pytest.raises(ValueError, match="it is empty"):
        open_source(str(tmp_path))
    (tmp_path / "page.html").write_text("x")
    with pytest.raises(ValueError, match=r"it has \.html"):
        open_source(str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    _write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"has \.parquet and \.jsonl files; name one format"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("spec", ["world:", "world:x", "world:1:huge", "tfds:", "tfds:a b"])
def test_bad_specs(spec):
    with pytest.raises(ValueError, match=f"^{spec}: "):
        open_source(spec)


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A TFDS dataset of five pages in two shards, written without TensorFlow."""
    import numpy as np
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    root = tmp_path_factory.mktemp("tfds")
    folder = root / "tiny_pages" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "id": np.int64})
    pages = [f"Seite {n}: Grüße" for n in range(5)]
    for shard, numbers in enumerate((range(0, 3), range(3, 5))):
        name = f"tiny_pages-train.array_record-{shard:05d}-of-00002"
        writer = array_record_module.ArrayRecordWriter(str(folder / name), "group_size:1")
        for n in numbers:
            writer.write(
                features.serialize_example(features.encode_example({"text": pages[n], "id": n}))
            )
        writer.close()
    split = tfds.core.SplitInfo(name="train", shard_lengths=[3, 2], num_bytes=100)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[split], check_data=False
    )  # the check itself would need TensorFlow
    return root


def test_tfds(tfds_folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
    source = open_source("tfds:tiny_pages")
    assert [document.text for document in source] == [f"Seite {n}: Grüße" for n in range(5)]
    assert [document.id for document in source] == ["0", "1", "2", "3", "4"]
    assert [document.id for document in open_source("tfds:tiny_pages:1.0.0:train[1:3]")] == [
        "1",
        "2",
    ]
    with pytest.raises(ValueError, match="Unknown split 'valid'"):
        open_source("tfds:tiny_pages:valid")
    with pytest.raises(ValueError, match="tfds:tiny_pages:2.0.0: TFDS cannot read it"):
        open_source("tfds:tiny_pages:2.0.0")
    with pytest.raises(ValueError, match="row 0: no field 'body'; the record has 'id', 'text'"):
        list(open_source("tfds:tiny_pages", text_key="body"))
    with pytest.raises(FileNotFoundError, match="tfds build mnist --file_format=array_record"):
        open_source("tfds:mnist")


def test_tfds_needs_no_tensorflow_and_other_sources_no_tfds(tfds_folder):
    program = (
        "import sys; from jaxllm.data.sources import open_source; "
        "heavy = {'tensorflow', 'tensorflow_datasets', 'pyarrow', 'jax'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert len(list(open_source('tfds:tiny_pages'))) == 5; "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "TFDS_DATA_DIR": str(tfds_folder)},
    )


@pytest.mark.parametrize(
    "name, documents, start",
    [
        (
            "text/tinystories_0000_0699.json.xz",
            700,
            "One day, a little girl named Lily found a needle",
        ),
        ("text/web_mix_8_sources_400docs.jsonl.xz", 400, "“The world as we have created it"),
        ("text/tinyshakespeare.txt.xz", 12, "First Citizen:\nBefore we proceed any further"),
    ],
)
def test_real_text(real_data, name, documents, start):
    pages = list(open_source(str(real_data(name))))
    assert len(pages) == documents and pages[0].text.startswith(start)
    assert len({page.id for page in pages}) == documents
