"""Prompts on their way into the model: checked, and padded to one of few widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxllm.model.config import ModelConfig

# A prompt is run in chunks of so many positions, so that attention holds chunk x capacity scores at
# a time, and one compiled chunk serves prompts of any length.
CHUNK = 256
SMALLEST_WIDTH = 16


def check_prompts(prompts: Sequence[Sequence[int]], config: ModelConfig,
                  max_tokens: int) -> None:
    """Raises ValueError for a prompt that the model cannot continue by `max_tokens`."""
    if not len(prompts):
        raise ValueError("there are no prompts; give at least one")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {i} is empty; begin it with the tokenizer's begin_of_text, "
                             f"which is what stands before a document")
        if len(prompt) + max_tokens > config.max_positions:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens; with max_tokens={max_tokens} "
                             f"that exceeds the model's {config.max_positions} positions: "
                             f"shorten it or ask for fewer")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(f"prompt {i} holds an id outside the model's vocabulary of "
                             f"{config.vocab_size}; was it made by another tokenizer?")


def prompt_width(length: int) -> int:
    """Columns that a prompt of `length` tokens is padded to: powers of two, then whole chunks.

    >>> [prompt_width(length) for length in (1, 17, 256, 257)]
    [16, 32, 256, 512]
    """
    if length > CHUNK:
        return -(-length // CHUNK) * CHUNK
    return max(SMALLEST_WIDTH, 1 << (length - 1).bit_length())


def pad_prompts(prompts: Sequence[Sequence[int]], rows: int,
                width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [rows, width], padded on the right, and counts int32 [rows].

    Rows beyond the prompts are padding too, and have count 0.

    >>> pad_prompts([[7, 8]], 2, 3)[0].tolist()
    [[7, 8, 0], [0, 0, 0]]
    """
    tokens, counts = np.zeros((rows, width), np.int32), np.zeros((rows,), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, :len(prompt)], counts[row] = prompt, len(prompt)
    return tokens, counts
