"""What the pages show of the model: a look inside at one token, texts as tokens, conversations with their loss mask."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import pathlib
import tempfile
import threading
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from pydantic import Field

from jaxllm.data import chat
from jaxllm.data.tokenizer import _SITE, ENCODINGS, Tokenizer, load_tokenizer
from jaxllm.infer.inspect_model import look
from jaxllm.serve.body import JSONRoute
from jaxllm.serve.choices import token_bytes
from jaxllm.serve.errors import ApiError
from jaxllm.serve.schema import ChatMessage, Strict, TokenId, Tool
from jaxllm.serve.served import Served

# A look inside runs a whole sequence beside the engine, so sequences are kept short, one runs and few wait.
MOST_TOKENS = 2048
MOST_WAITING = 4
MOST_MESSAGES = 128
Byte = Annotated[int, Field(ge=0, le=255)]


class LookRequest(Strict):
    """Where to look: at token `index` of a reply to messages, or of plain token ids."""

    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=MOST_MESSAGES)
    tools: list[Tool] | None = Field(None, max_length=128)
    reply: list[list[Byte]] = Field([], description="the reply's tokens, each as its bytes")
    tokens: list[TokenId] | None = Field(None, description="in place of messages and reply")
    index: int = Field(0, ge=0, description="the token to look at: of the reply, or of `tokens` (from 1)")
    top: int = Field(5, ge=1, le=20)


class TextRequest(Strict):
    text: str = Field(max_length=50_000)
    encodings: list[str] = Field(min_length=1, max_length=4)


class ConversationRequest(Strict):
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    tools: list[Tool] | None = Field(None, max_length=128)
    format: str | None = Field(None, max_length=32, description="a named chat format; null is the model's own")
    add_generation_prompt: bool = False


def router(served: Served) -> APIRouter:
    """The routes below /inspect."""
    routes = APIRouter(prefix="/inspect", route_class=JSONRoute)
    running, places = threading.Lock(), threading.BoundedSemaphore(MOST_WAITING)

    @routes.get("/model")
    def describe() -> dict[str, Any]:
        """The model, the encodings at hand and the chat formats that its tokenizer has the tokens for."""
        config, tokenizer = served.config, served.tokenizer
        return {"id": served.model_id, "layers": config.layers, "heads": config.heads, "vocab_size": config.vocab_size,
                "max_tokens": served.limits.max_tokens, "max_samples": served.limits.max_samples,
                "chat": bool(tokenizer.chat_template), "formats": formats(tokenizer), "encodings": encodings(tokenizer),
                "specials": list(tokenizer.special_tokens), "ranks": served.preferring is not None}

    @routes.post("/look")
    def look_inside(asked: LookRequest) -> dict[str, Any]:
        """Attention of every head and the logit lens of every layer where one token was predicted."""
        tokens, place = _sequence(served, asked)
        if not places.acquire(blocking=False):
            raise ApiError(429, "others are looking inside; try again", headers={"Retry-After": "5"})
        try:
            with running:
                seen = look(served.params, served.config, tokens, queries=[place - 1],
                            top=min(asked.top, served.config.vocab_size))
        finally:
            places.release()
        weights = np.round(seen.attention[:, :, 0, :place] * 65535).astype("<u2")
        lens = [{"tokens": [{**_token(served.tokenizer, int(id)), "logprob": float(logp)}
                            for id, logp in zip(seen.lens_tokens[layer, 0], seen.lens_logp[layer, 0], strict=True)],
                 "logprob": float(seen.next_logp[layer, 0])} for layer in range(len(seen.lens_tokens))]
        return {"context": [_token(served.tokenizer, token) for token in tokens[:place]],
                "token": _token(served.tokenizer, tokens[place]), "lens": lens,
                "layers": served.config.layers, "heads": served.config.heads,
                "attention": base64.b64encode(weights.tobytes()).decode()}

    @routes.post("/tokens")
    def tokens(asked: TextRequest) -> dict[str, Any]:
        """A text as the tokens of some encodings."""
        return {"bytes": len(asked.text.encode()), "characters": len(asked.text), "encodings": [
            {"name": name, **_encoded(served.tokenizer, name, asked.text)} for name in asked.encodings]}

    @routes.post("/conversation")
    def conversation(asked: ConversationRequest) -> dict[str, Any]:
        """A conversation as the model's tokens, with the loss mask."""
        if asked.format is not None and asked.format not in chat.FORMATS:
            raise ApiError(400, f"the chat format {asked.format!r} is unknown; choose one of "
                                f"{', '.join(chat.FORMATS)}, or null for the model's own", param="format")
        rendered = _render(served.tokenizer, asked, asked.format, asked.add_generation_prompt)
        return {"count": len(rendered.ids), "counted": sum(rendered.mask),
                "tokens": [{**_token(served.tokenizer, id), "counts": counts}
                           for id, counts in zip(rendered.ids, rendered.mask, strict=True)]}

    return routes


