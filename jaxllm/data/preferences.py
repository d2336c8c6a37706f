"""Rankings of completions by people: the form that all preference data take here, and its file.

A file holds one ranking a line, best first, where a list is a tie; a pair is a ranking of two:

    {"prompt": [{"role": "user", "content": "..."}], "completions": ["a", "b", "c"], "ranking": [2, [0, 1]],
     "annotator": "ada"}

Files as others publish them (hh-rlhf, PandaLM's votes, chosen and rejected in several forms) are read by
jaxllm/data/preference_files.py into the same form. As with conversations, a file that is not what it claims to be
stops the reading, with file and line; what nothing can be learned from is left out and counted.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxllm.data.chat_messages import plain_messages
from jaxllm.data.preference_files import FORMATS, SkippedError, find_format, prompt_of, records

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """One annotator's order of K >= 2 completions of a prompt.

    Attributes:
      prompt: messages with role and content.
      completions: K texts of the assistant's turn.
      ranking: tiers of indices into completions, best first; indices in one tier are tied, and each index stands once.
      annotator: who; "" where nobody is named.
      where: file and line.
    """

    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    ranking: tuple[tuple[int, ...], ...]
    annotator: str = ""
    where: str = ""

    def __post_init__(self):
        count = len(self.completions)
        if count < 2:
            raise ValueError(f"a ranking needs 2 completions or more, not {count}")
        if sorted(i for tier in self.ranking for i in tier) != list(range(count)) or not all(self.ranking):
            raise ValueError(f"the ranking {[list(tier) for tier in self.ranking]} must hold each of 0 to {count - 1} "
                             f"once")

    @property
    def tiers(self) -> tuple[int, ...]:
        """The tier of each completion, 0 the best: K numbers.

        >>> Ranking((), ("a", "b", "c"), ((2,), (0, 1))).tiers
        (1, 1, 0)
        """
        return tuple(next(n for n, tier in enumerate(self.ranking) if i in tier) for i in range(len(self.completions)))

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of all pairs that are not tied.

        >>> Ranking((), ("a", "b", "c"), ((2,), (0, 1))).pairs()
        [(2, 0), (2, 1)]
        """
        return [(i, j) for n, tier in enumerate(self.ranking) for i in tier for below in self.ranking[n + 1:]
                for j in below]


@dataclasses.dataclass(frozen=True)
class ReadPreferences:
    """What a file held.

    Attributes:
      rankings: in the file's order.
      skipped: how many were left out, by reason.
      format: the key of FORMATS that was found or named.
    """

    rankings: list[Ranking]
    skipped: Mapping[str, int]
    format: str


def read_preferences(path: str | os.PathLike, format: str | None = None) -> ReadPreferences:
    """Reads a file of preferences in any form of `preference_files.FORMATS`.

    Left out are pairs whose prompts differ ("different prompts"), a last turn that is not the assistant's ("no
    answer"), completions that are all equal and not told apart by a vote ("equal completions"), and prompts without
    text ("empty prompt"). An empty completion stays: that a model said nothing can be ranked.

    Args:
      path: .jsonl or .json (an array, or an object per line), also with .gz, .xz or .zst behind; or .parquet.
      format: a key of FORMATS; None finds it from the first record.

    Raises:
      FileNotFoundError: for a file that is not there.
      ValueError: for an unknown format or a malformed record; names file and line (the item of a JSON array).
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a file of preferences")
    if format is not None and format not in FORMATS:
        raise ValueError(f"{path}: unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    found: list[Ranking] = []
    skipped: collections.Counter[str] = collections.Counter()
    for where, record in records(path):
        format = format or find_format(record, where)
        try:
            for draft in FORMATS[format](record):
                prompt = plain_messages(draft.prompt)
                if not any(message.get("content", "").strip() for message in prompt):
                    raise SkippedError("empty prompt")
                completions = tuple(map(_text, draft.completions))
                found.append(Ranking(tuple(prompt), completions, tuple(map(tuple, draft.ranking)), draft.annotator,
                                     where))
        except SkippedError as reason:
            skipped[str(reason)] += 1
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: not a preference of the format {format} ({reason})") from error
    if format is None:
        raise ValueError(f"{path}: the file holds no record")
    return ReadPreferences(found, dict(skipped), format)


def _text(completion: Any) -> str:
    if not isinstance(completion, str):
        raise TypeError(f"a completion must be a text, not {type(completion).__name__}")
    return completion if completion.isascii() else completion.encode("utf-16", "surrogatepass").decode("utf-16",
                                                                                                       "replace")


def open_preferences(path: str | os.PathLike, format: str | None = None) -> Iterator[Ranking]:
    """The rankings of a file in any supported form; see `read_preferences`, which also counts what was left out."""
    return iter(read_preferences(path, format).rankings)


def read_rankings(path: str | os.PathLike) -> Iterator[Ranking]:
    """The rankings of a file in this project's own form."""
    return open_preferences(path, "rankings")


