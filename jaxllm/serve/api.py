"""The HTTP application: an OpenAI-compatible server over one model.

`create_app` makes a FastAPI application from a `Served`; nothing here starts a process (that is
`jaxllm.serve.server`). Every refusal has OpenAI's error shape, and what does not fit a schema is a 400.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from jaxllm.data import chat
from jaxllm.data.chat_guard import strings
from jaxllm.serve.body import JSONRoute
from jaxllm.serve.chat_completions import ChatAnswer
from jaxllm.serve.choices import token_text
from jaxllm.serve.completions import CompletionAnswer
from jaxllm.serve.errors import ApiError, answer_api_error, answer_failure, answer_validation_error
from jaxllm.serve.guard import OPEN_PATHS, Guard
from jaxllm.serve.prepare import check_model, prepare_chat, prepare_completion
from jaxllm.serve.run import full
from jaxllm.serve.schema import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, Sampling, TokenizeRequest
from jaxllm.serve.served import Served

# Seconds after which a silent stream sends a comment: it shows that the connection lives.
BEAT_SECONDS = 5.0
# Modules with `router(served)`, taken in where they are there, and the paths of theirs that need no key.
PAGES = ("jaxllm.serve.pages", "jaxllm.serve.inspection", "jaxllm.serve.preferring")
# What /tokenize takes: templates run in Python, beside the thread of the engine.
MOST_MESSAGES = 2048
MOST_CHARACTERS = 2**20


def create_app(served: Served, *, api_key: str | None = None, hosts: Sequence[str] = (),
               cors_origins: Sequence[str] = ()) -> FastAPI:
    """The application.

    Args:
      served: the model and its worker, which has been started.
      api_key: what clients must send as a bearer token; None lets everybody in.
      hosts: names by which clients may call this server; () takes any (see `guard.Guard`).
      cors_origins: origins whose pages may use this server from a browser; () is none but its own.
    """
    app = FastAPI(title="jaxllm", description="OpenAI-compatible server of one model", docs_url=None, redoc_url=None)
    open_paths = list(OPEN_PATHS)
    for router in (_model_router(served), _token_router(served), _state_router(served)):
        app.include_router(router)
    for name in PAGES:
        if (module := _optional(name)) is not None:
            app.include_router(module.router(served))
            open_paths += getattr(module, "OPEN_PATHS", ())
    app.add_exception_handler(HTTPException, answer_api_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(Exception, answer_failure)
    app.add_middleware(Guard, served=served, api_key=api_key, hosts=tuple(hosts), open_paths=tuple(open_paths))
    app.openapi = _described(app.openapi)
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["GET", "POST"],
                           allow_headers=["*"], expose_headers=["Retry-After"])
    return app


def _described(describe: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The OpenAPI description with this server's 400 in place of FastAPI's 422."""
    def described() -> dict[str, Any]:
        schema = describe()
        for path in schema["paths"].values():
            for operation in path.values():
                if operation["responses"].pop("422", None):
                    operation["responses"]["400"] = {"description": 'refused: {"error": {"message", ...}} says why'}
        return schema

    return described


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def _model_router(served: Served) -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=JSONRoute)
    card = {"id": served.model_id, "object": "model", "created": served.created, "owned_by": "jaxllm",
            "max_model_len": served.limits.capacity}

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @router.get("/models/{model:path}")
    async def show_model(model: str) -> dict[str, Any]:
        check_model(served, model)
        return card

    @router.post("/chat/completions")
    async def chat_completions(asked: ChatCompletionRequest, request: HTTPRequest) -> Response:
        _check_place(served)
        prepared = await run_in_threadpool(prepare_chat, served, asked)
        return await _answer(request, ChatAnswer(served, prepared, _wants_usage(asked)), bool(asked.stream))

    @router.post("/completions")
    async def completions(asked: CompletionRequest, request: HTTPRequest) -> Response:
        _check_place(served)
        prepared = await run_in_threadpool(prepare_completion, served, asked)
        answer = CompletionAnswer(served, prepared, _wants_usage(asked), bool(asked.echo))
        return await _answer(request, answer, bool(asked.stream))

    return router