def formats(tokenizer: Tokenizer) -> list[str]:
    """The named chat formats whose special tokens this tokenizer has."""
    return [name for name, kind in chat.FORMATS.items() if set(kind.needs) <= set(tokenizer.special_tokens)]


def encodings(tokenizer: Tokenizer) -> list[dict[str, str]]:
    """The encodings that can be shown without a download: the model's, published ones in the cache, and bytes."""
    at_hand = [{"name": "model", "label": f"{tokenizer.name}, {tokenizer.vocab_size:,} tokens"}]
    folder = pathlib.Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
                          or pathlib.Path(tempfile.gettempdir()) / "data-gym-cache")
    for name, (_, files) in ENCODINGS.items():
        if all((folder / hashlib.sha1((_SITE + file).encode()).hexdigest()).is_file() for file in files):
            at_hand.append({"name": name, "label": name})
    return [*at_hand, {"name": "bytes", "label": "UTF-8 bytes"}]


@functools.cache
def _published(name: str) -> Tokenizer:
    return load_tokenizer(name)


def _encoded(tokenizer: Tokenizer, name: str, text: str) -> dict[str, Any]:
    if name == "bytes":
        return {"tokens": [{"id": byte, "bytes": [byte], "special": False} for byte in text.encode()]}
    if name not in {known["name"] for known in encodings(tokenizer)}:
        raise ApiError(400, f"the encoding {name!r} is not at hand; GET /inspect/model lists those that are",
                       param="encodings")
    tokenizer = tokenizer if name == "model" else _published(name)
    return {"tokens": [_token(tokenizer, token) for token in tokenizer.encode(text)]}


def _token(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    return {"id": token, "bytes": list(token_bytes(tokenizer, [token])),
            "special": token in _special_ids(tokenizer)}


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return _special_ids_of(tuple(tokenizer.special_tokens.values()))


@functools.lru_cache(8)
def _special_ids_of(ids: tuple[int, ...]) -> frozenset[int]:
    return frozenset(ids)


def _render(tokenizer: Tokenizer, asked: LookRequest | ConversationRequest, template: str | None,
            add_generation_prompt: bool) -> chat.Rendered:
    tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()] or None
    try:
        return chat.render([message.plain() for message in asked.messages or ()], tokenizer, tools=tools,
                           template=template, add_generation_prompt=add_generation_prompt)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from error


def _sequence(served: Served, asked: LookRequest) -> tuple[list[int], int]:
    """(the tokens up to and with the one to look at, its position)."""
    if (asked.tokens is None) == (asked.messages is None):
        raise ApiError(400, "give either tokens, or messages and reply", param="messages")
    if asked.tokens is not None:
        tokens, place = asked.tokens, asked.index
    else:
        prompt = _render(served.tokenizer, asked, None, True).ids
        tokens, place = [*prompt, *_ids(served.tokenizer, asked.reply)], len(prompt) + asked.index
    if not 1 <= place < len(tokens):
        raise ApiError(400, f"index is {asked.index}; there is no such token, or nothing before it", param="index")
    most = min(MOST_TOKENS, served.config.max_positions - 1)
    if place >= most:
        raise ApiError(400, f"a look inside takes {most} tokens and this one is token {place}", param="index")
    if max(tokens[:place + 1]) >= served.config.vocab_size:
        raise ApiError(400, f"a token is outside the model's vocabulary of {served.config.vocab_size}", param="tokens")
    return list(tokens[:place + 1]), place


def _ids(tokenizer: Tokenizer, reply: list[list[int]]) -> list[int]:
    """Ids of tokens that are given as bytes, which is how the API states them."""
    specials = {spelling.encode(): id for spelling, id in tokenizer.special_tokens.items()}
    ids = []
    for number, token in enumerate(map(bytes, reply)):
        id = tokenizer.ranks.get(token, specials.get(token))
        if id is None:
            raise ApiError(400, f"reply: token {number} is not one of this model's", param="reply")
        ids.append(id)
    return ids
