"""Fine-tunes a model on conversations: config -> mesh -> rows -> model -> loop -> model folder and report.

    python -m experiments.sft --config.model=runs/pretrain_tiny
    python -m experiments.sft --config.model=models/smollm2 --config.lora.rank=8 --config.data.sources="('a.jsonl',)"

The same command resumes a run that was stopped or killed.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments import expected_curves_band, launch, report, sft_data, sft_tokens
from experiments.training import Job, Plan, Run, plan_for
from jaxllm.data.chat import end_of_turn, render
from jaxllm.data.conversation_readers import PATHS
from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.model.config import ModelConfig, load_config
from jaxllm.model.lora import factors, lora, lora_specs
from jaxllm.model.params import Params, abstract_params
from jaxllm.train import loop, sharding
from jaxllm.train.checkpoint import load_weights
from jaxllm.train.step import TrainState, init_state


def main(config: ConfigDict, workdir: str) -> bool:
    """Runs or resumes the experiment in `workdir`; returns whether all its steps are taken."""
    check(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.batch_size, config.microbatches, mesh)
    model, tokenizer = describe_model(config.model)
    check_fit(config, model)
    begun = time.perf_counter()
    folder = pathlib.Path(workdir)
    template, new = sft_tokens.chat_format(tokenizer, config.template)
    tokenizer = dataclasses.replace(tokenizer, chat_template=template)
    prompts = sample_prompts(config, tokenizer, model)
    report.claim_folder(folder, config)
    talks = sft_data.prepare(config.data, tokenizer, template, config.row_length, config.seed)
    sft_data.claim_data(folder, talks)
    asked, config = config, with_steps(config, talks)
    made = plan_for(config, mesh, model)
    with jax.set_mesh(mesh), loop.StopRequest() as stop:
        start = config.start_tokens if new else "untouched"
        job = fine_tuning(config, talks, made, tokenizer, prompts, start)
        with contextlib.closing(Run(config, folder, job, made, begun)) as run:
            if not int(run.state.step):
                run.validate(0, run.state)  # where the model stands before
            state = run.train(stop)
            finished = int(state.step) == config.steps
            run.finish(state, interrupted=not finished)
            if finished and (said := expected_curves_band.verdict(asked, folder)):
                run.say(said)
    return finished


def check(config: ConfigDict) -> None:
    """Refuses numbers that cannot work, before anything is read or compiled."""
    for key, least in (("batch_size", 1), ("row_length", 2), ("microbatches", 1), ("loss_chunks", 1), ("log_steps", 1),
                       ("max_skips", 1), ("steps", 0), ("sample_tokens", 1), ("lora.rank", 0)):
        if config_value(config, key) < least:
            raise ValueError(f"{key} is {config_value(config, key)}; it must be at least {least}")
    if config.row_length % config.loss_chunks:
        raise ValueError(f"loss_chunks ({config.loss_chunks}) must divide row_length ({config.row_length})")
    data = config.data
    if not 0 <= data.validation_fraction < 1:
        raise ValueError(f"data.validation_fraction is {data.validation_fraction}; choose a number in [0, 1)")
    if data.weights and (data.epochs or not config.steps):
        raise ValueError("data.weights are shares of a run without an end: give steps with them, and no data.epochs")
    for key in ("epochs", "weights"):
        if data[key] and (len(data[key]) != len(data.sources) or min(data[key]) <= 0):
            raise ValueError(f"data.{key} is {tuple(data[key])}; give one number above 0 for each of the "
                             f"{len(data.sources)} sources")
    if data.paths not in PATHS:
        raise ValueError(f"data.paths is {data.paths!r}; choose one of {', '.join(PATHS)}")
    if config.start_tokens not in sft_tokens.STARTS:
        raise ValueError(f"start_tokens is {config.start_tokens!r}; choose one of {', '.join(sft_tokens.STARTS)}")
    if config.lora.rank and config.optimizer.name != "adamw":
        raise ValueError(f"optimizer.name is {config.optimizer.name!r}; a LoRA's factors are trained by adamw")


def config_value(config: ConfigDict, key: str):
    """A value by its dotted key."""
    return functools.reduce(lambda part, name: part[name], key.split("."), config)


def check_fit(config: ConfigDict, model: ModelConfig) -> None:
    """What can be said against the settings once the model is known."""
    if config.row_length > model.max_positions:
        raise ValueError(f"row_length ({config.row_length}) exceeds the {model.max_positions} positions of "
                         f"{config.model}; shorten the rows")
    if config.lora.rank:
        lora_specs(model, rank=config.lora.rank, alpha=config.lora.alpha, targets=config.lora.targets or None)
        if not config.lora.alpha > 0:
            raise ValueError(f"lora.alpha is {config.lora.alpha}; it must be above 0")


def describe_model(folder: str) -> tuple[ModelConfig, Tokenizer]:
    """Configuration and tokenizer of a model folder, or of the `model/` in a run folder, without the weights."""
    path = pathlib.Path(folder).expanduser()
    inner = path / "model" if (path / "model" / "config.json").exists() else path
    if not (inner / "params").exists():
        raise FileNotFoundError(f"config.model: {folder} is neither a model folder nor a run that has written one; "
                                f"train a base model with `python -m experiments.pretrain`, or convert a published "
                                f"one with `python -m experiments.convert`")
    return load_config(inner / "config.json"), load_tokenizer(inner / "tokenizer")


def sample_prompts(config: ConfigDict, tokenizer: Tokenizer, model: ModelConfig) -> list[tuple[str, list[int]]]:
    """The questions to sample with, each as (text, tokens up to the reply)."""
    prompts = []
    for text in config.sample_prompts:
        ids = render([{"role": "user", "content": text}], tokenizer, add_generation_prompt=True).ids
        if len(ids) + config.sample_tokens > model.max_positions:
            raise ValueError(f"the prompt {text[:40]!r} ({len(ids)} tokens) with sample_tokens "
                             f"({config.sample_tokens}) exceeds the model's {model.max_positions} positions")
        prompts.append((text, ids))
    return prompts


def with_steps(config: ConfigDict, talks: sft_data.Talks) -> ConfigDict:
    """The config with its steps: as given, or those that the epochs need (the last batch may go beyond them)."""
    config = ConfigDict(copy.deepcopy(config.to_dict()))
    config.steps = config.steps or math.ceil(talks.training.block / config.batch_size)
    return config


def fine_tuning(config: ConfigDict, talks: sft_data.Talks, made: Plan, tokenizer: Tokenizer,
                prompts: Sequence[tuple[str, list[int]]], start: str) -> Job:
    """The job of a run: all weights of a model, or a LoRA over them, on conversations."""
    layout = sharding.state_shardings(abstract_params(made.model), made.model, made.mesh)

    def load() -> Params:
        params, _ = load_weights(pathlib.Path(config.model).expanduser(), shardings=layout)
        ready = functools.partial(sft_tokens.start_tokens, model=made.model, tokenizer=tokenizer,
                                  template=tokenizer.chat_template, how=start, seed=config.seed)
        return params if start == "untouched" else jax.jit(ready, donate_argnums=0, out_shardings=layout)(params)

    trained = _lora_state(config, made, load) if config.lora.rank else _full_state(config, made, load)
    taken = config.steps * config.batch_size
    rows = [len(source.training.batch.tokens) for source in talks.sources]
    counted = sum(source.training.counted_tokens for source in talks.sources)
    return Job(
        tokenizer=tokenizer, training=talks.training, validation=talks.validation,
        about=f"{sum(source.training.conversations for source in talks.sources):,} conversations in {sum(rows):,} rows "
              f"({talks.padding:.1%} padding), {counted:,} tokens that count, {taken:,} rows to take, new tokens "
              f"{start}",
        prompts=prompts, stop_tokens=end_of_turn(tokenizer), **trained,
        write_report=functools.partial(write_report, config=config, talks=talks))


def _full_state(config: ConfigDict, made: Plan, load) -> dict:
    """The fields of a Job that trains all weights."""
    create = functools.partial(init_state, optimizer=made.optimizer, ema=config.ema_decay > 0)
    state = jax.eval_shape(create, abstract_params(made.model))
    shardings = sharding.state_shardings(state, made.model, made.mesh)
    begin = jax.jit(create, donate_argnums=0, out_shardings=shardings)
    return {"state": state, "shardings": shardings, "begin": lambda: begin(load())}


def _lora_state(config: ConfigDict, made: Plan, load) -> dict:
    """The fields of a Job that trains the factors of a LoRA; the weights are read now, whether it resumes or not."""
    settings = {"rank": config.lora.rank, "alpha": config.lora.alpha, "targets": config.lora.targets or None}
    specs = lora_specs(made.model, **settings, mesh_axes=made.mesh.axis_names)
    layout = jax.tree.map(lambda spec: NamedSharding(made.mesh, spec), specs,
                          is_leaf=lambda node: isinstance(node, PartitionSpec))
    cover = functools.partial(lora, config=made.model, key=jax.random.key(config.seed), **settings)
    frozen = jax.jit(cover, donate_argnums=0, out_shardings=layout)(load())
    create = functools.partial(init_state, optimizer=made.optimizer, ema=config.ema_decay > 0)
    state = jax.eval_shape(create, factors(frozen))
    shardings = factor_shardings(state, made, factors(layout))
    begin = jax.jit(lambda own: create(jax.tree.map(jnp.copy, own)), out_shardings=shardings)
    return {"state": state, "shardings": shardings, "begin": lambda: begin(factors(frozen)), "frozen": frozen}


def factor_shardings(state: TrainState, made: Plan, own: Params) -> TrainState:
    """Where a state of factors lies: they, their moments and their average as `own` says, all else everywhere."""
    everywhere = NamedSharding(made.mesh, PartitionSpec())
    moments = optax.tree_map_params(made.optimizer, lambda _, place: place, state.opt_state, own,
                                    transform_non_params=lambda _: everywhere)
    rest = jax.tree.map(lambda _: everywhere, state)
    return rest.replace(params=own, opt_state=moments, ema=None if state.ema is None else own)


def write_report(folder: pathlib.Path, config: ConfigDict, talks: sft_data.Talks) -> None:
    """report.html: losses, samples, and what went in."""
    about = f"{config.model}, {'all weights' if not config.lora.rank else f'LoRA of rank {config.lora.rank}'}, on " \
            f"{', '.join(config.data.sources)}, {talks.padding:.1%} padding"
    report.write_training(folder, config, "Fine-tuning", about, data=[
        ("What went in", sft_data.account_html(sft_data.account(talks)))])


if __name__ == "__main__":
    launch.run(main, default_config="configs/sft.py")
