"""Records of a test set, wherever they lie: a file, a member of an archive, TFDS, or Hugging Face's datasets.

    FILE                     .jsonl .json .parquet .csv .txt, all but parquet also with .gz or .xz behind
    ARCHIVE.tar.xz::MEMBER   a file in an archive; MEMBER may be a pattern (val/*.csv)
    hf:PATH[/CONFIG]:SPLIT   `datasets.load_dataset`: a folder, its cache, or over the network
    tfds:NAME[/CONFIG]:SPLIT `tfds.data_source` of what was prepared (docs/sources.md)
"""

from __future__ import annotations

import csv
import fnmatch
import gzip
import io
import lzma
import os
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any

from jaxllm.data import source_files
from jaxllm.data.sources import TFDS_DEFAULT_FOLDER

Row = tuple[str, Any]  # (file and place, the record)
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def rows(spec: str | os.PathLike) -> Iterator[Row]:
    """Yields (where, record) of a test set. A line of .txt is a record, a row of .csv a list of its cells.

    Raises:
      FileNotFoundError: for a file that is not there.
      ValueError: for a spec or a file that cannot be read, naming it.
      ImportError: when the package that a spec needs is not installed.
    """
    spec = os.fspath(spec)
    scheme, _, rest = spec.partition(":")
    if scheme == "hf":
        yield from _hugging_face(spec, rest)
    elif scheme == "tfds":
        yield from _tfds(spec, rest)
    elif "::" in spec:
        yield from _archive(spec)
    else:
        yield from _file(pathlib.Path(spec).expanduser(), spec)


def _file(path: pathlib.Path, shown: str) -> Iterator[Row]:
    if not path.is_file():
        raise FileNotFoundError(f"{shown}: no such file of a test set; check the path")
    kind = path.suffixes[-2] if path.suffix in _OPENERS and len(path.suffixes) > 1 else path.suffix
    if kind == ".parquet":
        yield from _parquet(path, shown)
    elif kind in (".csv", ".txt"):
        text = source_files.decode(_bytes(path, shown), shown)
        # Not splitlines: it would also cut at separators of Unicode's within a line.
        lines = csv.reader(io.StringIO(text, newline="")) if kind == ".csv" else (
            line.rstrip("\n") for line in io.StringIO(text, newline=None))
        yield from ((f"{shown}, {'row' if kind == '.csv' else 'line'} {number}", line)
                    for number, line in enumerate(lines, 1))
    else:
        yield from ((f"{shown}, {place}", record) for place, record in source_files.reader_for(path)(path, ()))


def _bytes(path: pathlib.Path, shown: str) -> bytes:
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            return file.read()
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ValueError(f"{shown}: the compressed file is cut short or damaged ({error}); fetch it again") from error


def _parquet(path: pathlib.Path, shown: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    yield f"{shown}, row {number}", record
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{shown}: not a whole parquet file ({error}); fetch it again") from error


def _archive(spec: str) -> Iterator[Row]:
    archive, _, pattern = spec.partition("::")
    if not pathlib.Path(archive).is_file():
        raise FileNotFoundError(f"{archive}: no such archive; check the path")
    try:
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory() as folder:
            members = sorted((member for member in tar.getmembers()
                              if member.isfile() and fnmatch.fnmatchcase(member.name, pattern)), key=lambda m: m.name)
            if not members:
                raise ValueError(f"{spec}: the archive has no such file; list it with tar -tf")
            for member in members:
                path = pathlib.Path(folder) / pathlib.PurePosixPath(member.name).name
                path.write_bytes(tar.extractfile(member).read())
                yield from _file(path, f"{archive}::{member.name}")
    except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{archive}: cannot be read ({error}); fetch it again") from error


def _hugging_face(spec: str, rest: str) -> Iterator[Row]:
    """A path of two parts is a repository, and a third names its config; or a folder with files of one format."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{spec} needs Hugging Face's datasets: pip install -e '.[harness]'") from error
    path, _, split = rest.rpartition(":")
    parts = [path] if pathlib.Path(path).is_dir() else path.split("/")
    if not path or not split or len(parts) > 3:
        raise ValueError(f"{spec}: write hf:OWNER/NAME[/CONFIG]:SPLIT, such as hf:allenai/ai2_arc/ARC-Easy:test")
    try:
        found = datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split)
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such config or split, a script
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{spec}: datasets cannot load it ({reason}); download it where there is a network, or name a "
                         f"file") from error
    yield from ((f"{spec}, row {number}", record) for number, record in enumerate(found))


def _tfds(spec: str, rest: str) -> Iterator[Row]:
    match = re.fullmatch(r"(?P<name>\w+(?:/[\w.\-]+)?(?::\d+\.\d+\.\d+)?):(?P<split>[^:]+)", rest)
    if match is None:
        raise ValueError(f"{spec}: write tfds:NAME[/CONFIG][:VERSION]:SPLIT, such as tfds:ai2_arc/ARC-Easy:test")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(f"{spec} needs tensorflow-datasets (docs/sources.md)") from error
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", TFDS_DEFAULT_FOLDER)).expanduser()
    try:
        found = tfds.data_source(match["name"], split=match["split"], data_dir=str(folder), download=False)
    except (LookupError, NotImplementedError, OSError, AssertionError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{spec}: TFDS cannot read it from {folder} ({reason}); prepare it with `tfds build "
                         f"--file_format=array_record`, or set TFDS_DATA_DIR") from error
    yield from ((f"{spec}, row {number}", _plain(found[number])) for number in range(len(found)))


def _plain(value: Any) -> Any:
    """What TFDS gives (arrays, bytes) as JSON would hold it."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list) else value
