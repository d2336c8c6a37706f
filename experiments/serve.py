"""Serves a model: loads it, compiles everything, listens until told to stop.

    python -m experiments.serve --config.model=runs/pretrain_tiny
"""

from __future__ import annotations

import functools
import os
import pathlib
import socket
import time

import jax
from ml_collections import ConfigDict

from experiments import launch
from jaxllm.data.preferences import read_prompts
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.engine import Engine
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.quantize import SCHEMES, prepare_for_decoding, quantize
from jaxllm.train.checkpoint import load_model

WEIGHTS = ("float32", *SCHEMES)
CACHES = ("", "float32", "bfloat16", "int8")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# A cache of a model's whole context may not fit: Llama 3.1 has 131,072 positions.
MOST_CAPACITY = 8192
BEGINNINGS = ("<|begin_of_text|>", "<bos>", "<|endoftext|>")


def main(config: ConfigDict, workdir: str) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
      config: see configs/serve.py.
      workdir: where rankings are kept, if they are collected; a server leaves no other files.

    Raises:
      ValueError: for a setting out of range.
      FileNotFoundError: when there is no such model.
      ModuleNotFoundError: when the packages of the extra `serve` are missing.
      OSError: when the port is taken.
    """
    check(config)
    server = build(config, workdir)
    print(f"serving {server.served.model_id} at http://{_shown(config.host)}:{server.config.port} "
          f"({'with' if os.environ.get(config.api_key_env) else 'without'} an API key); Ctrl-C stops it", flush=True)
    server.run()
    print("stopped", flush=True)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after the model was loaded."""
    for key, least in (("slots", 1), ("queue", 0), ("capacity", 0), ("chunk", 1), ("together", 1), ("max_tokens", 0),
                       ("max_samples", 1), ("max_prompts", 1), ("max_body_mib", 1), ("grace_seconds", 0), ("port", 0)):
        if config[key] < least:
            raise ValueError(f"config.{key} is {config[key]}; it must be at least {least}")
    for key, choices in (("weights", WEIGHTS), ("cache_dtype", CACHES)):
        if config[key] not in choices:
            raise ValueError(f"config.{key} is {config[key]!r}; choose one of {', '.join(map(repr, choices))}")
    if config.port > 65535:
        raise ValueError(f"config.port is {config.port}; ports end at 65535")
    Execution(dtype=config.dtype)
    most = min(9, config.max_samples)
    if config.prefer.collect and not 2 <= config.prefer.samples <= most:
        raise ValueError(f"config.prefer.samples is {config.prefer.samples}; choose 2 to {most}")
    if not 0 <= config.prefer.overlap <= 1:
        raise ValueError(f"config.prefer.overlap is {config.prefer.overlap}; it is a share, 0 to 1")
    if not config.prefer.temperature > 0 or config.prefer.max_tokens < 1:
        raise ValueError(f"config.prefer.temperature is {config.prefer.temperature} and config.prefer.max_tokens "
                         f"{config.prefer.max_tokens}; both must be above 0")


def build(config: ConfigDict, workdir: str = "."):
    """Loads, compiles and wires everything; returns the `Server`, whose worker runs already."""
    try:
        from jaxllm.serve.api import create_app
        from jaxllm.serve.errors import ApiError
        from jaxllm.serve.preference_store import PreferenceStore, Preferring
        from jaxllm.serve.served import Limits, Served
        from jaxllm.serve.server import Server
        from jaxllm.serve.worker import Worker
    except ModuleNotFoundError as error:
        raise ValueError(f"serving needs the package {error.name}: pip install -e '.[serve]'") from error
    port = _free_port(config.host, config.port)
    prompts = read_prompts(config.prefer.prompts) if config.prefer.prompts else []
    params, model, tokenizer = _timed(f"loading {config.model}", lambda: load_model(config.model))
    capacity = min(config.capacity or MOST_CAPACITY, model.max_positions)
    limits = Limits(capacity=capacity, max_tokens=min(config.max_tokens or capacity, capacity),
                    max_samples=config.max_samples, max_prompts=config.max_prompts,
                    max_body_bytes=config.max_body_mib * 2**20)
    # One copy of the weights is held: what is looked into is what answers.
    params = _timed(f"weights in {config.weights}", functools.partial(to_serve, params, model, config))
    engine = Engine(params, model, slots=config.slots, capacity=capacity, chunk=config.chunk,
                    together=config.together, execution=Execution(dtype=config.dtype),
                    cache_dtype=config.cache_dtype or None,
                    valid_vocab=min(tokenizer.vocab_size, model.vocab_size))
    _timed("compiling", engine.warm_up)
    worker = Worker(engine, slots=config.slots, queue=config.queue)
    served = Served(params, model, tokenizer, config.model_id or _name(config.model), worker, limits,
                    begin_tokens=begin_tokens(config.begin, tokenizer))
    if config.prefer.collect:
        if not tokenizer.chat_template:
            raise ValueError(f"{config.model} has no chat template, and the samples to rank are replies; serve a chat "
                             f"model, or without config.prefer.collect")
        store = PreferenceStore(pathlib.Path(workdir), prompts, config.prefer.overlap)
        served.preferring = Preferring(store, config.prefer.samples, config.prefer.temperature,
                                       min(config.prefer.max_tokens, limits.max_tokens))
    try:
        _timed("grammars", served.grammars)
    except (ValueError, ImportError, ApiError) as error:  # a model that only continues text has none to make
        print(f"none: {getattr(error, 'detail', error)}", flush=True)
    worker.start()
    app = create_app(served, api_key=os.environ.get(config.api_key_env) or None, hosts=hosts(config),
                     cors_origins=tuple(config.cors_origins))
    return Server(app, served, host=config.host, port=port, grace_seconds=config.grace_seconds)


def to_serve(params: Params, model: ModelConfig, config: ConfigDict) -> Params:
    """The weights as the engine shall hold them."""
    if config.weights != "float32":
        params = jax.jit(quantize, static_argnums=(1, 2))(params, model, config.weights)
    dtype = None if config.weights == "bfloat16" else jax.numpy.dtype(config.dtype)
    return jax.block_until_ready(prepare_for_decoding(params, model, dtype=dtype))


def begin_tokens(begin: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that stand before a text of /v1/completions."""
    if not begin:
        return ()
    known = [spelling for spelling in (BEGINNINGS if begin == "auto" else (begin,))
             if spelling in tokenizer.special_tokens]
    if not known:
        raise ValueError(f"config.begin: {begin!r} is no special token here; the tokenizer has "
                         f"{', '.join(tokenizer.special_tokens)}")
    return (tokenizer.special_tokens[known[0]],)


def hosts(config: ConfigDict) -> tuple[str, ...]:
    """Names that the server answers to; () is any."""
    if config.host in LOOPBACK or config.hosts:
        return tuple(dict.fromkeys((*LOOPBACK, *(name.lower() for name in config.hosts))))
    return ()


def _free_port(host: str, port: int) -> int:
    """Refuses a port that is taken before the model is loaded; finds one for 0."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"{host}:{port} cannot be listened on ({error.strerror}); choose another "
                          f"--config.port") from error
        return probe.getsockname()[1]


def _timed(what: str, work):
    print(f"{what} ...", end=" ", flush=True)
    begun = time.perf_counter()
    result = work()
    print(f"{time.perf_counter() - begun:.1f} s", flush=True)
    return result


def _name(folder: str) -> str:
    path = pathlib.Path(folder).absolute()
    return path.parent.name if path.name == "model" else path.name


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    launch.run(main, default_config="configs/serve.py")
