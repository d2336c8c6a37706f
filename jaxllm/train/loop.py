"""The loop around a step: metrics one step late, things to do every so often, and a clean stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.train.step import TrainState

Action = Callable[[int, TrainState], None]


class TooManySkips(RuntimeError):
    """Loss or gradient was not finite so many steps in a row that going on is senseless."""


class StopRequest:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads after each step; a second Ctrl-C interrupts at once.

    Use as a context manager in the main thread; the handlers that were there come back at its end.
    """

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False  # by all processes of a run of several
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


_any = jax.jit(jnp.any)


def _votes(requested: bool, state: TrainState) -> jax.Array:
    """Whether any process of this run was asked to stop; ready when the step that made `state` is."""
    mesh = state.step.sharding.mesh
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    mine = np.full(len(everywhere.addressable_devices), requested)
    return _any(jax.make_array_from_process_local_data(everywhere, mine))


class Clock:
    """Seconds spent on steps, apart from what was spent waiting for data or on anything else.

    Attributes:
      tokens_per_step: of the global batch.
      flops_per_token: model operations per token of training; 0 = MFU is not reported.
      peak_flops: operations per second of all devices together.
    """

    def __init__(self, tokens_per_step: int, flops_per_token: float = 0.0, peak_flops: float = 0.0) -> None:
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self._start = time.perf_counter()
        self._elsewhere = self._waiting = 0.0
        self._steps = 0

    def waited(self, seconds: float) -> None:
        """Adds time spent waiting for a batch (it stays part of the step's time)."""
        self._waiting += seconds

    def elsewhere(self, seconds: float) -> None:
        """Takes out time that no step is to blame for: validation, sampling, saving."""
        self._elsewhere += seconds

    def tick(self) -> None:
        """Counts a finished step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Rates since the last reading: tokens_per_second, seconds_per_step, data_wait (share of time), mfu."""
        now = time.perf_counter()
        seconds = max(now - self._start - self._elsewhere, 1e-9)
        steps = max(self._steps, 1)
        rate = steps * self.tokens_per_step / seconds
        result = {"tokens_per_second": rate, "seconds_per_step": seconds / steps,
                  "data_wait": self._waiting / seconds}
        if self.flops_per_token and self.peak_flops:
            result["mfu"] = rate * self.flops_per_token / self.peak_flops
        self._start, self._elsewhere, self._waiting, self._steps = now, 0.0, 0.0, 0
        return result


def train(state: TrainState, step_fn: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
          batches: Iterable[Any], *, steps: int, clock: Clock,
          report: Callable[[int, Mapping[str, float]], None], every: Sequence[tuple[int, Action]] = (),
          max_skips: int = 10, stop: StopRequest | None = None) -> TrainState:
    """Runs `step_fn` until `steps` batches have been taken, or a stop is requested.

    The metrics of a step are fetched while the next one runs, so that the device never waits for the host.

    Args:
      state: where to begin; batch number `state.step` is the first of `batches`.
      step_fn: compiled; see `step.make_train_step`.
      batches: from batch number `state.step` on.
      steps: of the whole run.
      clock: read by `report`.
      report: called as report(n, metrics) for every step, n counting finished steps from 1.
      every: pairs (interval, action): action(n, state) after every `interval` steps; 0 = never.
      max_skips: steps in a row that may be skipped for not being finite.
      stop: looked at after every step. In a run of several processes one request stops all, one step later.

    Returns:
      The last state.

    Raises:
      TooManySkips: after `max_skips` skipped steps in a row.
      ValueError: when the batches end too early.
    """
    # Processes hear of a stop at different moments and must all leave after the same step: they vote, and the
    # votes arrive with the metrics.
    several = stop is not None and jax.process_count() > 1
    pending: tuple[int, Mapping[str, jax.Array], jax.Array | bool] | None = None

    def settle() -> None:
        nonlocal pending
        if pending is None:
            return
        number, (metrics, votes) = pending[0], jax.device_get((dict(pending[1]), pending[2]))
        values = {name: float(value) for name, value in metrics.items()}
        pending = None
        if several and votes:
            stop.requested = stop.agreed = True
        clock.tick()
        report(number, values)
        if values.get("skipped_in_a_row", 0) >= max_skips:
            raise TooManySkips(f"loss or gradient was not finite for {max_skips} steps in a row, up to step {number}")

    iterator = iter(batches)
    for number in range(int(state.step) + 1, steps + 1):
        asked = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            raise ValueError(f"the batches ended before step {number} of {steps}") from None
        clock.waited(time.perf_counter() - asked)
        state, metrics = step_fn(state, batch)
        settle()
        pending = (number, metrics, _votes(stop.requested, state) if several else False)
        due = [action for interval, action in every if interval and number % interval == 0]
        if due:
            settle()
            begun = time.perf_counter()
            for action in due:
                action(number, state)
            clock.elsewhere(time.perf_counter() - begun)
        if stop is not None and (stop.agreed if several else stop.requested):
            break
    settle()
    return state
