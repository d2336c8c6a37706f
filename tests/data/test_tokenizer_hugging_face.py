"""Published tokenizers against the `tokenizers` library on the same file, and ours as others read them."""

import json
import lzma
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest
import tokenizers

from jaxllm.data.chat import render
from jaxllm.data.tokenizer import load_tokenizer, tokenizer_from_ranks, train_tokenizer
from jaxllm.data.tokenizer_gguf import tokenizer_from_gguf, tokenizer_to_gguf
from jaxllm.data.tokenizer_hugging_face import (
    JINJA,
    UnsupportedTokenizer,
    tokenizer_from_hugging_face,
    tokenizer_to_hugging_face,
)
from jaxllm.data.tokenizer_merges import CHARACTERS, canonical_pair, check_merges, merges_of, to_bytes, to_characters
from jaxllm.data.tokenizer_split import PATTERNS, PUBLISHED

CORPUS = ["The cat sat on the mat, isn't it? It's 1999 and 12345 and the cats' mats.\n\n  def f(x):\n\treturn x\n"
          "naïve café слово слово 漢字 🙂🙂 aaaa aaaaaa abababab HTTPServer"] * 3
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    st.lists(st.sampled_from([" the", "cat", "'s", "'LL", "'ſ", "12345", " 7", "½", "٣", " ", "  ", "\n", "\r\n", "\t",
                              "\u00a0", "\u2003", "é", "слово", "漢字", "🙂", "\u200d", "<|", "|>", "x.", "!!", " (",
                              "\U000e0041"]), max_size=14).map("".join))
SPLITS = {**PATTERNS, **PUBLISHED}


