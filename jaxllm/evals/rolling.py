"""Bits per byte of documents of any length: windows that predict each token once, with as much context as there is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxllm.evals.language_model import LanguageModel, Pair
from jaxllm.evals.loglikelihood import BATCH_TOKENS, PROGRAM_TOKENS, Progress, loglikelihoods


@dataclasses.dataclass(frozen=True)
class TextScore:
    """A text under the model.

    Attributes:
      logp: nats, summed over its tokens.
      tokens: of the text.
      bytes: of the text in UTF-8.
    """

    logp: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """-logp / (bytes ln 2): no matter of the tokenizer, unlike perplexity."""
        return -self.logp / (self.bytes * math.log(2))


def windows(tokens: Sequence[int], first: int, positions: int) -> list[Pair]:
    """(context, continuation) pairs in which each token is predicted once.

    The first window begins behind `first`; every other one predicts `positions` tokens behind one that it only reads,
    and the last, which has fewer, reads as many before them as fit.

    Args:
      tokens: of a text, at least one.
      first: the id that stands before the text.
      positions: of the model.

    References: lm-evaluation-harness, `get_rolling_token_windows`.
      https://github.com/EleutherAI/lm-evaluation-harness

    >>> windows([0, 1, 2, 3, 4, 5], 9, 4)
    [([9], [0, 1, 2, 3]), ([1, 2, 3], [4, 5])]
    """
    tokens = list(tokens)
    found: list[Pair] = [([first], tokens[:positions])]
    for start in range(positions, len(tokens), positions):
        end = min(start + positions, len(tokens))
        found.append((tokens[max(end - positions - 1, 0):start], tokens[start:end]))
    return found


def score_texts(model: LanguageModel, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS,
                program_tokens: int = PROGRAM_TOKENS, progress: Progress | None = None) -> list[TextScore]:
    """Scores whole texts.

    Args:
      model: `begin_of_text` stands before every text whatever model.begin says: its first token is predicted too.
      texts: none of them empty.
      batch_tokens, program_tokens, progress: as `loglikelihoods` takes them.

    Raises:
      ValueError: for an empty text.
    """
    asked, owners, counts = [], [], []
    for number, text in enumerate(texts):
        tokens = model.tokenizer.encode(text)
        if not tokens:
            raise ValueError(f"text {number} is empty; it has no bytes to speak of")
        parts = windows(tokens, model.tokenizer.begin_of_text, model.positions)
        asked += parts
        owners += [number] * len(parts)
        counts.append(len(tokens))
    logp = [0.0] * len(texts)
    found = loglikelihoods(model, asked, batch_tokens=batch_tokens, program_tokens=program_tokens, progress=progress)
    for owner, scored in zip(owners, found, strict=True):
        logp[owner] += scored.logp
    return [TextScore(logp[i], counts[i], len(text.encode())) for i, text in enumerate(texts)]
