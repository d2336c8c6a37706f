"""The questions of experiments.decimals, put to a published chat model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import lab
from experiments.decimals_text import CUES, KINDS, Pair, question
from experiments.findings import Table
from jaxllm.evals.intervals import share
from jaxllm.train.checkpoint import load_model

_NUMBER = re.compile(r"\d\.\d+")


def ask_published(folder: str, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, Any]:
    """Greedy replies of a chat model to every pair under every cue.

    Args:
      folder: a model folder whose tokenizer has a chat format.
      pairs: by kind.

    Returns:
      [cue][kind]: {"right", "neither": counts, "of"}. Right is by decimals, by versions where the cue says so; a reply
      whose first number is none of the two is neither.

    Raises:
      FileNotFoundError, ValueError: no model in the folder, or one without a chat format.
    """
    params, model, tokenizer = load_model(folder)
    found: dict[str, Any] = {cue: {} for cue in CUES}
    for cue in CUES:
        for kind, some in pairs.items():
            asked = [[{"role": "user", "content": f"{question(pair, cue)} Answer with the number alone."}]
                     for pair in some]
            replies = lab.ask(params, model, tokenizer, asked, max_tokens=12, batch=16)
            named = [_NUMBER.search(reply[0].text) for reply in replies]
            numbers = [match[0] if match else "" for match in named]
            order = "versions" if cue == "versions" else "decimals"
            found[cue][kind] = {
                "right": sum(n == pair.numbers[pair.higher(order)] for n, pair in zip(numbers, some, strict=True)),
                "neither": sum(n not in pair.numbers for n, pair in zip(numbers, some, strict=True)), "of": len(some)}
    return found


def published_table(folder: str, found: Mapping[str, Any]) -> Table:
    """Right answers of the published model by cue and kind."""
    rows = [[cue, *[share(found[cue][kind]["right"], found[cue][kind]["of"]) for kind in KINDS],
             str(sum(found[cue][kind]["neither"] for kind in KINDS))] for cue in CUES]
    return Table(f"The same questions to {folder}", [
        ["told", "orders disagree", "agree, lengths differ", "same length", "neither number"], *rows],
        "Right [95%, Wilson]; told versions is right as versions. Every pair is named in both orders.")
