"""Rankings to rows for a reward model: all completions of a prompt in one batch element.

A row is a prompt with one completion as its chat format writes them, whole: the last token is the one that ends the
reply. Rows of a ranking share the same prompt, cut from the left by whole turns where the longest row would not fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import numpy as np

from jaxllm.data.chat import render
from jaxllm.data.preferences import Message, Ranking
from jaxllm.data.tokenizer import Tokenizer

_SMALLEST_WIDTH = 32
# Batches are made of rankings of like length within so many batches' worth of the shuffled order.
_GROUP = 8


@flax.struct.dataclass
class RankingBatch:
    """Rankings side by side, ragged in completions and in tokens.

    Attributes:
      tokens: int32 [B, K, T], padded on the right.
      lengths: int32 [B, K], tokens of each row; 0: no such completion.
      tiers: int32 [B, K], 0 is best and equal numbers are ties; 0 where there is no completion.
    """

    tokens: Any
    lengths: Any
    tiers: Any


@dataclasses.dataclass(frozen=True)
class RankingRows:
    """Rankings as tokens, and an account of those that are not as they were.

    Attributes:
      tokens: of each ranking, the token ids of each completion's row.
      tiers: of each ranking, the tier of each completion; 0 is best.
      kept: index of each ranking among those that were given.
      shortened: rankings whose prompt lost turns.
      too_long: rankings left out, because their last turn alone does not fit.
      row_length: most tokens of a row.
    """

    tokens: list[list[list[int]]]
    tiers: list[list[int]]
    kept: list[int]
    shortened: int
    too_long: int
    row_length: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def completions(self) -> int:
        """K: of the ranking that has most."""
        return max(map(len, self.tokens))

    def batch(self, index: Sequence[int], rows: int | None = None, width: int | None = None) -> RankingBatch:
        """The rankings with these indices, in this order.

        Args:
          index: into `tokens`.
          rows: B; rows beyond the rankings are empty. None is as many as asked for.
          width: T; None is `row_width` of the longest, cut to `row_length`.
        """
        longest = max(len(row) for i in index for row in self.tokens[i])
        shape = (len(index) if rows is None else rows, self.completions)
        width = min(row_width(longest), self.row_length) if width is None else width
        tokens = np.zeros((*shape, width), np.int32)
        lengths, tiers = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for b, i in enumerate(index):
            for k, row in enumerate(self.tokens[i]):
                tokens[b, k, :len(row)], lengths[b, k], tiers[b, k] = row, len(row), self.tiers[i][k]
        return RankingBatch(tokens, lengths, tiers)

    def order(self, epoch: int, batch_size: int, seed: int) -> list[np.ndarray]:
        """The batches of an epoch as indices: every ranking once, those of like length together.

        Args:
          epoch: which; another order in each.
          batch_size: rankings of a batch; the last may have fewer.
          seed: of the order.
        """
        rng = np.random.default_rng((seed, epoch))
        shuffled = rng.permutation(len(self))
        longest = np.array([max(map(len, rows)) for rows in self.tokens])
        batches = []
        for start in range(0, len(self), _GROUP * batch_size):
            some = shuffled[start:start + _GROUP * batch_size]
            some = some[np.argsort(longest[some], kind="stable")]
            batches += [some[i:i + batch_size] for i in range(0, len(some), batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def ranking_rows(rankings: Sequence[Ranking], tokenizer: Tokenizer, row_length: int) -> RankingRows:
    """Renders rankings for a model.

    Args:
      rankings: of any number of completions each.
      tokenizer: its chat format is used.
      row_length: most tokens of a row.

    Raises:
      ValueError: when the format cannot hold a prompt (names the ranking), or none fits.
    """
    tokens, tiers, kept, shortened = [], [], [], 0
    for i, ranking in enumerate(rankings):
        rows, dropped = completion_rows(ranking.prompt, ranking.completions, tokenizer, row_length, ranking.where)
        if rows is not None:
            tokens.append(rows)
            tiers.append(list(ranking.tiers))
            kept.append(i)
            shortened += dropped > 0
    if not kept:
        raise ValueError(f"none of {len(rankings)} rankings fits rows of {row_length} tokens; raise the row length or "
                         f"give other data")
    return RankingRows(tokens, tiers, kept, shortened, len(rankings) - len(kept), row_length)


def completion_rows(prompt: Sequence[Message], completions: Sequence[str], tokenizer: Tokenizer,
                    row_length: int | None = None, where: str = "") -> tuple[list[list[int]] | None, int]:
    """Rows of one prompt's completions, which all read the same turns of it.

    A system message stays, then come as many of the last turns as fit with the longest completion; a turn begins with a
    user's message.

    Args:
      prompt: messages before the completion.
      completions: texts of the assistant's next message.
      tokenizer, row_length: as `ranking_rows`; None: of any length.
      where: the ranking's, for errors.

    Returns:
      (token ids of each completion's row, or None when the last turn alone does not fit; messages dropped).
    """
    system = [message for message in prompt[:1] if message["role"] == "system"]
    starts = [i for i, message in enumerate(prompt) if i == len(system) or (i > 0 and message["role"] == "user")]
    for start in starts:
        rows = []
        for completion in completions:
            messages = [*system, *prompt[start:], {"role": "assistant", "content": completion}]
            try:
                rows.append(render(messages, tokenizer, mask=False).ids)
            except ValueError as error:
                raise ValueError(f"{where or 'a ranking'}: {error}") from error
            if row_length is not None and len(rows[-1]) > row_length:
                break
        else:
            return rows, start - len(system)
    return None, len(prompt) - len(system)


def row_width(length: int) -> int:
    """Columns that a row of `length` tokens is padded to: 32, 48, 64, 96, 128, ...; few shapes, at most a third empty.

    >>> [row_width(length) for length in (1, 33, 49, 65, 97)]
    [32, 48, 64, 96, 128]
    """
    power = max(_SMALLEST_WIDTH, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > _SMALLEST_WIDTH and length <= power * 3 // 4 else power
