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
import math
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.infer import engine_steps as steps
from jaxllm.infer.engine_request import Completion, Constraint, Event, Request, check_request, completion_of
from jaxllm.infer.engine_slots import Job, Slot, choose_slot, choose_source, prompt_keys, ready_jobs
from jaxllm.infer.engine_steps import MAX_STEPS
from jaxllm.model.axes import RULES
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params, unstack_blocks

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
        mesh = jax.sharding.get_abstract_mesh()
        shards = math.prod(mesh.shape.get(axis, 1) for axis in RULES["batch"])
        if slots % shards:
            raise ValueError(f"{slots} slots cannot be split over {shards} devices; take a multiple")
        self.config, self.capacity = config, min(capacity, config.max_positions)
        self._chunk = min(chunk, self.capacity)
        self._together = -(-together // shards) * shards
        self._fixed = steps.Fixed(config, execution, slots, self.capacity,
                                  jnp.dtype(cache_dtype or execution.dtype).name, valid_vocab)
        self._params = unstack_blocks(params)
        self._state = steps.empty_state(fixed=self._fixed)
        self._every = jnp.ones((slots, config.vocab_size), bool)
        self._every_one = jnp.ones((1, config.vocab_size), bool)
        self._rows, self._device_rows = steps.empty_rows(slots), None
        self._slots = [Slot(index) for index in range(slots)]
        self._waiting: collections.deque[Job] = collections.deque()
        self._jobs: dict[int, Job] = {}
        self._flights: collections.deque[tuple[list[Job], int, steps.Drawn]] = collections.deque()
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
        for width in self._widths():
            self._prefill([], width)
        self._state = steps.copy_slot(self._state, np.int32(0), np.int32(0))
        self._slots[0].held, self._slots[0].whole = (), None
        self._begin_in(0, (0,), 1, self._every_one)
        self._advance(1, self._every)
        jax.block_until_ready(self._state)

    def load(self, params: Params) -> None:
        """Takes new weights of the same shapes, and forgets what was computed with the old; the engine must be idle."""
        self._must_be_idle()
        self._params = unstack_blocks(params)
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
        """Takes all requests a little further and returns what there is to tell; [] when idle."""
        self._admit()
        ran_prompts = self._run_prompts()
        if any(slot.job and slot.job.request.constraint for slot in self._slots):
            self._fetch_all()  # what may come next depends on what came
            self._draw(constrained=True)
            self._fetch_all()
        else:
            # The next step is on its way before the last is read, so that the device need not wait for the host.
            self._fetch_all(but=1 if self._draw(constrained=False) else 0)
        if ran_prompts or not self._flights:
            self._fetched_at = None
        events, self._events = self._events, []
        return events

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """Serves these requests to their end, in order; the engine must be idle."""
        self._must_be_idle()
        told: dict[int, list[Event]] = {self.submit(request): [] for request in requests}
        while self._jobs or self._events:
            for event in self.step():
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
        return [job for job in ready if self._width(job) == self._width(ready[0])][:self._together]

    def _plan(self, job: Job) -> None:
        """Finds what is already computed of the prompt, and brings it into the job's slot."""
        source, amount = choose_source(self._slots, job, self._chunk)
        if amount and source is not job.slot:
            self._state = steps.copy_slot(self._state, np.int32(source.index), np.int32(job.slot.index))
            self._counters["copies"] += 1
        job.planned, job.computed, job.cached = True, amount, amount
        job.slot.held = job.pieces[:amount // self._chunk]
        job.slot.whole = job.whole if amount == job.length else None
        self._counters["cached_tokens"] += amount

    def _widths(self) -> tuple[int, int]:
        return max(self._chunk // 4, 1), self._chunk

    def _width(self, job: Job) -> int:
        short, whole = self._widths()
        return short if job.length - job.computed <= short else whole

    def _run_pieces(self, jobs: list[Job]) -> None:
        width = self._width(jobs[0])
        self._prefill(jobs, width)
        for job in jobs:
            job.computed = min(job.computed + width, job.length)
            job.slot.held = job.pieces[:job.computed // self._chunk]
            if job.computed == job.length:
                job.slot.whole = job.whole
                self._begin(job)
        self._counters["pieces"] += 1

    def _prefill(self, jobs: list[Job], width: int) -> None:
        P = self._together
        slots, starts, counts = np.full((P,), len(self._slots), np.int32), np.zeros(P, np.int32), np.zeros(P, np.int32)
        tokens = np.zeros((P, width), np.int32)
        for row, job in enumerate(jobs):
            piece = job.request.prompt[job.computed:job.computed + width]
            slots[row], starts[row], counts[row] = job.slot.index, job.computed, len(piece)
            tokens[row, :len(piece)] = piece
        self._state = steps.prefill(self._params, self._state, slots, tokens, starts, counts, fixed=self._fixed)

    def _begin(self, job: Job) -> None:
        """Draws the first token of a request whose prompt is through."""
        mask = self._every_one
        if job.request.constraint is not None:
            if (allowed := self._allowed(job)) is None:
                return
            mask = allowed[None]
        steps.write_row(self._rows, job.slot.index, job.request)
        self._device_rows = None
        drawn = self._begin_in(job.slot.index, job.request.prompt, job.request.max_tokens, mask)
        job.begun, job.sent = True, 1
        self._flights.append(([job], 0, drawn))

    def _begin_in(self, slot: int, prompt: tuple[int, ...], max_tokens: int, mask: Any) -> steps.Drawn:
        padded = np.zeros((self.capacity,), np.int32)
        padded[:len(prompt)] = prompt
        self._state, drawn = steps.begin(self._params, self._state, self._on_device(), mask, np.int32(slot), padded,
                                         np.int32(len(prompt)), np.int32(max_tokens), fixed=self._fixed)
        return drawn

    def _draw(self, constrained: bool) -> bool:
        """Sends the device to draw for all that may still need a token; False if there is nobody."""
        jobs = [slot.job for slot in self._slots if slot.job and slot.job.sent]
        masks = self._every
        if constrained:
            masks = np.ones(masks.shape, bool)
            for job in [job for job in jobs if job.request.constraint is not None]:
                if (allowed := self._allowed(job)) is not None:
                    masks[job.slot.index] = allowed
        jobs = [job for job in jobs if not job.done and job.sent < job.request.max_tokens]
        if not jobs:
            return False
        alone = constrained or any(slot.job and not slot.job.begun for slot in self._slots)
        count = 1 if alone else min(max(int(CALL_SECONDS / self._step_seconds), 1), MAX_STEPS)
        self._flights.append((jobs, count, self._advance(count, masks)))
        for job in jobs:
            job.sent += count
        self._counters.update(calls=1, steps=count)
        return True

    def _advance(self, count: int, masks: Any) -> steps.Drawn:
        self._state, drawn = steps.advance(self._params, self._state, self._on_device(), masks, np.int32(count),
                                           fixed=self._fixed)
        return drawn

    def _on_device(self) -> steps.Rows:
        """The rows, copied to the device if they have changed."""
        if self._device_rows is None:
            self._device_rows = jax.tree.map(jnp.array, self._rows)
        return self._device_rows

    def _allowed(self, job: Job) -> np.ndarray | None:
        """Tokens that the constraint of a job allows; with none left the job ends, and this is None."""
        allowed = np.array(job.request.constraint.allowed(), bool)
        allowed[self._fixed.valid_vocab or self.config.vocab_size:] = False
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

    def _tell(self, job: Job, drawn: steps.Drawn) -> None:
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
            steps.write_row(self._rows, job.slot.index, None)
            self._device_rows = None
        self._counters["cancelled" if event.finish == "cancelled" else "finished"] += 1
        self._events.append(event)
