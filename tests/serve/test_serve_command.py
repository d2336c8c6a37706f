"""`python -m experiments.serve`: every key is checked or reaches the server, and a signal ends it."""

import dataclasses
import os
import signal
import socket
import threading
import time

import jax
import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("llguidance", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs the package httpx")

from fastapi.testclient import TestClient  # noqa: E402

from configs import serve as config_file  # noqa: E402
from experiments import serve as experiment  # noqa: E402
from jaxllm.infer.engine import Event  # noqa: E402
from jaxllm.model.config import Execution  # noqa: E402
from jaxllm.model.quantize import has_overlays  # noqa: E402


def config_of(**changes):
    config = config_file.get_config()
    config.update({"model": "runs/nano", "port": 0, "capacity": 1024, "chunk": 32, "grace_seconds": 0.0})
    config.update(changes)
    return config


class Recorded:
    """An engine that keeps what it was made with and answers everything with three letters."""

    made = {}

    def __init__(self, params, config, **arguments):
        Recorded.made, self.running, self.waiting, self.asked = arguments, 0, 0, []

    def warm_up(self):
        Recorded.made["warm"] = True

    def submit(self, request):
        self.asked.append(request)
        return len(self.asked)

    def step(self):
        asked, self.asked = self.asked, []
        return [Event(number, 97, finish="length" if token == 2 else None)
                for number, _ in enumerate(asked, 1) for token in range(3)]


@pytest.fixture(autouse=True)
def loaded(monkeypatch, model):
    monkeypatch.setattr(experiment, "load_model", lambda folder: model)


def test_a_built_server_answers_by_its_config_and_ends_at_a_signal(monkeypatch, capsys):
    monkeypatch.setenv("A_KEY", "secret")
    monkeypatch.setattr(experiment, "Engine", Recorded)
    server = experiment.build(config_of(api_key_env="A_KEY", max_tokens=9, queue=3, max_samples=2, max_body_mib=1,
                                        hosts=("Box.example",), weights="int8", cache_dtype="int8", max_prompts=5,
                                        cors_origins=("https://a.example",), model_id="small", begin="",
                                        slots=5, together=2, dtype="bfloat16"))
    served = server.served
    assert (served.limits.capacity, served.limits.max_tokens, served.limits.max_samples, served.limits.max_prompts,
            served.limits.max_body_bytes) == (1024, 9, 2, 5, 2**20)
    assert Recorded.made == dict(slots=5, capacity=1024, chunk=32, together=2, execution=Execution(dtype="bfloat16"),
                                 cache_dtype="int8", valid_vocab=275, warm=True)
    assert served.worker.most_open == 5 + 3 and served.begin_tokens == () and has_overlays(served.params)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    key = {"authorization": "Bearer secret"}
    with httpx.Client(base_url=server.address, headers=key) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "small"
        answer = client.post("/v1/completions", json={"prompt": "the cat"}, headers={"host": "box.example"})
        assert answer.json()["choices"][0]["text"] == "aaa"
        refused = client.post("/v1/completions", json={"prompt": "the cat", "max_tokens": 10})
        assert "this server writes at most 9" in refused.text
        assert client.get("/v1/models", headers={"host": "other.example"}).status_code == 403
        origin = client.get("/v1/models", headers={"origin": "https://a.example"}).headers
        assert origin["access-control-allow-origin"] == "https://a.example"
        seen = client.post("/inspect/look", json={"tokens": [1, 2, 3], "index": 2})
        assert seen.status_code == 200  # what is looked into is the quantised tree
    assert httpx.get(server.address + "/v1/models").status_code == 401
    server.handle_exit(signal.SIGTERM, None)
    thread.join(10)
    assert not thread.is_alive() and served.draining and not served.worker.alive
    printed = capsys.readouterr().out
    assert all(line in printed for line in ("loading runs/nano ... ", "weights in int8 ... ", "compiling ... "))


@pytest.mark.parametrize("changes, sentence", [
    (dict(slots=0), "config.slots is 0"), (dict(queue=-1), "config.queue is -1"),
    (dict(port=70000), "ports end at 65535"),
    (dict(weights="int3"), "config.weights is 'int3'; choose one of"), (dict(cache_dtype="int4"), "config.cache_dtype"),
    (dict(dtype="float16"), "execution.dtype is 'float16'"), (dict(max_body_mib=0), "config.max_body_mib is 0"),
    (dict(grace_seconds=-1.0), "config.grace_seconds"), (dict(host="192.0.2.1"), "192.0.2.1:0 cannot be listened on"),
])
def test_bad_settings_are_refused(changes, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        experiment.main(config_of(**changes), "unused")


def test_a_taken_port_is_refused_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(experiment, "load_model", lambda folder: pytest.fail("loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="cannot be listened on .*; choose another --config.port"):
            experiment.build(config_of(port=taken.getsockname()[1]))


def test_without_a_chat_template_it_serves_completions_alone(monkeypatch, model, capsys):
    params, config, tokenizer = model
    bare = dataclasses.replace(tokenizer, chat_template=None)
    monkeypatch.setattr(experiment, "load_model", lambda folder: (params, config, bare))
    monkeypatch.setattr(experiment, "Engine", Recorded)
    server = experiment.build(config_of())
    assert "grammars ... none: the tokenizer" in capsys.readouterr().out
    client = TestClient(server.config.app, base_url="http://127.0.0.1")
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200
    for changes in ({}, {"response_format": {"type": "json_object"}}):
        refused = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}], **changes})
        assert refused.status_code == 400 and "has no chat template" in refused.text
    server.served.worker.stop()


def test_begin_and_names(model):
    tokenizer = model[2]
    assert experiment.begin_tokens("auto", tokenizer) == (tokenizer.end_of_text,)
    with pytest.raises(ValueError, match="config.begin: '<s>' is no special token here"):
        experiment.begin_tokens("<s>", tokenizer)
    assert [experiment._name(folder) for folder in ("runs/a", "runs/a/model", "models/b/")] == ["a", "a", "b"]
    assert experiment.hosts(config_of()) == experiment.LOOPBACK
    assert experiment.hosts(config_of(host="0.0.0.0")) == ()
    assert "box" in experiment.hosts(config_of(host="0.0.0.0", hosts=("Box",)))
    assert os.environ.get(config_of().api_key_env) is None


@pytest.mark.parametrize("change", config_file.sweep(), ids=lambda change: change["weights"])
def test_the_sweep_holds_weights_that_can_be_served(model, change):
    params = experiment.to_serve(model[0], model[1], config_of(**change))
    held = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    assert {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "int4": "uint8"}[change["weights"]] in held
