"""Finds evaluation items in a corpus by word n-grams, and says how many there are at each n.

    python -m experiments.decontaminate --workdir=runs/clean --config.corpus=documents/
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import launch, report
from jaxllm.data import source_files
from jaxllm.data.curate.decontaminate import Match, NgramIndex, build_index, save_index, scan
from jaxllm.data.document import Document
from jaxllm.data.sources import open_source
from jaxllm.data.world import problems

HALF = 0.5
QUOTED_CHARACTERS = 200


def main(config: ConfigDict, workdir: str) -> None:
    """Scans the corpus and the control once, writes contaminated.jsonl, items.jsonl, index/ and the report.

    Raises:
      ValueError: a key is out of range or an item unusable.
      FileNotFoundError: a file is missing.
    """
    check(config)
    workdir = pathlib.Path(workdir)
    items = [item for line in config.evaluations for item in read_items(line)]
    sizes = sorted({*config.sizes, config.n})
    tallies = {n: Tally(build_index(items, n, config.min_words, config.common), config.min_share) for n in sizes}
    false_alarms = {n: Tally(tallies[n].index, config.min_share) for n in sizes}
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / "contaminated.jsonl.tmp"
    with temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for document in read_documents(config.corpus, config.text_key):
            made_from = line_of(document) - 1 if config.truth else None
            for n in sizes:
                matches = tallies[n].add(document, made_from)
                if n == config.n and matches:
                    file.write(json.dumps(described(document, matches, tallies[n].index)) + "\n")
    for document in read_documents(config.control, config.text_key) if config.control else ():
        for n in sizes:
            false_alarms[n].add(document, None)
    temporary.replace(workdir / "contaminated.jsonl")
    save_index(tallies[config.n].index, workdir / "index")
    report.write_text(workdir / "items.jsonl", "".join(json.dumps(row) + "\n" for row in tallies[config.n].items()))
    measured = {"corpus": config.corpus, "control": config.control, "documents": tallies[config.n].documents,
                "control_documents": false_alarms[config.n].documents, "truth": config.truth, "n": config.n,
                "min_share": config.min_share, "rows": [row for n in sizes for row in rows(tallies[n], false_alarms[n],
                                                                                          bool(config.truth))]}
    report.write_text(workdir / "report.json", json.dumps(measured, indent=2) + "\n")
    report.write_text(workdir / "report.md", markdown(measured))
    print(markdown(measured) + f"\nwritten: {workdir}/contaminated.jsonl, items.jsonl, index, report.md, report.json")


def check(config: ConfigDict) -> None:
    """Refuses settings that make no sense."""
    if config.truth not in ("", "line"):
        raise ValueError(f"config.truth={config.truth!r}: choose 'line' or ''")
    if not config.evaluations:
        raise ValueError("config.evaluations=(): name at least one set, 'NAME=FILE#FIELD'")
    for n in (config.n, *config.sizes, config.min_words):
        if n < 1:
            raise ValueError(f"{n} words: config.n, config.sizes and config.min_words are 1 or more")
    if not 0 <= config.min_share <= 1:
        raise ValueError(f"config.min_share={config.min_share}: choose 0 to 1")


@contextlib.contextmanager
def unpacked(spec: str) -> Iterator[str]:
    """The path of a file; one in an archive (ARCHIVE::MEMBER) is unpacked for as long as it is needed."""
    archive, separator, name = spec.partition("::")
    if not separator:
        yield spec
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(archive) as tar:
                member = tar.extractfile(name)
                if member is None:
                    raise KeyError(f"{name} is no file")
                path = pathlib.Path(folder) / pathlib.PurePosixPath(name).name
                path.write_bytes(member.read())
        except (KeyError, tarfile.TarError, EOFError) as error:
            raise ValueError(f"{spec}: cannot be read from the archive ({error}); list it with tar -tf") from error
        yield str(path)


def read_documents(spec: str, text_key: str) -> Iterator[Document]:
    """The documents of a corpus, one after another."""
    with unpacked(spec) as path:
        yield from open_source(path, text_key)


def line_of(document: Document) -> int:
    """The line that a document without an id of its own stood in (blank documents are left out, but counted here)."""
    line = document.id.rpartition(":")[2]
    if not line.isdigit():
        raise ValueError(f"document {document.id!r} does not say its line: config.truth='line' needs a jsonl file "
                         f"whose records have no id")
    return int(line)


def read_items(line: str) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of the items of one evaluation set, "NAME=FILE#FIELD+FIELD"."""
    match = re.fullmatch(r"(?P<name>[^=]+)=(?P<file>[^#]+)(#(?P<fields>.+))?", line)
    if match is None:
        raise ValueError(f"evaluation set {line!r}: write NAME=FILE#FIELD+FIELD")
    if match["file"].startswith("problems:"):
        yield from _world_items(match["name"], match["file"])
        return
    fields = tuple((match["fields"] or "text").split("+"))
    with unpacked(match["file"]) as name:
        path = pathlib.Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file of evaluation items; check config.evaluations")
        for number, (place, record) in enumerate(source_files.reader_for(path)(path, fields)):
            if isinstance(record, str):
                record = {fields[0]: record}
            if not isinstance(record, Mapping) or not all(isinstance(record.get(field), str) for field in fields):
                raise ValueError(f"{path}, {place}: expected an object with text in {', '.join(fields)}; name the "
                                 f"fields after # in config.evaluations")
            yield f"{match['name']}/{number}", "\n".join(record[field] for field in fields)


