"""Tokenizers on disk and by name: folders, damage, and a machine without network."""

import dataclasses
import hashlib
import json

import pytest
import requests
import tiktoken.load

from jaxllm.data import tokenizer as tokenizer_module
from jaxllm.data.tokenizer import load_tokenizer, tokenizer_from_ranks, train_tokenizer
from jaxllm.data.tokenizer_folder import CONFIG_FILE, RANKS_FILE
from jaxllm.data.tokenizer_split import PATTERNS

TEXTS = ["The cat sat on the mat. It's the cat's mat, isn't it? 1999 and 2024 and 12345. "
         "Über Straße naïve café слово слово abababab HTTPServer XMLHttpRequest"] * 2


@pytest.fixture(scope="module")
def trained():
    return {name: train_tokenizer(TEXTS, 330, name) for name in PATTERNS}


def test_save_and_load_again(trained, tmp_path):
    for name, tokenizer in trained.items():
        tokenizer = dataclasses.replace(tokenizer, chat_template="chatml")
        tokenizer.save(tmp_path / "deep" / name)
        loaded = load_tokenizer(tmp_path / "deep" / name)
        assert loaded == tokenizer and loaded != trained[name]
        assert (loaded.ranks, loaded.pattern) == (tokenizer.ranks, tokenizer.pattern)
        assert loaded.special_tokens == tokenizer.special_tokens
        files = sorted(path.name for path in (tmp_path / "deep" / name).iterdir())
        assert files == [RANKS_FILE, CONFIG_FILE]
        # tiktoken itself reads the ranks.
        ranks = tiktoken.load.load_tiktoken_bpe(str(tmp_path / "deep" / name / RANKS_FILE))
        assert ranks == tokenizer.ranks
    assert len({tokenizer.fingerprint for tokenizer in trained.values()}) == len(PATTERNS)


def test_fingerprint_covers_ranks_pattern_and_special_tokens(trained):
    base = trained["gpt4"]
    swapped = dict(base.ranks)
    first, second = [token for token, id in base.ranks.items() if id in (270, 271)]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    parts = {"ranks": base.ranks, "pattern": base.pattern, "special_tokens": base.special_tokens}
    prints = {tokenizer_from_ranks("x", **(parts | change)).fingerprint for change in (
        {}, {"ranks": swapped}, {"pattern": PATTERNS["digits"]},
        {"special_tokens": {"<|endoftext|>": 323}})}
    assert base.fingerprint in prints and len(prints) == 4


def test_encoding_survives_the_folder(real_data, monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(real_data("tokenizers/tiktoken_cache")))
    tokenizer = load_tokenizer("gpt2")
    tokenizer.save(tmp_path / "gpt2")
    assert load_tokenizer(str(tmp_path / "gpt2")) == tokenizer


def test_another_tokenizer_is_never_overwritten(trained, tmp_path):
    trained["gpt4"].save(tmp_path)
    trained["gpt4"].save(tmp_path)
    with pytest.raises(FileExistsError, match="holds another tokenizer already"):
        trained["gpt2"].save(tmp_path)
    assert load_tokenizer(tmp_path) == trained["gpt4"]


def test_a_write_cut_short_leaves_no_half_file(trained, tmp_path, monkeypatch):
    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trained["gpt4"].save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _edit_config(folder, **changes):
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


def _rewrite_ranks(folder, data):
    """Damage that the sha256 does not show: the config is made to agree."""
    (folder / RANKS_FILE).write_bytes(data)
    _edit_config(folder, ranks_sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("damage, error, message", [
    (lambda f: (f / RANKS_FILE).unlink(), FileNotFoundError, f"{RANKS_FILE} is missing"),
    (lambda f: (f / CONFIG_FILE).unlink(), FileNotFoundError, f"{CONFIG_FILE} is missing"),
    (lambda f: (f / RANKS_FILE).write_bytes((f / RANKS_FILE).read_bytes()[:-9]), ValueError,
     f"{RANKS_FILE} is damaged: its sha256"),
    (lambda f: _rewrite_ranks(f, b"YQ== 0\n!! 1\n"), ValueError, f"{RANKS_FILE}, line 2: expected"),
    (lambda f: _rewrite_ranks(f, b"YQ== 0\nYQ== 1\n"), ValueError, f"{RANKS_FILE}, line 2: .*the"),
    (lambda f: _rewrite_ranks(f, b"YQ== 0\nYg== 0\n"), ValueError, "two tokens have the same id"),
    (lambda f: (f / CONFIG_FILE).write_text("{"), ValueError, f"{CONFIG_FILE} is damaged: not"),
    (lambda f: (f / CONFIG_FILE).write_bytes(b"\xff{}"), ValueError, "is damaged: not JSON"),
    (lambda f: _edit_config(f, format_version=2), ValueError, "not a tokenizer of format"),
    (lambda f: _edit_config(f, pattern=3), ValueError, "'pattern' is missing or of the wrong type"),
    (lambda f: _edit_config(f, special_tokens={"<|endoftext|>": "1"}), ValueError, "the id '1'"),
    (lambda f: _edit_config(f, pattern="("), ValueError, f"{CONFIG_FILE} is damaged: .*pattern"),
    (lambda f: _edit_config(f, pattern=PATTERNS["gpt2"]), ValueError, "do not give the fingerpr"),
    (lambda f: _edit_config(f, special_tokens={"<|endoftext|>": 500}), ValueError,
     "do not give the fingerprint"),
])
def test_damaged_folder_is_refused_by_file_name(trained, tmp_path, damage, error, message):
    trained["gpt4"].save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        load_tokenizer(tmp_path)


def test_unknown_name():
    with pytest.raises(FileNotFoundError, match="no tokenizer 'gpt3': it is neither a folder nor"):
        load_tokenizer("gpt3")


@pytest.mark.parametrize("name", tokenizer_module.ENCODINGS)
def test_offline_without_the_cache_says_what_to_set(name, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise requests.exceptions.ConnectionError("Name or service not known")

    monkeypatch.setattr("requests.get", no_network)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    expected = "set TIKTOKEN_CACHE_DIR to a folder that holds [0-9a-f]{40}"
    with pytest.raises(FileNotFoundError, match=expected):
        load_tokenizer(name)


def test_the_error_names_the_files_that_tiktoken_looks_for(real_data):
    folder = real_data("tokenizers/tiktoken_cache")
    for _, files in tokenizer_module.ENCODINGS.values():
        for url in (tokenizer_module._SITE + file for file in files):
            assert (folder / hashlib.sha1(url.encode()).hexdigest()).exists()
