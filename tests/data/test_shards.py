"""Token shards: what is written is read, in bounded memory; a damaged folder is refused by name."""

import errno
import hashlib
import json
import os
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data import shard_writer
from jaxllm.data.shards import ShardWriter, open_shards, write_shards

END = 0


def documents(count=20, seed=0, vocab_size=50257):
    """Random documents, each ended by END, which stands nowhere else."""
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(1, vocab_size, rng.integers(0, 30)), END) for _ in range(count)]


def write(folder, docs, vocab_size=50257, shard_tokens=50, **options):
    return write_shards(folder, [(d, 4 * len(d)) for d in docs], vocab_size=vocab_size,
                        fingerprint="abc", shard_tokens=shard_tokens, **options)


def resident_bytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


@pytest.mark.parametrize("vocab_size, dtype", [(65536, "<u2"), (65537, "<u4")])
def test_the_format_is_flat_numbers_that_numpy_alone_can_read(tmp_path, vocab_size, dtype):
    docs = documents(vocab_size=vocab_size) + [np.array([vocab_size - 1, END])]
    folder = write(tmp_path / "s", docs, vocab_size, end_of_text=END, recipe={"a": [1]})
    index = json.loads((folder / "index.json").read_text())
    files = sorted(p.name for p in folder.iterdir())
    n = len(index["shards"])
    assert n > 3 and files == sorted(
        ["index.json"] + [f"{k}-{i:05d}.bin" for k in ("tokens", "ends") for i in range(n)])
    tokens = np.concatenate([np.fromfile(folder / f"tokens-{i:05d}.bin", dtype) for i in range(n)])
    np.testing.assert_array_equal(tokens, np.concatenate(docs))
    for i, shard in enumerate(index["shards"]):
        ends = np.fromfile(folder / f"ends-{i:05d}.bin", "<u8")
        mine = np.fromfile(folder / f"tokens-{i:05d}.bin", dtype)
        np.testing.assert_array_equal(ends, np.flatnonzero(mine == END) + 1)
        assert (shard["tokens"], shard["documents"]) == (len(mine), len(ends))
        assert shard["tokens_sha256"] == hashlib.sha256(mine.tobytes()).hexdigest()
        assert shard["ends_sha256"] == hashlib.sha256(ends.tobytes()).hexdigest()
    shards = open_shards(folder, fingerprint="abc", verify=True)
    assert shards.text_bytes == 4 * len(tokens) and shards.index["recipe"] == {"a": [1]}
    assert (shards.tokens, shards.documents) == (len(tokens), len(docs))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shard_tokens=st.integers(1, 200))
def test_any_range_reads_as_in_one_array(tmp_path_factory, data, shard_tokens):
    docs = documents(seed=shard_tokens)
    stream = np.concatenate(docs)
    shards = open_shards(write(tmp_path_factory.mktemp("s") / "x", docs, shard_tokens=shard_tokens))
    length = data.draw(st.integers(0, len(stream)))
    starts = np.array(data.draw(st.lists(st.integers(0, len(stream) - length), max_size=5)), int)
    rows = shards.read_rows(starts, length)
    assert rows.dtype == np.int32 and rows.shape == (len(starts), length)
    for row, start in zip(rows, starts, strict=True):
        np.testing.assert_array_equal(row, stream[start:start + length])
        np.testing.assert_array_equal(shards.read(start, length), row)
        ends = [e for e in np.cumsum([len(d) for d in docs]) if start < e <= start + length]
        assert shards.document_ends(start, length).tolist() == ends
    np.testing.assert_array_equal(shards.ends_in_rows(starts, length), rows == END)
    assert shards.read_rows(np.array([len(stream)]), 0).shape == (1, 0) and shards.read(len(stream), 0).shape == (0,)


def test_shards_do_not_depend_on_how_documents_are_handed_over(tmp_path):
    docs = documents()
    one = write(tmp_path / "one", docs, shard_tokens=40)
    with ShardWriter(tmp_path / "many", vocab_size=50257, fingerprint="abc",
                     shard_tokens=40) as writer:
        ends = np.cumsum([len(d) for d in docs])
        writer.add_many(np.concatenate(docs), ends, 4 * ends[-1])
    assert (one / "index.json").read_text() == (tmp_path / "many" / "index.json").read_text()


def test_a_shard_is_closed_by_the_document_that_fills_it(tmp_path):
    sizes = [10, 10, 9, 2, 50, 1, 30]
    folder = write(tmp_path / "s", [np.full(n, 1) for n in sizes], shard_tokens=30)
    assert [s["tokens"] for s in open_shards(folder).index["shards"]] == [31, 50, 31]
    folder = write(tmp_path / "exact", [np.full(10, 1)] * 6, shard_tokens=30)
    assert [s["tokens"] for s in open_shards(folder).index["shards"]] == [30, 30]


@pytest.mark.parametrize("file", ["tokens-00001.bin", "ends-00001.bin"])
def test_a_shard_cut_short_or_missing_or_altered_is_refused_by_name(tmp_path, file):
    folder = write(tmp_path / "s", documents())
    path = folder / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    open_shards(folder)  # sizes are right; only the hash can tell
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        open_shards(folder, verify=True)
    path.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=f"{file} has .* cut short"):
        open_shards(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=file):
        open_shards(folder)


