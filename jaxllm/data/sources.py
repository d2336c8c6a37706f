"""Where text comes from: files, folders, TFDS datasets and the made-up world, all as `Document`s.

`open_source` takes one string and gives documents in a fixed order, as often as one likes, holding
a few of them in memory at a time. Bad input stops with a sentence that names the file and the line.
"""

import dataclasses
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxllm.data import source_files, world
from jaxllm.data.document import Document

TFDS_DEFAULT_FOLDER = "~/tensorflow_datasets"


@dataclasses.dataclass(frozen=True)
class Source:
    """An iterable of documents that starts anew with each iteration. Get one from `open_source`.

    Attributes:
      spec: what it was opened with.
      files: the files that it reads, in order; empty where it reads none (the world).
    """

    spec: str
    files: tuple[str, ...]
    _records: Callable[[], Iterator[Document]] = dataclasses.field(repr=False)

    def __iter__(self) -> Iterator[Document]:
        documents = (document for document in self._records() if document.text.strip())
        first = next(documents, None)
        if first is None:
            raise ValueError(
                f"{self.spec}: the corpus is empty (no document with text in it); "
                f"name a source with at least one"
            )
        return itertools.chain([first], documents)


def open_source(spec: str, text_key: str = "text") -> Source:
    """Opens a source of documents.

    Args:
      spec: a file, a folder, a glob pattern ("data/*.jsonl.gz"),
        "tfds:<name>[/<config>][:<version>] [:<split>]" or "world:<seed>[:<size>]". Files: .txt,
        .jsonl, .json, .parquet; all but the last also with .gz, .xz or .zst behind. docs/sources.md
        has the rules of each.
      text_key: name of the field with the text, where records have fields.

    Returns:
      Source; documents whose text is blank are left out.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: an unknown suffix or a malformed spec; while iterating, also damaged or empty
        content.

    >>> next(iter(open_source("world:0:tiny"))).id
    'world/0/0'
    """
    scheme, _, rest = spec.partition(":")
    if scheme == "world":
        return _open_world(spec, rest)
    if scheme == "tfds":
        return _open_tfds(spec, rest, text_key)
    root, paths = _find(spec)
    readers = [source_files.reader_for(path) for path in paths]

    def records() -> Iterator[Document]:
        for path, read in zip(paths, readers, strict=True):
            name = path.relative_to(root).as_posix()
            for place, record in read(path, (text_key, "id", "url", "metadata")):
                yield _document(record, text_key, f"{name}:{place.split()[-1]}", f"{path}, {place}")

    return Source(spec, tuple(map(str, paths)), records)


def _find(spec: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Returns the folder that ids are relative to and the files of a path or glob, sorted."""
    path = pathlib.Path(spec).expanduser()
    if path.is_dir():
        return path, source_files.files_of(path)
    if path.exists():
        return path.parent, [path]
    if not glob.has_magic(spec):
        raise FileNotFoundError(
            f"{spec}: no such file or folder; check the path, or use tfds:<name> or world:<seed>"
        )
    found = sorted(
        pathlib.Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p)
    )
    if not found:
        raise FileNotFoundError(f"{spec}: no file matches this pattern; check it")
    root = pathlib.Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    return root, found


def _document(record: Any, text_key: str, id_: str, where: str) -> Document:
    if isinstance(record, str):
        record = {text_key: record}
    if not isinstance(record, Mapping):
        raise ValueError(
            f"{where}: expected an object with the field {text_key!r}, got "
            f"{type(record).__name__}; write one object per document"
        )
    if text_key not in record:
        raise ValueError(
            f"{where}: no field {text_key!r}; the record has {', '.join(map(repr, record))}: "
            f"set text_key to the one with the text"
        )
    text = record[text_key]
    if isinstance(text, bytes):
        text = source_files.decode(text, where)
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: the field {text_key!r} holds {type(text).__name__}, not text; drop the "
            f"record or set text_key to another field"
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: character {error.start} is half of a surrogate pair, which is no "
                f"text; repair or drop the record"
            ) from error
    given = record.get("id")
    if isinstance(given, bytes):
        given = given.decode(errors="replace")
    return Document(text, id_ if given in (None, "") else str(given), _metadata(record))


def _metadata(record: Mapping[str, Any]) -> Mapping[str, Any]:
    kept = record.get("metadata")
    metadata = dict(kept) if isinstance(kept, Mapping) else {}
    if isinstance(record.get("url"), str):
        metadata.setdefault("url", record["url"])
    return metadata


def _open_world(spec: str, rest: str) -> Source:

    seed, _, size = rest.partition(":")
    if not re.fullmatch(r"\d+", seed):
        raise ValueError(f"{spec}: the seed must be digits, as in world:0 or world:0:tiny")
    size = size or "small"
    if size not in world.SIZES:
        raise ValueError(
            f"{spec}: unknown world size {size!r}: use one of {', '.join(world.SIZES)}"
        )
    return Source(spec, (), lambda: world.documents(world.make_world(int(seed), size)))


def _open_tfds(spec: str, rest: str, text_key: str) -> Source:
    match = re.fullmatch(
        r"(?P<name>\w+)(?P<config>/[\w.\-]+)?(:(?P<version>\d+\.\d+\.\d+))?(:(?P<split>.+))?", rest
    )
    if match is None:
        raise ValueError(
            f"{spec}: write tfds:<name>[/<config>][:<version>][:<split>], for example "
            f"tfds:ag_news_subset:train[:90%]"
        )
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", TFDS_DEFAULT_FOLDER)).expanduser()
    name, split = match["name"] + (match["config"] or ""), match["split"] or "train"
    if not (folder / name).is_dir():
        raise FileNotFoundError(
            f"{spec}: {folder / name} does not exist; prepare the dataset once where TensorFlow "
            f"is installed, `tfds build {name} --file_format=array_record`, or set TFDS_DATA_DIR "
            f"to the folder that has it"
        )
    import tensorflow_datasets as tfds  # 0.5 s, and most runs read no TFDS dataset

    full_name = name + (f":{match['version']}" if match["version"] else "")
    try:
        rows = tfds.data_source(full_name, split=split, data_dir=str(folder), download=False)
    except (
        ImportError,
        LookupError,
        NotImplementedError,
        OSError,
        AssertionError,
        ValueError,
    ) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{spec}: TFDS cannot read it from {folder} ({reason}); the split must exist and the "
            f"files be array_record (`tfds build {name} --file_format=array_record`)"
        ) from error

    def records() -> Iterator[Document]:
        for start in range(0, len(rows), 64):
            batch = rows.__getitems__(range(start, min(start + 64, len(rows))))
            for index, row in enumerate(batch, start):
                where = f"{full_name}:{split}:{index}"
                yield _document(row, text_key, where, f"{spec}, row {index}")

    return Source(spec, (), records)
