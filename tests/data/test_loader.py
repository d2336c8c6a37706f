"""The loader: batches are a function of the step, and every window, host and mixture adds up."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data.loader import Mixture, Rows, Windows, block_counts, prefetch
from jaxllm.data.packing import pack
from jaxllm.data.permutation import permute, shuffled
from jaxllm.data.shards import open_shards, write_shards

FIELDS = ("tokens", "targets", "weights", "segment_ids", "positions")


def corpus(folder, tokens=1000, end_of_text=None, base=1, shard_tokens=300):
    """Documents of 10 to 40 tokens; token i is base + i, or `end_of_text` at an end."""
    rng, documents, start = np.random.default_rng(tokens), [], 0
    while start < tokens:
        stop = min(start + rng.integers(10, 40), tokens)
        document = base + np.arange(start, stop)
        if end_of_text is not None:
            document[-1] = end_of_text
        documents.append((document, 4 * len(document)))
        start = stop
    return open_shards(write_shards(folder, documents, vocab_size=60000, fingerprint="f",
                                    end_of_text=end_of_text, shard_tokens=shard_tokens))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("corpus") / "s")


def assert_equal(one, other):
    for name in FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype == (np.float32 if name == "weights" else np.int32)
            np.testing.assert_array_equal(a, b)


def join(batches):
    batches = list(batches)
    columns = [[getattr(b, name) for b in batches] for name in FIELDS]
    return type(batches[0])(*(None if c[0] is None else np.concatenate(c) for c in columns))


# --- the permutation -----------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(size=st.one_of(st.integers(1, 300), st.sampled_from([997, 1024, 1025, 4096, 7919])),
       seed=st.integers(-2**63, 2**64), epoch=st.integers(0, 2**40))
def test_permute_is_a_bijection(size, seed, epoch):
    image = permute(np.arange(size), size, seed, epoch)
    np.testing.assert_array_equal(np.sort(image), np.arange(size))
    np.testing.assert_array_equal(permute(np.arange(size)[::-1], size, seed, epoch), image[::-1])


def test_permute_is_the_same_on_every_machine():
    # Made once by this code: a change of the order would break the resumption of running jobs.
    assert permute(np.arange(10), 10, seed=1, epoch=2).tolist() == [6, 3, 7, 4, 5, 1, 9, 0, 8, 2]
    big = permute(np.array([0, 1, 2**40]), 2**40 + 1, seed=7).tolist()
    assert big == [672543272233, 889220475608, 230109447433]


def test_permute_looks_random():
    n, keys = 100_003, 4
    images = [permute(np.arange(n), n, seed) for seed in range(keys)] + [
        permute(np.arange(n), n, 0, epoch) for epoch in range(1, keys)]
    for image in images:
        assert abs(np.corrcoef(image, np.arange(n))[0, 1]) < 0.015  # 5 sigma is 0.0158
        assert abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 0.015
    for a, b in itertools.combinations(images, 2):
        assert (a == b).sum() < 10 and (np.diff(a) == np.diff(b)).sum() < 20
    # Where item 0 of 32 goes, over many keys: uniform (chi-square with 31 degrees of freedom).
    counts = np.bincount(permute(np.zeros(32_000, int), 32, 3, np.arange(32_000)), minlength=32)
    assert ((counts - 1000) ** 2 / 1000).sum() < 70


def test_shuffled_visits_every_item_in_each_epoch_in_another_order():
    for size in (1, 2, 7, 1000, 1500):
        items = shuffled(np.arange(3 * size), size, 5).reshape(3, size)
        np.testing.assert_array_equal(np.sort(items, axis=1), np.tile(np.arange(size), (3, 1)))
        if size > 2:
            assert not np.array_equal(items[0], items[1])
    few = np.array([2900, 5, 1024])
    np.testing.assert_array_equal(shuffled(few, 1500, 5), items.reshape(-1)[few])


def test_permute_refuses_what_is_outside():
    for index in (-1, 5):
        with pytest.raises(ValueError, match=r"\[0, 5\)"):
            permute(np.array([index]), 5, 0)


# --- windows -------------------------------------------------------------------------------------

def test_an_epoch_has_every_target_once_and_the_rest_is_less_than_a_window(shards):
    windows = Windows(shards, 16, documents="concatenate", seed=3)
    assert windows.count == 999 // 16 == 62
    epoch = join(windows.batch_at(step, batch_size=2) for step in range(31))
    np.testing.assert_array_equal(epoch.targets, epoch.tokens + 1)  # by how the corpus is made
    np.testing.assert_array_equal(np.sort(epoch.targets, axis=None), np.arange(2, 2 + 62 * 16))
    assert epoch.weights.all() and epoch.segment_ids is None and epoch.positions is None
    starts = epoch.tokens[:, 0]
    assert (np.diff(starts) < 0).any(), "shuffled"
    again = join(windows.batch_at(step, batch_size=2) for step in range(31, 62))
    assert not np.array_equal(again.tokens, epoch.tokens), "another order in the next epoch"
    np.testing.assert_array_equal(np.sort(again.tokens[:, 0]), np.sort(starts))
    other = join(Windows(shards, 16, documents="concatenate", seed=4).batch_at(s, batch_size=2)
                 for s in range(31))
    assert not np.array_equal(other.tokens, epoch.tokens), "another order under another seed"


@pytest.mark.parametrize("end_of_text", [None, 0])
def test_separate_documents_by_their_ends_or_by_their_last_token(tmp_path, end_of_text):
    """Both ways of finding documents, against the document number of every token."""
    shards = corpus(tmp_path / "s", end_of_text=end_of_text)
    ends = shards.document_ends(0, shards.tokens)
    stream = shards.read(0, shards.tokens)
    # The end-of-text token is read as the first token of the document that it introduces.
    document = np.searchsorted(ends, np.arange(shards.tokens) + (end_of_text is not None), "right")
    windows = Windows(shards, 16, documents="separate", sequential=True)
    batch = join(windows.batch_at(step, batch_size=31) for step in range(2))
    for row, start in enumerate(range(0, 62 * 16, 16)):
        here = document[start:start + 16]
        np.testing.assert_array_equal(batch.tokens[row], stream[start:start + 16])
        np.testing.assert_array_equal(batch.targets[row], stream[start + 1:start + 17])
        np.testing.assert_array_equal(batch.segment_ids[row], here - here[0] + 1)
        first = np.array([np.flatnonzero(here == d)[0] for d in here])
        np.testing.assert_array_equal(batch.positions[row], np.arange(16) - first)
        # Without an end-of-text token a document's first token has nothing to be predicted from.
        same = here == document[start + 1:start + 17]
        np.testing.assert_array_equal(batch.weights[row], same if end_of_text is None else 1)
    assert (np.diff(batch.segment_ids, axis=1) == 1).any(), "some row holds several documents"


@pytest.mark.parametrize("documents", ["separate", "concatenate"])
def test_sequential_reads_every_window_once_and_pads_the_last_batch(shards, documents):
    windows = Windows(shards, 16, documents=documents, sequential=True)
    assert windows.steps(10) == 7
    batch = join(windows.batch_at(step, batch_size=10) for step in range(7))
    np.testing.assert_array_equal(batch.tokens[:62], np.arange(1, 1 + 62 * 16).reshape(62, 16))
    for name in FIELDS:
        if getattr(batch, name) is not None:
            assert getattr(batch, name)[:62].any() and not getattr(batch, name)[62:].any()
    with pytest.raises(ValueError, match="7 batches of 10"):
        windows.batch_at(7, batch_size=10)
    # The last batch over five hosts: some hold nothing but padding.
    last = join(windows.batch_at(6, batch_size=10, host=h, hosts=5) for h in range(5))
    assert_equal(last, windows.batch_at(6, batch_size=10))


def sources(shards):
    rows = Rows(pack([np.arange(1, n) for n in range(4, 15)], 16).batch, seed=2)
    separate = Windows(shards, 16, seed=1)
    return {"separate": separate, "concatenate": Windows(shards, 16, documents="concatenate"),
            "rows": rows, "mixture": Mixture([(separate, 0.7), (rows, 0.3)], seed=9, block=64)}


@pytest.mark.parametrize("name", ["separate", "concatenate", "rows", "mixture"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_are_one_and_a_run_resumes_on_another_number(shards, name, hosts):
    source = sources(shards)[name]
    for step in (0, 7, 10**9):
        whole = source.batch_at(step, batch_size=8)
        assert whole.tokens.shape == (8, 16)
        assert_equal(whole, join(source.batch_at(step, batch_size=8, host=h, hosts=hosts)
                                 for h in range(hosts)))


@pytest.mark.parametrize("name", ["separate", "rows", "mixture"])
def test_batch_7_is_the_same_after_a_restart(shards, name):
    running = sources(shards)[name]
    for step in range(7):
        running.batch_at(step, batch_size=4)
    fresh = sources(shards)[name]
    assert_equal(running.batch_at(7, batch_size=4), fresh.batch_at(7, batch_size=4))


def test_a_host_reads_only_its_own_rows(shards, monkeypatch):
    windows, read = Windows(shards, 16, documents="concatenate"), []
    monkeypatch.setattr(shards, "read_rows", lambda starts, length: read.append(len(starts)) or
                        np.zeros((len(starts), length), np.int32))
    windows.batch_at(3, batch_size=12, host=1, hosts=4)
    assert read == [3]


@pytest.mark.parametrize("arguments, message", [
    (dict(length=1000), "1000 tokens, fewer than one window of 1000"), (dict(length=0), "length"),
    (dict(length=8, documents="mixed"), "documents must be")])
def test_impossible_windows(shards, arguments, message):
    with pytest.raises(ValueError, match=message):
        Windows(shards, **arguments)


@pytest.mark.parametrize("arguments, message", [
    (dict(step=0, batch_size=6, hosts=4), "cannot be divided by 4 hosts"),
    (dict(step=0, batch_size=0), "cannot be divided"),
    (dict(step=-1, batch_size=4), "step"), (dict(step=0, batch_size=4, host=4, hosts=4), "host 4")])
def test_impossible_batches(shards, arguments, message):
    with pytest.raises(ValueError, match=message):
        Windows(shards, 8).batch_at(**arguments)


# --- mixtures ------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(1000, 5000))
def test_block_counts_are_the_nearest_whole_shares(weights, block):
    try:
        counts = block_counts(weights, block)
    except ValueError:
        assert min(weights) / sum(weights) * block < 1
        return
    shares = np.array(weights) / sum(weights) * block
    assert counts.sum() == block and (np.abs(counts - shares) < 1).all()


def test_proportions_are_exact_in_every_block_and_every_source_is_read_in_its_own_order(tmp_path):
    parts = [Windows(corpus(tmp_path / str(i), 500, base=1 + 1000 * i), 8, seed=i,
                    documents="concatenate") for i in range(3)]
    mixture = Mixture([(parts[0], 5), (parts[1], 2), (parts[2], 1)], seed=0, block=100)
    read = join(mixture.batch_at(step, batch_size=20) for step in range(15))
    source = read.tokens[:, 0] // 1000
    for block in source.reshape(3, 100):
        assert np.bincount(block, minlength=3).tolist() == [63, 25, 12]  # 62.5, 25, 12.5
    assert not np.array_equal(source[:100], source[100:200]), "another order in the next block"
    assert len(set(source[:20])) > 1, "mixed within a block"
    for i, part in enumerate(parts):  # the examples 0, 1, 2, ... of each source, each once
        n = (source == i).sum()
        wanted = part.rows_at(np.arange(n)).tokens[:, 0]
        np.testing.assert_array_equal(np.sort(read.tokens[source == i, 0]), np.sort(wanted))


def test_plain_and_segmented_sources_are_not_mixed_in_silence(shards):
    every = sources(shards)
    with pytest.raises(ValueError, match="segment"):
        Mixture([(every["separate"], 1), (every["concatenate"], 1)])


def test_impossible_mixtures(shards):
    one = Windows(shards, 16)
    for parts, message in [
            ([], "at least one"), ([(one, 0)], "positive"), ([(one, float("nan"))], "positive"),
            ([(one, 1), (one, 1e-6)], "no example in a block of 1024"),
            ([(one, 1), (Windows(shards, 8), 1)], "one length"),
            ([(Windows(shards, 16, sequential=True), 1)], "sequential")]:
        with pytest.raises(ValueError, match=message):
            Mixture(parts)
    with pytest.raises(ValueError, match="no rows"):
        Rows(pack([], 8).batch)


# --- prefetch ------------------------------------------------------------------------------------

def test_prefetch_gives_the_batches_in_order_and_stops():
    assert list(prefetch(lambda step: step * 10, 3, stop_step=6)) == [30, 40, 50]
    endless = prefetch(lambda step: step, 5)
    assert [next(endless) for _ in range(4)] == [5, 6, 7, 8]
    endless.close()
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_prefetch_runs_ahead_but_not_further_than_its_depth():
    made = []
    batches = prefetch(lambda step: made.append(step) or step, 0, depth=3)
    next(batches)
    deadline = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert made == [0, 1, 2, 3, 4]  # one taken, three ready, one in the hand of the thread
    batches.close()


def test_prefetch_raises_what_its_thread_raised_after_the_batches_before_it():
    def batch_at(step):
        if step == 2:
            raise OSError("the disk is gone")
        return step
    batches = prefetch(batch_at, 0)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]
