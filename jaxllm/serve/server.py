"""Starting and stopping: a worker that is warm before the first request, and a stop that loses nothing in a hurry."""

from __future__ import annotations

import threading
from typing import Any

import uvicorn
from fastapi import FastAPI

from jaxllm.serve.served import Served


class Server(uvicorn.Server):
    """uvicorn that, told to stop, lets running requests finish while new ones are refused with 503.

    The first SIGINT or SIGTERM begins that; it ends when nothing is open or `grace_seconds` have passed, and then
    what is left is told that the server stops. A second signal does not wait.

    Args:
      app: made by `create_app`.
      served: what it serves.
      host, port: where to listen; port 0 takes a free one.
      grace_seconds: how long running requests may go on.
      options: further settings of `uvicorn.Config`.
    """

    def __init__(self, app: FastAPI, served: Served, *, host: str = "127.0.0.1", port: int = 8000,
                 grace_seconds: float = 30.0, **options: Any) -> None:
        # uvicorn's own logging set-up would close the handlers that the process has.
        settings = {"log_config": None, "log_level": "warning", "timeout_graceful_shutdown": 5, "server_header": False,
                    **options}
        super().__init__(uvicorn.Config(app, host=host, port=port, **settings))
        self.served = served
        self.grace_seconds = grace_seconds
        self._stopping: threading.Thread | None = None

    @property
    def address(self) -> str:
        """http://host:port, once it listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def handle_exit(self, sig: int, frame: Any) -> None:
        """uvicorn's handler of signals."""
        if self._stopping is not None:
            self.force_exit = self.should_exit = True
        self.stop()

    def stop(self) -> None:
        """Begins to stop; returns at once."""
        self.served.draining = True
        if self._stopping is None:
            self._stopping = threading.Thread(target=self._drain, name="drain", daemon=True)
            self._stopping.start()

    def _drain(self) -> None:
        self.served.worker.stop(self.grace_seconds)
        self.should_exit = True