def _token_router(served: Served) -> APIRouter:
    router = APIRouter(route_class=JSONRoute)

    @router.post("/tokenize")
    def tokenize(asked: TokenizeRequest) -> JSONResponse:  # no coroutine: all of it runs beside the event loop
        check_model(served, asked.model)
        ids = _token_ids(served, asked)
        answer = {"tokens": ids, "count": len(ids), "max_model_len": served.limits.capacity}
        if asked.return_token_strs:
            answer["token_strs"] = [token_text(served.tokenizer, token) for token in ids]
        return JSONResponse(answer)

    @router.post("/detokenize")
    def detokenize(asked: DetokenizeRequest) -> JSONResponse:
        check_model(served, asked.model)
        try:
            return JSONResponse({"prompt": served.tokenizer.decode(asked.tokens)})
        except ValueError as error:
            raise ApiError(400, str(error), param="tokens") from error

    return router


def _state_router(served: Served) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        if served.draining:
            return JSONResponse({"status": "stopping"}, 503)
        if not served.worker.alive:
            return JSONResponse({"status": "the engine has stopped"}, 503)
        return JSONResponse({"status": "ok", "model": served.model_id})

    @router.get("/metrics")
    async def metrics() -> PlainTextResponse:
        engine, worker = served.worker.engine, served.worker
        return PlainTextResponse(worker.metrics.text({
            "requests_open": ("requests that have not ended", worker.open),
            "requests_most_open": ("requests that may be open", worker.most_open),
            "requests_running": ("requests in a slot", engine.running),
            "requests_waiting": ("requests without a slot", max(worker.open - engine.running, 0)),
        }), media_type="text/plain; version=0.0.4")

    return router


def _token_ids(served: Served, asked: TokenizeRequest) -> list[int]:
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt")
    param = "messages" if asked.prompt is None else "prompt"
    if len(asked.messages or ()) > MOST_MESSAGES:
        raise ApiError(400, f"{len(asked.messages)} messages are more than the {MOST_MESSAGES} that one call takes; "
                            f"send them in parts", param=param)
    try:
        messages = [message.plain() for message in asked.messages or ()]
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
        characters = sum(map(len, strings([asked.prompt, messages, tools])))
        if characters > MOST_CHARACTERS:
            raise ApiError(400, f"{characters} characters are more than the {MOST_CHARACTERS} that one call takes; "
                                f"send them in parts", param=param)
        if asked.prompt is not None:
            return served.tokenizer.encode(asked.prompt)
        return chat.render(messages, served.tokenizer, tools=tools or None, mask=False,
                           add_generation_prompt=asked.add_generation_prompt).ids
    except (ValueError, RecursionError) as error:
        raise ApiError(400, str(error), param=param) from error


def _check_place(served: Served) -> None:
    """A full queue refuses before any work is done."""
    if served.worker.open >= served.worker.most_open:
        raise full(served, f"{served.worker.open} requests are open")


def _wants_usage(asked: Sampling) -> bool:
    return bool(asked.stream_options and asked.stream_options.include_usage)


async def _answer(request: HTTPRequest, answer: ChatAnswer | CompletionAnswer, stream: bool) -> Response:
    if stream:
        return _EventStream(answer)
    try:
        body = await _unless_gone(request, answer.whole())
    finally:
        answer.run.close()
    return JSONResponse(body) if body is not None else Response(status_code=499)


async def _unless_gone(request: HTTPRequest, work: Any) -> Any:
    """The result of `work`, or None as soon as the client has hung up."""
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()


class _EventStream(StreamingResponse):
    """Server-sent events; whatever ends the response, a hang-up too, gives the slots back."""

    def __init__(self, answer: ChatAnswer | CompletionAnswer) -> None:
        super().__init__(_events(answer), media_type="text/event-stream",
                         headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._run = answer.run

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.close()


async def _events(answer: ChatAnswer | CompletionAnswer) -> AsyncIterator[str]:
    try:
        async for chunk in answer.chunks(BEAT_SECONDS):
            yield ": waiting\n\n" if chunk is None else f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"
    except ApiError as error:  # the status has been sent: the error goes where the text would
        yield f"data: {json.dumps(error.body())}\n\n"
