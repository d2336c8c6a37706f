"""Byte-level BPE tokenizers: tiktoken's encodings by name, and ones trained here.

Every tokenizer is a `tiktoken.Encoding` with this project's special tokens. Training is done by the
`tokenizers` library; `jaxllm.data.tokenizer_folder` describes the files.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tiktoken

from jaxllm.data import tokenizer_folder
from jaxllm.data.tokenizer_split import PATTERNS, pieces
from jaxllm.data.tokenizer_training import learn_ranks

END_OF_TEXT = "<|endoftext|>"

# Documents end with the first. A chat message is <|im_start|> role <|im_sep|> content <|im_end|>.
# The model writes <|tool_call|> call <|tool_end|>; <|tool_result|> result <|tool_end|> answers it.
SPECIAL_TOKENS: tuple[str, ...] = (END_OF_TEXT, "<|im_start|>", "<|im_sep|>", "<|im_end|>",
                                   "<|tool_call|>", "<|tool_result|>", "<|tool_end|>")

# Bytes that text hardly holds (C0 controls, what UTF-8 never has, lead bytes of unassigned planes): a published
# vocabulary may lack them, and the characters spelled with them.
RARE_BYTES: Mapping[int, str] = (
    {byte: rf"\x{byte:02x}" for byte in (*range(0x01, 0x09), *range(0x0E, 0x20))}
    | {byte: "" for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
    | {0xF1: "\U00040000-\U0007ffff", 0xF2: "\U00080000-\U000bffff", 0xF3: "\U000c0000-\U000fffff",
       0xF4: "\U00100000-\U0010ffff"})

# Encoding -> (split pattern, the files that tiktoken downloads for it).
_SITE = "https://openaipublic.blob.core.windows.net/"
ENCODINGS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "gpt2": ("gpt2", ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json")),
    "r50k_base": ("gpt2", ("encodings/r50k_base.tiktoken",)),
    "p50k_base": ("gpt2", ("encodings/p50k_base.tiktoken",)),
    "cl100k_base": ("gpt4", ("encodings/cl100k_base.tiktoken",)),
    "o200k_base": ("o200k", ("encodings/o200k_base.tiktoken",)),
}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back; two are equal when name, chat template and fingerprint are.

    Attributes:
      name: the encoding's name, or what training called it.
      fingerprint: sha256 (hex) over ranks, pattern and special tokens; data on disk states it.
      chat_template: the name of the chat layout that the model over it expects, or None.
      special_tokens: the id of each special token, the only road to these ids.
      pattern: the regular expression that cuts text before merging.
      ranks: the id of each ordinary token's bytes; a lower id merges first.
      encoding: the `tiktoken.Encoding` of all this.
      end_token: the special token that ends a document; `<|endoftext|>` but in published tokenizers that
        have another (Llama-3's `<|end_of_text|>`).
      begin_token: the special token that the tokenizer's authors put before every text, or None.
      unspellable: characters with a byte that the vocabulary lacks, or None; they become U+FFFD.
    """

    name: str
    fingerprint: str
    chat_template: str | None
    special_tokens: Mapping[str, int] = dataclasses.field(compare=False, repr=False)
    pattern: str = dataclasses.field(compare=False, repr=False)
    ranks: Mapping[bytes, int] = dataclasses.field(compare=False, repr=False)
    encoding: tiktoken.Encoding = dataclasses.field(compare=False, repr=False)
    end_token: str = END_OF_TEXT
    begin_token: str | None = None
    unspellable: re.Pattern[str] | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def vocab_size(self) -> int:
        """The largest id plus 1 (some encodings leave a few ids below it without a token)."""
        return self.encoding.max_token_value + 1

    @property
    def end_of_text(self) -> int:
        """The id of the token that ends a document, `<|endoftext|>` where there is one."""
        return self.special_tokens[self.end_token]

    @property
    def begin_of_text(self) -> int:
        """The id of the token to put before a prompt: `begin_token`, or the end of the document before."""
        return self.special_tokens[self.begin_token or self.end_token]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text; a special token's spelling in it becomes ordinary tokens.

        A lone surrogate, which UTF-8 cannot hold, is encoded as U+FFFD, and so is a character that the
        vocabulary of a published tokenizer cannot spell.

        >>> tokenizer = train_tokenizer(["aa aa aa"], vocab_size=265)
        >>> tokenizer.encode("aa aa"), tokenizer.decode([256, 257])
        ([256, 257], 'aa aa')
        """
        if self.unspellable is not None:
            text = self.unspellable.sub("\ufffd", text)
        ids = [self.encoding.encode_ordinary(piece) for piece in pieces(text)]
        return ids[0] if len(ids) == 1 else [id for part in ids for id in part]

    def encode_batch(self, texts: Sequence[str], threads: int = 8) -> list[list[int]]:
        """Returns `encode` of each text, on this many threads (tiktoken releases the GIL).

        Threads pay for long texts on idle cores; a corpus of short ones is faster in processes
        (`jaxllm.data.tokenize_corpus`).
        """
        share = -(-len(texts) // threads) or 1  # per thread; a task per text costs more
        starts = range(0, len(texts), share)
        with ThreadPoolExecutor(threads) as executor:
            shares = executor.map(lambda i: [self.encode(t) for t in texts[i:i + share]], starts)
            return [ids for encoded in shares for ids in encoded]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Returns the bytes of the ids, exactly; a token may end inside a character.

        Args:
          ids: a list or one-dimensional array of ids; special tokens give their spelling.

        Raises:
          ValueError: an id has no token.
        """
        ids = np.asarray(ids).tolist()
        try:
            return self.encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            bad = next(id for id in ids if not self._is_token(id))
            raise ValueError(f"{self.name}: {bad} is not the id of a token; the vocabulary size "
                             f"is {self.vocab_size}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids; U+FFFD stands for bytes that are not UTF-8.

        It stands also for an id below `vocab_size` that has no token: a model can sample one.

        Raises:
          ValueError: an id is negative or not below `vocab_size`.
        """
        ids = np.asarray(ids).tolist()
        try:
            return self.encoding.decode(ids, errors="replace")
        except (KeyError, OverflowError):
            parts = [self.decode_bytes([id]) if self._is_token(id) or not 0 <= id < self.vocab_size
                     else "\ufffd".encode() for id in ids]
            return b"".join(parts).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """Returns int32 [V]: bytes of text per token, 0 for special tokens (for bits per byte)."""
        lengths = np.zeros(self.vocab_size, np.int32)
        lengths[list(self.ranks.values())] = [len(token) for token in self.ranks]
        return lengths

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the tokenizer as a folder, which `load_tokenizer` reads.

        Raises:
          FileExistsError: the folder holds another tokenizer.
        """
        settings = {
            "name": self.name, "pattern": self.pattern, "special_tokens": dict(self.special_tokens),
            "chat_template": self.chat_template, "fingerprint": self.fingerprint}
        if self.end_token != END_OF_TEXT:
            settings["end_token"] = self.end_token
        if self.begin_token is not None:
            settings["begin_token"] = self.begin_token
        tokenizer_folder.write_folder(folder, self.ranks, settings)

    def _is_token(self, id: int) -> bool:
        try:
            self.encoding.decode_single_token_bytes(id)
        except (KeyError, OverflowError):
            return False
        return True


def tokenizer_from_ranks(name: str, ranks: Mapping[bytes, int], pattern: str,
                         special_tokens: Mapping[str, int],
                         chat_template: str | None = None, end_token: str = END_OF_TEXT,
                         begin_token: str | None = None) -> Tokenizer:
    """Makes a tokenizer of mergeable ranks, such as a published `.tiktoken` file holds.

    Args:
      name: what to call it.
      ranks: the id of each ordinary token's bytes, each of the 256 bytes among them (RARE_BYTES may be
        missing).
      pattern: the regular expression that cuts text before merging (a value of PATTERNS, say).
      special_tokens: ids of the special tokens, apart from the ranks' ids; `end_token` is one.
      chat_template: the name of the chat layout or a Jinja template, if any.
      end_token: the special token that ends a document.
      begin_token: the special token before every text, if any.

    Raises:
      ValueError: a byte has no token, `end_token` or `begin_token` is missing, ids collide, or the
        pattern is no regular expression.
    """
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    missing = [byte for byte in lacking if byte not in RARE_BYTES]
    if missing:
        raise ValueError(f"{name}: the byte {missing[0]:#04x} has no token, so some text could not "
                         "be encoded: give all 256 single bytes a rank")
    if end_token not in special_tokens:
        raise ValueError(f"{name}: the special token {end_token} is missing: add it, "
                         "documents end with it")
    if begin_token is not None and begin_token not in special_tokens:
        raise ValueError(f"{name}: the special token {begin_token} is missing: add it, texts begin with it")
    ids = [*ranks.values(), *special_tokens.values()]
    if len(set(ids)) != len(ids) or min(ids) < 0 or "" in special_tokens:
        raise ValueError(f"{name}: ids of tokens and special tokens must all differ and not be "
                         "negative, and no special token may be empty")
    try:
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=dict(ranks),
                                     special_tokens=dict(special_tokens))
    except ValueError as error:
        raise ValueError(f"{name}: the split pattern is no regular expression ({error})") from error
    rare = "".join(RARE_BYTES[byte] for byte in lacking)
    return Tokenizer(name, _fingerprint(ranks, pattern, special_tokens), chat_template,
                     dict(special_tokens), pattern, dict(ranks), encoding, end_token, begin_token,
                     re.compile(f"[{rare}]") if rare else None)


