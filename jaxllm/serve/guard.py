"""What a request must pass before a route sees it: host name, key, size, and a server that is not stopping."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

from jaxllm.serve.errors import ApiError
from jaxllm.serve.served import Served

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Served without a key: they hold nothing of the model's and nothing of the users'.
OPEN_PATHS = ("/health", "/openapi.json")


class Guard:
    """ASGI middleware.

    Args:
      app: what it stands before.
      served: its metrics, limits and state.
      api_key: asked for as `Authorization: Bearer KEY` on every path but `open_paths`; None asks for none.
      hosts: names that a request may give as its Host; () takes any. A page of another site can point a name of its
        own at this machine (DNS rebinding) and then read answers: with the names known, it cannot.
      open_paths: served without a key; one that ends in "/" stands for all below it. Only for GET.
    """

    def __init__(self, app: Any, served: Served, api_key: str | None = None, hosts: Sequence[str] = (),
                 open_paths: Sequence[str] = OPEN_PATHS) -> None:
        self.app = app
        self.served = served
        self.api_key = api_key.encode() if api_key else None
        self.hosts = frozenset(hosts)
        self.open_paths = tuple(open_paths)

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        seen = {"status": 0}

        async def counted_send(message: dict) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
            await send(message)

        try:
            self._check(scope, headers)
            await self.app(scope, self._counting(receive), counted_send)
        except ApiError as refusal:
            if seen["status"]:
                raise
            await refusal.response()(scope, receive, counted_send)
        except Exception:  # answered outside of this middleware, as a 500
            seen["status"] = seen["status"] or 500
            raise
        finally:
            self.served.worker.metrics.http_requests.add(1, _label(scope), str(seen["status"] or "none"))

    def _check(self, scope: dict, headers: dict[str, bytes]) -> None:
        if self.hosts:
            host = _host_name(headers.get("host", b"").decode("latin-1"))
            if host not in self.hosts:
                raise ApiError(403, f"this server is not called {host[:100]!r}: use one of "
                                    f"{', '.join(sorted(self.hosts))}, or start it with that name among its hosts",
                               code="unknown_host")
        if self.api_key is not None and not self._open(scope):
            scheme, _, key = headers.get("authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.api_key):
                raise ApiError(401, "this server asks for an API key: send it as Authorization: Bearer KEY",
                               code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if self.served.draining and scope["method"] != "GET":
            raise ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "30"})
        length = headers.get("content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.served.limits.max_body_bytes:
            raise self._too_large()

    def _open(self, scope: dict) -> bool:
        path = scope["path"]
        return scope["method"] in ("GET", "HEAD") and any(
            path == known or known.endswith("/") and len(known) > 1 and path.startswith(known)
            for known in self.open_paths)

    def _too_large(self) -> ApiError:
        most = self.served.limits.max_body_bytes
        return ApiError(413, f"the body is larger than the {most} bytes that this server takes", code="body_too_large",
                        headers={"Connection": "close"})

    def _counting(self, receive: Any) -> Any:
        """`receive` that ends a body whose length was not stated once it is too long."""
        taken = 0

        async def counted() -> dict:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.served.limits.max_body_bytes:
                raise self._too_large()
            return message

        return counted


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _label(scope: dict) -> str:
    """The path of the route that answered: there are few of these, whatever strangers ask for."""
    route = scope.get("route")
    return getattr(route, "path", "other")

