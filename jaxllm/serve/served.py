"""What a running server holds: the model, its worker and the limits; the routers share one of these."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

from jaxllm.data import chat
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params

if TYPE_CHECKING:
    from jaxllm.serve.grammar import Grammars
    from jaxllm.serve.preference_store import Preferring
    from jaxllm.serve.worker import Worker


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a client may ask for.

    Attributes:
      capacity: tokens that a request may take, prompt and continuation together; that of the engine.
      max_tokens: new tokens that one choice may ask for, at most.
      max_samples: choices (`n`) of one request, at most.
      max_prompts: prompts in one call of /v1/completions, at most.
      max_body_bytes: size of a request's body, at most.

    Raises:
      ValueError: for a limit below 1.
    """

    capacity: int = 1024
    max_tokens: int = 1024
    max_samples: int = 16
    max_prompts: int = 64
    max_body_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"limits.{field.name} is {getattr(self, field.name)}; it must be at least 1")


@dataclasses.dataclass
class Served:
    """The state of a server; `pages.router(served)` and `inspection.router(served)` take it too.

    Attributes:
      params: the weights as loaded, for what looks inside the model; the engine may hold a faster form of them.
      config: the architecture.
      tokenizer: of the model.
      model_id: the name in /v1/models.
      worker: owns the engine.
      limits: what a client may ask for.
      begin_tokens: put before a text of /v1/completions: what stands before a document.
      created: unix time in seconds, as /v1/models states it.
      preferring: how people's rankings of samples are collected; None where they are not.
      draining: True once the server is stopping: what runs may finish, nothing new is taken.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    model_id: str
    worker: Worker
    limits: Limits
    begin_tokens: tuple[int, ...] = ()
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))
    preferring: Preferring | None = None
    draining: bool = False
    _grammars: Grammars | None = dataclasses.field(default=None, repr=False)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def grammars(self) -> Grammars:
        """The grammars over this tokenizer, made at the first call (up to a second for a large vocabulary).

        Raises:
          ApiError: 400 when llguidance is not installed.
        """
        from jaxllm.serve.errors import unsupported
        from jaxllm.serve.grammar import Grammars
        with self._lock:
            if self._grammars is None:
                try:
                    self._grammars = Grammars(self.tokenizer, self.config.vocab_size, chat.end_of_turn(self.tokenizer))
                except ModuleNotFoundError as error:
                    raise unsupported("response_format", f"{error} on the server") from error
            return self._grammars
