"""Documents to shards: the same bytes from any number of processes, whole documents per split."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxllm.data import tokenize_corpus as module
from jaxllm.data.shards import open_shards
from jaxllm.data.tokenize_corpus import tokenize_corpus
from jaxllm.data.tokenizer import load_tokenizer, train_tokenizer


@dataclasses.dataclass(frozen=True)
class Document:
    text: str
    id: str


def make_documents(count=300):
    words = ["river", "stone", "Åsa", "märz", "42", "<|endoftext|>", "\n", "the", "🙂"]
    rng = np.random.default_rng(0)
    return [Document(" ".join(rng.choice(words, rng.integers(1, 30))), f"d{i}")
            for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    train_tokenizer([d.text for d in make_documents(50)], vocab_size=300).save(folder)
    return folder


def run(tokenizer_folder, folder, documents=None, **options):
    options = dict(source="test", validation_fraction=0.2, shard_tokens=1000, progress=False
                   ) | options
    return tokenize_corpus(make_documents() if documents is None else documents, tokenizer_folder,
                           folder, **options)


def texts(shards, tokenizer):
    ends = [0, *shards.document_ends(0, shards.tokens).tolist()]
    pieces = [shards.read(a, b - a).tolist() for a, b in zip(ends[:-1], ends[1:], strict=True)]
    assert all(p[-1] == tokenizer.end_of_text not in p[:-1] for p in pieces)
    return [tokenizer.decode(p[:-1]) for p in pieces]


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_document_is_in_one_split_in_order_and_reads_back(tokenizer_folder, tmp_path):
    documents = make_documents() + [Document("", "empty")]
    train, validation = run(tokenizer_folder, tmp_path / "c", documents)
    tokenizer = load_tokenizer(tokenizer_folder)
    shards = [open_shards(f, tokenizer.fingerprint, verify=True) for f in (train, validation)]
    assert len(shards[0].index["shards"]) > 2
    read = [texts(s, tokenizer) for s in shards]
    order = {d.text: i for i, d in reversed(list(enumerate(documents)))}
    assert sorted(read[0] + read[1]) == sorted(d.text for d in documents if d.text)
    assert 30 < len(read[1]) < 90  # 60 of 300 expected, 5 sigma is 35
    distinct = [t for t in read[0] if sum(d.text == t for d in documents) == 1]
    assert [order[t] for t in distinct] == sorted(order[t] for t in distinct)
    for split, its_texts in zip(shards, read, strict=True):
        assert split.text_bytes == sum(len(t.encode()) for t in its_texts)
        assert split.end_of_text == tokenizer.end_of_text
    assert os.listdir(tmp_path) == ["c"], "nothing is left beside the result"


def test_the_split_depends_on_seed_id_and_text_but_not_on_order(tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder)

    def held_out(name, documents, seed=0):
        _, validation = run(tokenizer_folder, tmp_path / name, documents, seed=seed)
        return sorted(texts(open_shards(validation), tokenizer))

    documents = make_documents()
    wanted = held_out("a", documents)
    assert held_out("b", documents[::-1]) == wanted
    assert held_out("c", documents, seed=1) != wanted
    assert held_out("d", [dataclasses.replace(d, id="x" + d.id) for d in documents]) != wanted
    assert set(wanted) & set(held_out("e", documents[:200])) == set(held_out("f", documents[:200]))


def test_processes_make_the_same_bytes(tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_DOCUMENTS", 7)
    run(tokenizer_folder, tmp_path / "two", processes=2)
    monkeypatch.setattr(module, "_CHUNK_DOCUMENTS", 300)
    run(tokenizer_folder, tmp_path / "one", processes=1)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_the_reader_is_never_far_ahead_of_the_writer():
    class Pool:
        def submit(self, function, item):
            import concurrent.futures
            future = concurrent.futures.Future()
            future.set_result(function(item))
            return future

    read = []
    items = (read.append(i) or i for i in range(100))
    results = module._in_order(Pool(), lambda i: i * i, items, ahead=4)
    for n in range(100):
        assert next(results) == n * n
        assert len(read) <= n + 5
    assert next(results, None) is None


def test_finished_shards_are_used_again_and_others_refused(tokenizer_folder, tmp_path):
    folders = run(tokenizer_folder, tmp_path / "c")
    before = files(tmp_path / "c")

    def unread():
        raise AssertionError("the documents were read again")
        yield

    assert run(tokenizer_folder, tmp_path / "c", unread()) == folders
    train_tokenizer(["abc abc"], vocab_size=265).save(tmp_path / "other")
    for options, message in [(dict(source="another"), "source .'test', now 'another'"),
                             (dict(seed=1), "seed"), (dict(shard_tokens=2000), "shard_tokens"),
                             (dict(validation_fraction=0.3), "validation_fraction")]:
        with pytest.raises(FileExistsError, match=message):
            run(tokenizer_folder, tmp_path / "c", unread(), **options)
    with pytest.raises(FileExistsError, match="tokenizer"):
        run(tmp_path / "other", tmp_path / "c", unread())
    assert files(tmp_path / "c") == before
    (tmp_path / "notes").mkdir()
    with pytest.raises(FileExistsError, match="holds no finished train shards"):
        run(tokenizer_folder, tmp_path / "notes")


def test_a_source_describes_itself_by_its_files(tokenizer_folder, tmp_path):
    @dataclasses.dataclass
    class Source:
        spec: str
        files: tuple

        def __iter__(self):
            return iter(make_documents())

    path = tmp_path / "text.txt"
    path.write_text("one")
    run(tokenizer_folder, tmp_path / "c", Source("text", (str(path),)), source=None)
    run(tokenizer_folder, tmp_path / "c", Source("text", (str(path),)), source=None)
    path.write_text("another")
    with pytest.raises(FileExistsError, match="source"):
        run(tokenizer_folder, tmp_path / "c", Source("text", (str(path),)), source=None)
    with pytest.raises(ValueError, match="pass `source`"):
        run(tokenizer_folder, tmp_path / "d", source=None)


def test_no_validation_set_when_none_is_asked_for(tokenizer_folder, tmp_path):
    train, validation = run(tokenizer_folder, tmp_path / "c", validation_fraction=0)
    assert validation is None and os.listdir(tmp_path / "c") == ["train"]
    assert open_shards(train).documents == 300


@pytest.mark.parametrize("documents, options, message", [
    ([], {}, "corpus test is empty"), ([Document("", "a")], {}, "corpus test is empty"),
    ([Document("a b", "a")], dict(validation_fraction=0.01), "1 documents .* fell into validation"),
    (None, dict(validation_fraction=1.0), "validation_fraction")])
def test_bad_input(tokenizer_folder, tmp_path, documents, options, message):
    with pytest.raises(ValueError, match=message):
        run(tokenizer_folder, tmp_path / "c", documents, **options)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_the_documents_comes_through_and_nothing_stays(
        tokenizer_folder, tmp_path, processes):
    def damaged():
        yield from make_documents(10)
        raise ValueError("corpus.txt, line 11: not UTF-8")

    with pytest.raises(ValueError, match="corpus.txt, line 11"):
        run(tokenizer_folder, tmp_path / "c", damaged(), processes=processes)
    assert not os.listdir(tmp_path)


def test_a_killed_worker_is_an_error_and_not_a_hang(tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_DOCUMENTS", 7)

    def documents():
        yield from make_documents(30)
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        yield from make_documents(300)

    with pytest.raises(RuntimeError, match="process was killed"):
        run(tokenizer_folder, tmp_path / "c", documents(), processes=2)
    assert not os.listdir(tmp_path)


def test_a_killed_run_leaves_no_folder_under_the_final_name(tokenizer_folder, tmp_path):
    code = f"""
