"""The pages chat, tokens and rank, from files beside this module: no build step, nothing from elsewhere."""

from __future__ import annotations

import functools
import hashlib
import pathlib

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from jaxllm.serve.errors import ApiError
from jaxllm.serve.served import Served

FOLDER = pathlib.Path(__file__).with_name("pages")
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
# They hold nothing of the model's; the calls that they make need the key where there is one.
OPEN_PATHS = ("/", "/tokens", "/prefer", "/pages/")
# Nothing but these files runs, loads or is called, whatever a model writes into the page.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                               "require-trusted-types-for 'script'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def router(served: Served) -> APIRouter:
    """`/` (chat), `/tokens`, `/prefer` (rank) and their files."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    def chat_page(request: HTTPRequest) -> Response:
        return send("chat.html", request)

    @routes.get("/tokens")
    def tokens_page(request: HTTPRequest) -> Response:
        return send("tokens.html", request)

    @routes.get("/prefer")
    def prefer_page(request: HTTPRequest) -> Response:
        return send("prefer.html", request)

    @routes.get("/pages/{name}")
    def file(name: str, request: HTTPRequest) -> Response:
        return send(name, request)

    return routes


@functools.cache
def _files() -> dict[str, tuple[bytes, str]]:
    """Name -> (content, ETag): all there is to serve, so no path is ever made of what a client sent."""
    contents = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}
    return {name: (content, f'"{hashlib.sha256(content).hexdigest()[:32]}"') for name, content in contents.items()}


def send(name: str, request: HTTPRequest) -> Response:
    """The answer to a request for one of the files; ApiError when there is no such file."""
    if name not in _files():
        raise ApiError(404, "there is no such file")
    content, tag = _files()[name]
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[pathlib.Path(name).suffix], headers=headers)
