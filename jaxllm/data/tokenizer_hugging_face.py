"""Hugging Face's tokenizer files of byte-level BPE to our Tokenizer and back.

Read: `tokenizer.json`, with the end and begin tokens and the chat template of `tokenizer_config.json` and
`chat_template.jinja`. Every token that is special there, or spelled like one (`<think>`), becomes a special token here:
its spelling in a text is only text.

References: https://github.com/huggingface/tokenizers (the models and pre-tokenizers that `tokenizer.json` names).
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from jaxllm.data.tokenizer import END_OF_TEXT, Tokenizer, tokenizer_from_ranks
from jaxllm.data.tokenizer_merges import check_merges, merges_of, to_bytes, to_characters
from jaxllm.data.tokenizer_split import PATTERNS, PUBLISHED

LARGEST_FILE = 256 * 2**20  # bytes; Gemma's tokenizer.json, the largest published, has 34 MB
LARGEST_ID = 2**24
_ENDS = (END_OF_TEXT, "<|end_of_text|>")
_SPELLED_LIKE_SPECIAL = re.compile(r"</?[^<>\s]+>|\[[A-Z_0-9]+\]")


# A chat format's name (jaxllm.data.chat) -> Jinja source that renders plain messages like it, without tools.
JINJA: Mapping[str, str] = {
    "im_sep": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}"
              "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
              "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama3": "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
              "'<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
}


class UnsupportedTokenizer(ValueError):
    """A tokenizer of another kind than byte-level BPE, or that encodes otherwise than tiktoken would."""


def tokenizer_from_hugging_face(folder: str | os.PathLike, name: str | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    Args:
      folder: holds `tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` where there are any.
      name: what to call it; None is the folder's name.

    Raises:
      FileNotFoundError: when there is no tokenizer.json.
      UnsupportedTokenizer: when it is of a kind that is not read here; weights can be converted without it.
      ValueError: when a file is damaged.

    Note: the NFC normalisation of Qwen's tokenizers is left out: text in other forms (an accent as a character of
      its own) gets other, still reversible ids.
    """
    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        kinds = [file for file in ("tokenizer.model", "vocab.json") if (folder / file).exists()]
        if kinds:
            raise UnsupportedTokenizer(f"{folder} has {kinds[0]} and no tokenizer.json; only byte-level BPE in "
                                       f"tokenizer.json is read")
        raise FileNotFoundError(f"{path} is missing")
    content, settings = read_json(path), {}
    if (folder / "tokenizer_config.json").exists():
        settings = read_json(folder / "tokenizer_config.json")
    try:
        return _from_json(content, settings, _chat_template(folder, settings), name or folder.resolve().name)
    except UnsupportedTokenizer as error:
        raise UnsupportedTokenizer(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or of an unknown form: {error}") from error


def read_json(path: pathlib.Path, largest: int = LARGEST_FILE) -> dict[str, Any]:
    """The object that a json file holds.

    Raises:
      ValueError: naming the file, when it is too large, not json or not an object.
    """
    if path.stat().st_size > largest:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {largest} that are read")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: not a JSON object")
    return content


def build(name: str, tokens: Mapping[str, int], merges: list, pattern: str, special: Mapping[str, int], *,
          whole_words: bool = False, end: str | None = None, begin: str | None = None,
          chat_template: str | None = None) -> Tokenizer:
    """A Tokenizer of pieces in GPT-2's alphabet and a list of merges, checked to give the ids that they give.

    Args:
      name: what to call it.
      tokens: the id of each ordinary piece.
      merges: "left right", or pairs.
      pattern: how text is cut.
      special: the id of each special token.
      whole_words: see `check_merges`.
      end: the token that ends a text where none of `<|endoftext|>` and `<|end_of_text|>` is special.
      begin: the token that is put before every text, if any.
      chat_template: Jinja source, or None.

    Raises:
      UnsupportedTokenizer: when tiktoken's ranks would give other ids.
      ValueError: when it is no tokenizer at all.
    """
    for id in (*tokens.values(), *special.values()):
        if type(id) is not int or not 0 <= id < LARGEST_ID:
            raise ValueError(f"{id!r} is not the id of a token")
    ranks = {to_bytes(piece): id for piece, id in tokens.items()}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("a merge is not of two tokens")
    pairs = [(to_bytes(left), to_bytes(right)) for left, right in pairs]
    ending = next((token for token in (*_ENDS, end) if token in special), None)
    if ending is None:
        raise UnsupportedTokenizer(f"it has no token that ends a text: none of {', '.join(_ENDS)} is special and no "
                                   f"end token is named")
    try:
        check_merges(ranks, pairs, whole_words=whole_words)
    except ValueError as error:
        raise UnsupportedTokenizer(str(error)) from error
    return tokenizer_from_ranks(name, ranks, pattern, special, chat_template, ending,
                                begin if begin in special else None)


