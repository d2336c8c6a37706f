"""The laboratory for flip_keys.py: a small start model, and what trains, draws and keeps in the place of its own."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from flip_keys import TracedJax, digest, zeros
from random_weights import random_weights

from configs.pretrain_tiny import model_fields
from experiments import direct_preference, findings, lab, practice, taste
from jaxllm.data.preferences import Ranking
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.data.world_taste import joke, things
from jaxllm.model.config import preset
from jaxllm.model.params import abstract_params

TOKENIZER = dataclasses.replace(train_tokenizer(["a joke about a thing, banana! " * 3], 280, "digits", SPECIAL_TOKENS),
                                chat_template="im_sep")
MODEL = preset("nano", vocab_size=320, max_positions=256)
NANO = {**model_fields("nano"), "layers": 1, "max_positions": 256}
START = taste.Start(random_weights(MODEL), MODEL, TOKENIZER)
THING = things("train")[0]
# What keys of a model's shape are flipped to.
SHAPE = {"dim": 48, "heads": 8, "kv_heads": 1, "head_dim": 16, "mlp_dim": 40, "norm": "layer", "mlp": "gelu",
         "positions": "learned", "rope_scaling": {"factor": 8.0}, "bias": "all", "windows": (4,), "query_scale": 0.5}
OTHER_PEOPLE = {"noise": 5.0, "length_bias": 5.0, "funny_bias": 5.0, "polite_bias": 5.0, "tie": 0.5}
RANKINGS = [Ranking(({"role": "user", "content": f"{n}?"},), (f"yes {n}", f"no {n}" * (n % 3 + 1), "so"),
                    ((n % 2,), (2,), (1 - n % 2,))) for n in range(12)]


def under(path, values):
    return {f"{path}.{key}": value for key, value in values.items()}


def numbers_of(*values):
    """Random numbers that any of these values decides."""
    return random.Random(zlib.crc32(repr(values).encode()))


def noted_generate(facts):
    """Replies in bytes: a joke that prompt, sample and temperature decide, cut off where it is too long."""
    def generate(params, model, prompts, *, samples_per_prompt=1, **how):
        facts.add("generate", digest(str(prompts)), samples_per_prompt, how)
        rows = [[*joke(numbers_of(ids, n, how["settings"]), THING).encode()][:how["max_tokens"]]
                for ids in prompts for n in range(samples_per_prompt)]
        return SimpleNamespace(logp=-np.ones((len(rows), how["max_tokens"])), rows=lambda: rows,
                               stopped=np.arange(len(rows)) % 2 == 0)
    return generate


def learn(facts):
    """An update: what it learned from."""
    def answer(state, batch, *frozen):
        facts.add("update", digest(batch))
        return state, {"loss": 1.0, "skipped": 0, "accuracy": 0.5}
    return answer


def patched_lab(patch, facts, folder):
    """Stages are made anew in every run, models are kept in memory, nothing is compiled, and findings are facts."""
    models, stages = {"a published model": (START.params, MODEL, TOKENIZER)}, {}

    def stage(cache, name, settings, make):
        facts.add("stage", str(cache), name)
        key = name, lab.key_of(settings)
        if key not in stages:
            stages[key] = folder / f"{name}-{len(stages)}"
            make(stages[key])
        return stages[key]

    def init(model, key):
        facts.add("first weights", digest(str(abstract_params(model)), key))
        return zeros(abstract_params(model))

    def write(found, folder, config, seconds):
        facts.add("found", [table.rows for table in found.tables], json.dumps(found.numbers))
    traced = TracedJax(facts, step=learn(facts))
    for module, stand_ins in {
            lab: {"jax": traced, "_compiled": lab._compiled.__wrapped__, "stage": stage,
                  "kept": lambda folder, name, settings, compute: json.loads(json.dumps(compute())),
                  "generate": noted_generate(facts)},
            findings: {"write": write}, direct_preference: {"write": write},
            **dict.fromkeys((taste, practice), {
                "init": init, "load_model": lambda place: models[str(place)],
                "save_model": lambda place, *made: models.update({str(place): made})})}.items():
        for name, stand_in in stand_ins.items():
            patch.setattr(module, name, stand_in)
    return traced


@functools.cache
def tokenizer_of(size, pattern):
    return train_tokenizer(["Work: first+1=2 Answer:7. joke about a thing " * 40, "abcdefgh" * 9], size, pattern)


def noted_main(main, folder, *further):
    """Flips of an experiment of the laboratory.

    Args:
      main: of the experiment.
      folder: for its files.
      further: called with config and facts after it.
    """
    def run(config, facts):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(taste, "train_tokenizer", lambda texts, size, pattern: tokenizer_of(size, pattern))
            patch.setattr(practice, "learn_tokenizer", lambda settings: tokenizer_of(settings.vocab_size, "digits"))
            traced = patched_lab(patch, facts, folder)
            main(config, str(folder / "run"))
        for tell in further:
            tell(config, facts)
        traced.trace_rest()
    return run