def test_a_shard_cut_short_while_in_use_raises_instead_of_killing_the_process(tmp_path):
    folder = write(tmp_path / "s", documents(), shard_tokens=10**6)
    shards = open_shards(folder)
    os.truncate(folder / "tokens-00000.bin", 10)
    with pytest.raises(ValueError, match="tokens-00000.bin was cut short after it was opened"):
        shards.read(0, 20)


def test_another_tokenizer_is_refused_with_both_fingerprints(tmp_path):
    folder = write(tmp_path / "s", documents())
    with pytest.raises(ValueError, match=r"(?s)abc.*xyz.*tokenise the corpus again"):
        open_shards(folder, fingerprint="xyz")


def test_a_folder_that_holds_no_finished_shards_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_shards(tmp_path / "none")
    folder = write(tmp_path / "s", documents())
    index = (folder / "index.json").read_text()
    for text, message in [("{", "damaged"), ("[]", "damaged"),
                          (index.replace('"version": 1', '"version": 99'), "99"),
                          (index.replace('"documents"', '"papers"', 1), "documents"),
                          (index.replace('"tokens": ', '"tokens": 1', 1), "add up")]:
        (folder / "index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_shards(folder)
    (folder / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match="did not finish"):
        open_shards(folder)
    write(folder, documents(5))  # a writer that was killed is no obstacle
    assert open_shards(folder, verify=True).documents == 5
    assert len(list(folder.glob("tokens-*"))) == len(open_shards(folder).index["shards"])
    with pytest.raises(FileExistsError, match="already holds"):
        write(folder, documents(5))
    assert open_shards(folder, verify=True).documents == 5


def test_an_empty_corpus_is_refused_on_writing_and_on_reading(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        write(tmp_path / "s", [])
    assert not list((tmp_path / "s").iterdir())
    (tmp_path / "s" / "index.json").write_text(json.dumps({
        "format": "jaxllm-token-shards", "version": 1, "dtype": "u2", "tokens": 0, "documents": 0,
        "text_bytes": 0, "vocab_size": 9, "tokenizer_fingerprint": "", "end_of_text": None,
        "recipe": {}, "shards": []}))
    with pytest.raises(ValueError, match="empty"):
        open_shards(tmp_path / "s")


@pytest.mark.parametrize("tokens, ends, message", [
    ([1, 2], [1], "document ends"), ([1, 2], [0, 2], "without tokens"),
    ([1, 2], [2, 2], "document ends"), ([1, 10], [2], "vocabulary of 10"),
    ([-1, 1], [2], "vocabulary of 10"), ([1, 2], [2], "end-of-text token 0"),
    ([0, 1, 0], [3], "end-of-text token 0")])
def test_bad_documents_are_refused_and_nothing_stays(tmp_path, tokens, ends, message):
    with pytest.raises(ValueError, match=message):
        with ShardWriter(tmp_path / "s", vocab_size=10, fingerprint="", end_of_text=0) as writer:
            writer.add([3, 0], 2)
            writer.add_many(np.array(tokens), np.array(ends), 2)
    assert not list((tmp_path / "s").iterdir())


@pytest.mark.parametrize("limit", [0, 100, 70_000])
def test_a_full_disk_is_said_clearly_and_leaves_nothing(tmp_path, limit):
    # The kernel itself refuses to grow a file past the limit (EFBIG, treated as a full disk).
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="disk is full.*(tokens|ends)-00000.bin") as error:
            write(tmp_path / "s", [np.full(50_000, 3)] * 3, shard_tokens=10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert not list((tmp_path / "s").iterdir())


def test_no_space_left_while_the_index_is_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(shard_writer.json, "dump", full)
    with pytest.raises(OSError, match="disk is full.*index.json"):
        write(tmp_path / "s", documents())
    assert not list((tmp_path / "s").iterdir())


def test_reading_outside_the_corpus_is_refused(tmp_path):
    shards = open_shards(write(tmp_path / "s", documents()))
    for start, count in [(-1, 2), (shards.tokens - 1, 2), (0, -1)]:
        with pytest.raises(ValueError, match="outside the corpus"):
            shards.read(start, count)


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Reads all over a corpus of 1 GB (a sparse file: it takes no room on the disk)."""
    tokens = 500_000_000
    folder = write(tmp_path / "s", [np.array([1, 2])], shard_tokens=10**9)
    index = json.loads((folder / "index.json").read_text())
    index["tokens"] = index["shards"][0]["tokens"] = tokens
    (folder / "index.json").write_text(json.dumps(index))
    os.truncate(folder / "tokens-00000.bin", 2 * tokens)
    shards = open_shards(folder)
    starts = np.random.default_rng(0).integers(0, tokens - 1025, (500, 32))
    shards.read_rows(starts[0], 1025)
    before = resident_bytes()
    for row_starts in starts:
        shards.read_rows(row_starts, 1025)
    assert resident_bytes() - before < 16e6  # a memory map would show several hundred megabytes
