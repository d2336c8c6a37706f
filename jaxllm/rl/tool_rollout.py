"""Rollouts in which the policy calls tools: it writes a call, reads the result, goes on; only its own tokens count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.engine import Engine
from jaxllm.infer.tool_loop import Transcript, run_with_tools
from jaxllm.infer.tools import Tool
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.quantize import quantize
from jaxllm.rl.rollout import SamplerSettings


class ToolSampler:
    """Draws conversations with tools from the weights of the moment, on the engine.

    What the tools answered has mask False in a `Transcript`, as the prompt has: no loss counts it, and `stack` makes a
    `Rollout` of transcripts like of any rows.

    Args:
      config: the architecture.
      settings: of the sampler; `by` is not looked at, and `max_tokens` bounds each reply of a conversation.
      tokenizer: with a chat format that has tools.
      tools: that may be called.
      max_calls: in a conversation.
      max_length: tokens of a conversation with its prompt, calls and results.
      describe: put the tools' descriptions into the system message.

    References: Jin et al., Search-R1, 2025, section 3.2 (the tokens of results are masked in the loss).
      https://arxiv.org/abs/2503.09516
    """

    def __init__(self, config: ModelConfig, settings: SamplerSettings, tokenizer: Tokenizer, tools: Sequence[Tool], *,
                 max_calls: int, max_length: int, describe: bool = True) -> None:
        self.config, self.settings, self.tokenizer, self.tools = config, settings, tokenizer, tuple(tools)
        self.max_calls, self.max_length, self.describe = max_calls, max_length, describe
        self._engine: Engine | None = None
        self._quantize = jax.jit(lambda params: quantize(params, config, settings.weights))

    def __call__(self, params: Params, conversations: Sequence[Sequence[Mapping[str, Any]]], samples: int, seed: int,
                 step: int) -> list[Transcript]:
        """`samples` transcripts of each conversation, those of one beside each other.

        Args:
          params: of the policy, in the trainer's layout.
          conversations: each ends with a message to the model.
          samples: of each.
          seed, step: stand for the draws.

        Raises:
          ValueError: for a prompt that leaves no room for a reply within max_length.
        """
        settings, count = self.settings, len(conversations) * samples
        params = params if settings.weights == "same" else self._quantize(params)
        if self._engine is None:
            self._engine = Engine(params, self.config, slots=settings.slots or count, capacity=self.max_length,
                                  execution=settings.execution, valid_vocab=settings.valid_vocab)
        else:
            self._engine.load(params)
        return run_with_tools(
            self._engine, [talk for talk in conversations for _ in range(samples)], self.tools, self.tokenizer,
            settings=settings.sampling, samples=range(count), max_calls=self.max_calls, max_tokens=settings.max_tokens,
            max_length=self.max_length, describe=self.describe,
            seed=int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]))


def answer(transcript: Transcript) -> str:
    """What the model said at last, which is what a reward is about; "" where it ended in a call."""
    last = transcript.messages[-1]
    return "" if last["role"] != "assistant" or last.get("tool_calls") else last["content"] or ""
