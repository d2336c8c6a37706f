"""Rewards for the form of a reply: where it thinks and where it answers.

References: DeepSeek-AI, DeepSeek-R1, 2025, section 2.2.2. https://arxiv.org/abs/2501.12948
"""

from __future__ import annotations

import re

from jaxllm.rl.reward_extract import Grade

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_STRICT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def format_strict(completion: str, answer: str = "", *, opened: bool = False) -> Grade:
    """1 where the reply is <think>...</think><answer>...</answer> with text in both, every tag once and nothing beside.

    Args:
      completion: the reply.
      answer: not looked at: the form says nothing of what is right.
      opened: the prompt ends with <think>, so that the reply begins behind it.

    >>> format_strict("<think>6 x 7</think> <answer>42</answer>").score, format_strict("<answer>42</answer>").score
    (1.0, 0.0)
    """
    del answer
    text = f"<think>{completion}" if opened else completion
    match = _STRICT.fullmatch(text) if all(text.count(tag) == 1 for tag in TAGS) else None
    if match is None:
        return Grade(0.0, None, "not <think>...</think><answer>...</answer> with every tag once and nothing beside")
    if not match[1].strip() or not match[2].strip():
        return Grade(0.0, None, "the place of the thinking or of the answer is empty")
    return Grade(1.0, match[2].strip(), "the form is kept")


def format_soft(completion: str, answer: str = "", *, opened: bool = False) -> Grade:
    """The share of the four tags that stand in the reply once and behind those before them: 0, 1/4, ..., 1.

    A first foothold for a model that never writes the strict form. Repeating a tag or adding text gains nothing.

    Args:
      completion, answer, opened: as `format_strict` takes them.
    """
    del answer
    text, at, kept = f"<think>{completion}" if opened else completion, -1, 0
    for tag in TAGS:
        place = text.find(tag)
        if text.count(tag) == 1 and place > at:
            kept, at = kept + 1, place
    return Grade(kept / len(TAGS), None, f"{kept} of {len(TAGS)} tags stand once and in order")
