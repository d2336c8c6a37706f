"""Writing token shards (format: shards.py): under temporary names, hashed, the index last."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

FORMAT = "jaxllm-token-shards"
VERSION = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _naming_full_disk(path: pathlib.Path) -> Iterator[None]:
    """Turns "no space left on device" into a sentence that names the file and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(error.errno, f"the disk is full: cannot write {path}; free some space or "
                      "choose another folder (nothing half-written was kept)") from error


class _HashedFile:
    """A file written under a temporary name and hashed on the way; `finish` gives it its name."""

    def __init__(self, path: pathlib.Path):
        self.path, self._temporary = path, path.with_name(path.name + ".tmp")
        self._sha256, self._file = hashlib.sha256(), open(self._temporary, "wb")

    def write(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).data
        self._sha256.update(data)
        with _naming_full_disk(self.path):
            self._file.write(data)

    def finish(self) -> str:
        """Closes the file, moves it to its final name and returns its sha256."""
        with _naming_full_disk(self.path):  # some file systems find out only here
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        os.replace(self._temporary, self.path)
        return self._sha256.hexdigest()

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class ShardWriter:
    """Writes token shards; a context manager, with memory bounded by what one call hands over.

    On leaving the block the index is written, which makes the folder complete. If the block or the
    writing fails, every file that this writer made is removed.

    Args:
      folder: where the shards go; made if missing, must hold no finished shards.
      vocab_size: token ids are in [0, vocab_size); above 65,536 they take four bytes each.
      fingerprint: of the tokenizer, checked by `open_shards`.
      end_of_text: a token that ends every document and stands nowhere else, which is checked; the
        loader then finds documents by it, faster than by their ends. None: no such token.
      shard_tokens: a shard is closed once it holds this many tokens; documents are never cut.
      recipe: what the shards were made from, kept in the index as it is (JSON values).
    Raises:
      FileExistsError: if the folder already holds finished shards.
      ValueError: if nothing was written, or a token id is outside the vocabulary.
      OSError: if the disk is full.
    """

    def __init__(self, folder: str | os.PathLike, *, vocab_size: int, fingerprint: str,
                 end_of_text: int | None = None, shard_tokens: int = 100_000_000,
                 recipe: Mapping | None = None):
        if vocab_size < 1 or shard_tokens < 1:
            raise ValueError(f"vocab_size and shard_tokens must be at least 1, not {vocab_size} "
                             f"and {shard_tokens}")
        self.folder = pathlib.Path(folder)
        self.tokens = self.documents = self.text_bytes = 0
        self._dtype = np.dtype("<u2" if vocab_size <= 65536 else "<u4")
        self._vocab_size, self._fingerprint = vocab_size, fingerprint
        self._end_of_text = end_of_text
        self._shard_tokens, self._recipe = shard_tokens, dict(recipe or {})
        self._shards: list[dict] = []
        self._open: tuple[_HashedFile, _HashedFile] | None = None
        self._filled = self._filled_documents = 0

    def __enter__(self) -> "ShardWriter":
        if (self.folder / "index.json").exists():
            raise FileExistsError(f"{self.folder} already holds token shards; delete it or choose "
                                  "another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_files()  # of a writer that was killed
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        try:
            if exception_type is None:
                self._finish()
        finally:
            if not (self.folder / "index.json").exists():
                for file in self._open or ():
                    file.discard()
                self._remove_files()

    def _remove_files(self) -> None:
        for pattern in ("tokens-*.bin*", "ends-*.bin*", "index.json.tmp"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def add(self, tokens: np.ndarray, text_bytes: int) -> None:
        """Adds one document: its token ids (integers [n], n >= 1) and the bytes of its text."""
        self.add_many(tokens, np.array([len(tokens)]), text_bytes)

    def add_many(self, tokens: np.ndarray, ends: np.ndarray, text_bytes: int) -> None:
        """Adds documents laid end to end.

        Args:
          tokens: their token ids, integers [n].
          ends: the exclusive end of each document in `tokens`, increasing; the last is n.
          text_bytes: UTF-8 bytes of their text, for bits per byte.
        """
        tokens, ends = np.asarray(tokens), np.asarray(ends, np.int64)
        if not len(ends):
            return
        if ends[-1] != len(tokens) or ends[0] < 1 or (np.diff(ends) < 1).any():
            raise ValueError(f"document ends must increase from 1 to the number of tokens "
                             f"({len(tokens)}); a document without tokens cannot be written")
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            raise ValueError(f"token ids run from {tokens.min()} to {tokens.max()}, outside the "
                             f"vocabulary of {self._vocab_size}; was another tokenizer used?")
        if self._end_of_text is not None and not np.array_equal(
                np.flatnonzero(tokens == self._end_of_text) + 1, ends):
            raise ValueError(f"the end-of-text token {self._end_of_text} must end every document "
                             "and stand nowhere else; pass end_of_text=None for such documents")
        tokens, start = tokens.astype(self._dtype), 0
        self.text_bytes += int(text_bytes)
        while len(ends):  # the documents up to the one that fills the shard, then the next shard
            room = start + self._shard_tokens - self._filled
            taken = int(np.searchsorted(ends, room)) + 1
            stop = int(ends[:taken][-1])
            self._append(tokens[start:stop], ends[:taken] - start)
            ends, start = ends[taken:], stop

    def _append(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        if self._open is None:
            number = f"-{len(self._shards):05d}.bin"
            self._open = (_HashedFile(self.folder / f"tokens{number}"),
                          _HashedFile(self.folder / f"ends{number}"))
        self._open[0].write(tokens)
        self._open[1].write((ends + self._filled).astype("<u8"))
        self._filled += len(tokens)
        self._filled_documents += len(ends)
        self.tokens += len(tokens)
        self.documents += len(ends)
        if self._filled >= self._shard_tokens:
            self._close_shard()

    def _close_shard(self) -> None:
        tokens, ends = self._open
        self._shards.append({
            "tokens": self._filled, "documents": self._filled_documents,
            "tokens_file": tokens.path.name, "tokens_sha256": tokens.finish(),
            "ends_file": ends.path.name, "ends_sha256": ends.finish()})
        self._open, self._filled, self._filled_documents = None, 0, 0

    def _finish(self) -> None:
        if not self.tokens:
            raise ValueError(f"the corpus is empty: no document was written to {self.folder}")
        if self._open is not None:
            self._close_shard()
        index = {"format": FORMAT, "version": VERSION, "dtype": self._dtype.str[1:],
                 "tokens": self.tokens, "documents": self.documents, "text_bytes": self.text_bytes,
                 "vocab_size": self._vocab_size, "tokenizer_fingerprint": self._fingerprint,
                 "end_of_text": self._end_of_text, "recipe": self._recipe, "shards": self._shards}
        path = self.folder / "index.json"
        temporary = path.with_name("index.json.tmp")
        with _naming_full_disk(path), open(temporary, "w", encoding="utf-8") as file:
            json.dump(index, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_shards(folder: str | os.PathLike, documents: Iterable[tuple[np.ndarray, int]],
                 **options) -> pathlib.Path:
    """Writes (token ids, bytes of text) pairs as shards; `options` are those of `ShardWriter`."""
    with ShardWriter(folder, **options) as writer:
        for tokens, text_bytes in documents:
            writer.add(tokens, text_bytes)
    return writer.folder
