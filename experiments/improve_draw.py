"""What a step learns from: prompts, what the policy says to them, its rewards, and what is drawn in place of what."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.improve_plan import Converse, Plan, Prompts, RewardFn, Start
from jaxllm.data.chat import render
from jaxllm.data.permutation import shuffled
from jaxllm.infer.tool_calculator import calculator_tool
from jaxllm.infer.tool_loop import Transcript
from jaxllm.infer.tool_python import Sandbox, python_tool
from jaxllm.model.params import Params
from jaxllm.rl.advantages import overlong_penalty
from jaxllm.rl.rollout import Row, Sampler, texts
from jaxllm.rl.tool_rollout import ToolSampler, answer


@dataclasses.dataclass(frozen=True)
class Group:
    """The replies to one prompt: its name, the rows, what was said in them, and what that was rewarded with, [G]."""

    name: str
    rows: list[Row]
    texts: list[str]
    rewards_G: np.ndarray

    @property
    def equal(self) -> bool:
        """Whether all rewards are the same, so that a comparison of the replies says nothing."""
        return bool((self.rewards_G == self.rewards_G[0]).all())


class Drawing:
    """Draws the groups that a step learns from.

    Step n has 1 + policy.resample times config.prompts places of its own in the endless shuffled sequence of the
    prompts. The first are asked; the others are for further rounds, in which groups of equal rewards are replaced. What
    is drawn is thus a function of weights, seed and step alone, however a run was interrupted.

    Args:
      converse: draws the conversations; None draws single replies by the run's own sampler.

    Raises:
      ValueError: when a prompt and its reply do not fit the model's positions.
    """

    def __init__(self, config: ConfigDict, plan: Plan, start: Start, prompts: Prompts, seed: int,
                 converse: Converse | None = None) -> None:
        self.config, self.plan, self.seed, self.tokenizer = config, plan, seed, start.tokenizer
        self.prompts, self.names, self._converse = prompts, list(prompts), converse
        self.prompt_ids = {name: render(messages, start.tokenizer, add_generation_prompt=True).ids
                           for name, messages in prompts.items()}
        if converse is None:
            longest = max(map(len, self.prompt_ids.values())) + plan.sampler.max_tokens
            what = f"the longest prompt and sampler.max_tokens ({plan.sampler.max_tokens}) make"
        else:
            longest, what = converse.max_length, "conversations have up to"
        if longest > start.model.max_positions:
            raise ValueError(f"{what} {longest} tokens; the model has {start.model.max_positions} positions")
        multiple = math.lcm(16, config.logit_chunks)
        self.width = -(-longest // multiple) * multiple
        if self.width > start.model.max_positions:
            self.width = start.model.max_positions // config.logit_chunks * config.logit_chunks
        self._sampler = Sampler(start.model, dataclasses.replace(plan.sampler, capacity=self.width))

    def draw(self, number: int, params: Params, reward_fn: RewardFn) -> tuple[list[Group], dict[str, float]]:
        """The groups of step `number`, and of its row what is about all that was drawn, kept or not.

        Returns:
          (config.prompts groups, row): "reward" and "reward_sd", "drawn" replies, "equal": share of groups with equal
          rewards, "calls" of tools in a reply, "seconds_sampling", "seconds_rewarding".
        """
        config, most = self.config, self.plan.settings.resample
        row, begun = {"step": number, "seconds_rewarding": 0.0}, time.perf_counter()
        if self._converse is None:
            self._sampler.load(params)
        row["seconds_sampling"] = time.perf_counter() - begun
        groups = self._round(number, 0, config.prompts, params, reward_fn, row)
        drawn = list(groups)
        for turn in range(1, most + 1):
            empty = [place for place, group in enumerate(groups) if group.equal]
            if not empty:
                break
            count = min(2**math.ceil(math.log2(len(empty))), config.prompts)  # powers of two: few shapes compile
            further = self._round(number, turn, count, params, reward_fn, row)
            drawn += further
            telling = (group for group in further if not group.equal)
            for place, group in zip(empty, telling):  # noqa: B905 - as many as there are
                groups[place] = group
        rewards = np.stack([group.rewards_G for group in drawn])
        calls = [one.calls for group in drawn for one in group.rows if isinstance(one, Transcript)]
        row |= {"reward": float(rewards.mean()), "reward_sd": float(rewards.std()), "drawn": rewards.size,
                "equal": float(np.mean([group.equal for group in drawn]))}
        return groups, row | ({"calls": float(np.mean(calls))} if calls else {})

    def _round(self, number: int, turn: int, count: int, params: Params, reward_fn: RewardFn, row: dict[str, float]
               ) -> list[Group]:
        """Draws and rewards the groups of one turn of a step; adds the time that it took to the row."""
        samples, begun = self.config.samples, time.perf_counter()
        place = (number - 1) * (1 + self.plan.settings.resample) + turn
        first = place * self.config.prompts
        chosen = [self.names[i] for i in shuffled(np.arange(first, first + count), len(self.names), self.seed)]
        if self._converse is None:
            rows = self._sampler.draw([self.prompt_ids[name] for name in chosen], samples, self.seed, place + 1)
        else:
            rows = self._converse(params, [self.prompts[name] for name in chosen], samples, self.seed, place + 1)
        said = [answer(one) if isinstance(one, Transcript) else
                texts([one], self.tokenizer, self.plan.sampler.stop_tokens)[0] for one in rows]
        sampled = time.perf_counter()
        cuts = range(0, len(rows), samples)
        rewards_QG = np.asarray(reward_fn(chosen, [said[i:i + samples] for i in cuts]), np.float32)
        row["seconds_sampling"] += sampled - begun
        row["seconds_rewarding"] += time.perf_counter() - sampled
        return [Group(name, list(rows[i:i + samples]), said[i:i + samples], rewards_G)
                for name, i, rewards_G in zip(chosen, cuts, rewards_QG, strict=True)]

    def shaped(self, groups: Sequence[Group]) -> np.ndarray:
        """The rewards [Q, G] that are learned from: those given, less the penalty of a long reply."""
        rewards_QG, limit = np.stack([group.rewards_G for group in groups]), self.plan.sampler.max_tokens
        buffer = round(self.plan.settings.overlong * limit)
        if not buffer:
            return rewards_QG
        lengths_QG = np.array([[sum(one.mask) for one in group.rows] for group in groups])
        return rewards_QG + np.asarray(overlong_penalty(lengths_QG, limit=limit, buffer=buffer))


@contextlib.contextmanager
def tools_of(config: ConfigDict, plan: Plan, start: Start) -> Iterator[Converse | None]:
    """Conversations with the tools that a config names, None where it names none."""
    if not config.tools.names:
        yield None
        return
    with contextlib.ExitStack() as stack:
        makers = {"calculator": calculator_tool, "python": lambda: python_tool(stack.enter_context(Sandbox()))}
        yield ToolSampler(start.model, plan.sampler, start.tokenizer, [makers[name]() for name in config.tools.names],
                          max_calls=config.tools.calls, describe=config.tools.describe,
                          max_length=config.tools.max_length or start.model.max_positions)
