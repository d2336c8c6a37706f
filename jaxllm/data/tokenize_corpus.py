"""Documents -> token shards, training and validation apart, in parallel processes."""

import collections
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxllm.data.shards import ShardWriter, open_shards
from jaxllm.data.tokenizer import Tokenizer, load_tokenizer

_CHUNK_DOCUMENTS = 256
_CHUNK_CHARACTERS = 1_000_000  # documents handed to a process at once: few trips, little memory


def tokenize_corpus(documents: Iterable, tokenizer: str | os.PathLike, folder: str | os.PathLike, *,
                    source: str | None = None, validation_fraction: float = 0.01,
                    seed: int = 0, processes: int = 1, shard_tokens: int = 100_000_000,
                    progress: bool = True) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Tokenises documents once into `folder/train` and `folder/validation`.

    Each document is followed by the end-of-text token. It goes to validation when a hash of (seed,
    id, text) falls below `validation_fraction`: whole documents, whatever their order. The shards
    are the same bytes for any number of processes. Documents without text are left out.

    If `folder` already holds the shards of the same source, tokenizer and settings, they are used
    as they are. The folder appears under its name only when it is complete.

    Args:
      documents: objects with `.text` and `.id`, as from `open_source`; read once, never all in
        memory.
      tokenizer: name or folder, as for `load_tokenizer`; each process loads its own.
      folder: where the shards go.
      source: names the documents and their version; decides, with the settings, on re-use. None:
        taken from what `open_source` returned: its spec, and name, size and time of its files.
      validation_fraction: in [0, 1); at 0 there is no validation set.
      processes: worker processes (started by "spawn", so a script needs its
        `if __name__ == "__main__"` guard); 1 or less works in this process.
      shard_tokens, progress: tokens per shard; whether to show a progress bar.
    Returns:
      The folders of the training and the validation shards (None at validation_fraction 0).
    Raises:
      FileExistsError: if `folder` exists and holds something else.
      ValueError: if the corpus or the validation set is empty, or an argument is out of range.
      OSError: if the disk is full. RuntimeError: if a worker process was killed.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), not {validation_fraction}")
    folder = pathlib.Path(folder)
    loaded = load_tokenizer(tokenizer)
    source = _describe(documents) if source is None else source
    recipe = {"source": source, "validation_fraction": validation_fraction, "seed": seed,
              "shard_tokens": shard_tokens}
    splits = ("train", "validation") if validation_fraction else ("train",)
    if folder.exists():
        return _reuse(folder, splits, recipe, loaded.fingerprint)
    unfinished = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        work = _Work(str(tokenizer), seed, validation_fraction)
        options = {"vocab_size": loaded.vocab_size, "fingerprint": loaded.fingerprint,
                   "end_of_text": loaded.end_of_text, "shard_tokens": shard_tokens,
                   "recipe": recipe}
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(ShardWriter(unfinished / split, **options))
                       for split in splits]
            bar = stack.enter_context(tqdm(desc="tokenise", unit="B", unit_scale=True,
                                           disable=not progress))
            with contextlib.closing(_tokenized(documents, work, processes)) as chunks:
                for chunk in chunks:
                    for writer, (tokens, ends, text_bytes) in zip(writers, chunk, strict=False):
                        writer.add_many(tokens, ends, text_bytes)
                        bar.update(text_bytes)
            _check_not_empty(writers, source, validation_fraction)
        try:
            os.rename(unfinished, folder)
        except OSError:  # another run finished first
            return _reuse(folder, splits, recipe, loaded.fingerprint)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return _folders(folder, splits)


def _describe(documents: Iterable) -> str:
    """Names a source and the state of its files."""
    if not hasattr(documents, "spec"):
        raise ValueError("these documents do not say what they are; pass `source`, a text that "
                         "names them and their version")
    files = [(name, os.stat(name).st_size, os.stat(name).st_mtime_ns) for name in documents.files]
    state = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
    return f"{documents.spec} ({len(files)} files, state {state})"


def _folders(folder: pathlib.Path, splits) -> tuple[pathlib.Path, pathlib.Path | None]:
    return folder / "train", folder / "validation" if "validation" in splits else None


