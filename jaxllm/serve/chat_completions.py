"""/v1/chat/completions: answers whole and streamed, in OpenAI's shapes."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from jaxllm.serve.choices import Piece, chat_logprobs
from jaxllm.serve.prepare import Prepared
from jaxllm.serve.replies import Reply, call_tokens
from jaxllm.serve.run import Run
from jaxllm.serve.served import Served


class ChatAnswer:
    """The answer to a chat request, from its run.

    Args:
      served: the server.
      prepared: what was asked.
      include_usage: whether a stream ends with a chunk that states the usage.
    """

    def __init__(self, served: Served, prepared: Prepared, include_usage: bool = False) -> None:
        self._served = served
        self._prepared = prepared
        self._include_usage = include_usage
        self.run = Run(served, prepared, call_tokens(served.tokenizer, prepared.call_style))
        self._replies = [Reply(served.tokenizer.chat_template, prepared.call_style, prepared.forced_call)
                         for _ in prepared.requests]
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.model_id}

    async def whole(self) -> dict[str, Any]:
        """The answer once all choices have ended."""
        contents = [""] * len(self._replies)
        entries: list[list] = [[] for _ in self._replies]
        async for number, piece in self.run.pieces():
            contents[number] += self._replies[number].push(piece.text)
            entries[number] += piece.entries
        choices = []
        for number, reply in enumerate(self._replies):
            rest, calls = reply.finish()
            content = contents[number] + rest
            message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None,
                                       "refusal": None}
            if calls:
                message["tool_calls"] = calls
            choices.append({"index": number, "message": message, "logprobs": self._logprobs(entries[number]),
                            "finish_reason": _finish(self.run.choices[number].finish, calls)})
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.run.usage()}

    async def chunks(self, beat: float | None = None) -> AsyncIterator[dict[str, Any] | None]:
        """The chunks of a stream as they come; None after `beat` seconds of silence."""
        for number in range(len(self._replies)):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        async for arrived in self.run.pieces(beat):
            if arrived is None:
                yield None
                continue
            for chunk in self._of_piece(*arrived):
                yield chunk
        if self._include_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.run.usage()}

    def _of_piece(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        reply, chunks = self._replies[number], []
        text, calls = reply.push(piece.text), []
        if piece.finish is not None:
            rest, calls = reply.finish()
            text += rest
        if text or piece.entries:
            chunks.append(self._chunk(number, {"content": text}, self._logprobs(piece.entries)))
        if calls:
            chunks.append(self._chunk(number, {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}))
        if piece.finish is not None:
            chunks.append(self._chunk(number, {}, finish=_finish(piece.finish, calls)))
        return chunks

    def _chunk(self, number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None,
               finish: str | None = None) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self._include_usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}

    def _logprobs(self, entries: list) -> dict[str, Any] | None:
        return None if self._prepared.alternatives is None else chat_logprobs(self._served.tokenizer, entries)


def _finish(finish: str | None, calls: list) -> str | None:
    return "tool_calls" if calls and finish == "stop" else finish
