"""N-gram decontamination against its definition: brute force over lists of words."""

import hashlib
import json
import lzma
import pickle
import random
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data.curate.decontaminate import (
    build_index,
    gram_hashes,
    load_index,
    normalised_words,
    save_index,
    scan,
)

few_words = st.lists(st.sampled_from("a b c d".split()), max_size=14)


def runs(words, n):
    """Every run of n words, by its definition."""
    return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]


@settings(max_examples=150, deadline=None)
@given(document=few_words, items=st.lists(few_words, min_size=1, max_size=4), n=st.integers(1, 6),
       min_words=st.integers(1, 6), seed=st.integers(0, 9))
def test_scan_is_the_definition(document, items, n, min_words, seed):
    rng = random.Random(seed)
    text, places = "", []
    for word in document:  # any case, any punctuation between
        text += rng.choice([" ", ", ", "\n", " -_ ", "! "])
        places.append((len(text), len(text) + len(word)))
        text += rng.choice([word, word.upper()])
    grams = [set(runs(item, n)) if len(item) >= n else {tuple(item)} if len(item) >= min_words else set()
             for item in items]
    pairs = [(f"set/{i}", " ".join(item)) for i, item in enumerate(items)]
    if not any(grams):
        with pytest.raises(ValueError, match="can be looked for"):
            build_index(pairs, n, min_words)
        return
    index = build_index(pairs, n, min_words)
    assert index.item_grams.tolist() == [len(each) for each in grams]
    expected = {}
    for i, each in enumerate(grams):
        held = {gram for gram in each if gram in runs(document, len(gram))}
        covered = sorted({first + k for gram in held for first, run in enumerate(runs(document, len(gram)))
                          if run == gram for k in range(len(gram))})
        if held:
            expected[i] = (len(held) / len(each), covered)
    found = {match.item: match for match in scan(text, index)}
    assert found.keys() == expected.keys()
    for i, (share, covered) in expected.items():
        assert found[i].share == pytest.approx(share) and len(found[i].grams) == round(share * len(grams[i]))
        inside = [k for k, (start, end) in enumerate(places)
                  if any(a <= start and end <= b for a, b in found[i].spans)]
        assert inside == covered
        assert len(found[i].spans) == sum(k - 1 not in covered for k in covered)  # neighbours are one passage
        for start, end in found[i].spans:
            assert start in [place[0] for place in places] and end in [place[1] for place in places]


def test_hash_is_its_formula():
    base, modulus = 0x9E3779B97F4A7C15, 2**64
    words = ["the", "café", "7", "sat", "on"]
    numbers = [int.from_bytes(hashlib.blake2b(w.encode(), digest_size=8).digest(), "little") for w in words]
    expected = sorted(sum(number * pow(base, 2 - i, modulus) for i, number in enumerate(numbers[k:k + 3])) % modulus
                      for k in range(3))
    index = build_index([("a", "The CAFE\u0301: 7 (sat) on!")], n=3)
    assert index.keys.tolist() == expected
    assert gram_hashes(np.array(numbers[:2], np.uint64), 3).tolist() == []


def test_words_are_normalised_and_keep_their_places():
    text = "1. First\n  (2) Naïve_x, don't 3.5!\n33 ﬁne 你好"
    found = normalised_words(text)
    assert [word for word, _, _ in found] == ["first", "naïve", "x", "don", "t", "3", "5", "33", "fine", "你好"]
    for word, start, end in found:
        assert text[start:end].lower() in (word, "ﬁne")


def test_a_list_number_does_not_hide_a_passage():
    index = build_index([("q", "open the box\ntake the key\nturn it twice")], n=9)
    assert len(scan("1. Open the box\n2. Take the key\n3. Turn it twice", index)) == 1
    assert not scan("1 Open the box 2 take the key 3 turn it twice", index)


def test_passages_point_at_the_text():
    question = "Which river runs through the old town of Ashford and why does it flood so often?"
    other = "Nothing of this stands in any page, no word of it at all, not one, ever."
    index = build_index([("set/0", question), ("set/1", other)])
    page = f"Blah blah.\n\nQ: {question.upper()}\nA: rain. And again: {question[:60]}"
    (match,) = scan(page, index)
    assert index.items[match.item] == "set/0" and match.share == 1.0
    assert [page[a:b] for a, b in match.spans] == [question.upper().rstrip("?")]
    assert scan(page, index, min_share=1.0) == [match]
    half = "so he said: " + " ".join(question.split()[:14])
    assert scan(half, index)[0].share < 1 and not scan(half, index, min_share=1.0)


def test_grams_that_many_items_share_can_be_left_out():
    items = [(f"s/{i}", f"from typing import a list of numbers item{i} word{i} more{i}") for i in range(5)]
    header = "from typing import a list of numbers"
    assert len(scan(header, build_index(items, n=5))) == 5
    index = build_index(items, n=5, common=4)
    assert not scan(header, index) and [m.item for m in scan(items[3][1], index)] == [3]
    with pytest.raises(ValueError, match="raise common"):
        build_index([("a", "x y z"), ("b", "x y z")], n=3, common=1)


@pytest.mark.parametrize("numbers", [{"n": 0}, {"min_words": 0}, {"common": -1}])
def test_numbers_out_of_range(numbers):
    with pytest.raises(ValueError, match="choose n and min_words"):
        build_index([("a", "one two three")], **numbers)


