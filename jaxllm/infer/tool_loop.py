"""The loop of a model with tools: it writes a call, the call is run, the result is put into its context, it goes on.

Many conversations at once. The model's tokens are kept as it drew them, never spelled anew, with their
log-probabilities, and a mask tells them from what was put in: what a loss on the model's own words needs, in
fine-tuning and in reinforcement learning.

References: Schick et al., Toolformer, 2023. https://arxiv.org/abs/2302.04761 Jin et al., Search-R1, 2025 (results
masked in the loss). https://arxiv.org/abs/2503.09516
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxllm.data.chat import end_of_turn, render
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.engine import Completion, Engine, Request
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.infer.tool_drivers import EngineDriver, Generate, Rounds
from jaxllm.infer.tool_reply import UNREADABLE, next_ids, read_reply
from jaxllm.infer.tools import Tool


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A conversation as it went; ids, mask, logp and sampling_logp run alike.

    Attributes:
      ids: all tokens: prompt, replies, results.
      mask: True for the tokens that the model drew, the one that ends its turn among them.
      logp: nats, of the model's tokens under the model; 0 for the others.
      sampling_logp: nats, under the distribution that was drawn from; 0 for the others.
      prompt_length: ids of the prompt.
      messages: the prompt's, then replies and results, in the OpenAI shape.
      finish: "stop": the last reply has no call. "length": max_tokens or max_length is reached. "calls": it called
        again with no call left. "template": the chat template does not take what the model wrote.
      calls: how many were run.
      exact: whether rendering the messages gives these ids. If not, the model spelled something in another way than
        `render` does (other tokens, other spaces in the JSON of a call), or did not end.
    """

    ids: list[int]
    mask: list[bool]
    logp: list[float]
    sampling_logp: list[float]
    prompt_length: int
    messages: list[dict[str, Any]]
    finish: str
    calls: int
    exact: bool


def run_with_tools(engine_or_generate: Engine | Generate, prompts: Sequence[Sequence[Mapping[str, Any]]],
                   tools: Sequence[Tool], tokenizer: Tokenizer, *, settings: SamplingSettings = SamplingSettings(),
                   seed: int = 0, samples: Sequence[int] | None = None, template: str | None = None, max_calls: int = 4,
                   max_tokens: int = 256, max_length: int | None = None, describe: bool = True,
                   threads: int = 4) -> list[Transcript]:
    """Continues conversations with tools at hand until the model answers without a call.

    Args:
      engine_or_generate: an idle Engine, on which a conversation goes on as soon as its results are there; or a
        function from requests to completions, called once per round for all that wait.
      prompts: conversations, see `render`; each ends with a message that the model is to answer.
      tools: with different names; none is a plain chat.
      tokenizer, template: as in `render`.
      settings, seed: how tokens are drawn. A conversation's tokens depend on these, its prompt and its sample alone.
      samples: for each prompt which of its samples, >= 0; None numbers the prompts. RL repeats a prompt with 0, 1, ...
      max_calls: calls run in a conversation, >= 0. Calls beyond in the same reply are answered by a sentence that says
        so; once none is left, a reply that calls is the last.
      max_tokens: of one reply, >= 1.
      max_length: ids of a conversation, with all; None is the engine's capacity, or no limit for a function.
      describe: put the tools' descriptions into the system message; a model trained on these tools may not need them.
      threads: calls run at once, beside the engine.

    Returns:
      A transcript for every prompt, in order.

    Raises:
      ValueError: for a limit or conversation that cannot be, a prompt longer than max_length, tools of the same name,
        an engine at work.
    """
    by_name = {tool.name: tool for tool in tools}
    if len(by_name) < len(tools):
        raise ValueError(f"two tools have the same name: {', '.join(sorted(tool.name for tool in tools))}")
    if max_calls < 0 or max_tokens < 1 or threads < 1:
        raise ValueError(f"max_calls={max_calls} must be at least 0, max_tokens={max_tokens} and threads={threads} at "
                         f"least 1")
    samples = range(len(prompts)) if samples is None else samples
    if len(samples) != len(prompts):
        raise ValueError(f"there are {len(samples)} samples for {len(prompts)} prompts; give one for each")
    driver = (EngineDriver if isinstance(engine_or_generate, Engine) else Rounds)(engine_or_generate)
    most = min(max_length or driver.capacity, driver.capacity)
    descriptions = [tool.describe() for tool in tools] if describe and tools else None
    chat = _Chat(tokenizer, template, descriptions, by_name, max_calls, most)
    talks = [_Talk(chat, messages) for messages in prompts]
    stops = end_of_turn(tokenizer, template)

    def request(talk: _Talk, sample: int) -> Request:
        return Request(tuple(talk.ids), min(max_tokens, most - len(talk.ids)), settings, seed, sample, stops)

    _drive(driver, talks, lambda number: request(talks[number], samples[number]), threads)
    return [talk.transcript() for talk in talks]


