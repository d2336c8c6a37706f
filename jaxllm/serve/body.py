"""Reading a request's body: JSON from strangers, into values that every later step can hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from jaxllm.serve.errors import ApiError


def parse_json(body: bytes) -> Any:
    """The value of a JSON text; a lone surrogate in a string becomes U+FFFD, as everywhere in this project.

    Raises:
      ApiError: 400 for bytes that are not UTF-8 or not JSON, for NaN and infinities, and for values nested deeper
        than Python can follow.

    >>> parse_json(b'{"a": "x\\\\ud800"}')
    {'a': 'x\ufffd'}
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse)
        return _clean(value) if "\\ud" in text.lower() else value
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # JSON, UTF-8, or an integer of thousands of digits
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON value")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_clean(part) for part in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(part) for key, part in value.items()}
    return value


class _JSONRequest(HTTPRequest):
    async def json(self) -> Any:
        return parse_json(await self.body())


class JSONRoute(APIRoute):
    """A route whose body is read by `parse_json`, and must be declared as JSON.

    A page of another site can make a browser send any text here without asking, but not with that content type.
    """

    def get_route_handler(self) -> Callable[[HTTPRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: HTTPRequest) -> Response:
            if request.method == "POST":
                kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
                if kind != "application/json":
                    raise ApiError(400, f"send the body as application/json, not as {kind[:60] or 'nothing'}",
                                   code="invalid_content_type")
            return await handle(_JSONRequest(request.scope, request.receive))

        return read_and_handle