def read_prompts(path: str | os.PathLike) -> list[list[Message]]:
    """Prompts to collect rankings on: a text file with one on each line, or records with `prompt` or `messages`.

    Args:
      path: .txt; or .jsonl, .json or .parquet, whose `prompt` is a text or messages. Of `messages`, as conversations
        have them, what stands before the last answer counts.

    Raises:
      FileNotFoundError: for a file that is not there.
      ValueError: for a malformed record, with file and line, and for a file without prompts.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a file of prompts")
    if path.suffix == ".txt":
        with open(path, encoding="utf-8") as lines:  # not splitlines: a prompt may hold a separator of Unicode's
            found = [[{"role": "user", "content": line.strip()}] for line in lines if line.strip()]
    else:
        found = []
        for where, record in records(path):
            try:
                found.append(prompt_of(record))
            except (KeyError, TypeError, ValueError) as error:
                reason = f"no field {error}" if isinstance(error, KeyError) else error
                raise ValueError(f"{where}: not a prompt ({reason})") from error
    if not found:
        raise ValueError(f"{path}: the file holds no prompt")
    return found


def to_record(ranking: Ranking) -> dict[str, Any]:
    """The JSON object of a ranking, without its place."""
    tiers = [tier[0] if len(tier) == 1 else list(tier) for tier in ranking.ranking]
    return {"prompt": list(ranking.prompt), "completions": list(ranking.completions), "ranking": tiers,
            "annotator": ranking.annotator}


def write_rankings(path: str | os.PathLike, rankings: Iterable[Ranking]) -> None:
    """Writes a file of rankings at once: under another name first, so that a kill leaves what was there."""
    path = pathlib.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(b"".join(_line(to_record(ranking)) for ranking in rankings))
    os.replace(part, path)


def append_ranking(path: str | os.PathLike, ranking: Ranking, **more: Any) -> None:
    """Adds a line to a file of rankings, and returns when it is on the disk.

    Threads and processes may append to one file: a lock keeps their lines whole. What a crash in the middle of a line
    left behind, which nobody was told is saved, is cut off first.

    Args:
      path: made if it is not there.
      ranking: what to add.
      more: further fields of the record, such as a time; readers pass over them.
    """
    append_line(path, {**to_record(ranking), **more})


def append_line(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Adds any record as a line of JSON, as safely as `append_ranking`."""
    with _locked(path) as file:
        file.write(_line(record))


def drop_rankings(path: str | os.PathLike, drop: Callable[[Mapping[str, Any]], bool]) -> int:
    """Takes back the lines of a file of rankings whose record `drop` says so, and returns how many those were.

    The other lines stay byte for byte. A kill leaves the file as it was or as it shall be.
    """
    path = pathlib.Path(path).expanduser()
    with _locked(path) as file:
        file.seek(0)
        lines = file.readlines()
        kept = [line for line in lines if not line.strip() or not drop(json.loads(line))]
        part = path.with_name(f"{path.name}.part")
        with open(part, "wb") as other:
            other.writelines(kept)
            other.flush()
            os.fsync(other.fileno())
        os.replace(part, path)
    return len(lines) - len(kept)


def mend(path: str | os.PathLike) -> None:
    """Cuts off a line that a crash tore, so that the file can be read; a missing file is made."""
    with _locked(path):
        pass


@contextlib.contextmanager
def _locked(path: str | os.PathLike) -> Iterator[Any]:
    """The file, made if missing, open for one writer alone and mended; what was written is on the disk at the end."""
    path = pathlib.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                continue  # `drop_rankings` put another file in its place while this one waited
            _cut_torn_line(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            return


def _cut_torn_line(file: Any) -> None:
    """Makes a file end with a line's end: a last line without one is finished if it is whole, and else cut off."""
    end = file.seek(0, os.SEEK_END)
    tail, start = b"", end
    while start and b"\n" not in tail:
        start = max(start - 65536, 0)
        file.seek(start)
        tail = file.read(end - start)
    last = tail[tail.rfind(b"\n") + 1:]
    if last:
        try:
            json.loads(last)
            file.write(b"\n")
        except ValueError:
            file.truncate(end - len(last))


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def split_rankings(rankings: Sequence[Ranking], fraction: float, seed: int = 0) -> tuple[list[Ranking], list[Ranking]]:
    """(training, validation): all rankings of a prompt fall on one side, by a hash of the prompt.

    Args:
      rankings: to split.
      fraction: expected share of the validation side, in [0, 1).
      seed: of the hash.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction ({fraction}) must lie in [0, 1)")
    sides: tuple[list[Ranking], list[Ranking]] = [], []
    for ranking in rankings:
        text = json.dumps([seed, ranking.prompt], sort_keys=True)
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        sides[number < fraction * 2**64].append(ranking)
    return sides
