"""What the laboratory's experiments share: stages kept between runs, a base model, a short training run, and questions.

A stage is made once: its folder or file bears a hash of what it was made from, so a run that was stopped or killed goes
on at the first stage that is missing, and experiments that need the same base model share it.
"""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import functools
import hashlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import pretrain, report, sft_tokens
from jaxllm.data.chat import end_of_turn, render
from jaxllm.data.loader import Source, prefetch
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.train.objective import next_token_objective
from jaxllm.train.optimizer import learning_rate_schedule, make_optimizer
from jaxllm.train.step import init_state, make_train_step

EXECUTION = Execution(scan=False)
_DONE = "done.json"


def stage(folder: pathlib.Path, name: str, settings: Any, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The folder of a stage, made now or found.

    Args:
      folder: where stages lie.
      name: of the stage; its folder is `name-HASH`.
      settings: all that the stage depends on, as JSON can hold it.
      make: called with the folder unless the stage is done; after a kill it is called again with what it left.
    """
    path = folder / f"{name}-{key_of(settings)}"
    if (path / _DONE).exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another experiment may be making it: wait, and find it done
        if not (path / _DONE).exists():
            make(path)
            report.write_text(path / _DONE, json.dumps(settings, indent=2, default=str) + "\n")
    return path


def kept(folder: pathlib.Path, name: str, settings: Any, compute: Callable[[], Any]) -> Any:
    """What `compute` returned when it was first asked with these settings: numbers, as JSON can hold them."""
    path = folder / f"{name}-{key_of(settings)}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        report.write_text(path, json.dumps(compute()) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def key_of(settings: Any) -> str:
    """Twelve hexadecimal digits that stand for settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def base_model(config: ConfigDict, seed: int) -> pathlib.Path:
    """The run folder of a pretrained model, from the cache or trained now by `experiments.pretrain`.

    Args:
      config: a config of `experiments.pretrain`; "{seed}" in data.sources stands for the seed.
      seed: of the model, and of the world where the sources say so.
    """
    config = ConfigDict(copy.deepcopy(config.to_dict()))
    config.seed = seed
    config.data.sources = tuple(spec.format(seed=seed) for spec in config.data.sources)

    def make(folder: pathlib.Path) -> None:
        if not pretrain.main(config, str(folder)):
            sys.exit(1)  # it was asked to stop, and has said that the same command goes on

    cache = pathlib.Path(config.data.cache).expanduser() / "models"
    return stage(cache, "base", config.to_dict(), make)


def chat_start(params: Params, model: ModelConfig, tokenizer: Tokenizer) -> tuple[Params, Tokenizer]:
    """A base model made ready for conversations: the house's format, its control tokens started from like ones.

    A token that pretraining never saw has a row that was only pushed away from all others; a small tied model does not
    recover from that in a short fine-tuning (docs/sft.md has the measurement).
    """
    return (sft_tokens.start_tokens(params, model, tokenizer, "im_sep", "like"),
            dataclasses.replace(tokenizer, chat_template="im_sep"))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a short run trains.

    Attributes:
      steps: updates, each on `batch_size` rows.
      batch_size: rows of an update.
      learning_rate: the highest; reached after `warmup_steps`, then falling linearly to a tenth.
      weight_decay: of matrices.
      last_blocks: how many of the last blocks are trained, with the final norm; None is the whole model.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 10
    weight_decay: float = 0.0
    last_blocks: int | None = None


def train(params: Params, model: ModelConfig, source: Source, recipe: Recipe, label: str = "training"
          ) -> Params:
    """Trains on the rows of a source, in memory and on one device; prints a line with the time.

    Args:
      params: where to start; they are left as they are.
      model: of the params.
      source: rows with weights on what counts, such as `mix([conversation_rows(...)], epochs=[3])`.
      recipe: see `Recipe`. Runs with the same recipe and shapes share one compiled step.
      label: what the line calls the run.

    Raises:
      ValueError: when the loss is not finite at the end.
    """
    begun = time.perf_counter()
    begin, step = _compiled(model, recipe)
    state = begin(params)
    metrics: Mapping[str, Any] = {}
    batches = prefetch(functools.partial(source.batch_at, batch_size=recipe.batch_size), 0, stop_step=recipe.steps)
    for batch in batches:
        state, metrics = step(state, batch)
    loss, skipped = float(metrics["loss"]), int(metrics["skipped"])
    if not math.isfinite(loss) or skipped:
        raise ValueError(f"{label}: loss {loss} after {recipe.steps} steps, {skipped} of which were not "
                         f"finite; lower the learning rate ({recipe.learning_rate})")
    print(f"{label}: {recipe.steps} steps, last loss {loss:.3f}, {time.perf_counter() - begun:.0f} s", flush=True)
    return state.params


@functools.lru_cache(maxsize=8)
def _compiled(model: ModelConfig, recipe: Recipe) -> tuple[Callable, Callable]:
    """(params -> a state that shares no memory with them, the step)."""
    schedule = learning_rate_schedule("linear", recipe.learning_rate, warmup_steps=recipe.warmup_steps,
                                      total_steps=recipe.steps, final_fraction=0.1)
    optimizer = make_optimizer("adamw", schedule, weight_decay=recipe.weight_decay)
    if recipe.last_blocks is not None:
        optimizer = optax.chain(optimizer, _only_last(model, recipe.last_blocks))
    step = make_train_step(next_token_objective(model, EXECUTION), optimizer)
    begin = jax.jit(lambda params: init_state(jax.tree.map(jnp.copy, params), optimizer))
    return begin, jax.jit(step, donate_argnums=0)


def _only_last(model: ModelConfig, blocks: int) -> optax.GradientTransformation:
    """Leaves the updates of the last blocks and the final norm, and sets all others to zero."""
    if not 1 <= blocks <= model.layers:
        raise ValueError(f"last_blocks is {blocks}; the model has {model.layers}")
    trained_L = np.arange(model.layers) >= model.layers - blocks

    def update(updates: Params, params: Params | None = None) -> Params:
        del params
        last = jax.tree.map(lambda x: x * trained_L.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype),
                            updates["blocks"])
        frozen = {name: jax.tree.map(jnp.zeros_like, part) for name, part in updates.items()
                  if name in ("embedding", "head")}
        return {**updates, **frozen, "blocks": last}
    return optax.stateless(update)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A drawn reply.

    Attributes:
      text: without the token that ends the turn.
      tokens: as drawn, that token included.
      logp: nats, of each token under the model.
      ended: False when it ran into max_tokens.
    """

    text: str
    tokens: list[int]
    logp: list[float]
    ended: bool

    @property
    def confidence(self) -> float:
        """Probability that the model gives its own reply, the end of the turn included."""
        return math.exp(sum(self.logp))


def ask(params: Params, model: ModelConfig, tokenizer: Tokenizer, conversations: Sequence[Sequence[Mapping[str, Any]]],
        *, samples: int = 1, temperature: float = 0.0, max_tokens: int = 24, seed: int = 0, batch: int = 64
        ) -> list[list[Answer]]:
    """The model's replies to conversations that each end with a message to it: [conversation][sample].

    Args:
      params, model, tokenizer: the model; its chat format is the tokenizer's own.
      samples: replies to each; equal ones at temperature 0.
      max_tokens: of a reply.
      seed: of the draws.
      batch: conversations run together.
    """
    prompts = [render(messages, tokenizer, add_generation_prompt=True).ids for messages in conversations]
    stops = end_of_turn(tokenizer)
    found = generate(params, model, prompts, key=seed, max_tokens=max_tokens, stop_tokens=stops, batch=batch,
                     settings=SamplingSettings(temperature=temperature), samples_per_prompt=samples,
                     valid_vocab=tokenizer.vocab_size, execution=EXECUTION)
    logps, ended = np.asarray(found.logp), np.asarray(found.stopped)
    answers = [Answer(tokenizer.decode([t for t in row if t not in stops]), row, logps[i, :len(row)].tolist(),
                      bool(ended[i])) for i, row in enumerate(found.rows())]
    return [answers[i:i + samples] for i in range(0, len(answers), samples)]
