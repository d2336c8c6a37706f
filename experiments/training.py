"""A training run that several experiments share: what a config means, the compiled steps, and the run folder.

`Plan` is the computation, `Job` what is trained and shown (pretraining's is made here, fine-tuning's in
experiments/sft.py), and `Run` carries both out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import corpus as corpora
from experiments import report
from jaxllm.data.loader import Source, prefetch
from jaxllm.data.packing import Batch
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.lora import merge, with_factors
from jaxllm.model.params import Params, flops_per_token, init
from jaxllm.train import loop, sharding
from jaxllm.train.checkpoint import Checkpoints, save_model
from jaxllm.train.metrics import MetricsWriter
from jaxllm.train.objective import evaluate, next_token_objective
from jaxllm.train.optimizer import learning_rate_schedule, make_optimizer
from jaxllm.train.peaks import peak_flops
from jaxllm.train.step import TrainState, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config means, worked out before anything is compiled."""

    model: ModelConfig
    execution: Execution
    mesh: Mesh
    optimizer: Any
    schedule: Any
    step: Any  # (state, batch, frozen weights or None) -> (state, metrics), not yet compiled


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run trains, on what, and what it shows: all in which pretraining and fine-tuning differ.

    Attributes:
      tokenizer: goes into the model folder.
      training: rows, shuffled, without end.
      validation: the held-out rows of each source, in order, once.
      about: a sentence on the data.
      prompts: what to continue along the way: (as shown, token ids).
      stop_tokens: ids that end a sample.
      state: shapes and dtypes of a state that has taken no step.
      shardings: where each of its arrays lies.
      begin: () -> that state; called unless there is a checkpoint.
      write_report: (run folder) -> None.
      frozen: weights that the run leaves as they are, or None. With them, the state holds the factors of a LoRA.
    """

    tokenizer: Tokenizer
    training: Source
    validation: Mapping[str, Source]
    about: str
    prompts: Sequence[tuple[str, list[int]]]
    stop_tokens: tuple[int, ...]
    state: TrainState
    shardings: TrainState
    begin: Callable[[], TrainState]
    write_report: Callable[[pathlib.Path], None]
    frozen: Params | None = None


def plan(config: ConfigDict, mesh: Mesh, tokenizer_vocab: int) -> Plan:
    """The plan of a new model, whose fields are `config.model`."""
    vocab = math.ceil(tokenizer_vocab / config.vocab_multiple) * config.vocab_multiple
    return plan_for(config, mesh, ModelConfig(vocab_size=vocab, **config.model.to_dict()))


def plan_for(config: ConfigDict, mesh: Mesh, model: ModelConfig) -> Plan:
    """Builds the optimizer and the step of a model."""
    execution = Execution(**config.execution.to_dict())
    settings = config.optimizer
    schedule = learning_rate_schedule(
        settings.schedule, settings.learning_rate, warmup_steps=settings.warmup_steps, total_steps=config.steps,
        final_fraction=settings.final_fraction, decay_fraction=settings.decay_fraction)
    optimizer = make_optimizer(
        settings.name, schedule, beta1=settings.beta1, beta2=settings.beta2, epsilon=settings.epsilon,
        weight_decay=settings.weight_decay, clip_norm=settings.clip_norm)
    objective = next_token_objective(model, execution, z_loss=config.z_loss, chunks=config.loss_chunks)

    def step(state: TrainState, batch: Batch, frozen: Params | None = None):
        train = make_train_step(lambda params, piece: objective(whole(params, frozen), piece), optimizer,
                                microbatches=config.microbatches, ema_decay=config.ema_decay, learning_rate=schedule,
                                by_name=True)
        return train(state, batch)
    return Plan(model, execution, mesh, optimizer, schedule, step)


def whole(params: Params, frozen: Params | None) -> Params:
    """The model that a state's parameters stand for: themselves, or frozen weights with these factors over them."""
    return params if frozen is None else with_factors(frozen, params)