def _drive(driver: EngineDriver | Rounds, talks: list[_Talk], request: Callable[[int], Request],
           threads: int) -> None:
    """Takes replies from the driver and results from the tools until every conversation has ended."""
    running: dict[concurrent.futures.Future, int] = {}
    executor = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for number in range(len(talks)):
            driver.submit(number, request(number))
        while driver.busy or running:
            if driver.busy and (driver.overlaps or not running):
                for number, completion in driver.step():
                    if calls := talks[number].take_reply(completion):
                        running[executor.submit(talks[number].run, calls)] = number
                done = [future for future in running if future.done()]
            else:
                done = concurrent.futures.wait(running, return_when="FIRST_COMPLETED").done
            for future in sorted(done, key=running.get):
                number = running.pop(future)
                if talks[number].take_results(future.result()):
                    driver.submit(number, request(number))
    finally:
        executor.shutdown(cancel_futures=True)
        driver.close()


@dataclasses.dataclass(frozen=True)
class _Chat:
    """What all conversations of a run have in common."""

    tokenizer: Tokenizer
    template: str | None
    descriptions: list[dict[str, Any]] | None
    tools: Mapping[str, Tool]
    max_calls: int
    max_length: float


class _Talk:
    """One conversation under way."""

    def __init__(self, chat: _Chat, messages: Sequence[Mapping[str, Any]]) -> None:
        self.chat, self.messages = chat, [dict(message) for message in messages]
        prompt = render(messages, chat.tokenizer, tools=chat.descriptions, add_generation_prompt=True,
                        template=chat.template).ids
        if len(prompt) >= chat.max_length:
            raise ValueError(f"a prompt has {len(prompt)} tokens, which leaves no room for a reply within "
                             f"{chat.max_length}; shorten it or raise max_length (the engine's capacity bounds it)")
        self.ids, self.mask, self.logp, self.sampling_logp = [], [], [], []
        self._put(prompt)
        self.prompt_length, self.used, self.numbered, self.finish = len(prompt), 0, 0, ""

    def take_reply(self, completion: Completion) -> list[dict[str, Any]]:
        """Adds a reply; returns what is to be answered: its calls, or one empty object for one that is unreadable."""
        self.ids += completion.tokens
        self.mask += [True] * len(completion.tokens)
        self.logp += completion.logp
        self.sampling_logp += completion.sampling_logp
        message, unreadable = read_reply(list(completion.tokens), self.chat.tokenizer, self.chat.template)
        calls = message.get("tool_calls", [])
        for call in calls:  # numbered, so that a run repeats to the letter
            call["id"] = f"call_{self.numbered}"
            self.numbered += 1
        self.messages.append(message)
        if completion.finish != "stop":
            self.finish = "length"
        elif not calls and not unreadable:
            self._end("stop")
        elif self.used >= self.chat.max_calls:
            self._end("calls")
        else:
            return calls or [{}]
        return []

    def run(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages that answer the calls."""
        answers = []
        for call in calls:
            if self.used >= self.chat.max_calls:
                text = f"error: no call is left, all {self.chat.max_calls} are used; answer now"
            elif not call:
                text, self.used = UNREADABLE, self.used + 1
            else:
                name, self.used = call["function"]["name"], self.used + 1
                tool = self.chat.tools.get(name)
                known = ", ".join(self.chat.tools) or "none"
                text = (tool.call(json.loads(call["function"]["arguments"])) if tool
                        else f"error: there is no tool {name[:50]!r}; there are: {known}")
            named = {"tool_call_id": call["id"], "name": call["function"]["name"]} if call else {}
            answers.append({"role": "tool", **named, "content": text})
        return answers

    def take_results(self, answers: list[dict[str, Any]]) -> bool:
        """Puts the answers into the context; False where the conversation ends instead."""
        try:
            forced = self._next(answers)
        except ValueError:
            self.finish = "template"
            return False
        if len(self.ids) + len(forced) >= self.chat.max_length:
            self._end("length")
            return False
        self._put(forced)
        self.messages += answers
        return True

    def transcript(self) -> Transcript:
        chat = self.chat
        try:
            ids = render(self.messages, chat.tokenizer, tools=chat.descriptions, template=chat.template).ids
        except ValueError:
            ids = None
        return Transcript(self.ids, self.mask, self.logp, self.sampling_logp, self.prompt_length, self.messages,
                          self.finish, self.used, ids == self.ids)

    def _end(self, finish: str) -> None:
        self.finish = finish
        try:
            behind = self._next([])
        except ValueError:
            return
        if len(self.ids) + len(behind) <= self.chat.max_length:
            self._put(behind)

    def _next(self, answers: list[dict[str, Any]]) -> list[int]:
        return next_ids(self.messages, answers, self.chat.tokenizer, tools=self.chat.descriptions,
                        template=self.chat.template)

    def _put(self, ids: Sequence[int]) -> None:
        """Adds tokens that the model did not draw."""
        self.ids += ids
        self.mask += [False] * len(ids)
        self.logp += [0.0] * len(ids)
        self.sampling_logp += [0.0] * len(ids)
