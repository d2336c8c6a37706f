"""Every key of pretraining and fine-tuning matters: each is flipped, and the run does something else or refuses it."""

import functools
import json
import random
import shutil
from concurrent.futures import Future
from unittest import mock

import jax
import numpy as np
import pytest
from flip_keys import Facts, Flips, NotedCheckpoints, TracedJax, changed, digest, leaves

from configs import pretrain_tiny
from configs import sft as sft_config
from experiments import corpus, pretrain, sft, training
from jaxllm.data import tokenize_corpus
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.model.config import preset, save_config
from jaxllm.model.params import abstract_params
from jaxllm.train import sharding
from jaxllm.train.metrics import read_metrics
from jaxllm.train.objective import next_token_objective

TEXTS = ["".join(random.Random(n).choices("abcdeghi 1234 .", k=200)) for n in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of text under two names, a tokenizer, and room for runs."""
    folder = tmp_path_factory.mktemp("every_key")
    for part in range(2):
        lines = [json.dumps({"id": n, "text": text, "other": text[::-1]}) for n, text in enumerate(TEXTS[part::2])]
        (folder / f"{part}.jsonl").write_text("\n".join(lines))
    train_tokenizer(TEXTS, 300, "gpt4", SPECIAL_TOKENS).save(folder / "tokenizer")
    return folder


@functools.lru_cache(maxsize=4)
def same_objective(*args, **settings):
    """The training objective; as one function for the same settings its trace is found again by every flip of others.
    """
    return jax.jit(next_token_objective(*args, **settings))


def objective(*args, token_bytes=None, **settings):
    """The validation objective has an array among its settings."""
    return same_objective(*args, **settings) if token_bytes is None else next_token_objective(
        *args, token_bytes=token_bytes, **settings)


class NotedPool:
    """Processes that tokenise: how many, their work done here."""

    facts: Facts

    def __init__(self, processes: int, context, start, args) -> None:
        self.facts.add("processes", processes)
        start(*args)

    def submit(self, work, *args) -> Future:
        future: Future = Future()
        future.set_result(work(*args))
        return future

    def shutdown(self, **_) -> None:
        pass


def noted_run(main, config, facts, folder):
    """Runs a `main` that trains with `training.Run`: two steps that are not finite, all others fine."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)

    def step(state, batch, frozen):
        number = int(state.step) + 1
        facts.add("step", number, digest(batch))
        metrics = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1.0, "skipped": 0.0,
                   "skipped_in_a_row": {2: 1.0, 3: 2.0}.get(number, 0.0)}
        return state.replace(step=np.int32(number)), metrics

    def evaluate(eval_step, params, batches):
        every = list(batches)
        facts.add("evaluate", len(every), digest(every))
        eval_step(params, every[0])
        return {"loss": 1.0, "bits_per_byte": 1.0}

    def generate(params, model, prompts, **how):
        facts.add("generate", prompts, how["key"], how["max_tokens"], how["settings"], how["stop_tokens"])
        return mock.Mock(rows=lambda: [[65]] * len(prompts))

    def opened(place, fingerprint):
        files = sorted(file.name for file in place.glob("tokens-*"))
        facts.add("shards", place.parts[-5:-3], place.name, files)  # the cache, and not the name that bears a hash
        return real_open(place, fingerprint)

    real_open = corpus.open_shards
    traced = TracedJax(facts, step=step, loss_fn=lambda params, batch: None)
    NotedPool.facts = Facts()
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in {
                "jax": traced, "next_token_objective": objective, "evaluate": evaluate, "generate": generate,
                "peak_flops": lambda dtype: 0.0,
                "Checkpoints": functools.partial(NotedCheckpoints, facts), "save_model": lambda *_: None}.items():
            patch.setattr(training, name, stand_in)
        patch.setattr(training.report, "write_training", lambda *_, **settings: None)
        patch.setattr(corpus, "open_shards", opened)
        patch.setattr(tokenize_corpus, "ProcessPoolExecutor", NotedPool)
        try:
            main(config, str(run))
        except ValueError as error:
            if not traced.begun("step"):
                raise
            facts.add("stopped", str(error))
    facts.add("written", [(row["step"], sorted(row)) for row in read_metrics(run)])
    facts.add("processes", NotedPool.facts.told)
    with jax.set_mesh(sharding.make_mesh(config.mesh)):
        traced.trace_rest()


