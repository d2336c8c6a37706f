"""From the engine's events to the text of a choice, its log-probabilities and the reason why it ended."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import math
from typing import Any

from jaxllm.data import chat
from jaxllm.data.chat_jinja import NAMED_TOKENS
from jaxllm.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from jaxllm.infer.engine import Event
from jaxllm.infer.text_stream import TextStream

# OpenAI's stand-in for log-probabilities that JSON cannot hold.
LEAST_LOGP = -9999.0
# Text even where a chat format begins a reply with them: without them an answer runs on from its reasoning.
_REASONING = frozenset(("<think>", "</think>"))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A token of a choice.

    Attributes:
      token: its id.
      logp: nats, under the model.
      alternatives: (id, logp) of the likeliest tokens.
      offset: character of the choice's text at which it begins.
    """

    token: int
    logp: float
    alternatives: tuple[tuple[int, float], ...]
    offset: int


@dataclasses.dataclass
class Piece:
    """What came to a choice: text that is certain, the tokens that make it up, and its end.

    Attributes:
      finish: None while it goes on; "stop" or "length".
    """

    text: str = ""
    entries: list[Entry] = dataclasses.field(default_factory=list)
    finish: str | None = None


class Choice:
    """One continuation as it is written.

    Args:
      tokenizer: decodes the tokens.
      stop_tokens: end the choice and are no part of its text.
      stops: strings that end it before them.
      shown: control tokens whose spelling is part of the text; of the others (`control_tokens`) nothing is seen.

    Attributes:
      text: all that was given out.
      tokens: how many tokens were drawn, the stop token among them.
      cached_tokens: tokens of the prompt that needed no work.
      finish: as in `Piece`.
    """

    def __init__(self, tokenizer: Tokenizer, stop_tokens: tuple[int, ...], stops: tuple[str, ...] = (),
                 shown: frozenset[int] = frozenset()) -> None:
        self.text = ""
        self.tokens = 0
        self.cached_tokens = 0
        self.finish: str | None = None
        self._tokenizer = tokenizer
        self._stop_tokens = stop_tokens
        self._hidden = control_tokens(tokenizer) - shown
        self._stream = TextStream(self._bytes, stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoded = 0  # characters of all tokens so far, held back or not
        self._waiting: list[Entry] = []

    def push(self, events: list[Event]) -> Piece:
        """Takes the events of a step; events after the end are ignored."""
        piece = Piece()
        for event in events:
            if self.finish is None:
                piece.text += self._push(event)
        self.text += piece.text
        if self.finish is None or self._stream.stopped:
            ready = [entry for entry in self._waiting if entry.offset < len(self.text)]
        else:
            ready = self._waiting
        self._waiting = self._waiting[len(ready):]
        piece.entries, piece.finish = ready, self.finish
        return piece

    def _push(self, event: Event) -> str:
        if event.token is None:
            self.finish = event.finish
            return self._stream.finish()
        self.tokens += 1
        self.cached_tokens = event.cached_tokens
        text = ""
        if event.token not in self._stop_tokens:
            self._waiting.append(Entry(event.token, event.logp, event.alternatives, self._decoded))
            self._decoded += len(self._decoder.decode(self._bytes([event.token])))
            text = self._stream.push(event.token)
        if self._stream.stopped:
            self.finish = "stop"
        elif event.finish is not None:
            self.finish = event.finish
            text += self._stream.finish()
            if self._stream.stopped:
                self.finish = "stop"
        return text

    def _bytes(self, ids: list[int]) -> bytes:
        return token_bytes(self._tokenizer, [token for token in ids if token not in self._hidden])


@functools.lru_cache(8)
def control_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Special tokens that build a conversation and are no part of what is said in it.

    They are this project's own (`SPECIAL_TOKENS`), those that begin, end or pad texts and turns, and what the chat
    format writes around a few turns. All others are text, as <think> and </think> always are.
    """
    ids = tokenizer.special_tokens
    spellings = {*SPECIAL_TOKENS, *chat.KNOWN_ENDS, *(token for tokens in NAMED_TOKENS.values() for token in tokens),
                 tokenizer.end_token, tokenizer.begin_token}
    found = {id for spelling, id in ids.items() if spelling in spellings}
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    try:
        found.update(chat.end_of_turn(tokenizer))
        found.update(chat.render(turns, tokenizer, add_generation_prompt=True).ids)
    except (ValueError, ImportError):  # no chat format, or one that refuses such turns
        pass
    return frozenset(id for spelling, id in ids.items() if id in found and spelling not in _REASONING)


def token_bytes(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    """The bytes of some ids; U+FFFD for an id that the vocabulary leaves without a token."""
    try:
        return tokenizer.decode_bytes(ids)
    except ValueError:
        return b"".join(tokenizer.decode([token]).encode() if token < tokenizer.vocab_size else "\ufffd".encode()
                        for token in ids)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""A token as text; one that is only a part of a character as "bytes:\x.." like OpenAI writes it."""
    raw = token_bytes(tokenizer, [token])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def chat_logprobs(tokenizer: Tokenizer, entries: list[Entry]) -> dict[str, Any]:
    """`choices[].logprobs` of /v1/chat/completions."""
    def one(token: int, logp: float) -> dict[str, Any]:
        return {"token": token_text(tokenizer, token), "logprob": _finite(logp),
                "bytes": list(token_bytes(tokenizer, [token]))}

    return {"content": [{**one(entry.token, entry.logp), "top_logprobs": [one(*pair) for pair in entry.alternatives]}
                        for entry in entries], "refusal": None}


def legacy_logprobs(tokenizer: Tokenizer, entries: list[Entry]) -> dict[str, Any]:
    """`choices[].logprobs` of /v1/completions: lists side by side; the drawn token is always among the likeliest."""
    return {"tokens": [token_text(tokenizer, entry.token) for entry in entries],
            "token_logprobs": [_finite(entry.logp) for entry in entries],
            "top_logprobs": [{token_text(tokenizer, token): _finite(logp)
                              for token, logp in (*entry.alternatives, (entry.token, entry.logp))}
                             for entry in entries],
            "text_offset": [entry.offset for entry in entries]}


def _finite(logp: float) -> float:
    return max(float(logp), LEAST_LOGP) if not math.isnan(logp) else LEAST_LOGP
