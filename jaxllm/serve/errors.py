"""Refusals in the shape that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request as HTTPRequest

TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(HTTPException):
    """An answer other than 200.

    Args:
      status: HTTP status.
      message: one sentence that says what is wrong and what to change.
      param: the field of the request that is meant, if one is.
      code: a word that a program can compare.
      headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail=message, headers=dict(headers or {}))
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The json of the answer."""
        return error_body(self.status_code, self.detail, self.param, self.code)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, self.headers)


def unsupported(param: str, reason: str) -> ApiError:
    """400 for something that OpenAI has and this server has not."""
    return ApiError(400, f"{param} is not supported: {reason}", param=param, code="unsupported_parameter")


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def answer_api_error(request: HTTPRequest, error: Exception) -> JSONResponse:
    """Handler for `ApiError` and for what Starlette raises itself (404, 405)."""
    if isinstance(error, ApiError):
        return error.response()
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)


async def answer_validation_error(request: HTTPRequest, error: Exception) -> JSONResponse:
    """Handler for a body that does not fit its schema: 400 with the first reasons, never the input itself."""
    assert isinstance(error, RequestValidationError)
    found = [(".".join(str(part) for part in problem["loc"] if part != "body"), problem["msg"])
             for problem in error.errors()]
    message = "; ".join(f"{where or 'body'}: {what}" for where, what in found[:4])
    if len(found) > 4:
        message += f"; and {len(found) - 4} more"
    param = found[0][0] if found and found[0][0] else None
    return JSONResponse(error_body(400, message, param, "invalid_request"), 400)


async def answer_failure(request: HTTPRequest, error: Exception) -> JSONResponse:
    """Handler for what nobody foresaw: 500 without the inside of the server."""
    return JSONResponse(error_body(500, f"the server failed on this request ({type(error).__name__}); its log "
                                        f"says more", code="internal_error"), 500)
