"""Token shards on disk: one flat file of token ids per shard, the ends of its documents, one index.

    folder/tokens-00000.bin   token ids, little-endian uint16 (vocabulary <= 65,536) or uint32
    folder/ends-00000.bin     little-endian uint64 per document: its exclusive end in the shard
    folder/index.json         counts, sha256 of every file, tokenizer fingerprint; written last

A document lies in one shard. A folder without index.json is unfinished and refused.
"""

import hashlib
import json
import os
import pathlib
import weakref
from collections.abc import Mapping

import numpy as np

from jaxllm.data.shard_writer import FORMAT, VERSION, ShardWriter, write_shards

_KEYS = {"dtype", "tokens", "documents", "text_bytes", "vocab_size", "tokenizer_fingerprint",
         "end_of_text", "recipe", "shards"}
__all__ = ["ShardWriter", "TokenShards", "open_shards", "write_shards"]


class TokenShards:
    """A corpus of token shards, read as one long sequence of token ids; made by `open_shards`.

    Tokens are fetched by positioned reads (`preadv`) and not through a memory map: as fast as the
    loader needs, safe in threads, resident memory does not grow with the corpus, and a file that is
    cut short under a running job raises an error where a map would kill the process.
    """

    def __init__(self, folder: pathlib.Path, index: Mapping):
        self.folder, self.index = folder, index
        self.tokens: int = index["tokens"]
        self.documents: int = index["documents"]
        self.text_bytes: int = index["text_bytes"]
        self.vocab_size: int = index["vocab_size"]
        self.fingerprint: str = index["tokenizer_fingerprint"]
        self.end_of_text: int | None = index["end_of_text"]  # ends every document, else nowhere
        self._dtype = np.dtype("<" + index["dtype"])
        shards = index["shards"]
        self._borders = np.cumsum([0] + [shard["tokens"] for shard in shards])
        self._files = []
        for shard in shards:
            file = os.open(folder / shard["tokens_file"], os.O_RDONLY)
            weakref.finalize(self, os.close, file)
            self._files.append(file)
        self._ends: list[np.ndarray | None] = [None] * len(shards)  # mapped at first use

    def read(self, start: int, count: int) -> np.ndarray:
        """Returns tokens start ... start + count - 1 of the corpus, across shards. int32 [count]"""
        return self.read_rows(np.array([start]), count)[0]

    def read_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns one row of `length` tokens per start, across shards. int32 [rows, length]"""
        self._check_range(starts, length)
        rows = np.empty((len(starts), length), self._dtype)
        if not length:  # the end of the corpus, where no shard begins, may be asked for too
            return rows.astype(np.int32)
        shards = np.searchsorted(self._borders, starts, "right") - 1
        offsets = starts - self._borders[shards]
        rooms = self._borders[shards + 1] - starts
        width = self._dtype.itemsize
        places = zip(rows, shards.tolist(), (offsets * width).tolist(), rooms.tolist(), strict=True)
        for row, shard, offset, room in places:
            if room < length or os.preadv(self._files[shard], [row], offset) < row.nbytes:
                self._fill(row, shard, offset)
        return rows.astype(np.int32)

    def _fill(self, row: np.ndarray, shard: int, offset: int) -> None:
        """Fills a row piece by piece: it crosses shards, or the system gave less than asked for."""
        row = row.view(np.uint8)
        while len(row):
            got = os.preadv(self._files[shard], [row], offset)
            row, offset = row[got:], offset + got
            end = int(self._borders[shard + 1] - self._borders[shard]) * self._dtype.itemsize
            if not got and offset < end:
                name = self.index["shards"][shard]["tokens_file"]
                raise ValueError(f"{self.folder / name} was cut short after it was opened; "
                                 "tokenise the corpus again")
            if offset >= end:
                shard, offset = shard + 1, 0

    def ends_in_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns True where a token of `read_rows` ends its document. bool [rows, length]"""
        self._check_range(starts, length)
        starts = np.asarray(starts, np.int64)
        is_end = np.zeros((len(starts), length), bool)
        if not is_end.size:
            return is_end
        borders = self._borders
        first = np.searchsorted(borders, starts, "right") - 1
        last = np.searchsorted(borders, starts + length - 1, "right") - 1
        touched = {s for a, b in zip(first.tolist(), last.tolist(), strict=True)
                   for s in range(a, b + 1)}
        for shard in sorted(touched):
            rows = np.flatnonzero((first <= shard) & (shard <= last))
            ends, offsets = self._shard_ends(shard), starts[rows] - borders[shard]
            low, high = np.searchsorted(ends, np.stack([offsets, offsets + length]), "right")
            counts = high - low
            before = np.cumsum(counts) - counts
            nth = np.repeat(low - before, counts) + np.arange(counts.sum())
            place = np.repeat(rows * length - offsets - 1, counts) + ends[nth]
            is_end.reshape(-1)[place] = True
        return is_end

    def document_ends(self, start: int, count: int) -> np.ndarray:
        """Returns the exclusive ends, in the corpus, of documents that end in a range. int64"""
        is_end = self.ends_in_rows(np.array([start]), count)[0]
        return start + 1 + np.flatnonzero(is_end)

    def _shard_ends(self, shard: int) -> np.ndarray:
        if self._ends[shard] is None:
            path = self.folder / self.index["shards"][shard]["ends_file"]
            # Signed, as the keys of searchsorted are: with mixed signs numpy would copy the file.
            self._ends[shard] = np.memmap(path, "<u8", mode="r").view("<i8")
        return self._ends[shard]

    def _check_range(self, starts: np.ndarray, length: int) -> None:
        if length < 0 or (len(starts) and (np.min(starts) < 0
                                           or np.max(starts) + length > self.tokens)):
            raise ValueError(f"tokens asked for lie outside the corpus {self.folder}, which holds "
                             f"{self.tokens}")


