"""A model behind an OpenAI-compatible API, asked for one reply at a time (extra `interop`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

# (a user's message or a whole conversation, temperature, most tokens) -> reply.
Complete = Callable[[str | Sequence[Mapping[str, Any]], float, int], str]
_Read = TypeVar("_Read")


def connect(base_url: str, model: str, *, key: str = "none", seconds: float = 60.0, attempts: int = 3) -> Complete:
    """A function that asks a model.

    Args:
      base_url: of the API, such as http://127.0.0.1:8000/v1.
      model: what the server calls it.
      key: sent as the API key.
      seconds: waited for one reply.
      attempts: at one request, the first included, when the server does not answer.

    Raises:
      ValueError: when the openai client is not installed.
      OSError: from the function: the server cannot be reached or refuses the request.
    """
    try:
        import openai
    except ImportError as error:
        raise ValueError("a model behind an API needs the openai client: pip install -e '.[interop]'") from error
    client = openai.OpenAI(base_url=base_url, api_key=key, timeout=seconds, max_retries=attempts - 1)

    def complete(prompt: str | Sequence[Mapping[str, Any]], temperature: float, max_tokens: int) -> str:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        try:
            reply = client.chat.completions.create(model=model, messages=messages, temperature=temperature,
                                                   max_tokens=max_tokens)
        except openai.OpenAIError as error:
            raise OSError(f"{base_url}, model {model}: {error}") from error
        return reply.choices[0].message.content or "" if reply.choices else ""
    return complete


def until_read(complete: Complete, prompt: str, max_tokens: int, attempts: int, read: Callable[[str], _Read | None]
               ) -> _Read | None:
    """What `read` makes of the first reply that it does not answer with None; the first is greedy, the others drawn."""
    for attempt in range(attempts):
        found = read(complete(prompt, 0.0 if attempt == 0 else 1.0, max_tokens))
        if found is not None:
            return found
    return None