def write(folder, content, **settings):
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def smollm2_like() -> dict:
    """A tokenizer.json trained and written by the library with SmolLM2's cut: special tokens first, then bytes."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    library.decoder = tokenizers.decoders.ByteLevel()
    spaces = ["a  1   2\n\n 3  x !! (  'll 's ...  \t\t7 \u00a0 9   \n\n\n    x"] * 3
    library.train_from_iterator(CORPUS + spaces, tokenizers.trainers.BpeTrainer(
        vocab_size=380, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=list(CHARACTERS)))
    return json.loads(library.to_str())


CONTENT = smollm2_like()


# Published ones encode as the library does

def test_smollm2_cut_is_that_of_digits_then_gpt2(tmp_path):
    ours = tokenizer_from_hugging_face(write(tmp_path, CONTENT, eos_token="<|im_end|>"))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(CONTENT))
    assert (ours.end_token, ours.begin_token, ours.end_of_text, ours.begin_of_text) == ("<|endoftext|>", None, 0, 0)
    assert len(merges_of(ours.ranks)) > 90

    @hypothesis.given(text=TEXT)
    @hypothesis.settings(deadline=None, max_examples=150)
    def same(text):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text

    same()


@pytest.mark.slow
def test_qwen2_5_on_real_texts(tmp_path, real_data):
    raw = lzma.open(real_data("tokenizers/qwen2_5_tokenizer.json.xz")).read()
    (tmp_path / "tokenizer.json").write_bytes(raw)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "eos_token": "<|im_end|>", "add_bos_token": False, "chat_template": [
            {"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}"}]}))
    ours, theirs = tokenizer_from_hugging_face(tmp_path, "qwen2.5"), tokenizers.Tokenizer.from_str(raw.decode())
    assert (ours.name, ours.end_of_text, ours.chat_template) == ("qwen2.5", 151643, "{{ messages[0].content }}")
    assert ours.special_tokens["<tool_call>"] == 151657 and len(ours.special_tokens) == 22
    text = lzma.open(real_data("text/wikitext2_valid.txt.xz")).read().decode()[:50_000]
    assert ours.encode(text) == theirs.encode(text).ids
    pages = [json.loads(line)["text"] for line in lzma.open(real_data("text/web_mix_8_sources_400docs.jsonl.xz"))][:200]
    pages = [page for page in pages if unicodedata.is_normalized("NFC", page)]  # which theirs would change first
    assert len(pages) > 150 and [ours.encode(page) for page in pages] == [
        batch.ids for batch in theirs.encode_batch(pages)]

    @hypothesis.given(text=TEXT.map(lambda text: unicodedata.normalize("NFC", text)))
    @hypothesis.settings(deadline=None, max_examples=60)
    def same(text):
        assert ours.encode(text) == theirs.encode(text).ids

    same()
    ours.save(tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours") == ours


def test_llama3_roles_and_merges_of_every_split(tmp_path):
    """Llama-3: no <|endoftext|>, a token before every text, all ways to split a token listed as merges."""
    trained = train_tokenizer(CORPUS, 330, "gpt4")
    tokens, merges = {}, []
    for token, id in trained.ranks.items():
        tokens[to_characters(token)] = id
        merges += [(id, token[:i], token[i:]) for i in range(1, len(token))
                   if token[:i] in trained.ranks and token[i:] in trained.ranks]
    merges = [f"{to_characters(a)} {to_characters(b)}" for _, a, b in sorted(merges)]
    assert len(merges) > len(merges_of(trained.ranks))
    special = [{"id": 400 + i, "content": token, "special": True} for i, token in enumerate(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"))]
    split = {"type": "Split", "pattern": {"Regex": PUBLISHED["llama3"]}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "decoder": byte_level,
               "added_tokens": [token | {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
                                for token in special],
               "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
               "post_processor": {"type": "Sequence", "processors": [byte_level, {
                   "type": "TemplateProcessing",
                   "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
                              {"Sequence": {"id": "A", "type_id": 0}}],
                   "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                   "special_tokens": {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [400],
                                                            "tokens": ["<|begin_of_text|>"]}}}]},
               "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                         "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                         "vocab": tokens, "merges": merges}}
    ours = tokenizer_from_hugging_face(write(tmp_path, content, bos_token="<|begin_of_text|>",
                                             eos_token={"content": "<|eot_id|>"}))
    assert (ours.end_token, ours.end_of_text, ours.begin_of_text) == ("<|end_of_text|>", 401, 400)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    for text in [*CORPUS, "a\n  ", " \n \n  x", "12345678 'LL"]:
        assert [400, *ours.encode(text)] == theirs.encode(text).ids
    ours.save(tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours") == ours
    (tmp_path / "back").mkdir()
    tokenizer_to_hugging_face(ours, tmp_path / "back")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    assert again.encode(CORPUS[0]).ids == theirs.encode(CORPUS[0]).ids
    assert tokenizer_from_hugging_face(tmp_path / "back", ours.name) == ours


def test_bytes_that_a_vocabulary_lacks_become_the_replacement_character(tmp_path):
    """SmolLM2 lacks some control characters and planes that text hardly has; theirs leaves them out."""
    content = json.loads(json.dumps(CONTENT))
    for byte in (0x04, 0x1D, 0xC0, 0xF1, 0xFF):
        del content["model"]["vocab"][CHARACTERS[byte]]
    ours = tokenizer_from_hugging_face(write(tmp_path, content))
    assert ours.decode(ours.encode("a\x04b\U00040000c\x05🙂")) == "a\ufffdb\ufffdc\x05🙂"
    ours.save(tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours").encode("a\x04b") == ours.encode("a\x04b")
    del content["model"]["vocab"]["a"]
    content["model"]["merges"] = [m for m in content["model"]["merges"] if "a" not in "".join(m)]
    content["model"]["vocab"] = {t: i for t, i in content["model"]["vocab"].items() if "a" not in t}
    with pytest.raises(ValueError, match="the byte 0x61 has no token"):
        tokenizer_from_hugging_face(write(tmp_path, content))


# Ours as others read them

@pytest.mark.parametrize("pattern", SPLITS)
def test_written_and_read_by_the_library_and_by_us(tmp_path, pattern):
    trained = train_tokenizer(CORPUS, 340, "gpt2")
    ours = tokenizer_from_ranks("ours", trained.ranks, SPLITS[pattern], trained.special_tokens, "{{ messages }}")
    tokenizer_to_hugging_face(ours, tmp_path, ours.chat_template)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*CORPUS, "a  1  2\n\n 'll'S", "x \n\n  y", " 漢字 \t"]:
        assert theirs.encode(text).ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.encode("a<|im_end|>").ids == [*ours.encode("a"), ours.special_tokens["<|im_end|>"]]
    assert tokenizer_from_hugging_face(tmp_path, "ours") == ours
    metadata = tokenizer_to_gguf(ours, 400, ours.chat_template)
    assert len(metadata["tokenizer.ggml.tokens"]) == 400 and metadata["tokenizer.ggml.tokens"][399] == "[PAD399]"
    assert tokenizer_from_gguf(metadata, "ours") == ours


def test_transformers_gives_our_ids_and_our_chat_template(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    ours = train_tokenizer(CORPUS, 340, "digits")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer_to_hugging_face(ours, tmp_path, "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
                              "<|im_end|>")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs.encode(text) for text in CORPUS] == [ours.encode(text) for text in CORPUS]
    assert theirs.eos_token == "<|im_end|>" and theirs.decode(ours.encode(CORPUS[0])) == CORPUS[0]
    messages = [{"role": "user", "content": "the cat"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == "user: the cat"


def test_jinja_of_our_chat_formats_renders_as_they_do():
    pytest.importorskip("jinja2", reason="needs the extra `serve`")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|tool_call|>", "<|tool_result|>",
               "<|tool_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = train_tokenizer(CORPUS, 340, "digits", special)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat"},
                {"role": "assistant", "content": "sat\n"}, {"role": "user", "content": "and?"}]
    for name, source in JINJA.items():
        for prompt in (False, True):
            turns = messages if prompt else messages[:3]
            assert (render(turns, tokenizer, template=source, add_generation_prompt=prompt).ids
                    == render(turns, tokenizer, template=name, add_generation_prompt=prompt).ids), name


# Merges and ranks

def test_canonical_pairs_and_what_they_decide():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5}
    assert canonical_pair(b"abc", ranks) == (b"a", b"bc") and merges_of(ranks)[-1] == (b"a", b"bc")
    check_merges(ranks, [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")], whole_words=False)
    # dead pairs do no harm, wherever they stand
    check_merges(ranks, [(b"ab", b"c"), (b"b", b"c"), (b"a", b"b"), (b"a", b"bc")], whole_words=False)
    for merges, message in (
            ([(b"a", b"b"), (b"b", b"c"), (b"a", b"bc")], "is merged too early"),
            ([(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")], "'abc', has no merge of its own"),
            ([(b"b", b"c"), (b"b", b"c")], "has a pair twice"),
            ([(b"b", b"d")], "joins or makes what is no token")):
        with pytest.raises(ValueError, match=message):
            check_merges(ranks, merges, whole_words=False)
    lonely = ranks | {b"ca": 6, b"cab": 3 + 4}
    assert canonical_pair(b"cab", {**lonely, b"abca": 9, b"cabc": 8}) == (b"c", b"ab")
    unreachable = {b"a": 0, b"b": 1, b"c": 2, b"abc": 3}
    assert canonical_pair(b"abc", unreachable) is None
    check_merges(unreachable, [], whole_words=True)
    with pytest.raises(ValueError, match="has no merge of its own"):
        check_merges(unreachable, [], whole_words=False)


def test_the_work_of_merging_each_token_alone_is_bounded():
    """A file of a few megabytes can list thousands of tokens of 1,024 bytes, each worth half a million look-ups."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    long = {f"{i:01000}".encode(): 256 + i for i in range(68)}
    check_merges(ranks | dict([*long.items()][:67]), [], whole_words=True)
    for refused in (lambda: check_merges(ranks | long, [], whole_words=True), lambda: merges_of(ranks | long)):
        with pytest.raises(ValueError, match="the squares of their bytes add up to 68000256, and up to 67108864"):
            refused()