def open_shards(folder: str | os.PathLike, fingerprint: str | None = None,
                verify: bool = False) -> TokenShards:
    """Opens a folder of token shards after checking that it is whole.

    Args:
      folder: written by `ShardWriter`.
      fingerprint: of the tokenizer that the shards must have been made with; None accepts any.
      verify: also compare the sha256 of every file, which reads the whole corpus.
    Raises:
      FileNotFoundError: if the folder, its index or one of its files is missing.
      ValueError: if a file is cut short or damaged, the corpus is empty, or the tokenizer differs.
    """
    folder = pathlib.Path(folder)
    index = _read_index(folder)
    for shard in index["shards"]:
        width = np.dtype(index["dtype"]).itemsize
        _check_file(folder / shard["tokens_file"], shard["tokens"] * width,
                    shard["tokens_sha256"] if verify else None)
        _check_file(folder / shard["ends_file"], shard["documents"] * 8,
                    shard["ends_sha256"] if verify else None)
    if not index["tokens"]:
        raise ValueError(f"the corpus in {folder} is empty; tokenise one that has documents")
    if fingerprint is not None and fingerprint != index["tokenizer_fingerprint"]:
        raise ValueError(
            f"the shards in {folder} were made by a tokenizer with fingerprint "
            f"{index['tokenizer_fingerprint']}, but the tokenizer given has {fingerprint}; give "
            "the tokenizer that made them, or tokenise the corpus again into another folder")
    return TokenShards(folder, index)


def _read_index(folder: pathlib.Path) -> dict:
    path = folder / "index.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of token shards; tokenise a corpus")
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no index.json: its tokenisation did not finish, or "
                                "it holds no token shards; delete it and tokenise the corpus again")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = (index["format"], index["version"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the index of token shards, or is damaged; tokenise the "
                         "corpus again") from error
    if version != (FORMAT, VERSION):
        raise ValueError(f"{path} is of format {version}, this program reads {(FORMAT, VERSION)}; "
                         "tokenise the corpus again")
    missing = sorted(_KEYS - index.keys())
    if missing or index["tokens"] != sum(shard["tokens"] for shard in index["shards"]):
        raise ValueError(f"{path} is damaged (keys missing: {missing}, or counts that do not "
                         "add up); tokenise the corpus again")
    return index


def _check_file(path: pathlib.Path, size: int, sha256: str | None) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} of these token shards is missing; tokenise the corpus "
                                "again")
    if path.stat().st_size != size:
        raise ValueError(f"{path} has {path.stat().st_size} bytes where its index says {size}: it "
                         "was cut short or altered; copy it again or tokenise the corpus again")
    if sha256 is not None:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{path} is damaged: its sha256 is {found}, its index says {sha256}; "
                             "copy it again or tokenise the corpus again")
