"""A tokenizer on disk: a folder of two files that any program can read.

- `ranks.tiktoken`: tiktoken's text format, one line per token: bytes in base64, a space, the id.
- `tokenizer_config.json`: format version, name, split pattern, special tokens, chat template, the
  tokens that end a document and begin a text, the sha256 of the ranks file and the fingerprint of
  the whole.

The config is written last, so a folder without it is one whose writing was cut short.
"""

import base64
import binascii
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

RANKS_FILE = "ranks.tiktoken"
CONFIG_FILE = "tokenizer_config.json"
FORMAT_VERSION = 1

_TYPES = {"name": str, "pattern": str, "special_tokens": dict, "ranks_sha256": str,
          "fingerprint": str, "chat_template": (str, type(None)), "end_token": str,
          "begin_token": (str, type(None))}
# Keys that are written only where they say something else.
_DEFAULTS = {"end_token": "<|endoftext|>", "begin_token": None}


def format_ranks(ranks: Mapping[bytes, int]) -> bytes:
    """Returns the ranks in tiktoken's text format, ordered by id.

    >>> format_ranks({b"he": 256, b"e": 101})
    b'ZQ== 101\\naGU= 256\\n'
    """
    lines = (base64.b64encode(token) + b" %d\n" % rank
             for token, rank in sorted(ranks.items(), key=lambda item: item[1]))
    return b"".join(lines)


def parse_ranks(data: bytes, origin: str = RANKS_FILE) -> dict[bytes, int]:
    """Reads tiktoken's text format.

    Args:
      data: the content of a ranks file.
      origin: its name, for the error message.

    Returns:
      The id of each token's bytes.

    Raises:
      ValueError: a line is not `base64 id`, or a token or an id appears twice.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            token, rank = line.split()
            token = base64.b64decode(token, validate=True)
            rank = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{origin}, line {number}: expected a token in base64, a space and "
                             f"its id, found {line[:60]!r}") from error
        if not token or rank < 0 or token in ranks:
            raise ValueError(f"{origin}, line {number}: token {token!r} with id {rank} is empty, "
                             "negative or there already")
        ranks[token] = rank
    if len(set(ranks.values())) != len(ranks):
        raise ValueError(f"{origin}: two tokens have the same id")
    return ranks


def write_folder(folder: str | os.PathLike, ranks: Mapping[bytes, int], settings: Mapping) -> None:
    """Writes the two files, each under a temporary name first and the config last.

    Args:
      folder: where; it is made if missing. A folder with the very same tokenizer is written again.
      ranks: the id of each token's bytes.
      settings: name, pattern, special_tokens, chat_template, fingerprint; end_token and
        begin_token where they are not `<|endoftext|>` and None.

    Raises:
      FileExistsError: the folder holds another tokenizer, which models may rely on.
    """
    folder = pathlib.Path(folder)
    data = format_ranks(ranks)
    config = json.dumps({"format_version": FORMAT_VERSION, **settings,
                         "ranks_sha256": hashlib.sha256(data).hexdigest()},
                        indent=2, ensure_ascii=False).encode() + b"\n"
    config_path = folder / CONFIG_FILE
    if config_path.exists() and config_path.read_bytes() != config:
        raise FileExistsError(f"{folder} holds another tokenizer already: save to a folder of its "
                              "own, or remove that one first")
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / RANKS_FILE, data)
    _replace(config_path, config)


def read_folder(folder: str | os.PathLike) -> tuple[dict[bytes, int], dict]:
    """Reads what `write_folder` wrote.

    Returns:
      (ranks, settings); the caller compares the fingerprint once it has built the tokenizer.

    Raises:
      FileNotFoundError: one of the two files is missing.
      ValueError: a file is damaged, or of a format that this version does not read.
    """
    folder = pathlib.Path(folder)
    for path in (folder / CONFIG_FILE, folder / RANKS_FILE):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {folder} is not a whole tokenizer folder")
    settings = _parse_config(folder / CONFIG_FILE)
    data = (folder / RANKS_FILE).read_bytes()
    if hashlib.sha256(data).hexdigest() != settings["ranks_sha256"]:
        raise ValueError(f"{folder / RANKS_FILE} is damaged: its sha256 is not the one that "
                         f"{CONFIG_FILE} states; copy the folder again")
    return parse_ranks(data, str(folder / RANKS_FILE)), settings


def _parse_config(path: pathlib.Path) -> dict:
    try:
        settings = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: not JSON ({error}); copy the folder again") from error
    if not isinstance(settings, dict) or settings.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} is not a tokenizer of format version {FORMAT_VERSION}: write the "
                         "folder again with this version of jaxllm")
    settings = _DEFAULTS | settings
    for key, kind in _TYPES.items():
        if key not in settings or not isinstance(settings[key], kind):
            raise ValueError(f"{path} is damaged: {key!r} is missing or of the wrong type")
    for token, rank in settings["special_tokens"].items():
        if type(rank) is not int:
            raise ValueError(f"{path} is damaged: special token {token!r} has the id {rank!r}")
    return settings


def _replace(path: pathlib.Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
