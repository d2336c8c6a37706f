"""What a request to the engine says and what it is told; a request that cannot be served is refused here."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxllm.infer.engine_steps import MAX_ALTERNATIVES, MAX_STOP_TOKENS
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import ModelConfig


class Constraint(Protocol):
    """Which tokens may come next; one object per sample, which the engine moves along."""

    def allowed(self) -> np.ndarray:
        """bool [V] or shorter, what is missing being False; with none True the row ends."""

    def accept(self, token: int) -> None:
        """Takes the token that was drawn."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to continue, and how.

    Attributes:
      prompt: token ids, at least one.
      max_tokens: new tokens at most, >= 1; with the prompt within the engine's capacity.
      settings: how tokens are drawn.
      seed: any integer of 64 bits.
      sample: which of the samples of this prompt and seed, >= 0: a draw depends on (seed, sample, position) and the
        logits alone.
      stop_tokens: ids that end the text, at most 16; the one drawn is its last token.
      alternatives: how many of the likeliest tokens to report with each, 0 to 20.
      constraint: tokens that may come next, or None.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    settings: SamplingSettings = SamplingSettings()
    seed: int = 0
    sample: int = 0
    stop_tokens: tuple[int, ...] = ()
    alternatives: int = 0
    constraint: Constraint | None = None


@dataclasses.dataclass(frozen=True)
class Event:
    """A token of a request, its end, or both.

    Attributes:
      request_id: what `submit` returned.
      token: None where a request ends without one: cancelled, or no token is allowed.
      logp: nats, under the model: the log-softmax of `forward`, with no temperature and no filter.
      sampling_logp: nats, under the distribution that was drawn from.
      alternatives: (token, logp) of the likeliest under the model, the likeliest first.
      finish: None, "stop", "length" or "cancelled".
      cached_tokens: tokens of the prompt that did not have to be run.
    """

    request_id: int
    token: int | None
    logp: float = 0.0
    sampling_logp: float = 0.0
    alternatives: tuple[tuple[int, float], ...] = ()
    finish: str | None = None
    cached_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Completion:
    """All that a request was told; the arrays run alike over its tokens."""

    tokens: tuple[int, ...]
    logp: tuple[float, ...]
    sampling_logp: tuple[float, ...]
    finish: str
    cached_tokens: int


def completion_of(events: Sequence[Event]) -> Completion:
    """A request's events in one."""
    drawn = [event for event in events if event.token is not None]
    return Completion(tuple(event.token for event in drawn), tuple(event.logp for event in drawn),
                      tuple(event.sampling_logp for event in drawn), events[-1].finish, events[-1].cached_tokens)


def check_request(request: Request, config: ModelConfig, capacity: int) -> Request:
    """The request with plain integers throughout.

    Raises:
      ValueError: for one that cannot be served.
    """
    V = config.vocab_size
    prompt, stop_tokens = _integers(request.prompt, "prompt"), _integers(request.stop_tokens, "stop_tokens")
    max_tokens, seed, sample, alternatives = (
        _integers([getattr(request, name)], name)[0] for name in ("max_tokens", "seed", "sample", "alternatives"))
    if not prompt:
        raise ValueError("the prompt is empty; begin it with the tokenizer's begin_of_text, which is what stands "
                         "before a document")
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1")
    if len(prompt) + max_tokens > capacity:
        raise ValueError(f"the prompt has {len(prompt)} tokens; with max_tokens={max_tokens} that exceeds the "
                         f"{capacity} positions of a slot: shorten it or ask for fewer")
    if min(prompt) < 0 or max(prompt) >= V:
        raise ValueError(f"the prompt holds an id outside the model's vocabulary of {V}; was it made by another "
                         f"tokenizer?")
    if not isinstance(request.settings, SamplingSettings):
        raise ValueError(f"settings must be SamplingSettings, not {type(request.settings).__name__}")
    if len(stop_tokens) > MAX_STOP_TOKENS or any(not 0 <= token < V for token in stop_tokens):
        raise ValueError(f"stop_tokens must be at most {MAX_STOP_TOKENS} ids of the model's vocabulary of {V}")
    if not -2**63 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must be an integer of 64 bits")
    if not 0 <= sample < 2**32:
        raise ValueError(f"sample is {sample}; it must be an integer from 0 to 2**32 - 1")
    if not 0 <= alternatives <= min(MAX_ALTERNATIVES, V):
        raise ValueError(f"alternatives is {alternatives}; it must be 0 to {min(MAX_ALTERNATIVES, V)}")
    constraint = request.constraint
    if constraint is not None and not (hasattr(constraint, "allowed") and hasattr(constraint, "accept")):
        raise ValueError("a constraint needs the methods `allowed` and `accept`")
    return dataclasses.replace(request, prompt=prompt, max_tokens=max_tokens, seed=seed, sample=sample,
                               stop_tokens=stop_tokens, alternatives=alternatives)


def _integers(values: Sequence[int], name: str) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, values))
    except TypeError:
        raise ValueError(f"{name} must hold integers") from None