def test_index_folder_round_trip_and_damage(tmp_path):
    items = [("s/0", "one two three four five six seven eight nine ten"), ("s/1", "short"), ("s/é", "a b c d e f g h")]
    index = build_index(items, n=9)
    save_index(index, tmp_path / "index")
    save_index(index, tmp_path / "index")  # replaces its own kind
    loaded = load_index(tmp_path / "index")
    assert isinstance(loaded.keys, np.memmap) and (loaded.items, loaded.lengths) == (index.items, (8, 9))
    page = " ".join(text for _, text in items)
    assert scan(page, loaded) == scan(page, index) != []
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*.old"))
    (tmp_path / "index" / "keys.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(ValueError, match=r"keys\.npy is damaged"):
        load_index(tmp_path / "index")
    np.save(tmp_path / "index" / "keys.npy", index.keys[:-1])
    with pytest.raises(ValueError, match="write the folder again"):
        load_index(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="is not a n-gram index"):
        load_index(tmp_path)
    (tmp_path / "notes").mkdir()
    with pytest.raises(FileExistsError, match="choose another folder"):
        save_index(index, tmp_path / "notes")
    (tmp_path / "index" / "folder.json").write_text(json.dumps({"kind": "quality classifier", "arrays": {}}))
    with pytest.raises(ValueError, match="is a quality classifier, not a n-gram index"):
        load_index(tmp_path / "index")


def test_no_object_array_is_ever_loaded(tmp_path):
    save_index(build_index([("a", "one two three")], n=3), tmp_path / "index")
    np.save(tmp_path / "index" / "keys.npy", np.array([{"code": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"keys\.npy is damaged"):
        load_index(tmp_path / "index")


def test_datatrove_step(tmp_path):
    data = pytest.importorskip("datatrove.data", reason="needs the extra `curate`")
    from jaxllm.data.curate.decontaminate_steps import Decontaminate

    question = "how many eggs does the hen of the miller lay in a year if"
    save_index(build_index([("eggs/0", question)], n=8), tmp_path / "index")

    def pages():
        return [data.Document("A clean page.", "0"), data.Document(f"Well, {question}", "1", metadata={"url": "u"})]
    step = pickle.loads(pickle.dumps(Decontaminate(tmp_path / "index")))
    assert [page.id for page in step.run(pages())] == ["0"]
    assert step.stats["dropped_contaminated"].total == 1
    kept = list(pickle.loads(pickle.dumps(Decontaminate(tmp_path / "index", drop=False))).run(pages()))
    assert kept[0].metadata == {}
    assert kept[1].metadata == {"url": "u", "contaminated_by": ["eggs/0"],
                                "contaminated_spans": [[[6, 6 + len(question)]]]}
    json.dumps(kept[1].metadata)
    assert list(step.run([data.Document("how many eggs does the hen of the miller eat", "2")])) == []
    lenient = Decontaminate(tmp_path / "index", min_share=0.9)
    assert len(list(lenient.run([data.Document("how many eggs does the hen of the miller eat", "2")]))) == 1
    with pytest.raises(FileNotFoundError):
        Decontaminate(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="min_share=2"):
        Decontaminate(tmp_path / "index", min_share=2)


def test_same_grams_as_datatrove(tmp_path):
    """datatrove's own decontamination, fed the same items, flags the same documents (plain words, no short items)."""
    pytest.importorskip("spacy", reason="needs the extra `curate`")
    decont = pytest.importorskip("datatrove.pipeline.decont.n_grams", reason="needs the extra `curate`")
    from datatrove.data import Document

    rng = random.Random(0)
    words = "red green blue one two three".split()
    items = [" ".join(rng.choices(words, k=12)) for _ in range(6)]
    pages = [" ".join(rng.choices(words, k=30)) for _ in range(60)]
    pages += [f"{page} {item}" for page, item in zip(pages, items, strict=False)]
    theirs = decont.NGramsDecontFilter(str(tmp_path), decont.NGramsDecontConfig(n_grams=5))
    theirs._index_hashes = {}
    for item in items:
        tokens = item.split()
        for i in range(len(tokens) - 4):
            theirs._index_hashes[theirs.hash_func(" ".join(tokens[i:i + 5]))] = "task"
    index = build_index([(str(i), item) for i, item in enumerate(items)], n=5)
    expected = [theirs.filter(Document(page, "0")) is not True for page in pages]
    assert [bool(scan(page, index)) for page in pages] == expected
    assert 6 <= sum(expected) < len(pages)


def test_rephrased_humaneval(real_data):
    """Short grams find half of the rewritten problems, 13 words next to none; other text gives no alarm."""
    with lzma.open(real_data("eval/HumanEval.jsonl.xz"), "rt") as file:
        records = [json.loads(line) for line in file]
    with tarfile.open(real_data("eval/decontamination_humaneval_rephrased.tar.xz")) as tar:
        rewritten, originals = ([json.loads(line)["text"] for line in tar.extractfile(name)] for name in (
            "humaneval_python_rephrased.jsonl", "HumanEval_original.jsonl"))
    items = [(f"humaneval/{i}", r["prompt"] + r["canonical_solution"]) for i, r in enumerate(records)]
    found = {n: sum(any(match.item == i for match in scan(text, index)) for i, text in enumerate(rewritten))
             for n, index in ((n, build_index(items, n)) for n in (5, 8, 13))}
    assert found[5] > 80 > 25 > found[8] > 5 > found[13] > 0  # of 164: rewriting defeats the usual 13 words
    index = build_index(items, 13)
    assert all(any(m.item == i and m.share > 0.9 for m in scan(text, index)) for i, text in enumerate(originals))
    with lzma.open(real_data("text/c4_demo_300.jsonl.xz"), "rt") as file:
        pages = [json.loads(line)["text"] for line in file]
    assert len(pages) == 300 and not any(scan(page, index) for page in pages)
