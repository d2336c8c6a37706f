"""Tokenizers: round trips, safety of special tokens, equality with code that is not ours."""

import collections
import lzma
import pickle
import re
import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tiktoken

from jaxllm.data import tokenizer as tokenizer_module
from jaxllm.data.tokenizer import (
    SPECIAL_TOKENS,
    load_tokenizer,
    tokenizer_from_ranks,
    train_tokenizer,
)
from jaxllm.data.tokenizer_folder import parse_ranks
from jaxllm.data.tokenizer_split import PATTERNS, WHITESPACE_RUN
from jaxllm.data.tokenizer_training import learn_ranks, train_library_tokenizer

CORPUS = [
    "The cat sat on the mat. The dog's bone isn't the cat's! It'll rain, WE'RE told; they've gone.",
    "In 1999, 12345 people paid 67,890.12 dollars, 2024 - 1999.\n\n\n\tdef f(x):\n\t\treturn\n",
    "Über Straße naïve café Ελληνικά слово 漢字かな 🙂🙂 👩‍👩‍👧 e\u0301e\u0301 \u00a0\u2003 ١٢٣ ½²",
    "aaaaaaa aaaa aaaaaaaaaaa ababababab  a   b    c HTTPServer XMLHttpRequest <|im_end|>",
] * 3
# GPT-2's split in Python's own regular expressions, for text whose digits and letters are plain.
GPT2_SPLIT = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
# Pieces of the corpus, glued at will, merge far more often than text of random characters.
TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*SPECIAL_TOKENS, " the", "cat", "'s", "'LL", "'ſ", "aaaa", "ab",
                              "12345", " ", "  ", "\n", "\r\n", "\u00a0", "é", "e\u0301", "слово",
                              "漢字", "🙂", "\u200d", "<|", "|>", "\x00", "\u2028", "\U0010ffff"]),
             max_size=14).map("".join))


@pytest.fixture(scope="module")
def trained():
    return {name: train_tokenizer(CORPUS, 420, name) for name in PATTERNS}


@pytest.fixture
def cache(real_data, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(real_data("tokenizers/tiktoken_cache")))


# Any text

@pytest.mark.parametrize("pattern", PATTERNS)
@hypothesis.given(text=TEXT)
@hypothesis.settings(deadline=None, max_examples=100)
def test_round_trip_and_no_special_token_from_text(trained, pattern, text):
    tokenizer = trained[pattern]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@pytest.mark.parametrize("pattern", PATTERNS)
@hypothesis.given(text=TEXT)
@hypothesis.settings(deadline=None, max_examples=100)
def test_ids_are_those_of_the_library_that_trained(trained, library, pattern, text):
    # Below 256 each numbers the bytes in an order of its own; the round trip fixes those.
    assert ([max(id, 255) for id in trained[pattern].encode(text)]
            == [max(id, 255) for id in library[pattern].encode(text).ids])


@pytest.fixture(scope="module")
def library():
    """The `tokenizers` library's own tokenizers of the same texts."""
    merges = 420 - 256 - len(SPECIAL_TOKENS)
    return {name: train_library_tokenizer(CORPUS, merges, pattern)
            for name, pattern in PATTERNS.items()}


@hypothesis.given(data=st.binary(max_size=60), seed=st.integers(0, 2**32 - 1))
def test_any_bytes_and_any_ids_decode_exactly(trained, data, seed):
    tokenizer = trained["gpt4"]
    assert tokenizer.decode_bytes(list(data)) == data  # the id of a byte is the byte
    assert tokenizer.decode(list(data)) == data.decode("utf-8", errors="replace")
    ids = np.random.default_rng(seed).integers(0, tokenizer.vocab_size, 20, dtype=np.int32)
    tokens = {id: token for token, id in tokenizer.ranks.items()}
    tokens |= {id: token.encode() for token, id in tokenizer.special_tokens.items()}
    assert tokenizer.decode_bytes(ids) == b"".join(tokens[id] for id in ids.tolist())


