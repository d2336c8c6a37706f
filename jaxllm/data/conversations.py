"""Conversations to rows of a batch: rendered, fitted to a row by whole turns, packed, split and mixed.

A turn is a user's message with all that answers it, calls and results included. A conversation longer than a row loses
whole turns from its end; one of which not even the first turn fits is left out. Both are counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.data.chat import Rendered, render
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.loader import Mixture, Rows
from jaxllm.data.packing import Batch, pack
from jaxllm.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ConversationRows:
    """Rows for training, and an account of what went in.

    Attributes:
      batch: numpy arrays [rows, T]; each segment is one conversation, weights are 1 on what the assistant wrote.
      conversations: how many went in.
      shortened: those of them that lost turns from their end.
      turns_dropped: turns lost in that way.
      too_long: conversations left out because their first answered turn exceeds a row.
      nothing_counts: conversations left out because no token of theirs counts in this format.
      tokens: tokens in the rows; the rest of rows x T is padding.
      counted_tokens: targets with weight.
    """

    batch: Batch
    conversations: int
    shortened: int
    turns_dropped: int
    too_long: int
    nothing_counts: int
    tokens: int
    counted_tokens: int

    @property
    def padding(self) -> float:
        """The share of places that hold no token, in [0, 1]."""
        return 1.0 - self.tokens / max(self.batch.tokens.size, 1)


def fit(conversation: Conversation, tokenizer: Tokenizer, row_length: int, *, template: str | None = None,
        variables: Mapping[str, Any] | None = None) -> tuple[Rendered | None, int, str]:
    """Renders as many whole turns from the start as fit in a row; what follows the last answer never counts and goes.

    Args:
      conversation: as `read_conversations` gives it.
      tokenizer, template, variables: as `render` takes them.
      row_length: T, tokens.

    Returns:
      (rendered, turns dropped, ""); or (None, turns, "too long" or "nothing counts").

    Raises:
      ValueError: when the format cannot hold the conversation; names file and line.
    """
    messages = conversation.messages
    ends = _turn_ends(messages)
    shortest = None
    for dropped, end in enumerate(reversed(ends)):
        try:
            rendered = render(messages[:end], tokenizer, tools=conversation.tools, template=template,
                              variables=variables)
        except ValueError as error:
            raise ValueError(f"{conversation.where}: {error}") from error
        shortest = len(rendered.ids)
        if shortest <= row_length and any(rendered.mask[1:]):
            return rendered, dropped, ""
    return None, len(ends), "too long" if shortest is not None and shortest > row_length else "nothing counts"


def _turn_ends(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Lengths of the prefixes that end with a whole turn: behind its last assistant's message."""
    ends, last = [], 0
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            last = number
        if last and (number == len(messages) or messages[number]["role"] in ("user", "system")):
            ends += [last] if last not in ends[-1:] else []
    return ends


def conversation_rows(conversations: Sequence[Conversation], tokenizer: Tokenizer, row_length: int, *,
                      template: str | None = None, variables: Mapping[str, Any] | None = None) -> ConversationRows:
    """Packs conversations into rows, by `packing.pack`; attention stays inside each.

    Args:
      conversations: from `read_conversations`, or made.
      tokenizer, template, variables: as `render` takes them.
      row_length: T, tokens.

    Raises:
      ValueError: as `fit`, and when no conversation fits.
    """
    kept: list[Rendered] = []
    counts = {"shortened": 0, "turns_dropped": 0, "too long": 0, "nothing counts": 0}
    for conversation in conversations:
        rendered, dropped, reason = fit(conversation, tokenizer, row_length, template=template, variables=variables)
        if rendered is None:
            counts[reason] += 1
            continue
        kept.append(rendered)
        counts["shortened"] += dropped > 0
        counts["turns_dropped"] += dropped
    if not kept:
        raise ValueError(f"none of {len(conversations)} conversations fits a row of {row_length} tokens with an answer "
                         f"in it ({counts['too long']} too long, {counts['nothing counts']} without a token that "
                         f"counts); raise the row length or give other data")
    packed = pack([rendered.ids for rendered in kept], row_length, [rendered.mask for rendered in kept])
    return ConversationRows(packed.batch, len(kept), counts["shortened"], counts["turns_dropped"], counts["too long"],
                            counts["nothing counts"], sum(len(rendered.ids) for rendered in kept),
                            int(packed.batch.weights.sum()))


def split_conversations(conversations: Sequence[Conversation], fraction: float, seed: int = 0
                        ) -> tuple[list[Conversation], list[Conversation]]:
    """(training, validation): each conversation by a hash of itself, so that others and their order do not matter.

    Equal conversations of any source fall on one side, and so do all paths of one OASST tree.

    Args:
      conversations: from `read_conversations`.
      fraction: expected share of the validation side, in [0, 1).
      seed: of the hash.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction ({fraction}) must lie in [0, 1)")
    sides: tuple[list[Conversation], list[Conversation]] = [], []
    for conversation in conversations:
        key = conversation.origin or [conversation.messages, conversation.tools]
        text = json.dumps([seed, key], sort_keys=True, ensure_ascii=True)
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        sides[number < fraction * 2**64].append(conversation)
    return sides


def mix(sources: Sequence[ConversationRows], *, epochs: Sequence[float] | None = None,
        weights: Sequence[float] | None = None, seed: int = 0) -> Mixture:
    """Rows of several sources as one; batch `step` is a function of (seed, step, host), see `Source.batch_at`.

    Args:
      sources: their rows, all of one length.
      epochs: how often each source is read in the whole run, above 0: the run has `mixture.block` rows, among them
        every row of a source floor(epochs) or ceil(epochs) times. None with no weights: once each.
      weights: instead, each source's share of the rows of a run without an end; see `Mixture`.
      seed: of every order.

    Raises:
      ValueError: when both are given, their number is not that of the sources, or one is not positive.
    """
    if epochs is not None and weights is not None:
        raise ValueError("give the epochs of each source or their weights, not both")
    shares = weights if weights is not None else epochs if epochs is not None else [1.0] * len(sources)
    if len(shares) != len(sources) or not all(np.isfinite(share) and share > 0 for share in shares):
        raise ValueError(f"{len(sources)} sources need as many epochs or weights, all above 0, not {list(shares)}")
    rows = [Rows(source.batch, seed=seed + number) for number, source in enumerate(sources)]
    if weights is not None:
        return Mixture(list(zip(rows, weights, strict=True)), seed)
    times = [max(1, round(share * source.count)) for share, source in zip(shares, rows, strict=True)]
    return Mixture(list(zip(rows, times, strict=True)), seed, block=sum(times))
