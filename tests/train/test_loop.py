"""The loop around a step that does nothing: when metrics come, when actions run, how it stops, what the clock says."""

import os
import signal
import time

import numpy as np
import pytest

from jaxllm.train import loop
from jaxllm.train.loop import Clock, StopRequest, TooManySkips, train
from jaxllm.train.step import TrainState


def state_at(step):
    return TrainState(step=np.int32(step), params={}, opt_state=(), ema=None, skipped=0, skipped_in_a_row=0)


class Log:
    """Fake step, batches, report and action that write down the order in which they are called."""

    def __init__(self, on_step=None, skipping=()):
        self.calls, self.metrics = [], {}
        self.on_step, self.skipping, self.in_a_row = on_step or {}, skipping, 0

    def step(self, state, batch):
        number = int(state.step) + 1
        self.calls.append(f"step {number} of batch {batch}")
        self.on_step.get(number, lambda: None)()
        self.in_a_row = self.in_a_row + 1 if number in self.skipping else 0
        return state_at(number), {"loss": np.float32(10 * number), "skipped_in_a_row": np.int32(self.in_a_row)}

    def report(self, number, metrics):
        self.calls.append(f"report {number}")
        self.metrics[number] = dict(metrics)

    def action(self, name):
        return lambda number, state: self.calls.append(f"{name} {number}, state {int(state.step)}")

    def run(self, start=0, steps=3, batches=None, **settings):
        batches = range(start, steps) if batches is None else batches
        return train(state_at(start), self.step, batches, steps=steps, clock=Clock(1), report=self.report, **settings)


def test_metrics_arrive_one_step_late():
    log = Log()
    last = log.run()
    assert log.calls == ["step 1 of batch 0", "step 2 of batch 1", "report 1", "step 3 of batch 2", "report 2",
                         "report 3"]
    assert int(last.step) == 3
    assert log.metrics[2] == {"loss": 20.0, "skipped_in_a_row": 0.0}
    assert type(log.metrics[2]["loss"]) is float


def test_actions_run_at_their_intervals_after_the_step_s_report():
    log = Log()
    log.run(steps=4, every=((2, log.action("validate")), (4, log.action("save")), (0, log.action("never"))))
    assert log.calls == [
        "step 1 of batch 0", "step 2 of batch 1", "report 1", "report 2", "validate 2, state 2",
        "step 3 of batch 2", "step 4 of batch 3", "report 3", "report 4", "validate 4, state 4", "save 4, state 4"]


def test_a_resumed_run_goes_on_where_it_was():
    log = Log()
    log.run(start=2, steps=4, every=((3, log.action("save")),))
    assert log.calls == ["step 3 of batch 2", "report 3", "save 3, state 3", "step 4 of batch 3", "report 4"]
    assert Log().run(start=4, steps=4).step == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_that_runs(number):
    """A real signal to this very process; its step is finished and reported, and the old handlers come back."""
    before = signal.getsignal(number)
    log = Log(on_step={2: lambda: os.kill(os.getpid(), number)})
    with StopRequest() as stop:
        last = log.run(steps=5, stop=stop)
        assert stop.requested
    assert int(last.step) == 2 and log.calls[-1] == "report 2"
    assert signal.getsignal(number) is before


def test_a_second_interrupt_does_not_wait():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # the handler runs between two bytecodes, long before this ends


def test_too_many_skips_in_a_row_end_the_run():
    log = Log(skipping=(2, 4, 5, 6))
    with pytest.raises(TooManySkips, match="not finite for 3 steps in a row, up to step 6"):
        log.run(steps=10, max_skips=3)
    assert log.calls[-1] == "report 6"
    Log(skipping=(2, 4, 5, 7, 8)).run(steps=10, max_skips=3)


def test_too_many_skips_are_seen_at_the_last_step_and_before_a_save():
    with pytest.raises(TooManySkips):
        Log(skipping=(9, 10)).run(steps=10, max_skips=2)
    log = Log(skipping=(1, 2))
    with pytest.raises(TooManySkips):
        log.run(steps=10, max_skips=2, every=((2, log.action("save")),))
    assert not any(call.startswith("save") for call in log.calls)


def test_batches_that_run_out_are_named():
    with pytest.raises(ValueError, match="batches ended before step 3 of 5"):
        Log().run(steps=5, batches=[0, 1])


@pytest.fixture
def now(monkeypatch):
    """A clock that the test turns: now[0] is the time."""
    time_now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: time_now[0])
    return time_now


def test_clock_arithmetic(now):
    """4 steps of 50 tokens in 10 s, of which 2 went elsewhere and 1 was spent waiting."""
    clock = Clock(50, flops_per_token=6.0, peak_flops=600.0)
    now[0] += 10.0
    for _ in range(4):
        clock.tick()
    clock.waited(0.25)
    clock.waited(0.75)
    clock.elsewhere(2.0)
    assert clock.read() == {"tokens_per_second": 25.0, "seconds_per_step": 2.0, "data_wait": 0.125, "mfu": 0.25}
    now[0] += 1.0
    clock.tick()
    assert clock.read() == {"tokens_per_second": 50.0, "seconds_per_step": 1.0, "data_wait": 0.0, "mfu": 0.5}


def test_clock_without_a_known_peak_reports_no_mfu(now):
    clock = Clock(50, flops_per_token=6.0)
    now[0] += 1.0
    clock.tick()
    assert "mfu" not in clock.read()


def test_the_loop_tells_the_clock_of_waiting_and_of_actions(now):
    """Each batch takes 1 s to come, each step 3 s, the action 100 s, which no rate may show."""
    def pass_time(seconds):
        now[0] += seconds

    def batches():
        for number in range(4):
            pass_time(1.0)
            yield number
    clock, rates = Clock(8), []
    log = Log(on_step={number: lambda: pass_time(3.0) for number in range(1, 5)})

    def action(number, state):
        pass_time(100.0)
    # Read at step 4, after the action of step 3.
    train(state_at(0), log.step, batches(), steps=4, clock=clock, every=((3, action),),
          report=lambda number, metrics: rates.append(clock.read()) if number == 4 else None)
    assert rates == [{"tokens_per_second": 2.0, "seconds_per_step": 4.0, "data_wait": 0.25}]
