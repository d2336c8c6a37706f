"""A prepared request on the worker: its choices as they grow, ended when nobody waits for them any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from jaxllm.infer.engine import Event
from jaxllm.serve.choices import Choice, Piece
from jaxllm.serve.errors import ApiError
from jaxllm.serve.prepare import Prepared
from jaxllm.serve.served import Served
from jaxllm.serve.worker import QueueFull, Stopped

# Events of one request that may wait to be read; with 20 alternatives each some 16 MB. A client that falls behind
# further does not read its stream, and its request is ended.
MOST_UNREAD = 8192


class Run:
    """The choices of a request.

    Args:
      served: the server.
      prepared: what to run; it is queued at once.
      shown: special tokens whose spelling belongs to the text.

    Raises:
      ApiError: 429 when the queue is full, 503 when the engine has stopped.
    """

    def __init__(self, served: Served, prepared: Prepared, shown: frozenset[int] = frozenset()) -> None:
        self.served = served
        self.prepared = prepared
        self.choices = [Choice(served.tokenizer, request.stop_tokens, prepared.stops, shown)
                        for request in prepared.requests]
        self._arrived: asyncio.Queue[list[tuple[int, Event]] | Exception] = asyncio.Queue()
        self._unread = 0
        self._overrun = False
        loop = asyncio.get_running_loop()

        def deliver(what: list[tuple[int, Event]] | Exception) -> None:
            try:
                loop.call_soon_threadsafe(self._take, what)
            except RuntimeError:  # the loop has closed: nobody is left to tell
                pass

        try:
            self._job = served.worker.submit(prepared.requests, deliver)
        except QueueFull as error:
            raise full(served, str(error)) from error
        except Stopped as error:
            raise ApiError(503, f"{error}; start the server again", code="stopping",
                           headers={"Retry-After": "30"}) from error

    def _take(self, what: list[tuple[int, Event]] | Exception) -> None:
        """Keeps what the worker delivers until it is read; the loop's thread only."""
        if self._overrun:
            return
        if not isinstance(what, Exception):
            self._unread += len(what)
            if self._unread > MOST_UNREAD:
                self._overrun = True
                self.served.worker.cancel(self._job)
                what = ApiError(408, f"more than {MOST_UNREAD} tokens waited to be read, and the request was ended; "
                                     f"read the stream as it comes", code="client_too_slow")
        self._arrived.put_nowait(what)

    async def pieces(self, beat: float | None = None) -> AsyncIterator[tuple[int, Piece] | None]:
        """Yields (number of the choice, what came to it) until all have ended.

        Args:
          beat: seconds of silence after which None is yielded, again and again; None never does.

        Raises:
          ApiError: when the engine refuses the request, fails or stops.
        """
        open_choices = len(self.choices)
        while open_choices:
            try:
                arrived = await asyncio.wait_for(self._arrived.get(), beat)
            except TimeoutError:
                yield None
                continue
            if isinstance(arrived, Exception):
                raise _as_api_error(arrived)
            self._unread -= len(arrived)
            by_choice: dict[int, list[Event]] = {}
            for number, event in arrived:
                by_choice.setdefault(number, []).append(event)
            for number, events in by_choice.items():
                choice = self.choices[number]
                if choice.finish is not None:
                    continue
                piece = choice.push(events)
                if choice.finish is not None:
                    open_choices -= 1
                    self._check_end(number, events)
                yield number, piece

    def _check_end(self, number: int, events: list[Event]) -> None:
        """A choice that its text ended, not the engine, must still give its slot back; a grammar may have given up."""
        if events[-1].finish is None:
            self.served.worker.cancel(self._job, number)
        constraint = self.prepared.requests[number].constraint
        if constraint is not None and constraint.error:
            raise ApiError(400, f"the grammar of the schema met its limits: {constraint.error[:300]}",
                           param="response_format", code="grammar_too_complex")

    def close(self) -> None:
        """Gives back the slots of what has not ended."""
        if any(choice.finish is None for choice in self.choices):
            self.served.worker.cancel(self._job)

    def usage(self) -> dict:
        """OpenAI's usage object; a prompt counts once, however many samples it has."""
        prompt = sum(map(len, self.prepared.prompts))
        cached = sum(choice.cached_tokens for choice in self.choices[::self.prepared.samples])
        written = sum(choice.tokens for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
                "prompt_tokens_details": {"cached_tokens": cached}}


def full(served: Served, reason: str) -> ApiError:
    """429: there is no place in the queue."""
    return ApiError(429, f"the server is busy ({reason}); try again", code="queue_full",
                    headers={"Retry-After": str(served.worker.seconds_to_place())})


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(400, str(error))
    if isinstance(error, Stopped):
        return ApiError(503, f"{error} and this request was not finished", code="stopping",
                        headers={"Retry-After": "30"})
    return ApiError(500, f"the engine failed ({type(error).__name__}); the server's log says more",
                    code="engine_failed")
