"""What the page that collects rankings calls: samples of the model to order, and what people make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from jaxllm.data.preferences import Message
from jaxllm.serve import judging
from jaxllm.serve.body import JSONRoute
from jaxllm.serve.chat_completions import ChatAnswer
from jaxllm.serve.errors import ApiError
from jaxllm.serve.preference_store import Preferring, SampleSet
from jaxllm.serve.prepare import prepare_chat
from jaxllm.serve.schema import ChatCompletionRequest, Strict
from jaxllm.serve.served import Served

# As many as there are digits to press.
MOST_SAMPLES = 9
# Draws before it is said that the model gives one and the same answer.
MOST_DRAWS = 3


class NextRequest(judging.NextRequest):
    prompt: str | None = Field(None, min_length=1, max_length=20_000, description="in place of the next of the list")


class SetRequest(Strict):
    annotator: judging.Annotator
    set: judging.Name


class RankRequest(SetRequest):
    ranking: list[list[Annotated[int, Field(ge=0)]]] = Field(
        max_length=MOST_SAMPLES, description="tiers of indices into the completions as shown, best first")
    seconds: float | None = Field(None, ge=0, allow_inf_nan=False, description="time that it took")


def router(served: Served) -> APIRouter:
    """The routes below /preferences."""
    routes = APIRouter(prefix="/preferences", route_class=JSONRoute)

    @routes.get("")
    def state() -> dict[str, Any]:
        """Who ranked how much, and how far they agree."""
        preferring = _preferring(served)
        agreed = preferring.store.agreement()
        two = [{"annotators": pair.annotators, "sets": pair.sets, "pairs": pair.pairs, "agreed": pair.agreed[0],
                "kappa": _numbers(pair.kappa)} for pair in agreed.two]
        return {"model": served.model_id, "samples": preferring.samples, "prompts": len(preferring.store.prompts),
                "file": str(preferring.store.file), "annotators": preferring.store.counts(), "two": two,
                "all": {"pairs": agreed.pairs, "kappa": _numbers(agreed.fleiss)} if agreed.fleiss else None}

    @routes.post("/next")
    async def next_set(asked: NextRequest) -> dict[str, Any]:
        """A set to rank: one that waits for this annotator, or a new one."""
        preferring = _preferring(served)
        store = preferring.store
        found = store.waiting(asked.annotator, asked.holding) if asked.prompt is None else None
        if found is None:
            prompt = store.next_prompt() if asked.prompt is None else ({"role": "user", "content": asked.prompt},)
            if prompt is None:
                raise ApiError(409, "this server has no list of prompts; write one", code="no_prompts")
            completions = await _draw(served, preferring, prompt)
            found = await run_in_threadpool(store.add, prompt, completions, asked.annotator, asked.prompt is None)
        return _shown(found, asked.annotator)

    @routes.post("/rank")
    def rank(asked: RankRequest) -> dict[str, Any]:
        """Saves a ranking; when this answers, it is on the disk."""
        store = _preferring(served).store
        try:
            with judging.known("set", asked.set):
                return {"ranked": store.rank(asked.set, asked.annotator, asked.ranking, model=served.model_id,
                                             seconds=asked.seconds)}
        except ValueError as error:
            raise ApiError(400, str(error), param="ranking") from error

    @routes.post("/skip")
    def skip(asked: SetRequest) -> dict[str, Any]:
        """Passes a set over."""
        with judging.known("set", asked.set):
            _preferring(served).store.skip(asked.set, asked.annotator)
        return {}

    @routes.post("/undo")
    def undo(asked: SetRequest) -> dict[str, Any]:
        """Takes back what was done with a set, and shows it again."""
        store = _preferring(served).store
        with judging.known("set", asked.set):
            store.undo(asked.set, asked.annotator)
            return _shown(store.find(asked.set), asked.annotator)

    return routes


def _preferring(served: Served) -> Preferring:
    if served.preferring is None:
        raise ApiError(404, "this server collects no rankings; start it with --config.prefer.collect=True",
                       code="not_collecting")
    return served.preferring


def _shown(found: SampleSet, annotator: str) -> dict[str, Any]:
    return {"set": found.name, "prompt": found.prompt,
            "completions": [found.completions[i] for i in found.shown(annotator)]}


async def _draw(served: Served, preferring: Preferring, prompt: Sequence[Message]) -> list[str]:
    """Different completions of a prompt, as many as wanted or as a few draws give, at least two."""
    found: dict[str, None] = {}
    for _ in range(MOST_DRAWS):
        asked = ChatCompletionRequest.model_validate({
            "messages": list(prompt), "n": preferring.samples, "temperature": preferring.temperature,
            "max_tokens": preferring.max_tokens})
        answer = ChatAnswer(served, await run_in_threadpool(prepare_chat, served, asked))
        try:
            body = await answer.whole()
        finally:
            answer.run.close()
        found |= dict.fromkeys(choice["message"]["content"] for choice in body["choices"])
        if len(found) >= preferring.samples:
            break
    if len(found) < 2:
        raise ApiError(409, "the model gives one and the same answer to this prompt; there is nothing to rank",
                       code="one_answer")
    return list(found)[:preferring.samples]


def _numbers(interval: tuple[float, float, float]) -> list[float | None]:
    """Value, low and high for JSON, which has no nan."""
    return [number if math.isfinite(number) else None for number in interval]
