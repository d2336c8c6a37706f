"""What a run of policy gradient is given, and what its config means for a model, before anything is compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxllm.data.chat import end_of_turn
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.rl.guard import Limits
from jaxllm.rl.policy_settings import ALGORITHMS, PolicySettings
from jaxllm.rl.policy_step import PolicyModel
from jaxllm.rl.rollout import Row, SamplerSettings
from jaxllm.train import sharding

# rewards [Q, G] of G replies to each of Q prompts, which are given by their names.
RewardFn = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]
# Called with the updates made and the weights after them, which are lent; a sentence that it returns stops the run.
Watch = Callable[[int, Params], str | None]
Messages = Sequence[Mapping[str, Any]]
Prompts = Mapping[str, Messages]
TOOLS = ("calculator", "python")  # that config.tools.names may name; others come in a `Converse` of one's own


class Start(Protocol):
    """What a run begins with: weights, architecture, and a tokenizer that knows its chat format."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer


class Converse(Protocol):
    """Draws whole conversations, where one reply by the run's own sampler is not what is wanted.

    Called with the policy's weights (lent), conversations that end with a message to the model, samples of each, and
    the seed and step that stand for the draws; returns the rows, samples of a conversation beside each other.
    `rl.tool_rollout.ToolSampler` is one.

    Attributes:
      max_length: tokens of a row at most.
    """

    max_length: int

    def __call__(self, params: Params, conversations: Sequence[Messages], samples: int, seed: int, step: int
                 ) -> Sequence[Row]: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config means for a model."""

    settings: PolicySettings
    policy: PolicyModel
    sampler: SamplerSettings
    limits: Limits


def make_plan(config: ConfigDict, start: Start) -> Plan:
    """Raises ValueError for what is out of range."""
    if config.algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm is {config.algorithm!r}; choose one of {', '.join(ALGORITHMS)}")
    for key in ("steps", "prompts", "samples", "logit_chunks", "microbatches", "log_steps"):
        if config[key] < 1:
            raise ValueError(f"{key} is {config[key]}; it must be at least 1")
    settings = dataclasses.replace(ALGORITHMS[config.algorithm], **{
        name: value for name, value in config.policy.items() if value is not None})
    rows, pieces = config.prompts * config.samples, settings.minibatches * config.microbatches
    if rows % pieces:
        raise ValueError(f"prompts x samples ({rows}) must be a multiple of policy.minibatches x microbatches "
                         f"({pieces})")
    if config.samples < 2 and settings.baseline in ("grpo", "dr_grpo", "rloo", "reinforce++_baseline"):
        raise ValueError(f"samples is 1; the baseline {settings.baseline} compares replies to one prompt: draw 2 or "
                         f"more")
    if config.samples < 2 and settings.resample:
        raise ValueError("samples is 1, whose rewards are always equal: draw 2 or more, or set policy.resample to 0")
    _check_tools(config, start)
    sampler = config.sampler
    if sampler.temperature <= 0:
        raise ValueError(f"sampler.temperature is {sampler.temperature}; greedy replies teach nothing, choose above 0")
    tokenizer, execution = start.tokenizer, Execution(**config.execution.to_dict())
    return Plan(
        settings=settings,
        policy=PolicyModel(start.model, execution, sampler.temperature, tokenizer.vocab_size, config.logit_chunks,
                           settings.critic if settings.baseline == "critic" else "none"),
        sampler=SamplerSettings(
            sampler.by, sampler.max_tokens, end_of_turn(tokenizer),
            SamplingSettings(sampler.temperature, sampler.top_k, sampler.top_p), tokenizer.vocab_size,
            dataclasses.replace(execution, dtype=sampler.dtype), sampler.weights, sampler.slots),
        limits=Limits(**config.guard.to_dict()))


def _check_tools(config: ConfigDict, start: Start) -> None:
    tools, positions = config.tools, start.model.max_positions
    if set(tools.names) - set(TOOLS) or len(set(tools.names)) < len(tools.names):
        raise ValueError(f"tools.names is {tools.names}; name some of {', '.join(TOOLS)}, each once")
    if tools.names and config.sampler.by != "engine":
        raise ValueError(f"sampler.by is {config.sampler.by!r}; conversations with tools are drawn by the engine")
    if tools.calls < 1 or not 0 <= tools.max_length <= positions:
        raise ValueError(f"tools.calls is {tools.calls} and tools.max_length {tools.max_length}; take 1 call or more, "
                         f"and 0 to {positions} tokens, the model's positions")


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh of a config; sizes without -1 take the first devices."""
    devices = jax.devices() if -1 in config.mesh else jax.devices()[:math.prod(config.mesh)]
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch(config.prompts * config.samples, config.microbatches, mesh)
    return mesh
