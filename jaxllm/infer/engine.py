"""Many requests at once on fixed slots: continuous batching.

A request takes a slot, its prompt is run in pieces between the steps of the others, and from then on it draws a token
with every step until it ends and leaves the slot to the next. Everything compiled has the shape of the engine, so
nothing compiles in service. What a request is told depends on the request alone: not on what shares its batch, on its
slot, or on what the cache held before.

References: Yu et al., Orca, 2022 (requests join and leave at each step). Agrawal et al., Sarathi-Serve, 2024 (prompts
in pieces between the steps). https://arxiv.org/abs/2403.02310
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.infer.engine_device import Device
from jaxllm.infer.engine_request import Completion, Constraint, Event, Request, check_request, completion_of
from jaxllm.infer.engine_slots import Job, Slot, choose_slot, choose_source, prompt_keys, ready_jobs
from jaxllm.infer.engine_steps import MAX_STEPS, Drawn, Fixed
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params

__all__ = ["Completion", "Constraint", "Engine", "Event", "Request"]

# Pieces of prompts between two steps, while fewer than half of the slots have a request that draws; else one.
MAX_PIECES = 4
# Steps are taken several at a call where one is shorter than this, so that the call itself does not count.
CALL_SECONDS = 0.01


class Engine:
    """Runs requests on `slots` rows of one cache. Not thread-safe: one thread owns it.

    Args:
      params: as `init` returns them, or quantised.
      config: the architecture.
      slots: requests that draw at once; with a mesh, a multiple of the devices over which a batch is split.
      capacity: positions of a slot: prompt and new tokens; at most the model's max_positions.
      chunk: tokens of a prompt that are run at once, between two steps of the others.
      execution: dtype of activations and, unless `cache_dtype` says otherwise, of the cache.
      valid_vocab: ids from here on are never drawn; None is V.
      cache_dtype: as `empty_cache` takes it; None is execution.dtype.
      together: prompts of which a piece is run in one call: 1 on a CPU; more fill an accelerator better.

    Raises:
      ValueError: for a size that cannot be.
    """

    def __init__(self, params: Params, config: ModelConfig, *, slots: int = 8, capacity: int = 1024, chunk: int = 64,
                 execution: Execution = Execution(), valid_vocab: int | None = None, cache_dtype: Any = None,
                 together: int = 1) -> None:
        for name, value in (("slots", slots), ("capacity", capacity), ("chunk", chunk), ("together", together)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if valid_vocab is not None and not 1 <= valid_vocab <= config.vocab_size:
            raise ValueError(f"valid_vocab is {valid_vocab}; it must be 1 to the model's {config.vocab_size}")
        self.config, self.capacity = config, min(capacity, config.max_positions)
        self._chunk = min(chunk, self.capacity)
        dtype = jnp.dtype(cache_dtype or execution.dtype).name
        self._device = Device(params, Fixed(config, execution, slots, self.capacity, dtype, valid_vocab), self._chunk,
                              together)
        self._slots = [Slot(index) for index in range(slots)]
        self._waiting: collections.deque[Job] = collections.deque()
        self._jobs: dict[int, Job] = {}
        self._flights: collections.deque[tuple[list[Job], int, Drawn]] = collections.deque()
        self._events: list[Event] = []
        self._counters: collections.Counter[str] = collections.Counter()
        self._next_id = self._clock = 0
        self._step_seconds, self._fetched_at = CALL_SECONDS, None

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in a slot."""
        return len(self._jobs) - len(self._waiting)

    @property
    def counters(self) -> dict[str, int]:
        """Sums since the start: requests, finished, cancelled, prompt_tokens, cached_tokens, generated_tokens, ..."""
        return dict(self._counters)

    def warm_up(self) -> None:
        """Compiles everything that service needs; the engine must be idle."""
        self._must_be_idle()
        self._device.warm_up()
        self._slots[0].held, self._slots[0].whole = (), None

    def load(self, params: Params) -> None:
        """Takes new weights and forgets what was computed with the old; the engine must be idle.

        Raises:
          ValueError: when they are not laid out as the old (shapes, dtypes, quantised and prepared alike).
        """
        self._must_be_idle()
        self._device.load(params)
        for slot in self._slots:
            slot.held, slot.whole = (), None

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id.

        Raises:
          ValueError: for a request that cannot be served, saying what to change.
        """
        request = check_request(request, self.config, self.capacity)
        pieces, whole = prompt_keys(request.prompt, self._chunk)
        job = Job(self._next_id, request, pieces, whole)
        self._next_id += 1
        self._jobs[job.id] = job
        self._waiting.append(job)
        self._counters.update(requests=1, prompt_tokens=job.length)
        return job.id

    def cancel(self, request_id: int) -> None:
        """Ends a request in whatever state it is; one that has ended already is left alone."""
        if job := self._jobs.get(request_id):
            if job.slot is None:
                self._waiting.remove(job)
            self._end(job, Event(job.id, None, finish="cancelled", cached_tokens=job.cached))

    def step(self) -> list[Event]:
        """Takes all requests a little further and returns what there is to tell.

        That may be nothing while prompts are run; the engine is idle when `waiting` and `running` are 0.
        """
        self._admit()
        ran_prompts = self._run_prompts()
        if any(slot.job and slot.job.request.constraint for slot in self._slots):
            self._fetch_all()  # what may come next depends on what came
            self._draw(constrained=True)
            self._fetch_all()
        else:
            # The next step is on its way before the last is read, so that the device need not wait for the host.
            self._fetch_all(but=1 if self._draw(constrained=False) else 0)
        if ran_prompts or not self._flights or not self._jobs:  # what follows is no measure of a step
            self._fetched_at = None
        events, self._events = self._events, []
        return events

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """Serves these requests to their end, in order; the engine must be idle.

        Raises:
          ValueError: for a request that cannot be served, before any is taken.
        """
        self._must_be_idle()
        requests = [check_request(request, self.config, self.capacity) for request in requests]
        told: dict[int, list[Event]] = {self.submit(request): [] for request in requests}
        while self._jobs or self._events:
            for event in self.step():
                if event.request_id in told:  # not the end of one that was cancelled before
                    told[event.request_id].append(event)
        return [completion_of(events) for events in told.values()]

    def _must_be_idle(self) -> None:
        if self._jobs:
            raise ValueError(f"the engine has {len(self._jobs)} requests; let them end first")

    def _admit(self) -> None:
        while self._waiting and (free := [slot for slot in self._slots if slot.job is None]):
            job = self._waiting.popleft()
            job.slot = choose_slot(free, job, self._chunk)
            self._clock += 1
            job.slot.job, job.slot.used = job, self._clock

    def _run_prompts(self) -> bool:
        """Runs some pieces of prompts and begins the rows whose prompt is through; False if there were none."""
        drawing = sum(slot.job is not None and slot.job.begun for slot in self._slots)
        ran = False
        for _ in range(1 if 2 * drawing >= len(self._slots) else MAX_PIECES):
            if not (jobs := self._next_pieces()):
                break
            self._run_pieces(jobs)
            ran = True
        self._next_pieces()  # begins what the last piece made complete for others
        return ran

    def _next_pieces(self) -> list[Job]:
        """The jobs whose next piece is run now: the shortest rest first, and every second time the oldest."""
        for job in ready_jobs(self._slots, self._chunk):
            if not job.planned:
                self._plan(job)
            if job.computed == job.length:
                self._begin(job)
        ready = [job for job in ready_jobs(self._slots, self._chunk) if job.planned]
        if self._counters["pieces"] % 2:
            ready.sort(key=lambda job: job.length - job.computed)
        return [job for job in ready if self._width(job) == self._width(ready[0])][:self._device.together]

    def _plan(self, job: Job) -> None:
        """Finds what is already computed of the prompt, and brings it into the job's slot."""
        source, amount = choose_source(self._slots, job, self._chunk)
        if amount and source is not job.slot:
            self._device.copy(source.index, job.slot.index)
            self._counters["copies"] += 1
        job.planned, job.computed, job.cached = True, amount, amount
        job.slot.held = job.pieces[:amount // self._chunk]
        job.slot.whole = job.whole if amount == job.length else None
        self._counters["cached_tokens"] += amount

    def _width(self, job: Job) -> int:
        short, whole = self._device.widths
        return short if job.length - job.computed <= short else whole

    def _run_pieces(self, jobs: list[Job]) -> None:
        width = self._width(jobs[0])
        self._device.prefill(jobs, width)
        for job in jobs:
            job.computed = min(job.computed + width, job.length)
            job.slot.held = job.pieces[:job.computed // self._chunk]
            if job.computed == job.length:
                job.slot.whole = job.whole
                self._begin(job)
        self._counters["pieces"] += 1

    def _begin(self, job: Job) -> None:
        """Draws the first token of a request whose prompt is through."""
        request, mask = job.request, None
        if request.constraint is not None and (mask := self._allowed(job)) is None:
            return
        self._device.set_row(job.slot.index, request)
        self._flights.append(([job], 0, self._device.begin(job.slot.index, request.prompt, request.max_tokens, mask)))
        job.begun, job.sent = True, 1

    def _draw(self, constrained: bool) -> bool:
        """Sends the device to draw for all that may still need a token; False if there is nobody."""
        jobs = [slot.job for slot in self._slots if slot.job and slot.job.sent]
        masks = None
        if constrained:
            masks = np.ones((len(self._slots), self.config.vocab_size), bool)
            for job in [job for job in jobs if job.request.constraint is not None]:
                if (allowed := self._allowed(job)) is not None:
                    masks[job.slot.index] = allowed
        jobs = [job for job in jobs if not job.done and job.sent < job.request.max_tokens]
        if not jobs:
            return False
        alone = constrained or any(slot.job and not slot.job.begun for slot in self._slots)
        count = 1 if alone else min(max(int(CALL_SECONDS / self._step_seconds), 1), MAX_STEPS)
        self._flights.append((jobs, count, self._device.advance(count, masks)))
        for job in jobs:
            job.sent += count
        self._counters.update(calls=1, steps=count)
        return True

    def _allowed(self, job: Job) -> np.ndarray | None:
        """Tokens that the constraint of a job allows; with none left the job ends, and this is None."""
        given = job.request.constraint.allowed()  # may be as short as the tokenizer's vocabulary
        allowed = np.zeros((self.config.vocab_size,), bool)
        count = min(len(given), self._device.fixed.valid_vocab or len(allowed))
        allowed[:count] = given[:count]
        if allowed.any():
            return allowed
        self._end(job, Event(job.id, None, finish="stop", cached_tokens=job.cached))
        return None

    def _fetch_all(self, but: int = 0) -> None:
        """Reads what the device has drawn, less the last `but` calls."""
        while len(self._flights) > but:
            jobs, count, drawn = self._flights.popleft()
            drawn = jax.device_get(drawn)
            now = time.perf_counter()
            if count and self._fetched_at is not None:
                self._step_seconds += 0.3 * ((now - self._fetched_at) / count - self._step_seconds)
            self._fetched_at = now
            for step in range(max(count, 1)):
                for job in jobs:
                    place = (step, job.slot.index) if count else (0,)
                    if not job.done and drawn.ran[place]:
                        self._tell(job, jax.tree.map(lambda x: x[place], drawn))  # noqa: B023

    def _tell(self, job: Job, drawn: Drawn) -> None:
        request, token = job.request, int(drawn.tokens)
        job.made += 1
        finish = "stop" if token in request.stop_tokens else "length" if job.made == request.max_tokens else None
        if request.constraint is not None and finish != "stop":
            request.constraint.accept(token)
        count = request.alternatives
        alternatives = tuple(zip(drawn.alternative_ids[:count].tolist(), drawn.alternative_logp[:count].tolist(),
                                 strict=True))
        event = Event(job.id, token, float(drawn.logp), float(drawn.sampling_logp), alternatives, finish, job.cached)
        self._counters["generated_tokens"] += 1
        if finish:
            self._end(job, event)
        else:
            self._events.append(event)

    def _end(self, job: Job, event: Event) -> None:
        job.done = True
        del self._jobs[job.id]
        if job.slot is not None:
            job.slot.job = None
            self._device.set_row(job.slot.index, None)
        self._counters["cancelled" if event.finish == "cancelled" else "finished"] += 1
        self._events.append(event)
