"""Who plays: model folders and models behind an API, as functions that reply to prompts."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import lab
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.evals.arena_play import Prompt, Speak
from jaxllm.infer import remote
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params
from jaxllm.train.checkpoint import load_model

Loaded = tuple[Params, ModelConfig, Tokenizer]


def open_players(specs: Sequence[str], settings: ConfigDict, api: ConfigDict) -> dict[str, tuple[str, Speak]]:
    """Name -> (version, how it speaks), of "NAME=FOLDER" and "NAME=http://HOST/v1#MODEL"; nothing is loaded yet.

    Args:
      specs: two or more players of different names.
      settings: temperature and max_tokens of a reply.
      api: see configs/rank.py.

    Raises:
      ValueError: for a player that is not of this form, or a name given twice.
      FileNotFoundError: for a folder that is not there.
    """
    found: dict[str, tuple[str, Speak]] = {}
    for spec in specs:
        name, _, place = spec.partition("=")
        if not name or not place or name in found:
            raise ValueError(f"config.players has {spec!r}: write NAME=FOLDER or NAME=http://HOST/v1#MODEL, each name "
                             f"once")
        if place.startswith(("http://", "https://")):
            found[name] = (lab.key_of([place, settings.to_dict()]), _remote(place, settings, api))
        else:
            found[name] = (version_of(place, settings.to_dict()),
                           speaker(functools.partial(load_model, place), settings.temperature, settings.max_tokens))
    return found


def version_of(folder: str | os.PathLike, settings: Mapping[str, Any]) -> str:
    """Stands for a model folder as it is now: its files, their sizes and when they were written.

    Raises:
      FileNotFoundError: when there is none.
    """
    path = pathlib.Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; a player is a model folder or an API")
    files = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns)
             for file in sorted(path.rglob("*")) if file.is_file()]
    return lab.key_of([files, settings])


def speaker(load: Callable[[], Loaded], temperature: float, max_tokens: int) -> Speak:
    """How a model of ours replies; it is loaded at the first prompt.

    Raises:
      ValueError: from the function, when the tokenizer has no chat template.
    """
    loaded = functools.cache(load)

    def speak(prompts: Sequence[Prompt], samples: int, seed: int) -> list[list[str]]:
        params, model, tokenizer = loaded()
        if not tokenizer.chat_template:
            raise ValueError("a player's tokenizer has no chat template; fine-tune it by experiments.sft, or give a "
                             "chat model")
        drawn = lab.ask(params, model, tokenizer, prompts, samples=samples, temperature=temperature,
                        max_tokens=max_tokens, seed=seed)
        return [[answer.text for answer in row] for row in drawn]
    return speak


def connect(place: str, api: ConfigDict) -> remote.Complete:
    """A function that asks "http://HOST/v1#MODEL".

    Raises:
      ValueError: when no model is named, or the openai client is not installed.
    """
    url, _, model = place.partition("#")
    if not model:
        raise ValueError(f"{place}: name the model too, as in {place}#gpt-oss-20b")
    return remote.connect(url, model, key=os.environ.get(api.key_env) or "none", seconds=api.seconds,
                          attempts=api.attempts)


def _remote(place: str, settings: ConfigDict, api: ConfigDict) -> Speak:
    complete = connect(place, api)  # says at once what is wrong with the place

    def speak(prompts: Sequence[Prompt], samples: int, seed: int) -> list[list[str]]:
        del seed  # not every server takes one
        asked = [prompt for prompt in prompts for _ in range(samples)]
        with concurrent.futures.ThreadPoolExecutor(api.together) as pool:
            said = list(pool.map(lambda prompt: complete(prompt, settings.temperature, settings.max_tokens), asked))
        return [said[i:i + samples] for i in range(0, len(said), samples)]
    return speak