def test_the_alphabet_is_the_library_s():
    assert set(CHARACTERS) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) and len(set(CHARACTERS)) == 256
    assert all(to_bytes(to_characters(bytes([byte]))) == bytes([byte]) for byte in range(256))


# What is not read is refused

def changed(**changes):
    return lambda content: content | changes


def model(**changes):
    return lambda content: content | {"model": content["model"] | changes}


@pytest.mark.parametrize("change, error, message", [
    (model(type="Unigram"), UnsupportedTokenizer, "its model is Unigram"),
    (model(byte_fallback=True), UnsupportedTokenizer, "its model is BPE of characters"),
    (model(dropout=0.1), UnsupportedTokenizer, "dropout = 0.1"),
    (changed(normalizer={"type": "Lowercase"}), UnsupportedTokenizer, "its normalizer Lowercase"),
    (changed(pre_tokenizer={"type": "Whitespace"}), UnsupportedTokenizer, "does not end in ByteLevel"),
    (changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), UnsupportedTokenizer, "prefix space"),
    (changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}), UnsupportedTokenizer, "none that is"),
    (changed(added_tokens=[{"id": 0, "content": "  ", "special": False}]), UnsupportedTokenizer, "is ordinary text"),
    (changed(added_tokens=[]), UnsupportedTokenizer, "no token that ends a text"),
    (lambda content: content | {"model": content["model"] | {"vocab": content["model"]["vocab"] | {
        f"{i:01024}": 1000 + i for i in range(64)}}}, UnsupportedTokenizer, "the tokens are too long: the squares"),
    (lambda content: content | {"model": content["model"] | {"merges": content["model"]["merges"][::-1]}},
     UnsupportedTokenizer, "not in the order of its ids"),
    (model(vocab={"a": "b"}), ValueError, "'b' is not the id of a token"),
    (model(vocab={"a": 10**9}), ValueError, "1000000000 is not the id"),
    (model(vocab=None), ValueError, "damaged or of an unknown form"),
    (model(merges=["a b c"]), ValueError, "a merge is not of two tokens"),
    (model(merges=3), ValueError, "damaged or of an unknown form"),
    (changed(model=None), ValueError, "damaged or of an unknown form"),
    (changed(added_tokens=[{"id": 0}]), ValueError, "damaged or of an unknown form"),
])
def test_other_and_damaged_tokenizers_are_refused(tmp_path, change, error, message):
    with pytest.raises(error, match=message) as caught:
        tokenizer_from_hugging_face(write(tmp_path, change(CONTENT)))
    assert (error is UnsupportedTokenizer) == isinstance(caught.value, UnsupportedTokenizer)
    assert "tokenizer.json" in str(caught.value)