def _world_items(name: str, spec: str) -> Iterator[tuple[str, str]]:
    match = re.fullmatch(r"problems:(\d+):(train|held_out):(\d+)", spec)
    if match is None:
        raise ValueError(f"{spec}: write problems:SEED:train:COUNT or problems:SEED:held_out:COUNT")
    found = itertools.islice(problems(int(match[1]), match[2]), int(match[3]))
    yield from ((f"{name}/{number}", problem.question) for number, problem in enumerate(found))


class Tally:
    """Counts what one index finds in documents."""

    def __init__(self, index: NgramIndex, min_share: float) -> None:
        self.index = index
        self.min_share = min_share
        self.documents = 0
        self.contaminated = 0
        self.holders = np.zeros(len(index.items), np.int64)  # documents that hold some of the item
        self.best = np.zeros(len(index.items))  # largest share of the item in one document
        self.own = np.zeros(len(index.items))  # share in the document that was made from it
        self.others = 0  # documents with an item that they were not made from
        self.found = np.zeros(len(index.keys), bool)

    def add(self, document: Document, made_from: int | None) -> list[Match]:
        """Scans a document; `made_from` is the item that is known to be in it."""
        matches = scan(document.text, self.index, self.min_share)
        self.documents += 1
        self.contaminated += bool(matches)
        self.others += made_from is not None and any(match.item != made_from for match in matches)
        for match in matches:
            self.holders[match.item] += 1
            self.best[match.item] = max(self.best[match.item], match.share)
            self.found[match.grams] = True
            if match.item == made_from:
                self.own[match.item] = match.share
        return matches

    def items(self) -> Iterator[dict[str, Any]]:
        """One row per item; `share` is found anywhere in the corpus, `best_share` in one document."""
        counts = np.diff(self.index.owner_starts)
        owners = np.bincount(self.index.owners, np.repeat(self.found, counts), minlength=len(self.index.items))
        for i, name in enumerate(self.index.items):
            grams = int(self.index.item_grams[i])
            yield {"item": name, "grams": grams, "documents": int(self.holders[i]),
                   "share": float(owners[i] / grams) if grams else None, "best_share": float(self.best[i])}


def described(document: Document, matches: list[Match], index: NgramIndex) -> dict[str, Any]:
    """The line of a contaminated document."""
    return {"id": document.id, "items": [
        {"item": index.items[match.item], "share": match.share,
         "passages": [{"start": start, "end": end, "text": document.text[start:end][:QUOTED_CHARACTERS]}
                      for start, end in match.spans]} for match in matches]}


def rows(tally: Tally, false_alarms: Tally, truth: bool) -> Iterator[dict[str, Any]]:
    """The table's rows for one n: one per evaluation set."""
    sets = [name.rsplit("/", 1)[0] for name in tally.index.items]
    for place, name in enumerate(dict.fromkeys(sets)):
        chosen = np.array([other == name for other in sets])
        row = {"n": tally.index.n, "set": name, "items": int(chosen.sum()),
               "searched": int((tally.index.item_grams[chosen] > 0).sum()),
               "found": int((tally.best[chosen] > 0).sum()), "found_half": int((tally.best[chosen] >= HALF).sum()),
               "control_found": int((false_alarms.best[chosen] > 0).sum()), "documents": tally.contaminated,
               "control_documents": false_alarms.contaminated}
        if truth and not place:
            row |= {"own_found": int((tally.own[chosen] > 0).sum()),
                    "own_half": int((tally.own[chosen] >= HALF).sum()), "wrong_documents": tally.others}
        yield row


def markdown(measured: dict[str, Any]) -> str:
    """The report as a table over n."""
    names = ["n", "set", "items", "searched", "found", "found_half", "documents"]
    if measured["control"]:
        names += ["control_found", "control_documents"]
    if measured["truth"]:
        names += ["own_found", "own_half", "wrong_documents"]
    titles = {"searched": "long enough to look for", "found": "found in some document",
              "found_half": "half of its grams in one document", "documents": "documents contaminated (all sets)",
              "control_found": "found in the control", "control_documents": "control documents contaminated",
              "own_found": "found in the document made from it", "own_half": "half of its grams there",
              "wrong_documents": "documents with another's grams"}
    control = f"; control: {measured['control_documents']:,} of `{measured['control']}`" if measured["control"] else ""
    lines = [f"{measured['documents']:,} documents of `{measured['corpus']}`{control}; a document is contaminated "
             f"from a share of {measured['min_share']:g} of an item's n-grams on.", "",
             "| " + " | ".join(titles.get(name, name) for name in names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in measured["rows"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main, default_config="configs/decontaminate.py")
