"""What several experiments do to get batches: a tokenizer, token shards, and rows out of them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import jaxllm
from jaxllm.data.loader import Mixture, Source, Windows
from jaxllm.data.shards import open_shards
from jaxllm.data.sources import open_source
from jaxllm.data.tokenize_corpus import tokenize_corpus
from jaxllm.data.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer, train_tokenizer


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokenizer, training rows (shuffled, endless) and validation rows (in order, once) of each source."""

    tokenizer: Tokenizer
    training: Source
    validation: dict[str, Windows]
    train_tokens: int
    train_bytes: int


def prepare(config: ConfigDict, length: int, seed: int) -> Corpus:
    """Makes or finds the tokenizer and the shards that `config` describes; every key is in configs/pretrain_tiny.py.

    Everything made lies in `config.cache` under a name that says from what, so that a second run (or the next of a
    sweep) finds it. With several processes the first does the work, and all read it from a shared disk.

    Args:
      config: the `data` part of an experiment's config.
      length: T, tokens per row.
      seed: of the order of the rows.
    """
    cache = pathlib.Path(config.cache).expanduser()
    sources = [spec for spec in config.sources if spec]
    weights = list(config.weights) or [1.0] * len(sources)
    if not sources or len(weights) != len(sources):
        raise ValueError(f"data.sources names {len(sources)} sources and data.weights {len(weights)}; give one weight "
                         f"a source, or none for equal ones")
    if jax.process_index() == 0:
        _tokenise(config, cache, sources)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("corpus")
    name = _tokenise(config, cache, sources)  # now found, whoever made it
    tokenizer = load_tokenizer(name)
    folders = [_shard_folder(config, cache, spec, tokenizer) for spec in sources]
    training, validation = [], {}
    for spec, folder in zip(sources, folders, strict=True):
        shards = open_shards(folder / "train", tokenizer.fingerprint)
        training.append(Windows(shards, length, config.documents, seed=seed))
        held_out = open_shards(folder / "validation", tokenizer.fingerprint)
        validation[spec] = Windows(held_out, length, config.documents, sequential=True)
    return Corpus(tokenizer, training[0] if len(training) == 1 else Mixture(
        list(zip(training, weights, strict=True)), seed=seed), validation,
        train_tokens=sum(source.shards.tokens for source in training),
        train_bytes=sum(source.shards.text_bytes for source in training))


def _tokenise(config: ConfigDict, cache: pathlib.Path, sources: list[str]) -> str:
    """Trains the tokenizer if asked and tokenises every source, unless that is done; returns the tokenizer's name."""
    name = config.tokenizer.name
    if name == "train":
        name = os.fspath(_trained_tokenizer(config, cache, sources))
    tokenizer = load_tokenizer(name)
    for spec in sources:
        folder = _shard_folder(config, cache, spec, tokenizer)
        if not folder.exists():
            print(f"tokenising {spec} into {folder}", flush=True)
            tokenize_corpus(open_source(spec, config.text_key), name, folder,
                            validation_fraction=config.validation_fraction, processes=config.processes,
                            shard_tokens=config.shard_tokens)
    return name


def _trained_tokenizer(config: ConfigDict, cache: pathlib.Path, sources: list[str]) -> pathlib.Path:
    settings = config.tokenizer
    folder = cache / "tokenizers" / _key([_state(spec, config) for spec in sources], settings.to_dict())
    if not folder.exists():
        print(f"training a tokenizer of {settings.vocab_size} tokens", flush=True)
        texts = (document.text for spec in sources
                 for document in itertools.islice(open_source(spec, config.text_key), settings.documents))
        train_tokenizer(texts, settings.vocab_size, settings.pattern, SPECIAL_TOKENS).save(folder)
    return folder


def _shard_folder(config: ConfigDict, cache: pathlib.Path, spec: str, tokenizer: Tokenizer) -> pathlib.Path:
    return cache / "shards" / _key(_state(spec, config), tokenizer.fingerprint, config.validation_fraction,
                                   config.shard_tokens)


def _state(spec: str, config: ConfigDict) -> list:
    """What a source is now: its name, and its files' names, sizes and times (or the version that generates it)."""
    source = open_source(spec, config.text_key)
    files = [(os.fspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in source.files]
    return [spec, config.text_key, files or jaxllm.__version__]


def _key(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
