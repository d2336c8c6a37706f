"""Reading files of text as records, a little at a time: txt, jsonl, json, parquet; plain, gz, xz or
zst.

A reader takes a path and the names of the wanted fields, the text's first, and yields (place,
record): the place is the line or row where the record stands ("line 7"), the record a str or what
the JSON or parquet holds.
"""

import gzip
import io
import json
import lzma
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

END_OF_TEXT_LINE = "<|endoftext|>"
# A .txt file is one document up to here; beyond, a document ends at the next blank line, and at
# four times as much also without one.
TXT_CHARS = 100_000
_CHUNK_BYTES = 1 << 16  # a longer line of a .txt file is read in pieces

Record = tuple[str, Any]
Reader = Callable[[pathlib.Path, tuple[str, ...]], Iterator[Record]]


def decode(data: bytes, where: str) -> str:
    """Returns the bytes as text; ValueError naming `where` and the byte if they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; convert the "
            f"file, for example with iconv -f latin1 -t utf-8"
        ) from error


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a folder that hold documents, at any depth, sorted.

    Where there are parquet or jsonl files, the .json and .txt files beside them are taken for notes
    (as dataset_infos.json in a Hugging Face snapshot). Hidden files and folders are left out.

    Raises:
      ValueError: no readable file, or two formats of which neither is a note.
    """
    families: dict[str, list[pathlib.Path]] = {}
    others = set()
    for path in sorted(folder.rglob("*")):
        if (
            any(part.startswith(".") for part in path.relative_to(folder).parts)
            or not path.is_file()
        ):
            continue
        family = _family(path)
        if family is None:
            others.add("".join(path.suffixes[-2:]) or path.name)
        else:
            families.setdefault(family, []).append(path)
    if not families:
        found = f"it has {', '.join(sorted(others)[:8])}" if others else "it is empty"
        raise ValueError(
            f"{folder}: no .txt, .jsonl, .json or .parquet file in this folder ({found})"
        )
    kinds = [kind for kind in (".parquet", ".jsonl") if kind in families] or sorted(families)
    if len(kinds) > 1:
        raise ValueError(
            f"{folder}: this folder has {' and '.join(kinds)} files; name one format by a pattern "
            f"such as {folder}/*{kinds[0]}"
        )
    return families[kinds[0]]


def reader_for(path: pathlib.Path) -> Reader:
    """Returns the reader for a file by its suffix; ValueError for an unknown one."""
    family = _family(path)
    if family is None:
        raise ValueError(
            f"{path}: unknown suffix; use .txt, .jsonl, .json (each also with .gz, .xz or .zst) "
            f"or .parquet"
        )
    return {
        ".txt": _read_txt,
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }[family]


def _family(path: pathlib.Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".parquet":
        return ".parquet"
    if suffixes and suffixes[-1] in (".gz", ".xz", ".zst"):
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in (".txt", ".jsonl", ".json") else None


def _open(path: pathlib.Path) -> io.BufferedIOBase:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".xz":
        return lzma.open(path, "rb")
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _lines(path: pathlib.Path, limit: int = -1) -> Iterator[bytes]:
    """Yields the lines of a file, unpacked, cut after `limit` bytes; no byte-order mark."""
    number = 0
    try:
        with _open(path) as file:
            line = file.readline(limit).removeprefix(b"\xef\xbb\xbf")
            while line:
                number += 1
                yield line
                line = file.readline(limit)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if path.suffix.lower() not in (".gz", ".xz", ".zst"):
            raise
        raise ValueError(
            f"{path}: the compressed file is cut short or damaged after line {number} ({error}); "
            f"fetch or write it again"
        ) from error


def _read_txt(path: pathlib.Path, wanted: tuple[str, ...]) -> Iterator[Record]:
    lines: list[str] = []
    start, chars, number = 1, 0, 1
    rest = b""
    for piece in _lines(path, _CHUNK_BYTES):
        data = rest + piece
        # A piece of a very long line may end within a character: those bytes go to the next piece.
        cut = len(data) if data.endswith(b"\n") else _last_whole_character(data)
        rest = data[cut:]
        line = decode(data[:cut], f"{path}, line {number}").replace("\r\n", "\n")
        blank, separator = not line.strip(), line.strip() == END_OF_TEXT_LINE
        if not separator:
            lines.append(line)
            chars += len(line)
        number += line.endswith("\n")
        if separator or (blank and chars > TXT_CHARS) or chars > 4 * TXT_CHARS:
            yield f"line {start}", "".join(lines).strip("\n")
            lines, start, chars = [], number, 0
    if rest:
        decode(rest, f"{path}, line {number}")
    yield f"line {start}", "".join(lines).strip("\n")


def _last_whole_character(data: bytes) -> int:
    """Returns the length of `data` less a last character that is cut off in the middle."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            whole = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if whole > back else len(data)
        if byte < 0x80:
            break
    return len(data)


def _read_jsonl(path: pathlib.Path, wanted: tuple[str, ...]) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(decode(line, where))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{where}: not valid JSON ({error}); each line must be one whole JSON object"
            ) from error
        yield f"line {number}", record


def _read_json(path: pathlib.Path, wanted: tuple[str, ...]) -> Iterator[Record]:
    """A JSON array is read whole; a file that begins with "{" is read as one object per line."""
    lines = _lines(path)
    head = next((line.lstrip() for line in lines if line.strip()), b"")
    lines.close()
    if head.startswith(b"{"):
        yield from _read_jsonl(path, wanted)
        return
    text = decode(b"".join(_lines(path)), f"{path}")
    if not text.strip():
        return
    try:
        records = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(
            f"{path}, line {line}: not valid JSON ({error}); write an array of objects"
        ) from error
    if not isinstance(records, list):
        raise ValueError(
            f"{path}: a .json file must hold an array of texts or objects, this one holds "
            f"{type(records).__name__}"
        )
    yield from ((f"item {number}", record) for number, record in enumerate(records))


def _read_parquet(path: pathlib.Path, wanted: tuple[str, ...]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if wanted[0] not in names:
                raise ValueError(
                    f"{path}: no field {wanted[0]!r}; the columns are "
                    f"{', '.join(map(repr, names))}: set text_key to the one with the text"
                )
            columns = [name for name in names if name in wanted]
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for record in batch.to_pylist():
                    yield f"row {row}", record
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: not a whole parquet file ({error}); fetch or write it again"
        ) from error