def pretraining(config: ConfigDict, corpus: corpora.Corpus, made: Plan) -> Job:
    """The job of a new model on a corpus."""
    def begin() -> TrainState:
        params = init(made.model, jax.random.key(config.seed))
        return init_state(params, made.optimizer, ema=config.ema_decay > 0)

    tokenizer = corpus.tokenizer
    state = jax.eval_shape(begin)
    shardings = sharding.state_shardings(state, made.model, made.mesh)
    taken = config.steps * config.batch_size * config.row_length
    room = made.model.max_positions - config.sample_tokens
    return Job(
        tokenizer=tokenizer, training=corpus.training, validation=corpus.validation,
        about=f"{corpus.train_tokens:,} training tokens ({corpus.train_bytes / corpus.train_tokens:.2f} bytes each), "
              f"{taken:,} to take ({taken / corpus.train_tokens:.2f} epochs)",
        prompts=[(text, [tokenizer.end_of_text, *tokenizer.encode(text)][:room]) for text in config.sample_prompts],
        stop_tokens=(tokenizer.end_of_text,), state=state, shardings=shardings,
        begin=jax.jit(begin, out_shardings=shardings),  # so that it is born where it lies
        write_report=functools.partial(report.write_pretraining, config=config))


class Run:
    """One run: its compiled functions, its files, and what it does every so often."""

    def __init__(self, config: ConfigDict, folder: pathlib.Path, job: Job, made: Plan, begun: float) -> None:
        self.config, self.folder, self.job, self.made, self.begun = config, folder, job, made, begun
        self.main_process = jax.process_index() == 0
        self.checkpoints = Checkpoints(folder / "checkpoints", keep_last=config.keep_checkpoints)
        if self.checkpoints.latest is None:
            self.state = job.begin()
        else:
            self.state = self.checkpoints.restore(jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), job.state, job.shardings))
            self.say(f"resumed at step {int(self.state.step)} of {config.steps}")
        compiled = jax.jit(made.step, donate_argnums=0, out_shardings=(job.shardings, None))
        self.step = lambda state, batch: compiled(state, batch, job.frozen)
        eval_loss = next_token_objective(made.model, made.execution, chunks=config.loss_chunks,
                                         token_bytes=job.tokenizer.token_bytes())
        self.eval_step = jax.jit(eval_loss)
        self.host, self.hosts = sharding.host_rows(config.batch_size, made.mesh)
        self.writer = MetricsWriter(  # a run that begins anew writes its step 0 anew
            folder, resume_step=int(self.state.step) or -1, config=config.to_dict(),
            wandb_project=config.wandb_project) if self.main_process else None
        flops = flops_per_token(made.model, config.row_length)
        self.clock = loop.Clock(config.batch_size * config.row_length, flops,
                                peak_flops(dtype=config.execution.dtype))
        self.validated: tuple[int, dict[str, float]] = (0, {})
        self.describe(flops)

    def say(self, text: str) -> None:
        if self.main_process:
            print(text, flush=True)

    def describe(self, flops: float) -> None:
        count = sum(x.size for x in jax.tree.leaves(self.state.params))
        trained = "" if self.job.frozen is None else " trained beside the frozen ones"
        self.say(f"{count:,} parameters{trained}, {flops / 1e6:,.1f} MFLOP a token, mesh "
                 f"{dict(self.made.mesh.shape)}, {self.job.about}; run folder {self.folder}")

    def batches(self, source: Source, start: int, stop: int):
        def at(step: int):
            rows = source.batch_at(step, batch_size=self.config.batch_size, host=self.host, hosts=self.hosts)
            return sharding.put_batch(rows, self.made.mesh)
        return prefetch(at, start, depth=2, stop_step=stop)

    def train(self, stop: loop.StopRequest) -> TrainState:
        config = self.config
        start = int(self.state.step)
        batches = self.batches(self.job.training, start, config.steps)
        every = ((config.validation_steps, self.validate), (config.sample_steps, self.sample),
                 (config.checkpoint_steps, self.save))
        try:
            return loop.train(self.state, self.step, batches, steps=config.steps, clock=self.clock, report=self.report,
                              every=every, max_skips=config.max_skips, stop=stop)
        except loop.TooManySkips as error:
            self.checkpoints.wait()
            latest = self.checkpoints.latest
            good = "there is no checkpoint" if latest is None else (
                f"the last good checkpoint is step {latest} in {self.checkpoints.folder}")
            raise ValueError(f"{error}; {good}. Lower optimizer.learning_rate, raise warmup_steps or look at the "
                             f"data") from error
        finally:
            batches.close()

    def report(self, number: int, metrics: Mapping[str, float]) -> None:
        """Prints and writes one progress line every log_steps, at the first step and at the last."""
        config = self.config
        if number % config.log_steps and number not in (1, config.steps):
            return
        rates = self.clock.read()
        values = {**metrics, **rates}
        if self.writer is not None:
            self.writer.write(number, values)
        minutes, seconds = divmod(round((config.steps - number) * rates["seconds_per_step"]), 60)
        mfu = f"{rates['mfu']:.1%}" if "mfu" in rates else "n/a"
        skipped = f" skipped {metrics['skipped']:.0f}" if metrics["skipped"] else ""
        self.say(f"step {number}/{config.steps} loss {metrics['loss']:.4f} grad {metrics['grad_norm']:.3f} "
                 f"lr {metrics['learning_rate']:.2e} {rates['tokens_per_second']:,.0f} tok/s mfu {mfu} "
                 f"left {minutes}:{seconds:02d}{skipped}")

    def weights(self, state: TrainState) -> Params:
        """The weights that count: the moving average where there is one."""
        return whole(state.params if state.ema is None else state.ema, self.job.frozen)

    def validate(self, number: int, state: TrainState) -> None:
        """Loss and bits per byte on the held-out rows of every source."""
        values: dict[str, float] = {}
        for spec, source in self.job.validation.items():
            count = source.steps(self.config.batch_size)
            count = min(count, self.config.validation_batches or count)
            found = evaluate(self.eval_step, self.weights(state), self.batches(source, 0, count))
            prefix = "validation" if len(self.job.validation) == 1 else f"validation/{spec}"
            values |= {f"{prefix}_{name}": found[name] for name in ("loss", "bits_per_byte")}
        if not values:
            return
        if "validation_loss" not in values:
            for name in ("loss", "bits_per_byte"):
                values[f"validation_{name}"] = float(np.mean([v for k, v in values.items() if k.endswith(name)]))
        self.validated = number, values
        if self.writer is not None:
            self.writer.write(number, values)
        self.say(f"step {number} validation loss {values['validation_loss']:.4f} "
                 f"bits per byte {values['validation_bits_per_byte']:.4f}")

    def sample(self, number: int, state: TrainState) -> None:
        """Continues the prompts; the texts go to the terminal and to samples.jsonl."""
        config, job = self.config, self.job
        if not job.prompts:
            return
        result = generate(
            self.weights(state), self.made.model, [ids for _, ids in job.prompts], key=number,
            max_tokens=config.sample_tokens, settings=SamplingSettings(temperature=config.sample_temperature),
            stop_tokens=job.stop_tokens, valid_vocab=job.tokenizer.vocab_size, execution=self.made.execution)
        texts = [job.tokenizer.decode([t for t in row if t not in job.stop_tokens]) for row in result.rows()]
        if not self.main_process:
            return
        with open(self.folder / "samples.jsonl", "a", encoding="utf-8") as file:
            for (prompt, _), text in zip(job.prompts, texts, strict=True):
                file.write(json.dumps({"step": number, "prompt": prompt, "text": text}, ensure_ascii=False) + "\n")
                print(f"step {number} sample: {prompt}|{text}", flush=True)

    def save(self, number: int, state: TrainState) -> None:
        """Starts a checkpoint of the whole state, with its validation where this very step has one."""
        step, values = self.validated
        self.checkpoints.save(number, state, values if step == number else None)

    def finish(self, state: TrainState, interrupted: bool) -> None:
        """Saves, writes the model folder and the report, and says where they are."""
        number = int(state.step)
        if not interrupted:
            if not self.config.validation_steps or number % self.config.validation_steps:
                self.validate(number, state)
            if not self.config.sample_steps or number % self.config.sample_steps:
                self.sample(number, state)
        self.save(number, state)
        self.checkpoints.wait()
        weights = self.weights(state)
        save_model(self.folder / "model", weights if self.job.frozen is None else jax.jit(merge)(weights),
                   self.made.model, self.job.tokenizer)
        if self.main_process:
            self.job.write_report(self.folder)
        minutes = (time.perf_counter() - self.begun) / 60
        if interrupted:
            self.say(f"stopped at step {number} of {self.config.steps} after {minutes:.1f} minutes and saved; the same "
                     f"command resumes")
        else:
            self.say(f"done in {minutes:.1f} minutes; model in {self.folder / 'model'}, report in "
                     f"{self.folder / 'report.html'}")

    def close(self) -> None:
        """Closes what is open, however the run ended."""
        if self.writer is not None:
            self.writer.close()
        self.checkpoints.close()
