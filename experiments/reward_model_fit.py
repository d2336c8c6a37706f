"""One reward model out of rankings, of any size and from any weights: what experiments.reward_model calls `fit`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments.reward_model_head import head_reward, last_states
from experiments.taste import Start
from jaxllm.data.preferences import Ranking
from jaxllm.data.ranking_rows import RankingRows, ranking_rows
from jaxllm.evals.calibration import fit_temperature
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import init
from jaxllm.rl.reward_model import (
    Reward,
    init_reward,
    join_trained,
    ranking_objective,
    score_rows,
    split_trained,
)
from jaxllm.train.optimizer import learning_rate_schedule, make_optimizer
from jaxllm.train.sharding import check_batch, make_mesh, put_batch, state_shardings
from jaxllm.train.step import TrainState, init_state, make_train_step


def fit(settings: ConfigDict, start: Start, rankings: Sequence[Ranking], seed: int, *,
        validation: Sequence[Ranking] = (), label: str = "reward model") -> Reward:
    """Trains a reward model.

    A proxy of another size than the model that is judged begins from weights drawn anew (settings.begin="random" with a
    shape), or from a model of that size that was trained on the same jokes: pass the latter as `start`.

    Args:
      settings: as configs.reward_model.reward_config makes them.
      start: the model to start from; its tokenizer's chat format writes the rows.
      rankings: to learn from.
      seed: of the head, of new weights, and of the order of training.
      validation: other rankings, which give temperature and scale, and choose among settings.layers and head_l2s.
        Empty: the same rankings, on which a model is too sure.
      label: what the lines of progress call it.

    Raises:
      ValueError: a setting is out of range or does not fit the start model, no ranking fits a row, or the loss ran
        away.
    """
    check_fit(settings)
    start = in_format(start, settings.template)
    if settings.begin == "random":
        model = ModelConfig(vocab_size=start.model.vocab_size, **settings.shape.to_dict())
        start = dataclasses.replace(start, params=init(model, jax.random.key(seed)), model=model)
    rows = ranking_rows(rankings, start.tokenizer, settings.row_length)
    held_out = ranking_rows(validation, start.tokenizer, settings.row_length) if validation else rows
    if settings.trained == "head":
        both = [row for part in (rows, held_out) for some in part.tokens for row in some]
        states = last_states(start, both, settings.layers, None)
        behind = sum(map(len, rows.tokens))
        return head_reward(settings, start, states, pair_indices(rows), behind + pair_indices(held_out))
    params = _train(settings, start, rows, seed, label)
    return scaled(Reward(params, start.model, start.tokenizer, settings.row_length), held_out)


def check_fit(settings: ConfigDict) -> None:
    """Refuses settings of `fit` that would fail only after some work."""
    if settings.begin not in ("start", "random"):
        raise ValueError(f"reward.begin={settings.begin!r}: choose start or random")
    if settings.begin == "random" and settings.row_length > settings.shape.max_positions:
        raise ValueError(f"reward.row_length={settings.row_length} exceeds reward.shape.max_positions="
                         f"{settings.shape.max_positions}")
    if settings.trained not in ("all", "head") and not (settings.trained.isdecimal() and int(settings.trained)):
        raise ValueError(f"reward.trained={settings.trained!r}: choose all, head, or a number of the last blocks")
    if settings.trained == "head" and (not settings.layers or min(settings.layers) < 1 or not settings.head_l2s):
        raise ValueError(f"reward.trained=head needs reward.layers ({settings.layers}), each 1 or more, and "
                         f"reward.head_l2s")
    for key in ("batch_size", "epochs", "least_steps", "learning_rate", "row_length", "microbatches"):
        if not settings[key] > 0:
            raise ValueError(f"reward.{key}={settings[key]} must be above 0")
    if settings.centring < 0 or settings.margin < 0:
        raise ValueError(f"reward.centring={settings.centring} and reward.margin={settings.margin} must be 0 or more")
    if settings.least_steps <= settings.warmup_steps:
        raise ValueError(f"reward.least_steps={settings.least_steps} must exceed reward.warmup_steps="
                         f"{settings.warmup_steps}")
    ranking_objective(ModelConfig(8, 8, 1, 1, 1, 8, 8, 8), loss=settings.loss, margin=settings.margin)


def in_format(start: Start, template: str) -> Start:
    """The same model with another chat format; "" leaves the tokenizer's own."""
    if not template:
        return start
    return dataclasses.replace(start, tokenizer=dataclasses.replace(start.tokenizer, chat_template=template))


def scaled(reward: Reward, rows: RankingRows) -> Reward:
    """The same model with the mean, the spread and the temperature that these rankings show."""
    scores, pairs = flat_scores(reward, rows), pair_indices(rows)
    return dataclasses.replace(reward, mean=float(scores.mean()), sd=float(max(scores.std(), 1e-6)),
                               temperature=fit_temperature(scores[pairs[:, 0]] - scores[pairs[:, 1]]))