def _from_json(content: Mapping[str, Any], settings: Mapping[str, Any], template: str | None, name: str) -> Tokenizer:
    model = content["model"]
    kind = model.get("type", "BPE")
    if kind != "BPE" or model.get("byte_fallback"):
        raise UnsupportedTokenizer(f"its model is {kind}{' of characters' if kind == 'BPE' else ''} (SentencePiece "
                                   f"makes such); only byte-level BPE is read")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedTokenizer(f"its model has {key} = {model[key]!r}, which is not supported")
    if (content.get("normalizer") or {}).get("type", "NFC") != "NFC":
        raise UnsupportedTokenizer(f"its normalizer {content['normalizer']['type']} is not supported (only NFC)")
    special = _special_tokens(content.get("added_tokens") or [])
    tokens = {piece: id for piece, id in model["vocab"].items() if piece not in special}
    end, begin = (_spelling(settings.get(key)) for key in ("eos_token", "bos_token"))
    return build(name, tokens, model["merges"], _pattern(content.get("pre_tokenizer") or {}), special,
                 whole_words=bool(model.get("ignore_merges")), end=end,
                 begin=begin if begin in _first_tokens(content) or settings.get("add_bos_token") is True else None,
                 chat_template=template)


def refuse_ordinary_text(added: str) -> None:
    """Refuses an added token, not marked as special, that is not spelled like one either.

    Raises:
      UnsupportedTokenizer: it would be cut out of a text before merging, which is not done here.
    """
    if not _SPELLED_LIKE_SPECIAL.fullmatch(added):
        raise UnsupportedTokenizer(f"the added token {added[:80]!r} is ordinary text, which would be cut out before "
                                   f"merging; that is not supported")


def _special_tokens(added: list) -> dict[str, int]:
    special = {}
    for token in added:
        spelling = token["content"]
        if not token.get("special"):
            refuse_ordinary_text(spelling)
        special[spelling] = token["id"]
    return special


def _pattern(pre_tokenizer: Mapping[str, Any]) -> str:
    """The regular expression that cuts as a pre-tokenizer does."""
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    kinds = [step.get("type") for step in steps or [{}]]
    if kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise UnsupportedTokenizer(f"its pre-tokenizer {kinds} does not end in ByteLevel without a prefix space; only "
                                   f"byte-level BPE is read")
    if steps[-1].get("use_regex", True):
        if len(steps) == 1:
            return PATTERNS["gpt2"]
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
            return PUBLISHED["smollm2"]
    elif kinds == ["Split", "ByteLevel"]:
        regex = steps[0].get("pattern", {}).get("Regex")
        plain = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
        if plain and regex in {*PATTERNS.values(), *PUBLISHED.values()}:
            return regex
    raise UnsupportedTokenizer(f"its pre-tokenizer is none that is known here (the cuts of GPT-2, Llama-3, Qwen2, "
                               f"SmolLM2 and our own): {json.dumps(pre_tokenizer)[:300]}")


def _first_tokens(content: Mapping[str, Any]) -> list[str]:
    """The special tokens that the post-processor puts before a text."""
    processor = content.get("post_processor") or {}
    steps = processor.get("processors", []) if processor.get("type") == "Sequence" else [processor]
    first = [step["single"][0] for step in steps if step.get("type") == "TemplateProcessing" and step.get("single")]
    return [piece["SpecialToken"]["id"] for piece in first if "SpecialToken" in piece]


def _spelling(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _chat_template(folder: pathlib.Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {LARGEST_FILE} that are read")
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def tokenizer_to_hugging_face(tokenizer: Tokenizer, folder: str | os.PathLike,
                              chat_template: str | None = None, end: str | None = None) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and, with a chat template, `chat_template.jinja`.

    Args:
      tokenizer: the tokenizer.
      folder: where; it is there already.
      chat_template: Jinja source.
      end: the special token at which generation stops; None is the end of a document.
    """
    folder = pathlib.Path(folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                "eos_token": end or tokenizer.end_token, "bos_token": tokenizer.begin_token or tokenizer.end_token}
    _write(folder / "tokenizer.json", json.dumps(_to_json(tokenizer), ensure_ascii=False))
    if chat_template is not None:
        _write(folder / "chat_template.jinja", chat_template)
    _write(folder / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    processor: dict[str, Any] = byte_level
    if tokenizer.begin_token is not None:
        begin, ids = tokenizer.begin_token, [tokenizer.begin_of_text]
        processor = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": begin, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {begin: {"id": begin, "ids": ids, "tokens": [begin]}}}
    added = [{"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for token, id in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}, "post_processor": processor,
            "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                      "vocab": {to_characters(token): id for token, id in tokenizer.ranks.items()},
                      "merges": [[to_characters(left), to_characters(right)]
                                 for left, right in merges_of(tokenizer.ranks)]}}


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