def test_missing_files_and_files_that_are_not_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        tokenizer_from_hugging_face(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(UnsupportedTokenizer, match="has tokenizer.model and no tokenizer.json"):
        tokenizer_from_hugging_face(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="tokenizer.json is damaged: not JSON"):
        tokenizer_from_hugging_face(tmp_path)


@pytest.mark.parametrize("changes, message", [
    ({"tokenizer.ggml.model": "llama"}, "tokenizer is 'llama' .'llama' is SentencePiece."),
    ({"tokenizer.ggml.pre": "deepseek-llm"}, "cuts text like 'deepseek-llm'; known are gpt-2"),
    ({"tokenizer.ggml.tokens": "abc"}, "tokenizer.ggml.tokens is missing or not a list"),
    ({"tokenizer.ggml.token_type": [1]}, "not as many as"),
    ({"tokenizer.ggml.merges": [1, 2]}, "tokenizer.ggml.merges is missing or not a list of texts"),
])
def test_gguf_metadata_that_do_not_fit(changes, message):
    metadata = tokenizer_to_gguf(train_tokenizer(CORPUS, 300), 300)
    assert tokenizer_from_gguf(metadata).vocab_size == 300
    with pytest.raises(ValueError, match=message):
        tokenizer_from_gguf(metadata | changes)


def test_user_defined_tokens_of_a_gguf_are_special_only_when_spelled_so():
    """llama.cpp cuts them out of a text; were they special here, "foo" in a text would never become one."""
    trained = train_tokenizer(CORPUS, 300)
    metadata = tokenizer_to_gguf(trained, 301)
    for added in ("<think>", "</tool_call>", "[PAD300]", "<|fim|>", "foo", "  "):
        other = {"tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"][:300], added],
                 "tokenizer.ggml.token_type": [*metadata["tokenizer.ggml.token_type"][:300], 4]}
        if added.strip("<[") != added:
            assert tokenizer_from_gguf(metadata | other).special_tokens[added] == 300
            continue
        with pytest.raises(UnsupportedTokenizer, match=f"the added token {added!r} is ordinary text"):
            tokenizer_from_gguf(metadata | other)


def test_what_llama_cpp_cannot_cut_or_hold_is_not_written():
    trained = train_tokenizer(CORPUS, 300)
    with pytest.raises(ValueError, match="ids up to 299, the model only 290 embeddings"):
        tokenizer_to_gguf(trained, 290)
    other = tokenizer_from_ranks("x", trained.ranks, r"\S+|\s+", trained.special_tokens)
    with pytest.raises(ValueError, match="no cut of text like that of tokenizer x"):
        tokenizer_to_gguf(other, 300)