def load_tokenizer(name_or_folder: str | os.PathLike) -> Tokenizer:
    """Loads a tiktoken encoding by name, or a folder that `Tokenizer.save` wrote.

    An encoding keeps its own special tokens, with their ids; those of SPECIAL_TOKENS that it lacks
    get ids after its last one.

    Args:
      name_or_folder: a key of ENCODINGS, or a path.

    Raises:
      FileNotFoundError: no such name or folder, or the ranks cannot be downloaded.
      ValueError: a file of the folder is damaged.
    """
    if name_or_folder in ENCODINGS:
        return _load_encoding(str(name_or_folder))
    folder = pathlib.Path(name_or_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no tokenizer {str(name_or_folder)!r}: it is neither a folder nor "
                                f"one of {', '.join(ENCODINGS)}")
    ranks, settings = tokenizer_folder.read_folder(folder)
    path = folder / tokenizer_folder.CONFIG_FILE
    try:
        tokenizer = tokenizer_from_ranks(settings["name"], ranks, settings["pattern"],
                                         settings["special_tokens"], settings["chat_template"],
                                         settings["end_token"], settings["begin_token"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if tokenizer.fingerprint != settings["fingerprint"]:
        raise ValueError(f"{path} is damaged: its pattern and special tokens do not give the "
                         "fingerprint that it states; copy the folder again")
    return tokenizer


def _load_encoding(name: str) -> Tokenizer:
    pattern, files = ENCODINGS[name]
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:
        needed = "; ".join(f"{hashlib.sha1(url.encode()).hexdigest()} (the content of {url})"
                           for url in (_SITE + file for file in files))
        raise FileNotFoundError(
            f"the ranks of {name} cannot be downloaded ({type(error).__name__}): set "
            f"TIKTOKEN_CACHE_DIR to a folder that holds {needed}") from error
    # These two attributes are how tiktoken's own documentation extends an encoding.
    own = encoding._special_tokens
    added = [token for token in SPECIAL_TOKENS if token not in own]
    special_tokens = own | {token: encoding.n_vocab + i for i, token in enumerate(added)}
    return tokenizer_from_ranks(name, encoding._mergeable_ranks, PATTERNS[pattern], special_tokens)


def train_tokenizer(texts: Iterable[str], vocab_size: int, pattern: str = "gpt4",
                    special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    """Trains a byte-level BPE tokenizer on texts, with the `tokenizers` library.

    Ids 0..255 are the bytes, then come the merges in the order they were learnt, then the special
    tokens.
    The same texts in any order give the same tokenizer.

    Args:
      texts: the documents; read once, only counts of their words are held.
      vocab_size: number of ids in all, at least 256 + the number of special tokens.
      pattern: how text is cut into words: a key of PATTERNS.
      special_tokens: spellings, all different; `<|endoftext|>` is one.

    Raises:
      ValueError: an argument is out of range, or the texts are too few for vocab_size.

    References:
      Sennrich et al. 2016, "Neural machine translation of rare words with subword units",
      https://arxiv.org/abs/1508.07909; over bytes: Radford et al. 2019 (GPT-2).

    Note:
      Of pairs with the same count the library takes the one with the smallest ids; Sennrich's code
      takes the lexicographically greatest. Their merges differ by that and nothing else (a test).
    """
    if pattern not in PATTERNS:
        raise ValueError(f"unknown split pattern {pattern!r}: choose one of "
                         f"{', '.join(PATTERNS)}")
    if len(set(special_tokens)) != len(special_tokens):
        raise ValueError(f"a special token appears twice in {list(special_tokens)}")
    merges = vocab_size - 256 - len(special_tokens)
    if merges < 0:
        raise ValueError(f"vocab_size={vocab_size} is too small: 256 bytes and "
                         f"{len(special_tokens)} special tokens need {256 + len(special_tokens)}")
    ranks = learn_ranks(texts, merges, PATTERNS[pattern])
    if len(ranks) < 256 + merges:
        raise ValueError(f"the text gives only {len(ranks) - 256} of the {merges} merges that "
                         f"vocab_size={vocab_size} asks for: give more text, or vocab_size="
                         f"{len(ranks) + len(special_tokens)}")
    special_ids = {token: len(ranks) + i for i, token in enumerate(special_tokens)}
    name = f"bpe-{pattern}-{vocab_size}"
    return tokenizer_from_ranks(name, ranks, PATTERNS[pattern], special_ids)


def _fingerprint(ranks: Mapping[bytes, int], pattern: str,
                 special_tokens: Mapping[str, int]) -> str:
    digest = hashlib.sha256(tokenizer_folder.format_ranks(ranks))
    digest.update(json.dumps([pattern, sorted(special_tokens.items())]).encode())
    return digest.hexdigest()
