"""The thread that owns the engine, and the bounded queue in front of it.

The engine is used by one thread only. Others hand over jobs (one or more engine requests that belong together:
the samples of a prompt) and get the events back through a callback, step by step. A place in the queue is taken
by `submit` and given back when the last request of a job ends, so the number of open requests has a bound.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence

from jaxllm.infer.engine import Engine, Event, Request
from jaxllm.serve.metrics import Metrics

log = logging.getLogger(__name__)

# (number of the request within its job, its event) of one step; or what ended the job early.
Deliver = Callable[["list[tuple[int, Event]] | Exception"], None]


class QueueFull(Exception):
    """There is no place for these requests now."""


class Stopped(Exception):
    """The worker has ended, or is about to."""


class Job:
    """Requests that were submitted together; made by `Worker.submit`."""

    def __init__(self, requests: Sequence[Request], deliver: Deliver) -> None:
        self.requests = tuple(requests)
        self.deliver = deliver
        self.ids: dict[int, int] = {}  # engine's id -> number within the job; worker's thread only
        self.open = len(self.requests)
        self.begun = time.monotonic()
        self.last_token: dict[int, float] = {}


class Worker:
    """Runs an engine in a thread of its own.

    Args:
      engine: used by nobody else from `start` on.
      queue: requests that may wait beyond those that run, >= 0.
      metrics: what happened is counted here.
    """

    def __init__(self, engine: Engine, *, slots: int, queue: int = 64, metrics: Metrics | None = None) -> None:
        if queue < 0:
            raise ValueError(f"queue is {queue}; it must be at least 0")
        self.engine = engine
        self.most_open = slots + queue
        self.metrics = metrics or Metrics()
        self._wake = threading.Condition()
        self._inbox: collections.deque[Job] = collections.deque()
        self._cancelled: collections.deque[tuple[Job, int | None]] = collections.deque()
        self._jobs: dict[int, Job] = {}  # by the engine's request id
        self._open = 0
        self._recent_seconds = 1.0
        self._stopping = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def open(self) -> int:
        """Requests that were submitted and have not ended."""
        return self._open

    @property
    def alive(self) -> bool:
        """Whether requests are being worked on."""
        return self._thread.is_alive() and self._failure is None and not self._stopping

    def seconds_to_place(self) -> int:
        """A guess, in whole seconds, of when a request may end: what recent ones took, from 1 to 30."""
        return max(1, min(30, round(self._recent_seconds)))

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Job:
        """Queues requests; their events come to `deliver`, which the worker's thread calls and which must not wait.

        Raises:
          QueueFull: when there is no place for all of them.
          Stopped: when nothing is taken any more.
        """
        job = Job(requests, deliver)
        with self._wake:
            if self._stopping or self._failure is not None:
                raise Stopped("the engine has stopped")
            if self._open + job.open > self.most_open:
                raise QueueFull(f"{self._open} requests are open and {self.most_open} may be")
            self._open += job.open
            self._inbox.append(job)
            self._wake.notify()
        return job

    def cancel(self, job: Job, number: int | None = None) -> None:
        """Ends a job's request `number`, or all of them: its slot is free before the next step. No event follows."""
        with self._wake:
            self._cancelled.append((job, number))
            self._wake.notify()

    def stop(self, seconds: float = 0.0) -> bool:
        """Takes nothing new, lets what is open finish for so many seconds, ends the rest and then the thread.

        Returns:
          True when everything open had finished by itself.
        """
        until = time.monotonic() + seconds
        with self._wake:
            while self._open and self._thread.is_alive() and (left := until - time.monotonic()) > 0:
                self._wake.wait(left)
            finished = self._open == 0
            self._stopping = True
            self._wake.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        return finished

    def _run(self) -> None:
        try:
            while self._take_orders():
                self._dispatch(self.engine.step())
            self._end_all(Stopped("the server is stopping"))
        except Exception as error:  # the engine is broken: everyone is told, and /health says so
            log.exception("the engine failed")
            self._failure = error
            self._end_all(error)

    def _take_orders(self) -> bool:
        """Waits until there is something to do and hands new and cancelled requests to the engine."""
        with self._wake:
            while not (self._inbox or self._cancelled or self._jobs or self._stopping):
                self._wake.wait()
            if self._stopping:
                return False
            jobs, cancelled = list(self._inbox), list(self._cancelled)
            self._inbox.clear()
            self._cancelled.clear()
        for job in jobs:
            self._admit(job)
        for job, number in cancelled:
            for request_id in [i for i, n in job.ids.items() if number is None or n == number]:
                self.engine.cancel(request_id)
                self._close(job, request_id)
                self.metrics.requests_cancelled.add(1)
        return True

    def _admit(self, job: Job) -> None:
        for number, request in enumerate(job.requests):
            try:
                request_id = self.engine.submit(request)
            except ValueError as error:
                left = len(job.requests) - number
                for other in list(job.ids):
                    self.engine.cancel(other)
                    self._close(job, other)
                self._give_back(left)
                job.open = 0
                job.deliver(error)
                return
            job.ids[request_id] = number
            self._jobs[request_id] = job

    def _dispatch(self, events: Sequence[Event]) -> None:
        now = time.monotonic()
        by_job: dict[Job, list[tuple[int, Event]]] = {}
        for event in events:
            job = self._jobs.get(event.request_id)
            if job is None:  # cancelled in the meantime
                continue
            number = job.ids[event.request_id]
            by_job.setdefault(job, []).append((number, event))
            if event.token is not None:
                self._time(job, number, event, now)
            if event.finish is not None:
                self._close(job, event.request_id)
        for job, some in by_job.items():
            job.deliver(some)

    def _time(self, job: Job, number: int, event: Event, now: float) -> None:
        last = job.last_token.get(number)
        if last is None:
            self.metrics.first_token_seconds.observe(now - job.begun)
            self.metrics.prompt_tokens.add(len(job.requests[number].prompt))
            self.metrics.cached_tokens.add(event.cached_tokens)
        else:
            self.metrics.between_tokens_seconds.observe(now - last)
        job.last_token[number] = now
        self.metrics.generated_tokens.add(1)

    def _close(self, job: Job, request_id: int) -> None:
        del self._jobs[request_id], job.ids[request_id]
        self._recent_seconds += 0.1 * (time.monotonic() - job.begun - self._recent_seconds)
        job.open -= 1
        self._give_back(1)

    def _give_back(self, places: int) -> None:
        with self._wake:
            self._open -= places
            self._wake.notify_all()

    def _end_all(self, reason: Exception) -> None:
        with self._wake:
            self._stopping = True
            jobs = {*self._jobs.values(), *self._inbox}
            self._inbox.clear()
        for request_id in list(self._jobs):
            if self._failure is None:
                self.engine.cancel(request_id)
        for job in jobs:
            job.deliver(reason)
        self._jobs.clear()
        with self._wake:
            self._open = 0
            self._wake.notify_all()
