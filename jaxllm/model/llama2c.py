"""Readers of llama2.c's files: its legacy checkpoint (.bin) and its tokenizer (tokenizer.bin).

References: Karpathy, llama2.c: export.py (legacy_export) and run.c (build_tokenizer, encode).
  https://github.com/karpathy/llama2.c
"""

from __future__ import annotations

import dataclasses
import os
import struct

import numpy as np

from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params

BEGIN, END, FIRST_BYTE = 1, 2, 3  # token ids: <s>, </s>, and byte 0 of the 256 that follow
_HEADER = struct.Struct("<7i")
_PIECE = struct.Struct("<fi")


def read_llama2c(path: str | os.PathLike) -> tuple[Params, ModelConfig]:
    """A legacy llama2.c checkpoint: 7 int32 of sizes, then float32 weights in a fixed order.

    Its rotary pairs lie side by side (2i, 2i + 1); ours lie half a head apart (i, i + H/2), so the
    columns of queries and keys are reordered.

    Returns:
      (parameters as float32 numpy arrays, configuration).

    Raises:
      ValueError: when the file is not such a checkpoint, or is cut short.
    """
    config, untied = _read_header(path)
    L, D, N, K, H, F, V = (config.layers, config.dim, config.heads, config.kv_heads,
                           config.head_dim, config.mlp_dim, config.vocab_size)
    shapes = {  # each matrix is [outputs, inputs]
        "tokens": (V, D), "attention_norm": (L, D), "query": (L, N, H, D), "key": (L, K, H, D),
        "value": (L, K, H, D), "output": (L, D, N, H), "mlp_norm": (L, D), "gate": (L, F, D),
        "down": (L, D, F), "up": (L, F, D), "final_norm": (D,),
        "cosines": (config.max_positions, H // 2), "sines": (config.max_positions, H // 2),
        **({"head": (V, D)} if untied else {})}
    expected = _HEADER.size + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    actual = os.path.getsize(path)
    if actual != expected:
        raise ValueError(f"{os.fspath(path)} has {actual} bytes, its header asks for {expected}; "
                         f"it is damaged or not a legacy llama2.c checkpoint")
    flat, start = np.fromfile(path, "<f4", offset=_HEADER.size), 0
    w = {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        w[name], start = flat[start:start + size].reshape(shape), start + size
    for name in ("query", "key"):
        pairs = w[name].reshape(*w[name].shape[:2], H // 2, 2, D)
        w[name] = pairs.swapaxes(2, 3).reshape(w[name].shape)
    inputs_first = (0, 3, 1, 2)
    params = {
        "embedding": {"tokens": w["tokens"]},
        "blocks": {
            "attention": {
                "norm": {"scale": w["attention_norm"]},
                **{name: w[name].transpose(inputs_first) for name in ("query", "key", "value")},
                "output": w["output"].transpose(0, 2, 3, 1)},
            "mlp": {"norm": {"scale": w["mlp_norm"]},
                    **{name: w[name].swapaxes(1, 2) for name in ("gate", "up", "down")}}},
        "final_norm": {"scale": w["final_norm"]},
        **({"head": w["head"].T} if untied else {})}
    return params, config


def _read_header(path: str | os.PathLike) -> tuple[ModelConfig, bool]:
    with open(path, "rb") as file:
        header = file.read(_HEADER.size)
    try:
        dim, mlp_dim, layers, heads, kv_heads, vocab_size, max_positions = _HEADER.unpack(header)
        if heads < 1 or dim % heads:
            raise ValueError(f"{dim} dimensions in {heads} heads")
        config = ModelConfig(
            vocab_size=abs(vocab_size), dim=dim, layers=layers, heads=heads, kv_heads=kv_heads,
            head_dim=dim // heads, mlp_dim=mlp_dim, max_positions=max_positions,
            tied_embedding=vocab_size > 0)
    except (struct.error, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{os.fspath(path)} does not begin with a legacy llama2.c header: {error}"
                         ) from error
    return config, vocab_size < 0


@dataclasses.dataclass(frozen=True)
class Llama2cTokenizer:
    """Sentencepiece's BPE as llama2.c keeps it: id -> piece and score (higher merges first)."""

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]

    def encode(self, text: str) -> list[int]:
        """<s>, then `text` after a space, merged by score; unknown characters become bytes."""
        ids = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}
        tokens: list[int] = []
        for character in f" {text}" if text else "":
            raw = character.encode("utf-8")
            tokens += [ids[raw]] if raw in ids else [byte + FIRST_BYTE for byte in raw]
        while True:
            merges = [(self.scores[merged], -i, merged) for i in range(len(tokens) - 1)
                      if (merged := ids.get(self.pieces[tokens[i]] + self.pieces[tokens[i + 1]]))]
            if not merges:
                return [BEGIN, *tokens]
            _, at, merged = max(merges)
            tokens[-at:-at + 2] = [merged]

    def decode(self, tokens: list[int]) -> bytes:
        """The text of `tokens`, with or without their <s>; the space before it is left out."""
        tokens = tokens[1:] if tokens and tokens[0] == BEGIN else tokens
        out = b"".join(bytes([token - FIRST_BYTE]) if FIRST_BYTE <= token < FIRST_BYTE + 256
                       else self.pieces[token] for token in tokens)
        return out.removeprefix(b" ")


def read_llama2c_tokenizer(path: str | os.PathLike) -> Llama2cTokenizer:
    """A tokenizer.bin: the longest piece's length, then a score, a length and the bytes of each.

    Raises:
      ValueError: when the file is cut short or is something else.
    """
    with open(path, "rb") as file:
        data = file.read()
    pieces, scores, at = [], [], 4
    longest = int.from_bytes(data[:4], "little", signed=True)
    while at < len(data):
        score, length = _PIECE.unpack_from(data, at) if at + _PIECE.size <= len(data) else (0.0, -1)
        at += _PIECE.size
        if not 0 <= length <= len(data) - at:
            raise ValueError(f"{os.fspath(path)} ends inside piece {len(pieces)}; it is cut short "
                             f"or not a llama2.c tokenizer")
        pieces.append(data[at:at + length])
        scores.append(score)
        at += length
    if len(pieces) < FIRST_BYTE + 256 or longest < 1:
        raise ValueError(f"{os.fspath(path)} holds {len(pieces)} pieces, fewer than the 259 that "
                         f"every llama2.c tokenizer has")
    return Llama2cTokenizer(tuple(pieces), tuple(scores))
