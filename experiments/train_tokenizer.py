"""Trains a tokenizer on a source of text and reports its compression on held-out documents.

    python -m experiments.train_tokenizer --workdir=runs/tokenizer --config.vocab_size=8192
"""

import hashlib
import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence

from ml_collections import ConfigDict

from experiments import launch, report
from jaxllm.data.sources import open_source
from jaxllm.data.tokenizer import ENCODINGS, Tokenizer, load_tokenizer, train_tokenizer


def main(config: ConfigDict, workdir: str) -> None:
    """Trains on the source, saves `workdir/tokenizer`, prints and writes the compression report.

    Raises:
      ValueError: a key is out of range, or the source gives too little text.
      FileExistsError: the run folder holds a tokenizer already.
    """
    workdir = pathlib.Path(workdir)
    check(config, workdir)
    references = [load_reference(name) for name in config.references]
    documents = open_source(config.source, text_key=config.text_key)
    heldout = list(limited(texts(documents, config.heldout_percent, heldout=True),
                           config.max_heldout_characters))
    if not any(heldout):
        raise ValueError(f"no text is held out of {config.source!r}: it is empty, or has too few "
                         f"documents for config.heldout_percent={config.heldout_percent}")
    started = time.perf_counter()
    tokenizer = train_tokenizer(
        limited(texts(documents, config.heldout_percent, heldout=False), config.max_characters),
        config.vocab_size, config.pattern, tuple(config.special_tokens))
    print(f"trained {tokenizer.name} in {time.perf_counter() - started:.1f} s", flush=True)
    measured = {"source": config.source, "heldout_documents": len(heldout),
                "heldout_bytes": sum(len(text.encode("utf-8", "replace")) for text in heldout),
                "fingerprint": tokenizer.fingerprint,
                "tokenizers": [measure(entry, heldout, config.threads)
                               for entry in (tokenizer, *references)]}
    tokenizer.save(workdir / "tokenizer")
    table = markdown(measured)
    report.write_text(workdir / "compression.json", json.dumps(measured, indent=2) + "\n")
    report.write_text(workdir / "compression.md", table)
    print(table + f"\nwritten: {workdir}/tokenizer, compression.md, compression.json")


def check(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses what would fail only after the training."""
    if not 0 < config.heldout_percent < 100:
        raise ValueError(f"config.heldout_percent={config.heldout_percent}: choose more than 0 and "
                         "less than 100, to have text to train on and text to measure on")
    for key in ("max_characters", "max_heldout_characters", "threads"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if (workdir / "tokenizer").exists():
        raise FileExistsError(f"{workdir / 'tokenizer'} exists, and models may rely on it: choose "
                              "another --workdir or remove it")


def texts(documents: Iterable, heldout_percent: float, heldout: bool) -> Iterator[str]:
    """Yields the texts of one side of the split, which depends on a document's id alone."""
    threshold = heldout_percent / 100 * 2**64
    for document in documents:
        digest = hashlib.sha256(document.id.encode("utf-8", "replace")).digest()
        if (int.from_bytes(digest[:8], "little") < threshold) == heldout:
            yield document.text


def limited(texts: Iterable[str], max_characters: int) -> Iterator[str]:
    """Yields texts until so many characters are reached, the last one cut there."""
    left = max_characters
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def load_reference(name: str) -> Tokenizer | dict:
    """Returns the tokenizer, or for an encoding that cannot be downloaded its row in the report."""
    try:
        return load_tokenizer(name)
    except FileNotFoundError as error:
        if name not in ENCODINGS:
            raise
        return {"tokenizer": name, "not_measured": str(error)}


def measure(tokenizer: Tokenizer | dict, heldout: Sequence[str], threads: int) -> dict:
    """Returns the row of one tokenizer in the report."""
    if isinstance(tokenizer, dict):
        return tokenizer
    size = sum(len(text.encode("utf-8", "replace")) for text in heldout)
    started = time.perf_counter()
    tokens = sum(map(len, tokenizer.encode_batch(heldout, threads)))
    seconds = time.perf_counter() - started
    return {"tokenizer": tokenizer.name, "vocab_size": tokenizer.vocab_size, "tokens": tokens,
            "bytes_per_token": size / tokens, "encode_mb_per_second": size / 1e6 / seconds}


def markdown(measured: dict) -> str:
    """Returns the report as a table, with the tokens of each in proportion to ours."""
    ours, *references = measured["tokenizers"]
    lines = [f"Compression on {measured['heldout_documents']:,} held-out documents "
             f"({measured['heldout_bytes']:,} bytes) of `{measured['source']}`.", "",
             "| tokenizer | vocabulary | tokens | bytes per token | tokens against ours | MB/s |",
             "|---|---|---|---|---|---|"]
    for row in (ours, *references):
        if "not_measured" in row:
            lines.append(f"| {row['tokenizer']} | not measured | | | | |")
        else:
            lines.append(f"| {row['tokenizer']} | {row['vocab_size']:,} | {row['tokens']:,} | "
                         f"{row['bytes_per_token']:.3f} | {row['tokens'] / ours['tokens']:.3f} | "
                         f"{row['encode_mb_per_second']:.1f} |")
    missing = [row for row in references if "not_measured" in row]
    lines += [f"\n{row['tokenizer']} was not measured: {row['not_measured']}" for row in missing]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    launch.run(main, default_config="configs/train_tokenizer.py")
