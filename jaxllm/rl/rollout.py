"""Rollouts: what a policy wrote to some prompts, as arrays that a trainer can score again.

A `Sampler` draws, by `generate` (equal batches, one compiled loop) or by the engine (continuous batching: a long reply
holds up only itself). Both take the weights of the moment and give the same log-probabilities. A conversation with tool
calls (`infer.tool_loop.Transcript`) stacks in the same way: what was put into it has mask False.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from flax import struct
from jax.experimental.multihost_utils import process_allgather

from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.engine import Engine, Request
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.quantize import SCHEMES, quantize

SAMPLERS = ("generate", "engine")
WEIGHTS = ("same", *SCHEMES)


@struct.dataclass
class Rollout:
    """Rows of a policy's own text; row q * G + g is sample g of prompt q. Arrays of the host.

    Attributes:
      tokens: int32 [B, T], prompt and reply, 0 from `lengths` on.
      mask: bool [B, T], True for tokens that the policy drew, the one that ends its turn among them.
      logp: float32 [B, T], nats; of tokens[b, t] given those before it, under the sampler's model without temperature
        or filter. 0 where the mask is False.
      sampling_logp: float32 [B, T], nats; the same under the distribution that was drawn from.
      lengths: int32 [B], tokens of a row.
      stopped: bool [B], False for a reply that was cut off.
    """

    tokens: np.ndarray
    mask: np.ndarray
    logp: np.ndarray
    sampling_logp: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray


class Row(Protocol):
    """A conversation as it went, its lists running alike: a `Drawn`, or a `Transcript` of a loop with tools."""

    ids: list[int]
    mask: list[bool]
    logp: list[float]
    sampling_logp: list[float]
    finish: str


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A prompt and one reply to it: see `Rollout`; `finish` is "stop" or "length"."""

    ids: list[int]
    mask: list[bool]
    logp: list[float]
    sampling_logp: list[float]
    finish: str


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How a policy is sampled.

    Attributes:
      by: "generate" or "engine".
      max_tokens: of a reply, >= 1.
      stop_tokens: ids that end a reply.
      sampling: temperature and filters.
      valid_vocab: ids from here on are never drawn; None is V.
      execution: of the sampler, whose dtype need not be the trainer's.
      weights: "same" as the trainer's, or a scheme of `quantize`, applied anew at every `load`.
      slots: of the engine, or rows that `generate` holds at once; 0 is all rows of a call.
      capacity: positions of a slot of the engine; 0 is the model's max_positions.
    """

    by: str = "generate"
    max_tokens: int = 64
    stop_tokens: tuple[int, ...] = ()
    sampling: SamplingSettings = SamplingSettings()
    valid_vocab: int | None = None
    execution: Execution = Execution()
    weights: str = "same"
    slots: int = 0
    capacity: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("by", SAMPLERS), ("weights", WEIGHTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"sampler.{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        for name, least in (("max_tokens", 1), ("slots", 0), ("capacity", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"sampler.{name} is {getattr(self, name)}; it must be at least {least}")


class Sampler:
    """Draws replies from the weights that were loaded last."""

    def __init__(self, config: ModelConfig, settings: SamplerSettings) -> None:
        self.config, self.settings = config, settings
        self._params: Params | None = None
        self._engine: Engine | None = None
        self._quantize = jax.jit(lambda params: quantize(params, config, settings.weights))

    def load(self, params: Params) -> None:
        """Takes new weights, in the trainer's layout."""
        self._params = params if self.settings.weights == "same" else self._quantize(params)
        if self._engine is not None:
            self._engine.load(self._params)

    def draw(self, prompts: Sequence[Sequence[int]], samples: int, seed: int, step: int = 0) -> list[Drawn]:
        """`samples` replies to each prompt, those of a prompt beside each other.

        Args:
          prompts: token ids.
          samples: of a prompt.
          seed, step: stand for the draws: the same two, prompts and weights give the same replies.

        Raises:
          ValueError: before `load`, or for a prompt that leaves no room for max_tokens.
        """
        if self._params is None:
            raise ValueError("a sampler draws from the weights that it was given: call load(params) first")
        draw = self._by_engine if self.settings.by == "engine" else self._by_generate
        return draw(prompts, samples, seed, step)

    def _by_generate(self, prompts: Sequence[Sequence[int]], samples: int, seed: int, step: int) -> list[Drawn]:
        settings = self.settings
        found = generate(
            self._params, self.config, prompts, key=jax.random.fold_in(jax.random.key(seed), step),
            max_tokens=settings.max_tokens, settings=settings.sampling, stop_tokens=settings.stop_tokens,
            samples_per_prompt=samples, valid_vocab=settings.valid_vocab, execution=settings.execution,
            batch=max(settings.slots // samples, 1) if settings.slots else None)
        everywhere = jax.tree.map(_on_host, (found.logp, found.sampling_logp, found.stopped))
        rows = zip(found.rows(), *everywhere, strict=True)
        return [_drawn(prompts[i // samples], tokens, logp[:len(tokens)].tolist(), sampling[:len(tokens)].tolist(),
                       "stop" if stopped else "length")
                for i, (tokens, logp, sampling, stopped) in enumerate(rows)]

    def _by_engine(self, prompts: Sequence[Sequence[int]], samples: int, seed: int, step: int) -> list[Drawn]:
        settings = self.settings
        if self._engine is None:
            self._engine = Engine(
                self._params, self.config, slots=settings.slots or len(prompts) * samples,
                capacity=settings.capacity or self.config.max_positions, execution=settings.execution,
                valid_vocab=settings.valid_vocab)
        requests = [
            Request(tuple(prompt), settings.max_tokens, settings.sampling, sample=sample,
                    seed=int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0]),
                    stop_tokens=settings.stop_tokens)
            for number, prompt in enumerate(prompts) for sample in range(samples)]
        return [_drawn(request.prompt, done.tokens, done.logp, done.sampling_logp, done.finish)
                for request, done in zip(requests, self._engine.run(requests), strict=True)]


def _on_host(x: jax.Array) -> np.ndarray:
    """The whole array, on every process of a run."""
    return np.asarray(x if x.is_fully_addressable else process_allgather(x, tiled=True))


def _drawn(prompt: Sequence[int], tokens: Sequence[int], logp: Sequence[float], sampling_logp: Sequence[float],
           finish: str) -> Drawn:
    given, none = len(prompt), [0.0] * len(prompt)
    return Drawn([*prompt, *tokens], [False] * given + [True] * len(tokens), none + list(logp),
                 none + list(sampling_logp), finish)


def stack(rows: Sequence[Row], width: int) -> Rollout:
    """Rows as arrays [B, width], padded on the right.

    Raises:
      ValueError: when a row is longer than `width`.
    """
    longest = max(len(row.ids) for row in rows)
    if longest > width:
        raise ValueError(f"a rollout of {longest} tokens does not fit {width} positions; raise the width or lower "
                         f"max_tokens")
    shape = (len(rows), width)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    logp, sampling_logp = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        end = len(row.ids)
        tokens[i, :end], mask[i, :end] = row.ids, row.mask
        logp[i, :end], sampling_logp[i, :end] = row.logp, row.sampling_logp
    return Rollout(tokens, mask, logp, sampling_logp, np.array([len(row.ids) for row in rows], np.int32),
                   np.array([row.finish == "stop" for row in rows]))


def texts(rows: Sequence[Row], tokenizer: Tokenizer, stop_tokens: Sequence[int] = ()) -> list[str]:
    """What the policy wrote in each row, less the tokens that end a reply."""
    return [tokenizer.decode([token for token, own in zip(row.ids, row.mask, strict=True)
                              if own and token not in stop_tokens]) for row in rows]

