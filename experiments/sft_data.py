"""The conversations of a fine-tuning run: sources to rows, mixed, split, and accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import report
from jaxllm.data.conversation_readers import ReadConversations, read_conversations
from jaxllm.data.conversations import ConversationRows, conversation_rows, fit, mix, split_conversations
from jaxllm.data.loader import Mixture, Rows
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.world_talks import world_conversations

FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class TalkSource:
    """A source of conversations and its rows.

    Attributes:
      spec: as the config has it.
      read: what it held.
      training: rows to train on.
      validation: held-out rows, or None where the hash held out no conversation that fits a row.
    """

    spec: str
    read: ReadConversations
    training: ConversationRows
    validation: ConversationRows | None


@dataclasses.dataclass(frozen=True)
class Talks:
    """All sources of a run.

    Attributes:
      sources: in the config's order.
      training: their mixture; its `block` is one reading of all sources by their epochs.
      validation: the held-out rows of each source that has any, in order, once.
    """

    sources: Sequence[TalkSource]
    training: Mixture
    validation: Mapping[str, Rows]

    @property
    def padding(self) -> float:
        """Share of the places of training rows that hold no token, each source as often as it is read."""
        shares = self.training.counts / self.training.counts.sum()
        return float(sum(share * source.training.padding
                         for share, source in zip(shares, self.sources, strict=True)))


def prepare(config: ConfigDict, tokenizer: Tokenizer, template: str, row_length: int, seed: int) -> Talks:
    """Reads, splits, renders and packs what `config` (the data part of configs/sft.py) names.

    Args:
      config: with sources, formats, paths, epochs, weights, validation_fraction.
      tokenizer, template: as `render` takes them.
      row_length: T, tokens.
      seed: of the order of the rows; the split has a seed of its own, so that runs of all seeds hold out the same.

    Raises:
      ValueError, FileNotFoundError: with a sentence, for what is wrong with a source or their numbers.
    """
    formats = config.formats or ("",) * len(config.sources)
    if not config.sources or len(formats) != len(config.sources):
        raise ValueError(f"data.sources names {len(config.sources)} sources and data.formats {len(formats)}; give at "
                         f"least one source, and one format a source or none")
    if len(set(config.sources)) != len(config.sources):
        raise ValueError(f"data.sources names a source twice: {', '.join(config.sources)}; raise its epochs instead")
    sources = []
    for spec, format in zip(config.sources, formats, strict=True):
        read = open_conversations(spec, format or None, config.paths)
        sources.append(_source(spec, read, tokenizer, template, row_length, config.validation_fraction))
    rows = [source.training for source in sources]
    training = mix(rows, epochs=list(config.epochs) or None, weights=list(config.weights) or None, seed=seed)
    validation = {source.spec: Rows(source.validation.batch, sequential=True)
                  for source in sources if source.validation}
    return Talks(sources, training, validation)


def open_conversations(spec: str, format: str | None = None, paths: str = "best") -> ReadConversations:
    """A file in a format of docs/sft.md, or "world:<seed>[:<size>]"."""
    if spec.startswith("world:"):
        return ReadConversations(world_conversations(spec), {}, "world")
    return read_conversations(spec, format, paths=paths)


def _source(spec: str, read: ReadConversations, tokenizer: Tokenizer, template: str, row_length: int,
            fraction: float) -> TalkSource:
    training, held_out = split_conversations(read.conversations, fraction)
    if not training:
        raise ValueError(f"{spec}: none of its {len(read.conversations)} conversations is left to train on; lower "
                         f"data.validation_fraction ({fraction}) or give more")
    try:
        rows = conversation_rows(training, tokenizer, row_length, template=template)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    fits = any(fit(one, tokenizer, row_length, template=template)[0] for one in held_out)
    return TalkSource(spec, read, rows,
                      conversation_rows(held_out, tokenizer, row_length, template=template) if fits else None)


def claim_data(folder: pathlib.Path, talks: Talks) -> None:
    """Writes the account of the data into the run folder, or checks that the run begun there had the same rows.

    Raises:
      ValueError: when a source has changed since.
    """
    path = folder / FILE
    if path.exists() and (folder / "checkpoints").exists():
        old = {source["source"]: source["rows_sha256"] for source in json.loads(path.read_text(encoding="utf-8"))}
        changed = [entry["source"] for entry in account(talks) if old.get(entry["source"]) != entry["rows_sha256"]]
        if changed:
            raise ValueError(f"{', '.join(changed)} gives other rows than when the run in {folder} began; put the old "
                             f"file back, or choose another --workdir")
    elif jax.process_index() == 0:
        report.write_text(path, json.dumps(account(talks), indent=2) + "\n")


def account(talks: Talks) -> list[dict[str, Any]]:
    """What went in and what did not, for each source."""
    entries = []
    for source in talks.sources:
        entry = {"source": source.spec, "format": source.read.format, "read": len(source.read.conversations),
                 "skipped": dict(source.read.skipped)}
        for name, rows in (("training", source.training), ("validation", source.validation)):
            entry[name] = rows and {
                "conversations": rows.conversations, "rows": len(rows.batch.tokens), "tokens": rows.tokens,
                "counted_tokens": rows.counted_tokens, "padding": rows.padding, "shortened": rows.shortened,
                "turns_dropped": rows.turns_dropped, "too_long": rows.too_long, "nothing_counts": rows.nothing_counts}
        digest = hashlib.sha256()
        for array in (source.training.batch.tokens, source.training.batch.weights, source.training.batch.segment_ids):
            digest.update(np.ascontiguousarray(array))
        entries.append(entry | {"rows_sha256": digest.hexdigest()})
    return entries


def account_html(entries: Sequence[Mapping[str, Any]]) -> str:
    """The account as a table of the report: a row for each source's training and validation part."""
    columns = ("conversations", "rows", "tokens", "counted_tokens", "padding", "shortened", "turns_dropped",
               "too_long", "nothing_counts")
    lines = ["".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in ("source", "part", *columns))]
    for entry in entries:
        for part in ("training", "validation"):
            values = entry[part]
            cells = [f"{values[name]:.1%}" if name == "padding" else f"{values[name]:,}" for name in columns
                     ] if values else ["-"] * len(columns)
            lines.append(f"<td>{html.escape(entry['source'])}</td><td>{part}</td>"
                         + "".join(f'<td class="n">{cell}</td>' for cell in cells))
    skipped = [f"{entry['source']}: {count} {reason}" for entry in entries
               for reason, count in entry["skipped"].items() if count]
    note = f"<p class=\"dim\">Skipped: {html.escape('; '.join(skipped))}.</p>" if skipped else ""
    return f"<table class=\"wide\">{''.join(f'<tr>{line}</tr>' for line in lines)}</table>{note}"