def _reuse(folder, splits, recipe, fingerprint) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Accepts finished shards of the same recipe; refuses anything else."""
    wanted = json.loads(json.dumps(recipe | {"tokenizer": fingerprint}))
    for split in splits:
        try:
            shards = open_shards(folder / split)
        except FileNotFoundError as error:
            raise FileExistsError(f"{folder} exists but holds no finished {split} shards; delete "
                                  "it or choose another folder") from error
        found = shards.index["recipe"] | {"tokenizer": shards.fingerprint}
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            raise FileExistsError(
                f"{folder} holds shards made with another " + ", ".join(
                    f"{key} ({found.get(key)!r}, now {wanted[key]!r})" for key in different)
                + "; delete it or choose another folder")
    return _folders(folder, splits)


def _check_not_empty(writers: list[ShardWriter], source: str, fraction: float) -> None:
    documents = sum(writer.documents for writer in writers)
    if not documents:
        raise ValueError(f"the corpus {source} is empty: it has no document with text in it")
    for writer in writers:
        if not writer.documents:
            raise ValueError(f"none of the {documents} documents of {source} fell into "
                             f"{writer.folder.name}; give more documents or another "
                             f"validation_fraction than {fraction}")


class _Work:
    """What a process needs to tokenise chunks; the tokenizer is loaded where it runs."""

    def __init__(self, tokenizer: str, seed: int, validation_fraction: float):
        self.tokenizer, self.seed = tokenizer, seed
        self.threshold = int(validation_fraction * 2**64)
        self.loaded: Tokenizer | None = None

    def __call__(self, chunk: list[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Returns (tokens, document ends, bytes of text) of a chunk's training and validation."""
        if self.loaded is None:
            self.loaded = load_tokenizer(self.tokenizer)
        tokens: list[list[int]] = [[], []]
        ends: list[list[int]] = [[], []]
        text_bytes = [0, 0]
        for identifier, text in chunk:
            data = text.encode("utf-8", "surrogatepass")
            split = int(self._hash(identifier, data) < self.threshold)
            tokens[split] += self.loaded.encode(text)
            tokens[split].append(self.loaded.end_of_text)
            ends[split].append(len(tokens[split]))
            text_bytes[split] += len(data)
        return [(np.array(tokens[i], np.uint32), np.array(ends[i], np.int64), text_bytes[i])
                for i in (0, 1)]

    def _hash(self, identifier: str, data: bytes) -> int:
        # repr of the id keeps (id, text) apart from any other pair with the same concatenation.
        digest = hashlib.blake2b(f"{self.seed} {identifier!r} ".encode("utf-8", "surrogatepass"),
                                 digest_size=8)
        digest.update(data)
        return int.from_bytes(digest.digest(), "little")


def _chunks(documents: Iterable) -> Iterator[list[tuple[str, str]]]:
    chunk: list[tuple[str, str]] = []
    characters = 0
    for document in documents:
        if not document.text:
            continue
        chunk.append((document.id, document.text))
        characters += len(document.text)
        if len(chunk) >= _CHUNK_DOCUMENTS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _tokenized(documents: Iterable, work: _Work, processes: int) -> Iterator[list[tuple]]:
    """Yields the results of `work` in the order of the documents."""
    if processes <= 1:
        yield from map(work, _chunks(documents))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start_worker, (work,))
    try:
        yield from _in_order(pool, _run_worker, _chunks(documents), ahead=2 * processes)
    except BrokenProcessPool as error:
        raise RuntimeError("a tokenising process was killed (out of memory?); use fewer processes"
                           ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool, function: Callable, items: Iterator, ahead: int) -> Iterator[Any]:
    """Maps in a pool with at most `ahead` items under way: a slow writer holds the reader back."""
    waiting = collections.deque(pool.submit(function, i) for i in itertools.islice(items, ahead))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(function, i) for i in itertools.islice(items, 1))
        yield result


_worker: _Work | None = None  # one per process


def _start_worker(work: _Work) -> None:
    global _worker
    _worker = work


def _run_worker(chunk):
    return _worker(chunk)
