"""What a server must stand: crowds, hang-ups, strangers, and being told to stop."""

import asyncio
import concurrent.futures
import gc
import json
import time
import types

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("llguidance", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs the package httpx")

from jaxllm.infer.engine import Event, Request  # noqa: E402
from jaxllm.serve import api, run  # noqa: E402
from jaxllm.serve.errors import ApiError  # noqa: E402
from jaxllm.serve.run import Run  # noqa: E402
from jaxllm.serve.schema import _UNSUPPORTED  # noqa: E402
from jaxllm.serve.worker import Job  # noqa: E402

CHAT = "/v1/chat/completions"


def body(text="the cat", **changes):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 6, **changes}


# Text that cannot end for a long while, whatever the model draws.
LONG = body(max_tokens=900, response_format={"type": "json_schema", "json_schema": {"name": "long", "schema": {
    "type": "string", "minLength": 5000}}})


def until(true, seconds=5.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()


def test_a_crowd_is_answered_or_refused_and_says_what_each_says_alone(serving):
    jobs = [body(f"the {'old ' * (i % 7)}cat {i}", seed=i, temperature=1.0 if i % 3 else 0.0,
                 max_tokens=1 + i % 6, **({"top_p": 0.9} if i % 2 else {})) for i in range(250)]

    async def one(port, job):
        """(status, headers, json), by hand: a real client takes longer for so many than the server does."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        content = json.dumps(job).encode()
        writer.write(b"POST %s HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n"
                     b"content-length: %d\r\n\r\n%s" % (CHAT.encode(), len(content), content))
        head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), head.decode().lower(), json.loads(answer)

    async def all_at_once(port):
        return await asyncio.gather(*(one(port, job) for job in jobs))

    with serving(queue=40) as server:
        answers = asyncio.run(all_at_once(int(server.address.rpartition(":")[2])))
        worker = server.served.worker
        assert worker.open == 0 and not worker._jobs and server.served.worker.engine.waiting == 0
        answered = [(job, answer) for job, (status, _, answer) in zip(jobs, answers, strict=True) if status == 200]
        refused = [(head, answer) for status, head, answer in answers if status == 429]
        assert len(answered) >= 48 and len(answered) + len(refused) == 250
        for head, answer in refused:
            assert 1 <= int(head.partition("retry-after: ")[2].split()[0]) <= 30
            assert answer["error"]["code"] == "queue_full"
        # Nothing of them is kept, once the last answer's connection has closed.
        assert until(lambda: gc.collect() >= 0 and not any(type(thing) in (Run, Job) for thing in gc.get_objects()))
        with httpx.Client(base_url=server.address) as client:
            for job, answer in answered[::len(answered) // 12]:
                alone = client.post(CHAT, json=job).json()
                assert alone["choices"] == answer["choices"]


def test_a_client_that_hangs_up_frees_its_slot(serving):
    with serving(delay=0.02) as server:
        worker = server.served.worker
        long = {**LONG, "logprobs": True, "n": 3}
        with httpx.Client(base_url=server.address, timeout=30) as client:
            with client.stream("POST", CHAT, json={**long, "stream": True}) as streamed:
                lines = streamed.iter_lines()  # kept: an iterator that is dropped closes the connection
                next(lines)
                assert until(lambda: worker.engine.running == 3), worker.engine.counters
            assert until(lambda: worker.open == 0 and worker.engine.running == 0, 2)
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=long, timeout=0.3)
            assert until(lambda: worker.open == 0 and worker.engine.running == 0, 2)
        assert worker.metrics.requests_cancelled.value >= 2
        with httpx.Client(base_url=server.address) as client:
            assert client.post(CHAT, json=body()).status_code == 200


def test_a_stop_string_frees_its_slot(serving):
    with serving(delay=0.02) as server:
        stops = list("etao")
        answer = httpx.post(server.address + CHAT, json=body(max_tokens=900, temperature=1.0, stop=stops, n=2),
                            timeout=30).json()
        assert not any(stop in choice["message"]["content"] for choice in answer["choices"] for stop in stops)
        assert until(lambda: server.served.worker.engine.running == 0, 2)


def test_stopping_lets_the_running_finish_and_refuses_the_new(serving):
    with serving(delay=0.02, grace_seconds=20.0) as server, httpx.Client(base_url=server.address) as client, \
            concurrent.futures.ThreadPoolExecutor() as threads:
        assert client.get("/health").status_code == 200  # its connection stays when the port closes
        running = threads.submit(httpx.post, server.address + CHAT, json=body(max_tokens=40), timeout=30)
        assert until(lambda: server.served.worker.engine.running == 1)
        server.stop()
        refused = client.post(CHAT, json=body())
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
        assert client.get("/health").status_code == 503
        answer = running.result()
        assert answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] in ("length", "stop")


def test_what_does_not_finish_in_time_is_told(serving):
    with serving(delay=0.05, grace_seconds=0.2) as server, concurrent.futures.ThreadPoolExecutor() as threads:
        whole = threads.submit(httpx.post, server.address + CHAT, json=LONG, timeout=30)
        streamed = threads.submit(httpx.post, server.address + CHAT, json={**LONG, "stream": True}, timeout=30)
        assert until(lambda: server.served.worker.engine.running == 2)
        server.stop()
        assert whole.result().status_code == 503 and "was not finished" in whole.result().text
        last = streamed.result().text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"


def test_the_key_is_asked_for_everywhere_but_where_nothing_is_to_be_had(serving):
    with serving(api_key="clé-secret") as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "clé-secret".encode()}):
            for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("POST", "/tokenize"), ("GET", "/metrics"),
                                 ("GET", "/no/such"), ("POST", "/health")):
                answer = httpx.request(method, server.address + path, headers=headers)
                assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
        assert httpx.get(server.address + "/health").status_code == 200
        right = {"authorization": "Bearer clé-secret".encode()}
        assert httpx.post(server.address + CHAT, json=body(), headers=right).status_code == 200


def test_only_known_host_names_are_answered(serving):
    with serving(hosts=("127.0.0.1", "::1")) as server:
        assert httpx.get(server.address + "/health", headers={"host": "127.0.0.1:99"}).status_code == 200
        assert httpx.get(server.address + "/health", headers={"host": "[::1]"}).status_code == 200
        refused = httpx.get(server.address + "/health", headers={"host": "attacker.example"})
        assert refused.status_code == 403 and "attacker.example" in refused.json()["error"]["message"]


def test_bodies_have_a_size(serving):
    with serving(max_body_bytes=2000) as server:
        assert httpx.post(server.address + "/tokenize", json={"prompt": "a" * 1900}).status_code == 200
        too_large = [httpx.post(server.address + "/tokenize", json={"prompt": "a" * 10**6})]

        def in_pieces():
            for _ in range(100):
                yield b" " * 100
        too_large.append(httpx.post(server.address + "/tokenize", content=in_pieces(),
                                    headers={"content-type": "application/json"}))
        for answer in too_large:
            assert answer.status_code == 413 and "larger than the 2000 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content, kind, sentence", [
    (b'{"messages": [', "application/json", "not JSON"), (b"\xff\xfe", "application/json", "not JSON"),
    (b'{"messages": [], "temperature": NaN}', "application/json", "NaN is no JSON value"),
    (b"[" * 100_000, "application/json", "nested too deeply"), (b'{"seed": ' + b"9" * 5000 + b"}", "application/json",
                                                                "not JSON"),
    (b'{"messages": []}', "text/plain", "send the body as application/json"), (b"", "application/json", ""),
    (b"[]", "application/json", ""), (b"null", "application/json", ""),
    (b'{"temperature": 1e999, "messages": [{"role": "user", "content": "a"}]}', "application/json", "temperature"),
    (b'{"\\ud800": 1, "messages": [{"role": "user", "content": "a"}]}', "application/json", "\ufffd"),
    (b'{"model": "\\udfff", "messages": [{"role": "user", "content": "a"}]}', "application/json", ""),
    (b'{"messages": [{"role": "user", "content": "a"}], "stream": "yes"}', "application/json", "stream"),
])
def test_bodies_that_are_no_request_are_refused(server, content, kind, sentence):
    answer = httpx.post(server.address + CHAT, content=content, headers={"content-type": kind})
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert sentence in error["message"] and error["type"] == "invalid_request_error"


def test_unknown_paths_and_methods_have_the_same_shape(server):
    for method, path, status in (("GET", "/v2", 404), ("GET", CHAT, 405), ("GET", "/v1/models/other", 404)):
        answer = httpx.request(method, server.address + path)
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_other_sites_may_not_read_the_answers(server):
    asked = httpx.options(server.address + CHAT, headers={"origin": "https://x.example",
                                                          "access-control-request-method": "POST"})
    got = httpx.get(server.address + "/v1/models", headers={"origin": "https://x.example"})
    assert not any(name.startswith("access-control") for name in (*asked.headers, *got.headers))


def test_a_page_of_an_allowed_origin_may_use_the_openai_client(server):
    """The OpenAI client in a browser sends headers of its own, and reads Retry-After."""
    app = api.create_app(server.served, cors_origins=("https://a.example",))
    wanted = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"

    async def ask(method, path, **headers):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.request(method, path, headers={key.replace("_", "-"): value
                                                               for key, value in headers.items()})

    preflight = dict(access_control_request_method="POST", access_control_request_headers=wanted)
    asked = asyncio.run(ask("OPTIONS", CHAT, origin="https://a.example", **preflight))
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "https://a.example"
    assert asked.headers["access-control-allow-headers"] == wanted
    got = asyncio.run(ask("GET", "/health", origin="https://a.example"))
    assert got.headers["access-control-expose-headers"] == "Retry-After"
    assert asyncio.run(ask("OPTIONS", CHAT, origin="https://b.example", **preflight)).status_code == 400


def test_a_failure_is_counted_as_a_500(monkeypatch, server):
    monkeypatch.setattr(api, "prepare_chat", lambda *_: 1 / 0)
    answer = httpx.post(server.address + CHAT, json=body())
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
    counts = server.served.worker.metrics.http_requests.values
    assert sum(count for (_, status), count in counts.items() if status == "500") == 1
    assert not any(status == "none" for _, status in counts)


def test_a_stream_that_nobody_reads_is_ended(monkeypatch, model):
    monkeypatch.setattr(run, "MOST_UNREAD", 20)
    given, cancelled = [], []
    worker = types.SimpleNamespace(submit=lambda requests, deliver: given.append(deliver) or "the job",
                                   cancel=lambda job, number=None: cancelled.append((job, number)))
    served = types.SimpleNamespace(worker=worker, tokenizer=model[2])
    prepared = types.SimpleNamespace(requests=(Request(prompt=(1,), max_tokens=500),), stops=())

    async def read(bursts):
        """Text of `bursts` of events, each read before the next comes."""
        running, text = Run(served, prepared), ""
        pieces = running.pieces()
        for size in bursts:
            for _ in range(size):
                given[-1]([(0, Event(0, 97))])
            await asyncio.sleep(0.01)
            assert running._arrived.qsize() <= 21
            for _ in range(size):
                text += (await anext(pieces))[1].text
        return text

    assert asyncio.run(read([20, 20, 20])) == "a" * 60 and not cancelled
    with pytest.raises(ApiError, match="more than 20 tokens waited to be read"):
        asyncio.run(read([20, 300]))
    assert cancelled == [("the job", None)]


def test_a_broken_engine_is_a_500_for_everybody_and_ill_health(serving):
    with serving(delay=0.01) as server, concurrent.futures.ThreadPoolExecutor() as threads:
        worker = server.served.worker
        running = threads.submit(httpx.post, server.address + CHAT, json=LONG, timeout=30)
        assert until(lambda: worker.engine.running == 1)
        worker.engine.step = lambda: 1 / 0
        failed = running.result()
        assert failed.status_code == 500 and failed.json()["error"]["code"] == "engine_failed"
        assert "ZeroDivisionError" in failed.json()["error"]["message"]
        assert httpx.get(server.address + "/health").status_code == 503
        assert httpx.post(server.address + CHAT, json=body()).status_code == 503


def nudge(content):
    """Makes two of three generated bodies such that they may get past the first checks, which else hardly one does."""
    if not isinstance(content, dict) or len(str(content)) % 3 == 0:
        return
    for field in ("model", "stream_options", "n", *_UNSUPPORTED):
        content.pop(field, None)
    for message in content.get("messages") or ():
        if isinstance(message, dict):
            message.update(role=message.get("role") if message.get("role") in ("user", "system") else "user",
                           content=message.get("content") or "a", tool_calls=None)


def test_no_request_of_the_schema_makes_a_500(serving):
    schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")
    hypothesis = pytest.importorskip("hypothesis", reason="needs the extra `test`")
    with serving(queue=200, max_tokens=8) as server:
        schema = schemathesis.openapi.from_url(server.address + "/openapi.json")
        statuses = set()
        with httpx.Client(base_url=server.address, timeout=30) as client:
            for found in schema.get_all_operations():
                operation = found.ok()

                @hypothesis.settings(max_examples=6, deadline=None, database=None, derandomize=True,
                                     suppress_health_check=list(hypothesis.HealthCheck))
                @hypothesis.given(case=operation.as_strategy())
                def never_500(case):
                    nudge(case.body)
                    response = case.call(base_url=server.address)
                    statuses.add((case.path, response.status_code))  # noqa: B023
                    assert response.status_code < 500, response.text  # noqa: B023

                never_500()
            assert client.post(CHAT, json=body()).status_code == 200
        assert "422" not in str(schema.raw_schema["paths"])
        assert {path for path, _ in statuses} >= {CHAT, "/v1/completions", "/tokenize", "/detokenize", "/metrics"}
        assert {(CHAT, 200), ("/v1/completions", 200)} <= statuses, statuses
