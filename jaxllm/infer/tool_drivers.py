"""Who answers the requests of the loop with tools: an engine as they come, or a function in rounds."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from jaxllm.infer.engine import Completion, Engine, Event, Request
from jaxllm.infer.engine_request import completion_of

Generate = Callable[[list[Request]], Sequence[Completion]]


class EngineDriver:
    """Requests on an idle engine, known by the number of their conversation."""

    overlaps = True

    def __init__(self, engine: Engine) -> None:
        if engine.waiting or engine.running:
            raise ValueError("the engine is at work; let its requests end first")
        self.engine, self.capacity = engine, engine.capacity
        self.numbers: dict[int, int] = {}
        self.told: dict[int, list[Event]] = collections.defaultdict(list)

    @property
    def busy(self) -> bool:
        return bool(self.numbers)

    def submit(self, number: int, request: Request) -> None:
        self.numbers[self.engine.submit(request)] = number

    def step(self) -> list[tuple[int, Completion]]:
        done = []
        for event in self.engine.step():
            if event.request_id not in self.numbers:  # the end of one that was cancelled before
                continue
            self.told[event.request_id].append(event)
            if event.finish:
                number = self.numbers.pop(event.request_id)
                done.append((number, completion_of(self.told.pop(event.request_id))))
        return done

    def close(self) -> None:
        """Leaves the engine idle, also after an error."""
        for request_id in list(self.numbers):
            self.engine.cancel(request_id)
        while self.engine.waiting or self.engine.running or self.numbers:
            for event in self.engine.step():
                if event.finish:
                    self.numbers.pop(event.request_id, None)


class Rounds:
    """Requests gathered for a function that takes many at once; it waits until all results are there."""

    overlaps, capacity = False, float("inf")

    def __init__(self, generate: Generate) -> None:
        self.generate = generate
        self.waiting: list[tuple[int, Request]] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def submit(self, number: int, request: Request) -> None:
        self.waiting.append((number, request))

    def step(self) -> list[tuple[int, Completion]]:
        taken, self.waiting = sorted(self.waiting, key=lambda one: one[0]), []
        completions = self.generate([request for _, request in taken])
        return [(number, completion) for (number, _), completion in zip(taken, completions, strict=True)]

    def close(self) -> None:
        self.waiting = []
