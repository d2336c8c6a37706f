"""The tokenizer in a GGUF's metadata to our Tokenizer and back.

References: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (the keys `tokenizer.*`); the names of
  `tokenizer.ggml.pre` are llama.cpp's, src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.tokenizer_hugging_face import UnsupportedTokenizer, build, refuse_ordinary_text
from jaxllm.data.tokenizer_merges import merges_of, to_characters
from jaxllm.data.tokenizer_split import PATTERNS, PUBLISHED

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type
# llama.cpp's name of a cut -> the pattern.
_CUTS: Mapping[str, str] = {
    "gpt-2": PATTERNS["gpt2"], "smollm": PUBLISHED["smollm2"], "llama-bpe": PUBLISHED["llama3"],
    "llama3": PUBLISHED["llama3"], "llama-v3": PUBLISHED["llama3"], "qwen2": PUBLISHED["qwen2"],
    "gpt-4o": PATTERNS["o200k"]}
# The pattern -> the name whose cuts are its own. Those of gpt4 and digits differ from Llama-3's and Qwen2's in one
# thing: white space that ends a text after a line break is one word.
_NAMES: Mapping[str, str] = {
    PATTERNS["gpt4"]: "llama-bpe", PATTERNS["digits"]: "qwen2",
    **{pattern: name for name, pattern in reversed(_CUTS.items())}}
_BEGINS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3")
_PATTERN_KEY = "jaxllm.tokenizer.pattern"


def tokenizer_from_gguf(metadata: Mapping[str, Any], name: str = "gguf") -> Tokenizer:
    """The tokenizer that a GGUF's metadata describe.

    Args:
      metadata: key -> value, as `jaxllm.model.gguf_file` reads them.
      name: what to call it.

    Raises:
      UnsupportedTokenizer: when it is of a kind that is not read here; weights can be converted without it.
      ValueError: when its keys do not fit together.
    """
    kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise UnsupportedTokenizer(f"the file's tokenizer is {kind!r} ('llama' is SentencePiece); only byte-level BPE, "
                                   f"'gpt2', is read")
    if cut not in _CUTS:
        raise UnsupportedTokenizer(f"the file's tokenizer cuts text like {cut!r}; known are {', '.join(_CUTS)}")
    pattern = metadata.get(_PATTERN_KEY)
    if _NAMES.get(pattern) != cut:
        pattern = _CUTS[cut]
    tokens, types = _strings(metadata, "tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    types = [NORMAL] * len(tokens) if types is None else list(types)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError("tokenizer.ggml.tokens has a token twice, or not as many as tokenizer.ggml.token_type")
    for i, token in enumerate(tokens):
        if types[i] == USER_DEFINED:
            refuse_ordinary_text(token)
    special = {token: i for i, token in enumerate(tokens) if types[i] in (CONTROL, USER_DEFINED)}
    plain = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
    end, begin = (_token(metadata, key, tokens) for key in ("eos", "bos"))
    special |= {token: tokens.index(token) for token in (end, begin) if token is not None}
    plain = {token: i for token, i in plain.items() if token not in special}
    template = metadata.get("tokenizer.chat_template")
    return build(name, plain, _strings(metadata, "tokenizer.ggml.merges"), pattern, special,
                 whole_words=cut in _BEGINS_BY_DEFAULT or _PATTERN_KEY in metadata, end=end,
                 begin=begin if metadata.get("tokenizer.ggml.add_bos_token", cut in _BEGINS_BY_DEFAULT) else None,
                 chat_template=template if isinstance(template, str) else None)


def tokenizer_to_gguf(tokenizer: Tokenizer, vocab_size: int, chat_template: str | None = None,
                      end: str | None = None) -> dict[str, Any]:
    """The metadata that describe `tokenizer` to llama.cpp.

    Args:
      tokenizer: the tokenizer.
      vocab_size: V of the model; ids without a token are named and marked unused.
      chat_template: Jinja source, or None.
      end: the special token at which generation stops; None is the end of a document.

    Returns:
      key -> str, int, bool or list.

    Raises:
      ValueError: when llama.cpp has no cut like this tokenizer's, or the model is narrower than it.
    """
    if tokenizer.pattern not in _NAMES:
        raise ValueError(f"llama.cpp has no cut of text like that of tokenizer {tokenizer.name}; train one with the "
                         f"pattern {', '.join(PATTERNS)}")
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(f"tokenizer {tokenizer.name} has ids up to {tokenizer.vocab_size - 1}, the model only "
                         f"{vocab_size} embeddings")
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, i in tokenizer.ranks.items():
        tokens[i], types[i] = to_characters(token), NORMAL
    for token, i in tokenizer.special_tokens.items():
        tokens[i], types[i] = token, CONTROL
    merges = [f"{to_characters(left)} {to_characters(right)}" for left, right in merges_of(tokenizer.ranks)]
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _NAMES[tokenizer.pattern],
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": tokenizer.special_tokens[end or tokenizer.end_token],
        "tokenizer.ggml.bos_token_id": tokenizer.begin_of_text,
        "tokenizer.ggml.add_bos_token": tokenizer.begin_token is not None, _PATTERN_KEY: tokenizer.pattern}
    return metadata | ({"tokenizer.chat_template": chat_template} if chat_template else {})


def _strings(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"the file's {key} is missing or not a list of texts")
    return value


def _token(metadata: Mapping[str, Any], role: str, tokens: Sequence[str]) -> str | None:
    id = metadata.get(f"tokenizer.ggml.{role}_token_id")
    return tokens[id] if type(id) is int and 0 <= id < len(tokens) else None
