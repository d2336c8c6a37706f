"""A server on a free loopback port over a small random model, shared by the tests of one file."""

import contextlib
import dataclasses
import os
import shutil
import threading
import time

import jax
import pytest

from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.infer.engine import Engine
from jaxllm.model.config import preset
from jaxllm.model.params import init

TOKENIZER = dataclasses.replace(
    train_tokenizer(["the old cat sat upon the mat and the rat ran. " * 20], 256 + 12 + len(SPECIAL_TOKENS)),
    chat_template="im_sep")
CAPACITY = 1024
CHROMIUM = os.environ.get("JAXLLM_CHROMIUM") or next(
    (path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What drives a browser is slow."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of one file."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no browser: install chromium, or set JAXLLM_CHROMIUM to its executable")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def model():
    """(params, config, tokenizer); the vocabulary is wider than the tokenizer, as a padded one is."""
    config = preset("nano", layers=1, vocab_size=320, max_positions=CAPACITY)
    return jax.jit(init, static_argnums=0)(config, jax.random.key(0)), config, TOKENIZER


@pytest.fixture(scope="session")
def serving(model):
    """Returns a context manager `serving(slots, queue, ...)` that yields a running `Server`."""
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    from jaxllm.serve.api import create_app
    from jaxllm.serve.served import Limits, Served
    from jaxllm.serve.server import Server
    from jaxllm.serve.worker import Worker

    params, config, tokenizer = model
    engines = []

    @contextlib.contextmanager
    def start(queue=64, api_key=None, hosts=(), grace_seconds=0.0, delay=0.0, **limits):
        if not engines:  # one after another: an engine is reused once its server has ended
            engines.append(Engine(params, config, slots=8, capacity=CAPACITY, chunk=32,
                                  valid_vocab=tokenizer.vocab_size))
            engines[0].warm_up()
        engine = engines.pop()
        worker = Worker(Slow(engine, delay) if delay else engine, slots=8, queue=queue)
        served = Served(params, config, tokenizer, "nano", worker, Limits(capacity=CAPACITY, **limits),
                        begin_tokens=(tokenizer.end_of_text,))
        worker.start()
        server = Server(create_app(served, api_key=api_key, hosts=hosts), served, port=0, grace_seconds=grace_seconds)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield server
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()
            for request_id in list(engine._jobs):  # a server whose engine broke leaves them
                engine.cancel(request_id)
            engines.append(engine)

    return start


class Slow:
    """An engine whose every step takes a while, as a large model's does."""

    def __init__(self, engine, seconds):
        self.engine, self.seconds = engine, seconds

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def step(self):
        time.sleep(self.seconds)
        return self.engine.step()


@pytest.fixture(scope="module")
def server(serving):
    """One for the tests of a file."""
    with serving() as running:
        yield running
