"""Our side and its peers in the decoding contest: greedy continuation by us, by transformers and by llama.cpp.

Each function sets one way up in its own process and returns `run(count) -> seconds` for `count` calls, each of `new`
tokens for every one of `batch` prompts, and the bytes of weights that one step reads.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.launch import set_up_process
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, ModelConfig, preset
from jaxllm.model.params import Params, init
from jaxllm.model.quantize import prepare_for_decoding, quantize, tree_bytes
from jaxllm.train.checkpoint import load_model

Run = Callable[[int], float]


def open_weights(model: str, folder: str, dtype: Any = jnp.float32) -> tuple[Params, ModelConfig]:
    """The model of a folder, or the preset `model` with random weights."""
    if folder:
        return load_model(folder, dtype=dtype)[:2]
    config = preset(model)
    return jax.jit(lambda: init(config, jax.random.key(0), dtype))(), config


def prompts_of(config: ModelConfig, batch: int, prompt: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(config.vocab_size, size=(batch, prompt)).tolist()


def ours(model: str, folder: str, batch: int, prompt: int, new: int, scheme: str) -> tuple[Run, dict[str, Any]]:
    """`generate` with weights in a scheme; activations in float32 on a CPU, in bfloat16 elsewhere."""
    set_up_process()
    dtype = "float32" if jax.default_backend() == "cpu" and scheme != "bfloat16" else "bfloat16"
    params, config = open_weights(model, folder, jnp.dtype(dtype))
    if scheme not in ("float32", "bfloat16"):
        params = jax.jit(functools.partial(quantize, config=config, scheme=scheme))(params)
    tree, params = prepare_for_decoding(params, config, dtype=dtype), None
    prompts = prompts_of(config, batch, prompt)
    looked_up = dict(tree["embedding"])
    if config.tied_embedding:
        del looked_up["tokens"]

    def run(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            generate(tree, config, prompts, key=0, max_tokens=new, settings=SamplingSettings(temperature=0.0),
                     execution=Execution(dtype=dtype)).tokens.block_until_ready()
        return time.perf_counter() - begun

    run(1)
    return run, {"weight_bytes": tree_bytes(tree) - tree_bytes(looked_up)}


def transformers(model: str, folder: str, batch: int, prompt: int, new: int, dtype: str, threads: int
                 ) -> tuple[Run, dict[str, Any]]:
    """transformers' `generate`; on a GPU with a static cache and a compiled step."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from experiments.benchmark_torch import finish, set_up
    from jaxllm.model.convert import HuggingFaceState
    from jaxllm.model.convert_config import config_to_hugging_face

    device = set_up(threads)
    params, config = open_weights(model, folder) if folder else (None, preset(model))
    theirs = config_to_hugging_face(config)
    end = config.vocab_size - 1
    settings = AutoConfig.for_model(theirs.pop("model_type"), **theirs, bos_token_id=end, eos_token_id=end,
                                    pad_token_id=end)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, dtype)).eval()
    if params is not None:
        state = {name: torch.from_numpy(np.array(array)) for name, array in HuggingFaceState(params, config).items()}
        module.load_state_dict(state, strict=False)  # a tied head is not among them
    options: dict[str, Any] = {}
    if device == "cuda":
        options["cache_implementation"] = "static"
        module.forward = torch.compile(module.forward, mode="reduce-overhead", fullgraph=True)
    tokens = torch.tensor(prompts_of(config, batch, prompt), device=device)

    def run(count: int, new: int = new) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            with torch.inference_mode():
                out = module.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new,
                                      min_new_tokens=new, do_sample=False, use_cache=True, **options)
            finish(device)
        if out.shape[1] != prompt + new:
            raise RuntimeError(f"{out.shape[1] - prompt} new tokens instead of {new}")
        return time.perf_counter() - begun

    run(1, new if device == "cuda" else 2)
    looked_up = 0 if config.tied_embedding else module.get_input_embeddings().weight.nbytes
    return run, {"weight_bytes": sum(weight.nbytes for weight in module.parameters()) - looked_up}


def llama_cpp(model: str, folder: str, batch: int, prompt: int, new: int, scheme: str, threads: int
              ) -> tuple[Run, dict[str, Any]]:
    """llama.cpp, in the wheel xllamacpp, on the same weights written as GGUF: `batch` requests at once."""
    import xllamacpp

    with tempfile.TemporaryDirectory() as where:
        path = os.path.join(where, "model.gguf")
        config = write_gguf_of(path, model, folder, scheme)
        size = os.path.getsize(path)
        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_parallel = path, batch
        settings.n_ctx = batch * 32 * -(-(prompt + new + 1) // 32)
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        server = xllamacpp.Server(settings)  # keeps the file open once it is mapped
    prompts = prompts_of(config, batch, prompt)

    def ask(tokens: list[int]) -> int:
        answer = server.handle_completions({"prompt": tokens, "n_predict": new, "temperature": 0.0, "ignore_eos": True,
                                            "cache_prompt": False})
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        return answer["usage"]["completion_tokens"]

    def run(count: int) -> float:
        begun = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(batch) as pool:
            for _ in range(count):
                found = set(pool.map(ask, prompts))
        if found != {new}:
            raise RuntimeError(f"{sorted(found)} new tokens instead of {new}")
        return time.perf_counter() - begun

    run(1)
    return run, {"weight_bytes": size}


def write_gguf_of(path: str, model: str, folder: str, scheme: str) -> ModelConfig:
    """Writes a model for llama.cpp; one with random weights gets a small tokenizer, which no timing reads."""
    from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
    from jaxllm.data.tokenizer_gguf import tokenizer_to_gguf
    from jaxllm.model.gguf_write import write_gguf

    params, config = open_weights(model, folder)
    tokenizer = train_tokenizer(["the cat sat on the mat. "], min(config.vocab_size, 256 + 2 + len(SPECIAL_TOKENS)))
    write_gguf(path, params, config, tokenizer_to_gguf(tokenizer, config.vocab_size), scheme=scheme)
    return config


def bandwidth(megabytes: int = 512, seconds: float = 1.0) -> tuple[Run, dict[str, Any]]:
    """Bytes per second that the device's memory moves: the best of copying and of summing a large array."""
    set_up_process()
    x = jnp.ones((megabytes * 2**20 // 4096, 1024), jnp.float32)
    best = 0.0
    for moved, function in ((2 * x.nbytes, jax.jit(lambda x: x + 1)), (x.nbytes, jax.jit(lambda x: x.sum(axis=1)))):
        function(x).block_until_ready()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            begun = time.perf_counter()
            function(x).block_until_ready()
            best = max(best, moved / (time.perf_counter() - begun))
    return lambda count: 0.0, {"bytes_per_second": best}
