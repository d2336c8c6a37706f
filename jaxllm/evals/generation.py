"""Replies to many prompts by the engine: greedy or drawn, ended by tokens and by stop strings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxllm.data.chat import end_of_turn, render
from jaxllm.evals.language_model import LanguageModel, encode_context
from jaxllm.evals.loglikelihood import Progress
from jaxllm.infer.engine import Engine, Request
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.infer.text_stream import TextStream


def encode_prompt(model: LanguageModel, prompt: str) -> list[int]:
    """Token ids of a prompt: as a user's message where the model chats, else as text."""
    if model.chat:
        return render([{"role": "user", "content": prompt}], model.tokenizer, add_generation_prompt=True).ids
    return encode_context(model, prompt) or [model.tokenizer.begin_of_text]


def complete(model: LanguageModel, prompts: Sequence[str], *, max_tokens: int | Sequence[int] = 256,
             stop: Sequence[str] | Sequence[Sequence[str]] = (), temperature: float = 0.0, seed: int = 0,
             slots: int = 16, progress: Progress | None = None) -> list[str]:
    """The model's replies, in the order of the prompts.

    Args:
      model: see `LanguageModel`.
      prompts: texts, or a user's messages where model.chat; one that is too long loses its beginning.
      max_tokens: of a reply, for all or for each.
      stop: strings that end a reply, which then ends before them; for all, or a list for each.
      temperature: 0 is greedy.
      seed: of the draws; prompt i is sample i of it.
      slots: replies written at once, on each device.
      progress: called as replies end.

    Raises:
      ValueError: for max_tokens that leave no room for a prompt.
    """
    most = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else list(max_tokens)
    stops = [tuple(stop)] * len(prompts) if all(isinstance(one, str) for one in stop) else list(map(tuple, stop))
    if prompts and max(most) >= model.positions:
        raise ValueError(f"max_tokens is {max(most)}, which leaves no room for a prompt in the model's "
                         f"{model.positions} positions; lower it")
    # A chat model ends a turn where it was asked by text too; what it draws behind that is a conversation of its own.
    ended = end_of_turn(model.tokenizer) if model.tokenizer.chat_template else (model.tokenizer.end_of_text,)
    requests = [Request(encode_prompt(model, prompt)[-(model.positions - limit):], max_tokens=limit, stop_tokens=ended,
                        settings=SamplingSettings(temperature=temperature), seed=seed, sample=number)
                for number, (prompt, limit) in enumerate(zip(prompts, most, strict=True))]
    # Capacities are whole quarters of a thousand, so that tasks share the engine's programs.
    longest = max((len(request.prompt) + request.max_tokens for request in requests), default=1)
    capacity = min(256 * math.ceil(longest / 256), model.positions)
    with model.on_mesh():
        engine = Engine(model.params, model.config, slots=slots * model.parts, capacity=capacity,
                        execution=model.execution, valid_vocab=model.tokenizer.vocab_size)
        return _served(engine, model, requests, stops, set(ended), progress)


def _served(engine: Engine, model: LanguageModel, requests: Sequence[Request], stops: Sequence[Sequence[str]],
            ended: set[int], progress: Progress | None) -> list[str]:
    texts, done = [""] * len(requests), 0
    streams = [TextStream(model.tokenizer.decode_bytes, stop) for stop in stops]
    places = {engine.submit(request): place for place, request in enumerate(requests)}
    while engine.waiting or engine.running:
        for event in engine.step():
            place = places[event.request_id]
            stream = streams[place]
            if stream.stopped:
                continue  # drawn before it was cancelled
            if event.token is not None and event.token not in ended:
                texts[place] += stream.push(event.token)
            if stream.stopped and event.finish is None:
                engine.cancel(event.request_id)
            if stream.stopped or event.finish:
                texts[place] += stream.finish()
                done += 1
                if progress:
                    progress(done, len(requests))
    return texts