import itertools, types
from jaxllm.data.tokenize_corpus import tokenize_corpus
documents = (types.SimpleNamespace(text="a river", id=str(i)) for i in itertools.count())
tokenize_corpus(documents, {str(tokenizer_folder)!r}, {str(tmp_path / "c")!r}, source="endless",
                shard_tokens=1000, progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("c.tmp-*/train/tokens-00001.bin")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "c").exists()
    train, _ = run(tokenizer_folder, tmp_path / "c")
    assert open_shards(train, verify=True).tokens


def test_gpt2_tokens_of_real_text_are_those_of_tiktoken(real_data, tmp_path, monkeypatch):
    import lzma

    import tiktoken
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(real_data("tokenizers/tiktoken_cache")))
    text = lzma.open(real_data("text/wikitext2_valid.txt.xz"), "rt", encoding="utf-8").read(200_000)
    pages = [Document(page, str(i)) for i, page in enumerate(text.split("\n = ")) if page]
    train, _ = run("gpt2", tmp_path / "c", pages, validation_fraction=0, shard_tokens=10**5)
    shards = open_shards(train)
    wanted = [t for page in tiktoken.get_encoding("gpt2").encode_ordinary_batch(
        [p.text for p in pages]) for t in [*page, 50256]]
    np.testing.assert_array_equal(shards.read(0, shards.tokens), wanted)
