"""/v1/completions: the older endpoint, which continues a text; whole and streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from jaxllm.serve.choices import Entry, legacy_logprobs
from jaxllm.serve.prepare import Prepared
from jaxllm.serve.run import Run
from jaxllm.serve.served import Served


class CompletionAnswer:
    """The answer to a request of /v1/completions, from its run.

    Args:
      served: the server.
      prepared: what was asked.
      include_usage: whether a stream ends with a chunk that states the usage.
      echo: put each prompt before its continuations.
    """

    def __init__(self, served: Served, prepared: Prepared, include_usage: bool = False, echo: bool = False) -> None:
        self._served = served
        self._prepared = prepared
        self._include_usage = include_usage
        self._echo = echo
        self.run = Run(served, prepared)
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()),
                      "model": served.model_id}

    async def whole(self) -> dict[str, Any]:
        """The answer once all choices have ended."""
        entries: list[list[Entry]] = [[] for _ in self.run.choices]
        async for number, piece in self.run.pieces():
            entries[number] += piece.entries
        choices = [self._choice(number, self._prefix(number) + choice.text, entries[number], choice.finish)
                   for number, choice in enumerate(self.run.choices)]
        return {**self._head, "choices": choices, "usage": self.run.usage()}

    async def chunks(self, beat: float | None = None) -> AsyncIterator[dict[str, Any] | None]:
        """The chunks of a stream as they come; None after `beat` seconds of silence."""
        usage = {"usage": None} if self._include_usage else {}
        if self._echo:
            for number in range(len(self.run.choices)):
                yield {**self._head, "choices": [self._choice(number, self._prefix(number), [], None)], **usage}
        async for arrived in self.run.pieces(beat):
            if arrived is None:
                yield None
                continue
            number, piece = arrived
            if piece.text or piece.entries or piece.finish:
                choice = self._choice(number, piece.text, piece.entries, piece.finish)
                yield {**self._head, "choices": [choice], **usage}
        if self._include_usage:
            yield {**self._head, "choices": [], "usage": self.run.usage()}

    def _choice(self, number: int, text: str, entries: list[Entry], finish: str | None) -> dict[str, Any]:
        logprobs = None
        if self._prepared.alternatives is not None:
            logprobs = legacy_logprobs(self._served.tokenizer, entries)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _prefix(self, number: int) -> str:
        """The prompt that is echoed, without the tokens that only begin a document."""
        if not self._echo:
            return ""
        prompt = self._prepared.prompts[number // self._prepared.samples]
        begin = self._served.begin_tokens
        return self._served.tokenizer.decode(prompt[len(begin):] if prompt[:len(begin)] == begin else prompt)