def flat_scores(reward: Reward, rows: RankingRows) -> np.ndarray:
    """Raw scores of all completions, ranking after ranking: float64 [N]."""
    return score_rows(reward, [row for some in rows.tokens for row in some])


def pair_indices(rows: RankingRows) -> np.ndarray:
    """(better, worse) of every pair that is not tied, as indices of `flat_scores`: int [P, 2]."""
    pairs, first = [], 0
    for tiers in rows.tiers:
        pairs += [(first + i, first + j) for i in range(len(tiers)) for j in range(len(tiers)) if tiers[i] < tiers[j]]
        first += len(tiers)
    return np.array(pairs, int).reshape(-1, 2)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """What is compiled in: runs that differ in rankings, steps or rate share one program."""

    model: ModelConfig
    loss: str
    margin: float
    centring: float
    weight_decay: float
    blocks: int | None
    microbatches: int
    execution: Execution


def _train(settings: ConfigDict, start: Start, rows: RankingRows, seed: int, label: str) -> Any:
    """The trained parameters."""
    begun = time.perf_counter()
    blocks = None if settings.trained == "all" else int(settings.trained)
    recipe = _Recipe(start.model, settings.loss, settings.margin, settings.centring, settings.weight_decay, blocks,
                     settings.microbatches, Execution(**settings.execution.to_dict()))
    optimizer, step = _compiled(recipe)
    mesh = make_mesh(settings.mesh, jax.devices()[:max(1, math.prod(settings.mesh))])
    check_batch(settings.batch_size, settings.microbatches, mesh)
    many = mesh.size > 1
    params = init_reward(jax.tree.map(jnp.copy, start.params), start.model, jax.random.key(seed))
    trained, frozen = (params, None) if blocks is None else split_trained(params, blocks)
    state = init_state(trained, optimizer)
    if many:
        state, frozen = (jax.device_put(tree, state_shardings(tree, start.model, mesh)) for tree in (state, frozen))
    steps = max(settings.least_steps, math.ceil(settings.epochs * len(rows) / settings.batch_size))
    schedule = jax.jit(learning_rate_schedule("linear", settings.learning_rate, warmup_steps=settings.warmup_steps,
                                              total_steps=steps))
    metrics: dict[str, Any] = {}
    with jax.set_mesh(mesh) if many else contextlib.nullcontext():
        for number, index in enumerate(_batches(rows, settings.batch_size, steps, seed)):
            batch = rows.batch(index, settings.batch_size)
            state = _at_rate(state, float(schedule(number)))
            state, metrics = step(state, put_batch(batch, mesh) if many else batch, frozen)
    if not math.isfinite(float(metrics["loss"])) or int(metrics["skipped"]):
        raise ValueError(f"{label}: loss {float(metrics['loss'])} after {steps} steps, {int(metrics['skipped'])} of "
                         f"which were not finite; lower reward.learning_rate ({settings.learning_rate})")
    print(f"{label}: {len(rows)} rankings, {steps} steps, last loss {float(metrics['loss']):.3f}, pair accuracy there "
          f"{float(metrics['accuracy']):.3f}, {time.perf_counter() - begun:.0f} s", flush=True)
    params = state.params if blocks is None else join_trained(state.params, frozen, stacked=True)
    return jax.device_put(params, jax.devices()[0]) if many else params


def _batches(rows: RankingRows, batch_size: int, steps: int, seed: int):
    """Indices of the rankings of each step, epoch after epoch."""
    epoch, taken = 0, 0
    while taken < steps:
        for index in rows.order(epoch, batch_size, seed)[:steps - taken]:
            yield index
            taken += 1
        epoch += 1


@functools.lru_cache(maxsize=8)
def _compiled(recipe: _Recipe) -> tuple[optax.GradientTransformation, Callable]:
    """(optimizer, step(state, batch, frozen) -> (state, metrics)); the rate stands in the optimizer's state."""
    optimizer = optax.inject_hyperparams(
        make_optimizer, static_args=("name", "beta1", "beta2", "epsilon", "weight_decay", "clip_norm"))(
        name="adamw", learning_rate=0.0, weight_decay=recipe.weight_decay)
    objective = ranking_objective(recipe.model, recipe.execution, loss=recipe.loss, margin=recipe.margin,
                                  centring=recipe.centring)

    def step(state: TrainState, batch: Any, frozen: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss_fn(params: Any, piece: Any) -> Any:
            whole = params if frozen is None else join_trained(params, frozen, stacked=False)
            return objective(whole, piece)
        return make_train_step(loss_fn, optimizer, microbatches=recipe.microbatches)(state, batch)
    return optimizer, jax.jit(step, donate_argnums=0)


def _at_rate(state: TrainState, rate: float) -> TrainState:
    """The state whose next update is taken at this learning rate."""
    hyperparams = {**state.opt_state.hyperparams, "learning_rate": jnp.asarray(rate, jnp.float32)}
    return state.replace(opt_state=state.opt_state._replace(hyperparams=hyperparams))
