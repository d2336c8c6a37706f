"""Starting points for the embeddings of tokens that a model has never seen, and room for more of them.

A special token that never stood in the pretraining text has a row that training pushed away from every context. Where
the embedding is also the output head, such rows spoil the first steps of fine-tuning. Which start serves best is a
matter of measurement: all are functions of the parameter tree here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.model.config import ModelConfig
from jaxllm.model.overlay import Overlay
from jaxllm.model.params import Params


def grow_vocabulary(params: Params, config: ModelConfig, vocab_size: int) -> tuple[Params, ModelConfig]:
    """The same model with more tokens; each new row (of embedding and head) is the mean of all old ones.

    Args:
      params: plain weights; blocks are passed through.
      config: of the model.
      vocab_size: the new V, at least the old one.

    Returns:
      (parameters, configuration with the new vocab_size). The old tokens' logits are what they were.

    Raises:
      ValueError: when it would shrink, or the embedding is an overlay.

    References: Hewitt, Initializing New Word Embeddings for Pretrained Language Models, 2021.
      https://nlp.stanford.edu/~johnhew/vocab-expansion.html
    """
    extra = vocab_size - config.vocab_size
    if extra < 0:
        raise ValueError(f"the vocabulary has {config.vocab_size} tokens and cannot shrink to {vocab_size}")
    grown = _map_tables(lambda table_VD: jnp.concatenate(
        [table_VD, jnp.broadcast_to(_mean(table_VD), (extra, table_VD.shape[1]))]), params, config)
    return grown, dataclasses.replace(config, vocab_size=vocab_size)


def start_rows(params: Params, config: ModelConfig, starts: Mapping[int, Sequence[int] | None], *,
               noise: float = 0.0, key: jax.Array | None = None) -> Params:
    """Gives tokens new rows, in the embedding and in the head: means of the rows of other tokens.

    Args:
      params: plain weights.
      config: of the model.
      starts: token id -> the ids whose rows are averaged: the tokens of a few words that describe it, or one token
        to copy; None is all tokens that are not keys here.
      noise: standard deviation of what is added, as a share of that of the trained rows' entries; tokens with one
        start are told apart by it from the first step on.
      key: a PRNG key; needed with noise.

    Returns:
      The tree with those rows changed, dtypes kept.

    Raises:
      ValueError: for an id outside the vocabulary, a start that is empty or uses a token that is itself being started,
        noise without a key, or an embedding that is an overlay.

    >>> params = {"embedding": {"tokens": jnp.array([[1.0], [3.0], [9.0]])}, "blocks": {}}
    >>> config = ModelConfig(3, 1, 1, 1, 1, 2, 1, 8)
    >>> start_rows(params, config, {2: [0, 1]})["embedding"]["tokens"].tolist()
    [[1.0], [3.0], [2.0]]
    """
    _check(starts, config.vocab_size)
    if noise < 0 or noise and key is None:
        raise ValueError(f"noise ({noise}) must be at least 0, and above 0 it needs a key")
    if not starts:
        return params
    others = np.setdiff1d(np.arange(config.vocab_size), list(starts))
    tokens = np.array(list(starts))

    def started(table_VD: jax.Array) -> jax.Array:
        sources = [others if start is None else np.asarray(start) for start in starts.values()]
        rows = jnp.stack([_mean(table_VD[source]).astype(jnp.float32) for source in sources])
        if noise:
            spread = noise * jnp.std(table_VD[others].astype(jnp.float32))
            rows = rows + spread * jax.random.normal(key, rows.shape)
        return table_VD.at[tokens].set(rows.astype(table_VD.dtype))
    return _map_tables(started, params, config)


def _check(starts: Mapping[int, Sequence[int] | None], vocab_size: int) -> None:
    for token, start in starts.items():
        if start is not None and not len(start):
            raise ValueError(f"token {token} starts from no token; give at least one id, or None for the mean of all")
        wrong = [id for id in (token, *(start or ())) if not 0 <= id < vocab_size]
        if wrong:
            raise ValueError(f"token {wrong[0]} is outside the vocabulary of {vocab_size}; see grow_vocabulary")
        untrained = [id for id in start or () if id in starts]
        if untrained:
            raise ValueError(f"token {token} starts from token {untrained[0]}, which is being started itself; use "
                             f"trained tokens")
    if len(starts) >= vocab_size:
        raise ValueError("every token is being started: there is none left to start from")


def _mean(rows: jax.Array) -> jax.Array:
    return jnp.mean(rows.astype(jnp.float32), axis=0).astype(rows.dtype)


def _map_tables(function: Any, params: Params, config: ModelConfig) -> Params:
    """`function` of the embedding [V, D] and, where it is not tied, of the head read the same way."""
    table = params["embedding"]["tokens"]
    tables = [table] if config.tied_embedding else [table, params["head"]]
    if any(isinstance(array, Overlay) for array in tables):
        raise ValueError("the embedding is an overlay (quantised, or a LoRA); change its rows before, in plain weights")
    function = jax.jit(function)  # one program, not one for each of its dozens of operations
    new = {**params, "embedding": {**params["embedding"], "tokens": function(table)}}
    return new if config.tied_embedding else {**new, "head": function(params["head"].T).T}
