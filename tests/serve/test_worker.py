"""The worker's book-keeping, over an engine that does what it is told."""

import threading
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from jaxllm.infer.engine import Event, Request  # noqa: E402
from jaxllm.serve.metrics import LabelledCounter, Metrics  # noqa: E402
from jaxllm.serve.worker import QueueFull, Stopped, Worker  # noqa: E402


class Told:
    """An engine with one step per `release`; each step gives every running request a token."""

    def __init__(self, slots=2):
        self.slots, self.open, self.cancelled, self.next_id = slots, {}, [], 0
        self.gate = threading.Semaphore(0)
        self.threads = set()

    def submit(self, request):
        self.threads.add(threading.get_ident())
        if request.max_tokens > 100:
            raise ValueError("too many tokens")
        self.next_id += 1
        self.open[self.next_id] = request.max_tokens
        return self.next_id

    def cancel(self, request_id):
        self.cancelled.append(request_id)
        self.open.pop(request_id)

    def step(self):
        self.threads.add(threading.get_ident())
        self.gate.acquire()
        events = []
        for request_id in list(self.open)[:self.slots]:
            self.open[request_id] -= 1
            finish = "length" if self.open[request_id] == 0 else None
            events.append(Event(request_id, 7, finish=finish, cached_tokens=1))
            if finish:
                del self.open[request_id]
        return events


@pytest.fixture
def engine():
    return Told()


@pytest.fixture
def worker(engine):
    worker = Worker(engine, slots=2, queue=2)
    worker.start()
    yield worker
    engine.gate.release(10_000)
    worker.stop()


def request(tokens=2):
    return Request(prompt=(1, 2), max_tokens=tokens)


def until(true):
    end = time.monotonic() + 5
    while not true() and time.monotonic() < end:
        time.sleep(0.001)
    assert true()


def test_events_come_in_order_to_the_job_that_they_are_of(engine, worker):
    got = [[], []]
    worker.submit([request(1), request(2)], got[0].append)
    worker.submit([request(1)], got[1].append)
    engine.gate.release(3)
    until(lambda: worker.open == 0)
    told = [[(number, event.finish) for events in some for number, event in events] for some in got]
    assert told == [[(0, "length"), (1, None), (1, "length")], [(0, "length")]]
    assert engine.threads == {worker._thread.ident}
    assert worker.metrics.generated_tokens.value == 4 and worker.metrics.prompt_tokens.value == 6


def test_the_queue_is_bounded_and_places_come_back(engine, worker):
    jobs = [worker.submit([request(50)], lambda _: None) for _ in range(4)]
    for count in (1, 2):
        with pytest.raises(QueueFull, match="4 requests are open and 4 may be"):
            worker.submit([request()] * count, lambda _: None)
    worker.cancel(jobs[0])
    worker.cancel(jobs[0])  # twice is once
    engine.gate.release(2)
    until(lambda: worker.open == 3)
    worker.submit([request()], lambda _: None)


def test_a_cancelled_request_tells_nothing_more(engine, worker):
    got = []
    job = worker.submit([request(50), request(50)], got.append)
    engine.gate.release()
    until(lambda: got)
    worker.cancel(job, 0)
    engine.gate.release(2)
    until(lambda: len(got) >= 3)
    assert {number for number, _ in got[-1]} == {1} and len(engine.cancelled) == 1
    assert worker.metrics.requests_cancelled.value == 1


def test_a_request_that_the_engine_refuses_takes_its_siblings_with_it(engine, worker):
    got = []
    worker.submit([request(), request(1000), request()], got.append)
    engine.gate.release(2)
    until(lambda: got)
    assert isinstance(got[0], ValueError) and worker.open == 0 and not engine.open


def test_stopping_waits_for_the_open_and_then_ends_the_rest(engine, worker):
    got = []
    worker.submit([request(1)], got.append)
    engine.gate.release()
    assert worker.stop(5.0) and got[0][0][1].finish == "length"
    with pytest.raises(Stopped):
        worker.submit([request()], got.append)
    other = Worker(Told(), slots=2)
    other.start()
    other.submit([request(50)], got.append)
    threading.Timer(0.2, other.engine.gate.release).start()
    assert not other.stop(0.05) and isinstance(got[-1], Stopped) and other.open == 0


def test_a_failing_engine_tells_everybody(engine, worker, caplog):
    got = []
    worker.submit([request(50)], got.append)
    until(lambda: engine.open)
    engine.open = None
    engine.gate.release()
    until(lambda: got)
    assert isinstance(got[0], TypeError) and not worker.alive and worker.open == 0
    with pytest.raises(Stopped):
        worker.submit([request()], got.append)


def test_the_page_of_metrics_is_what_prometheus_reads():
    metrics = Metrics()
    metrics.http_requests.add(2, '/a"b\\c\nd', "200")
    metrics.first_token_seconds.observe(0.3)
    text = metrics.text({"requests_open": ("open", 3)})
    assert 'jaxllm_http_requests_total{path="/a\\"b\\\\c\\nd",status="200"} 2\n' in text
    assert "# TYPE jaxllm_requests_open gauge\njaxllm_requests_open 3\n" in text
    buckets = [int(line.split()[1]) for line in text.splitlines() if line.startswith("jaxllm_first_token_seconds_buck")]
    assert buckets == sorted(buckets) and buckets[-1] == 1 and buckets[0] == 0
    assert text.endswith("\n") and LabelledCounter("x", ["a"]).lines("x") == ["# HELP x x", "# TYPE x counter"]
