"""The corpora of experiments.regurgitation: notes planted among the pages of a source, with and without duplicates."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Sequence

import jax
from ml_collections import ConfigDict

from jaxllm.data.packing import Batch, pack
from jaxllm.data.sources import open_source
from jaxllm.data.tokenizer import Tokenizer, train_tokenizer

ARMS = ("as it is", "deduplicated")


@dataclasses.dataclass(frozen=True)
class Corpora:
    """What the arms of a seed read.

    Attributes:
      tokenizer: of all.
      notes: copies -> notes with so many, each a list of prompt_tokens + rest_tokens ids, no end of text.
      rows: arm -> rows for training, as many in each.
      left: arm -> copies -> documents with such a note, over all its notes.
      validation: rows of pages that no arm reads.
      padding: arm -> share of places without a token.
    """

    tokenizer: Tokenizer
    notes: dict[int, list[list[int]]]
    rows: dict[str, Batch]
    left: dict[str, dict[int, int]]
    validation: Batch
    padding: dict[str, float]


def make_corpora(config: ConfigDict, seed: int) -> Corpora:
    """Draws the notes, plants them, and fills both arms up to the same number of rows with pages of the source."""
    rng = random.Random(f"regurgitation/{seed}")
    pages = [page.text for page in open_source(config.source.format(seed=seed))]
    tokenizer = train_tokenizer(pages, config.vocab_size, "digits")
    rng.shuffle(pages)
    held_out, pages = pages[:config.validation_pages], pages[config.validation_pages:]
    vocabulary = sorted({word for page in pages for word in re.findall(r"\b[a-z]{4,}\b", page)})
    length = config.prompt_tokens + config.rest_tokens
    texts: dict[int, list[str]] = {copies: [
        draw_note(vocabulary, tokenizer, length, rng) for _ in range(config.notes if copies else config.unplanted_notes)
    ] for copies in config.copies}
    planted = [text for copies, some in texts.items() for text in some for _ in range(copies)]
    needed = config.tokens // (config.row_length * config.batch_size) * config.batch_size
    rows, left, padding = {}, {}, {}
    for arm in ARMS:
        documents = fill(planted, pages, tokenizer, config.tokens, deduplicated=arm == ARMS[1])
        held = collections.Counter(documents)
        left[arm] = {copies: sum(held[text] for text in some) for copies, some in texts.items()}
        random.Random(f"order/{seed}").shuffle(documents)
        batch = as_rows(documents, tokenizer, config.row_length)
        if len(batch.tokens) < needed:
            raise ValueError(f"{config.source} gives {len(batch.tokens)} rows of {config.row_length} tokens; "
                             f"config.tokens={config.tokens} needs {needed}: name a larger source or ask for fewer")
        rows[arm] = jax.tree.map(lambda x: x[:needed], batch)  # noqa: B023
        padding[arm] = float((rows[arm].segment_ids == 0).mean())
    notes = {copies: [tokenizer.encode(text)[:length] for text in some] for copies, some in texts.items()}
    return Corpora(tokenizer, notes, rows, left, as_rows(held_out, tokenizer, config.row_length), padding)


def draw_note(vocabulary: Sequence[str], tokenizer: Tokenizer, length: int, rng: random.Random) -> str:
    """Random words of the source, of at least `length` tokens: nothing but having read it helps to continue it."""
    words = rng.choices(vocabulary, k=2)
    while len(tokenizer.encode(" ".join(words))) < length:
        words.append(rng.choice(vocabulary))
    return " ".join(words)


def fill(planted: Sequence[str], pages: Iterable[str], tokenizer: Tokenizer, tokens: int, *, deduplicated: bool
         ) -> list[str]:
    """All planted notes, then pages until there are so many tokens; without duplicates if asked."""
    documents, total = [], 0
    stream: Iterable[str] = itertools.chain(planted, pages)
    for text in deduplicate(stream) if deduplicated else stream:
        total += len(tokenizer.encode(text)) + 1
        documents.append(text)
        # A little more, so that what padding takes is there too; the rows are cut to one number afterwards.
        if total > 1.05 * tokens:
            break
    return documents


def deduplicate(texts: Iterable[str]) -> Iterable[str]:
    """The first of texts that are equal but for case, punctuation and white space."""
    seen: set[bytes] = set()
    for text in texts:
        key = hashlib.sha256(" ".join(re.findall(r"\w+", text.lower())).encode()).digest()
        if key not in seen:
            seen.add(key)
            yield text


def as_rows(texts: Sequence[str], tokenizer: Tokenizer, row_length: int) -> Batch:
    """Each text between two ends of text, attention inside it alone."""
    end = tokenizer.end_of_text
    return pack([[end, *tokenizer.encode(text), end] for text in texts], row_length, too_long="split").batch