PRETRAINING = {
    "steps": 4, "batch_size": 16, "row_length": 16, "microbatches": 1, "log_steps": 2, "validation_steps": 3,
    "sample_steps": 3, "checkpoint_steps": 3, "validation_batches": 1, "sample_prompts": ("", "the dog"),
    "sample_tokens": 4, "max_skips": 3, "data.validation_fraction": 0.3, "data.tokenizer.vocab_size": 300,
    "data.processes": 1,
    "model.layers": 1, "optimizer.warmup_steps": 1, "optimizer.name": "adamw", "keep_checkpoints": 2,
}
# What keys of training with `training.Run` are flipped to.
TRAINING_VALUES = {
    "batch_size": 32, "row_length": 32, "microbatches": 2, "mesh": (4, 2, 1), "max_skips": 2,
    "execution.dtype": "bfloat16", "execution.remat": "full", "execution.attention": "cudnn", "loss_chunks": 2,
    "optimizer.name": "muon", "optimizer.schedule": "wsd", "optimizer.decay_fraction": 0.75,
    "sample_prompts": ("a cat",),
    "wandb_project": "x",  # refused: it is not installed where the project is tested
}
PRETRAINING_VALUES = {
    "vocab_multiple": 64, "model.dim": 64, "model.heads": 8, "model.kv_heads": 1, "model.head_dim": 16,
    "model.mlp_dim": 64, "model.norm": "layer", "model.mlp": "gelu", "model.positions": "learned",
    "model.rope_scaling": {"factor": 8.0}, "model.bias": "all", "model.windows": (4,), "model.query_scale": 0.5,
    "data.weights": (1.0, 3.0), "data.text_key": "other", "data.documents": "concatenate", "data.shard_tokens": 500,
    "data.tokenizer.pattern": "gpt2", "data.tokenizer.vocab_size": 290, "data.tokenizer.documents": 5,
}
AMONG = {
    "optimizer.decay_fraction": {"optimizer.schedule": "wsd"}, "model.max_positions": {"model.positions": "learned"}}


SCALING = {"factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_positions": 64}


@pytest.fixture(scope="module")
def pretraining(folder):
    sources = tuple(str(folder / f"{part}.jsonl") for part in range(2))
    config = changed(pretrain_tiny.get_config("nano"), PRETRAINING | {
        "data.sources": sources, "data.cache": str(folder / "cache")})
    among = AMONG | {f"model.rope_scaling.{key}": {"model.rope_scaling": SCALING} for key in SCALING}
    values = {**TRAINING_VALUES, **PRETRAINING_VALUES, "data.sources": sources[:1],
              "data.cache": str(folder / "another" / "cache"), "data.tokenizer.name": str(folder / "tokenizer")}

    def run(flipped, facts):
        if flipped.data != config.data:  # else the shards of the run before are found
            shutil.rmtree(folder / "cache", ignore_errors=True)
        noted_run(pretrain.main, flipped, facts, folder)
    return Flips(config, run, values, among)


@pytest.mark.parametrize("key", [*leaves(pretrain_tiny.get_config("nano")),
                                 *(f"model.rope_scaling.{key}" for key in SCALING)])
def test_every_key_of_pretraining(key, pretraining):
    pretraining.check(key)


MODEL = preset("nano", layers=1, vocab_size=320)
FINE_TUNING = {
    "steps": 4, "batch_size": 16, "row_length": 32, "log_steps": 2, "validation_steps": 3, "sample_steps": 3,
    "checkpoint_steps": 3, "validation_batches": 1, "sample_tokens": 4, "max_skips": 3,
    "sample_prompts": ("Hello!",), "data.validation_fraction": 0.5, "optimizer.warmup_steps": 1,
}
FINE_TUNING_VALUES = {
    "row_length": 48, "template": "chatml", "start_tokens": "mean", "data.paths": "all", "data.epochs": (1, 3),
    "data.weights": (1.0, 3.0), "data.formats": ("oasst", "dolly"), "lora.rank": 2, "lora.targets": ("query",),
}
FINE_TUNING_AMONG = {"lora.alpha": {"lora.rank": 2}, "lora.targets": {"lora.rank": 2},
                     "optimizer.decay_fraction": {"optimizer.schedule": "wsd"}}


@pytest.fixture(scope="module")
def fine_tuning(folder):
    """Two models, trees with two replies to a question, and records that are Alpaca's as well as Dolly's."""
    for name in "ab":
        (folder / name / "params").mkdir(parents=True)
        save_config(MODEL, folder / name / "config.json")
        train_tokenizer(TEXTS, 300, "gpt4", SPECIAL_TOKENS).save(folder / name / "tokenizer")
    trees = [{"message_tree_id": text[:9], "prompt": {"role": "prompter", "text": text[:9], "replies": [
        {"role": "assistant", "text": text[9:9 + n], "rank": n, "replies": []} for n in (1, 2)]}} for text in TEXTS]
    records = [{"instruction": text[:8], "input": "", "output": text[8:12], "context": "", "response": text[12:18]}
               for text in TEXTS]
    for name, rows in (("trees", trees), ("records", records)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = (str(folder / "trees.jsonl"), str(folder / "records.jsonl"))
    config = changed(sft_config.get_config(), FINE_TUNING | {"model": str(folder / "a"), "data.sources": sources})
    values = {**TRAINING_VALUES, **FINE_TUNING_VALUES, "model": str(folder / "b"), "data.sources": sources[::-1]}

    def run(flipped, facts):
        def load(place, shardings):
            facts.add("weights of", place.name)
            return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(MODEL)), None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sft, "load_weights", load)
            patch.setattr(sft, "jax", TracedJax(facts))
            noted_run(sft.main, flipped, facts, folder)
    return Flips(config, run, values, FINE_TUNING_AMONG)


@pytest.mark.slow
@pytest.mark.parametrize("key", leaves(sft_config.get_config()))
def test_every_key_of_fine_tuning(key, fine_tuning):
    fine_tuning.check(key)
