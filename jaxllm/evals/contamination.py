"""Whether the items of a task stand in what a model was trained on: word n-grams of documents or of token shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxllm.data.curate.decontaminate import NgramIndex, build_index, scan
from jaxllm.data.shards import TokenShards
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.evals.tasks import Item, Task


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What of a task stands in a corpus.

    Attributes:
      task: its name.
      items, searched: in all, and those of enough words to be looked for.
      found: keys of items of which a document holds some n-gram -> the largest share of the item's n-grams in one
        document.
      documents: scanned.
    """

    task: str
    items: int
    searched: int
    found: dict[str, float]
    documents: int


def item_text(item: Item) -> str:
    """What of an item would betray its answer: the context and the right continuation, or the text of a document."""
    if not item.contexts:
        return item.choices[0]
    if item.verifier == "ifeval" or not item.choices:
        return item.contexts[0]
    context = item.contexts[item.gold[0] if len(item.contexts) > 1 else 0]
    return f"{context} {item.choices[item.gold[0] if len(item.choices) > 1 else 0]}"


def overlaps(tasks: Sequence[Task], documents: Iterable[str], *, n: int = 13, min_words: int = 8) -> list[Overlap]:
    """What of each task the documents hold.

    Args:
      tasks: their items are looked for; grams that more than a tenth of a task's items share are its layout.
      documents: texts, read once.
      n, min_words: as `decontaminate.build_index` takes them; GPT-3 took 13 words for most sets.

    Raises:
      ValueError: when n or min_words is below 1.

    References: Brown et al., 2020, appendix C. https://arxiv.org/abs/2005.14165
    """
    if n < 1 or min_words < 1:
        raise ValueError(f"n={n}, min_words={min_words}: choose 1 or more")
    indices = [_index(task, n, min_words) for task in tasks]
    best: list[dict[int, float]] = [{} for _ in tasks]
    count = 0
    for text in documents:
        count += 1
        for shares, index in zip(best, indices, strict=True):
            for match in scan(text, index) if index else ():
                shares[match.item] = max(match.share, shares.get(match.item, 0.0))
    return [Overlap(task.name, len(task.items), int((index.item_grams > 0).sum()) if index else 0,
                    {task.key(i): share for i, share in sorted(shares.items())}, count)
            for task, index, shares in zip(tasks, indices, best, strict=True)]


def _index(task: Task, n: int, min_words: int) -> NgramIndex | None:
    """None where no item can be looked for, as in a task of sums."""
    texts = [(str(i), item_text(item)) for i, item in enumerate(task.items)]
    try:
        return build_index(texts, n, min_words, max(len(texts) // 10, 1))
    except ValueError:  # all are too short, or share every gram
        return None


def shard_documents(shards: TokenShards, tokenizer: Tokenizer, *, block: int = 1 << 20) -> Iterator[str]:
    """The documents of token shards (`open_shards(folder, tokenizer.fingerprint)`), as text.

    Args:
      shards: of this tokenizer; a document is decoded without the token that ends it.
      block: tokens read at once.
    """
    kept: list[np.ndarray] = []  # of a document that goes on in the next block
    for start in range(0, shards.tokens, block):
        count = min(block, shards.tokens - start)
        tokens, begun = shards.read(start, count), 0
        for end in np.asarray(shards.document_ends(start, count)).astype(int) - start:
            yield _decoded([*kept, tokens[begun:end]], tokenizer)
            kept, begun = [], end
        kept = [*kept, tokens[begun:]] if begun < count else kept


def _decoded(parts: Sequence[np.ndarray], tokenizer: Tokenizer) -> str:
    ids = np.concatenate(parts)
    return tokenizer.decode(ids[:-1] if len(ids) and ids[-1] == tokenizer.end_of_text else ids)