def test_lone_surrogate_becomes_the_replacement_character(trained):
    tokenizer = trained["gpt4"]
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.encode("\ud83d\ude42") == tokenizer.encode("🙂")  # a pair is its character
    replaced = train_tokenizer(["a\ufffdb " * 9], 266)
    assert train_tokenizer(["a\ud800b " * 9], 266).ranks == replaced.ranks


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("space", [" ", "\n "])
def test_a_million_whitespace_characters(trained, pattern, space):
    text = "x" + space * (1_000_000 // len(space)) + "y"
    assert trained[pattern].decode(trained[pattern].encode(text)) == text
    short_runs = ("x" + space * (WHITESPACE_RUN // 2 // len(space)) + "y") * 3
    plain = trained[pattern].encoding.encode_ordinary(short_runs)
    assert trained[pattern].encode(short_runs) == plain


def test_batch_equals_single(trained):
    assert trained["o200k"].encode_batch(CORPUS, 3) == [trained["o200k"].encode(t) for t in CORPUS]
    assert trained["o200k"].encode_batch([], 2) == []


def test_ids_without_a_token(trained):
    tokenizer = trained["gpt4"]
    gap = tokenizer_from_ranks("gap", tokenizer.ranks, tokenizer.pattern, {"<|endoftext|>": 1000})
    assert gap.vocab_size == 1001 and gap.token_bytes().shape == (1001,)
    assert gap.decode([97, 999, 98]) == "a\ufffdb"
    for call, bad in ((gap.decode_bytes, 999), (gap.decode, 1001), (gap.decode, -1)):
        with pytest.raises(ValueError, match=f"{bad} is not the id of a token; .* size is 1001"):
            call([97, bad])


# Patterns

@pytest.mark.parametrize("pattern, cuts", [
    ("gpt2", ["It", "'s", " 12345", " HTTPServer", ",", " I", "'", "LL", "  ", " x"]),
    ("gpt4", ["It", "'s", " ", "123", "45", " HTTPServer", ",", " I", "'LL", "  ", " x"]),
    ("digits", ["It", "'s", " ", *"12345", " HTTPServer", ",", " I", "'LL", "  ", " x"]),
    ("o200k", ["It's", " ", "123", "45", " HTTPServer", ",", " I'LL", "  ", " x"]),
])
def test_patterns_cut_as_published(pattern, cuts):
    """A vocabulary of every substring gives each cut piece as one token."""
    text = "It's 12345 HTTPServer, I'LL   x"
    assert "".join(cuts) == text
    ranks = {bytes([b]): b for b in range(256)}
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            ranks.setdefault(text[start:end].encode(), len(ranks))
    tokenizer = tokenizer_from_ranks("t", ranks, PATTERNS[pattern], {"<|endoftext|>": len(ranks)})
    assert [tokenizer.decode([id]) for id in tokenizer.encode(text)] == cuts


def test_training_cuts_by_the_pattern():
    learnt = {}
    for name in PATTERNS:
        ranks = learn_ranks(["12345 12345.\n\n\tx = MyName\n"] * 9, 100, PATTERNS[name])
        learnt[name] = [token for token in ranks if len(token) > 1]
    longest_number = {name: max((len(token) for token in tokens if token.isdigit()), default=1)
                      for name, tokens in learnt.items()}
    assert longest_number == {"gpt2": 5, "gpt4": 3, "digits": 1, "o200k": 3}
    across_gpt2 = {name for name, tokens in learnt.items() if b".\n\n" in tokens}
    assert across_gpt2 == {"gpt4", "digits", "o200k"}
    across_case = {name for name, tokens in learnt.items() if b" MyName" in tokens}
    assert across_case == {"gpt2", "gpt4", "digits"}


@pytest.mark.parametrize("name", tokenizer_module.ENCODINGS)
def test_named_encodings_equal_tiktoken(cache, name):
    theirs, ours = tiktoken.get_encoding(name), load_tokenizer(name)
    assert ours.name == name and ours.vocab_size == theirs.n_vocab + len(SPECIAL_TOKENS) - 1
    assert ours.end_of_text == theirs.eot_token
    added = [ours.special_tokens[token] for token in SPECIAL_TOKENS[1:]]
    assert added == list(range(theirs.n_vocab, ours.vocab_size))

    @hypothesis.given(text=TEXT)
    @hypothesis.settings(deadline=None, max_examples=60)
    def same(text):
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert max(ours.encode(text), default=0) < theirs.eot_token or name == "p50k_base"

    same()


# Oracles that are not ours

def llama_cpp_vectors(real_data, tmp_path, name):
    shutil.unpack_archive(real_data("tokenizers/llama_cpp_vocab_vectors.tar.xz"), tmp_path,
                          filter="data")
    texts = (tmp_path / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode()
    ids = (tmp_path / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    return list(zip(texts.split("\n__ggml_vocab_test__\n"), ids, strict=False))


def test_llama_cpp_vectors_of_gpt2(real_data, cache, tmp_path):
    tokenizer = load_tokenizer("gpt2")
    vectors = llama_cpp_vectors(real_data, tmp_path, "gpt-2")
    assert len(vectors) == 47
    for text, ids in vectors:
        assert tokenizer.encode(text) == [int(id) for id in ids.split()], text


def test_llama_cpp_vectors_of_qwen2(real_data, tmp_path):
    ranks = parse_ranks(lzma.open(real_data("tokenizers/qwen.tiktoken.xz")).read())
    tokenizer = tokenizer_from_ranks("qwen2", ranks, PATTERNS["digits"],
                                     {"<|endoftext|>": len(ranks)})
    vectors = llama_cpp_vectors(real_data, tmp_path, "qwen2")
    assert len(vectors) == 47
    for text, ids in vectors:
        assert tokenizer.encode(text) == [int(id) for id in ids.split()], text


def train_by_counting(text: str, merges: int, tie) -> list[tuple[bytes, bytes]]:
    """BPE by its definition: merge the most frequent pair on and on; `tie` picks of equals."""
    words = collections.Counter(GPT2_SPLIT.findall(text))
    words = [([bytes([byte]) for byte in word.encode()], count) for word, count in words.items()]
    pairs = collections.Counter()

    def count_pairs(word, times):
        for pair in zip(word, word[1:], strict=False):
            pairs[pair] += times

    for word, times in words:
        count_pairs(word, times)
    learnt = []
    for _ in range(merges):
        most = max(pairs.values())
        pair = tie([pair for pair in pairs if pairs[pair] == most], learnt)
        learnt.append(pair)
        for word, times in words:
            if pair[0] in word and pair in zip(word, word[1:], strict=False):
                count_pairs(word, -times)
                for i in range(len(word) - 1):
                    if tuple(word[i:i + 2]) == pair:
                        word[i:i + 2] = [pair[0] + pair[1]]
                count_pairs(word, times)
    return learnt


def smallest_ids(pairs, learnt):
    """The rule of the `tokenizers` library, which numbers the bytes in GPT-2's order."""
    order = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100),
             *range(0x21), *range(0x7F, 0xA1), 0xAD]
    ids = {bytes([byte]): i for i, byte in enumerate(order)}
    ids |= {left + right: 256 + i for i, (left, right) in enumerate(learnt)}
    return min(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def test_training_differs_from_the_243_reference_merges_by_ties_alone(real_data, tmp_path):
    """A trainer by definition gives the reference under its tie rule, and ours under ours."""
    shutil.unpack_archive(real_data("tokenizers/bpe_training_oracle_cs336.tar.xz"), tmp_path,
                          filter="data")
    text = (tmp_path / "corpus.en").read_text()
    lines = (tmp_path / "train-bpe-reference-merges.txt").read_text().splitlines()
    reference = [tuple(part.replace("Ġ", " ").encode() for part in line.split(" "))
                 for line in lines]
    ranks = train_tokenizer([text], 500, "gpt2", ("<|endoftext|>",)).ranks
    ours = sorted(ranks, key=ranks.get)[256:]

    assert train_by_counting(text, 243, lambda pairs, learnt: max(pairs)) == reference
    assert ours == [left + right for left, right in train_by_counting(text, 243, smallest_ids)]
    theirs = [left + right for left, right in reference]
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) == 156
    assert len(set(ours) & set(theirs)) == 240


# Training

def test_ids_bytes_then_merges_then_special_tokens(trained):
    for tokenizer in trained.values():
        assert tokenizer.vocab_size == 420
        assert sorted(tokenizer.ranks.values()) == list(range(420 - len(SPECIAL_TOKENS)))
        assert list(tokenizer.special_tokens) == list(SPECIAL_TOKENS)
        assert list(tokenizer.special_tokens.values()) == list(range(413, 420))
        assert tokenizer.end_of_text == 413 and tokenizer.token_bytes()[413:].sum() == 0


def test_training_is_deterministic_whatever_the_order(trained):
    again = train_tokenizer(iter(CORPUS[::-1]), 420)
    assert again == trained["gpt4"] and again.ranks == trained["gpt4"].ranks


def test_only_bytes():
    tokenizer = train_tokenizer([], 256 + len(SPECIAL_TOKENS))
    assert tokenizer.encode("é") == [0xC3, 0xA9]


@pytest.mark.parametrize("change, message", [
    ({"pattern": "gpt5"}, "unknown split pattern 'gpt5': choose one of gpt2, gpt4"),
    ({"vocab_size": 262}, "vocab_size=262 is too small: 256 bytes and 7 special tokens need 263"),
    ({"vocab_size": 10_000}, r"only \d+ of the 9737 merges .* give more text, or vocab_size="),
    ({"texts": []}, "the text gives only 0 of the 157 merges"),
    ({"special_tokens": ("<|endoftext|>", "<|x|>", "<|x|>")}, "a special token appears twice"),
    ({"special_tokens": ("<|x|>",)}, r"special token <\|endoftext\|> is missing"),
    ({"special_tokens": ("<|endoftext|>", "")}, "no special token may be empty"),
])
def test_bad_training_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(**{"texts": CORPUS, "vocab_size": 420, **change})


def test_vocab_size_that_the_message_names_works():
    with pytest.raises(ValueError) as error:
        train_tokenizer(CORPUS, 10_000)
    size = int(str(error.value).rsplit("vocab_size=", 1)[1])
    assert train_tokenizer(CORPUS, size).vocab_size == size


def test_an_error_of_the_source_passes_through_training():
    def broken():
        yield "text"
        raise ValueError("file.jsonl, line 3: not JSON")

    with pytest.raises(ValueError, match="file.jsonl, line 3"):
        train_tokenizer(broken(), 300)


@pytest.mark.parametrize("change, message", [
    ({"ranks": {b"a": 0}}, "the byte 0x00 has no token"),
    ({"pattern": "(unclosed"}, "the split pattern is no regular expression"),
    ({"special_tokens": {"<|endoftext|>": 5}}, "must all differ"),
    ({"special_tokens": {"<|endoftext|>": -5}}, "not be negative"),
])
def test_bad_ranks(change, message):
    good = {"ranks": {bytes([b]): b for b in range(256)}, "pattern": PATTERNS["gpt4"],
            "special_tokens": {"<|endoftext|>": 256}}
    assert tokenizer_from_ranks("t", **good).vocab_size == 257
    with pytest.raises(ValueError, match=message):
        tokenizer_from_ranks("t", **(good | change))


def test_travels_to_another_process(trained):
    copy = pickle.loads(pickle.dumps(trained["gpt4"]))
    assert copy == trained["gpt4"] and copy.encode(CORPUS[2]) == trained["gpt4"].encode(CORPUS[2])
