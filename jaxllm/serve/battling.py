"""The page on which people judge battles blind: two replies side by side, and nothing that says whose they are.

A server of its own, without a model: the replies are there before it starts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from jaxllm.evals.arena_play import Battle
from jaxllm.serve import pages
from jaxllm.serve.battle_store import BattleStore
from jaxllm.serve.body import JSONRoute
from jaxllm.serve.errors import answer_api_error, answer_failure, answer_validation_error
from jaxllm.serve.guard import LOOPBACK
from jaxllm.serve.judging import Annotator, Name, NextRequest, known
from jaxllm.serve.schema import Strict


class BattleRequest(Strict):
    annotator: Annotator
    battle: Name


class VoteRequest(BattleRequest):
    verdict: Literal["left", "right", "tie", "bad"]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


def serve(store: BattleStore, host: str, port: int) -> None:
    """Shows the page until Ctrl-C (SIGINT); another signal ends the process, which loses no vote.

    Raises:
      OSError: the port is taken.
    """
    config = uvicorn.Config(create_app(store, host), host=host, port=port, log_level="warning", server_header=False)
    listening = config.bind_socket()  # says that a port is taken, where uvicorn would end the process
    name, number = listening.getsockname()[:2]
    print(f"{len(store.battles)} battles to judge at http://{f'[{name}]' if ':' in name else name}:{number}; votes go "
          f"to {store.file}; Ctrl-C ends it and ranks them", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # raised again by uvicorn once all is closed
        pass


def create_app(store: BattleStore, host: str = "127.0.0.1") -> FastAPI:
    """The application: `/` is the page, `/battles` what it calls.

    Args:
      store: of the battles.
      host: where it listens. On this machine alone, it answers to no other name: a page of another site can point a
        name of its own here.
    """
    app = FastAPI(title="jaxllm battles", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(_page_router())
    app.include_router(_battle_router(store))
    app.add_exception_handler(HTTPException, answer_api_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(Exception, answer_failure)
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    return app


def _page_router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    def page(request: HTTPRequest) -> Response:
        return pages.send("battle.html", request)

    @routes.get("/pages/{name}")
    def file(name: str, request: HTTPRequest) -> Response:
        return pages.send(name, request)

    return routes


def _battle_router(store: BattleStore) -> APIRouter:
    routes = APIRouter(prefix="/battles", route_class=JSONRoute)

    def shown(battle: Battle | None, annotator: str) -> dict[str, Any]:
        body: dict[str, Any] = {"judged": store.counts().get(annotator, 0), "battles": len(store.battles)}
        if battle is not None:
            left = store.left(battle, annotator)
            body |= {"battle": battle.name, "prompt": list(battle.prompt), "left": battle.completions[left],
                     "right": battle.completions[1 - left]}
        return body

    @routes.post("/next")
    def next_battle(asked: NextRequest) -> dict[str, Any]:
        """A battle to judge; without one in the answer, all are judged."""
        return shown(store.next(asked.annotator, asked.holding), asked.annotator)

    @routes.post("/vote")
    def vote(asked: VoteRequest) -> dict[str, Any]:
        """Saves a verdict; when this answers, it is on the disk."""
        with known("battle", asked.battle):
            return {"judged": store.vote(asked.battle, asked.annotator, asked.verdict, seconds=asked.seconds)}

    @routes.post("/skip")
    def skip(asked: BattleRequest) -> dict[str, Any]:
        """Passes a battle over."""
        with known("battle", asked.battle):
            store.skip(asked.battle, asked.annotator)
        return {}

    @routes.post("/undo")
    def undo(asked: BattleRequest) -> dict[str, Any]:
        """Takes back what was done with a battle, and shows it again."""
        with known("battle", asked.battle):
            return shown(store.undo(asked.battle, asked.annotator), asked.annotator)

    return routes
