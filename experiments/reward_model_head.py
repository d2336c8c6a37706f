"""A reward model of a frozen transformer: its states are computed once, and only the head is learnt, in seconds.

This is what fits a CPU at real size. States of several layers are kept: the last one of a language model is shaped for
the next token and need not be the best to judge a text by. A layer below the last makes a smaller reward model, behind
which the final norm stands.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import lab
from experiments.taste import Start
from jaxllm.data.curate.quality_features import Features, SparseRows
from jaxllm.data.curate.quality_head import fit_head
from jaxllm.evals.calibration import fit_temperature, log_loss
from jaxllm.evals.probe import end_states
from jaxllm.model.layers import norm
from jaxllm.rl.reward_model import Reward, init_reward

_norm = jax.jit(norm, static_argnums=2)


def shallower(start: Start, layers: int) -> Start:
    """The model that ends after its first `layers` blocks, with the same final norm."""
    blocks = jax.tree.map(lambda x: x[:layers], start.params["blocks"])
    return dataclasses.replace(start, params={**start.params, "blocks": blocks},
                               model=dataclasses.replace(start.model, layers=layers))


def last_states(start: Start, rows: Sequence[Sequence[int]], layers: Sequence[int], folder: pathlib.Path | None, *,
                batch: int = 32) -> np.ndarray:
    """What a reward model's head reads, of models cut after each of some layers: float32 [len(layers), N, D].

    Args:
      start: the frozen model.
      rows: token ids, N of them.
      layers: how many blocks each model has.
      folder: keeps the states of every batch as it is done, so that a killed run goes on. None keeps nothing.
      batch: rows run together, those of like length.
    """
    cut = shallower(start, max(layers))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    states, begun = np.zeros((len(layers), len(rows), start.model.dim), np.float32), time.perf_counter()
    if folder is not None:
        key = lab.key_of([dataclasses.asdict(cut.model), list(layers), batch, *map(list, rows)])
        folder = folder / f"states-{key}"
        folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(rows), batch)):
        some = order[first:first + batch]
        path = None if folder is None else folder / f"{number:05d}.npy"
        if path is not None and path.exists():
            states[:, some] = np.load(path)
            continue
        streams = end_states(cut.params, cut.model, [rows[i] for i in some], batch=batch, execution=lab.EXECUTION)
        states[:, some] = _norm(streams[list(layers)], cut.params["final_norm"], cut.model)
        if path is not None:
            with open(path.with_suffix(".tmp"), "wb") as file:
                np.save(file, states[:, some])
            path.with_suffix(".tmp").replace(path)
            print(f"states of {first + len(some):,} of {len(rows):,} rows, up to {len(rows[some[-1]])} tokens, "
                  f"{time.perf_counter() - begun:.0f} s", flush=True)
    return states


def fit_pairs(features: Features, better: np.ndarray, worse: np.ndarray, l2: float) -> np.ndarray:
    """The weights w that minimise the mean of -log sigmoid(w . (x_better - x_worse)) + l2/2 |w|^2: float64 [D].

    Every pair stands there in both orders, which makes logistic regression Bradley-Terry: no intercept, and features
    scaled by their spread over pairs without a shift. |w| is then that of the scaled features; sparse ones are not
    scaled.

    Args:
      features: of N completions.
      better, worse: int [P], indices of them.
      l2: >= 0.
    """
    first, second = np.concatenate([better, worse]), np.concatenate([worse, better])
    size = 1 << (len(first) - 1).bit_length()  # rows that do not count, so that folds share one compiled program
    differences = _differences(features, first, second, size)
    targets, counts = np.zeros(size), np.arange(size) < len(first)
    targets[:len(better)] = 1.0
    return fit_head(differences, targets, counts, loss="logistic", l2=l2).weights.astype(np.float64)


def _differences(features: Features, first: np.ndarray, second: np.ndarray, size: int) -> Features:
    """Rows of `first` less rows of `second`, and empty rows up to `size`; of sparse rows the entries side by side."""
    if isinstance(features, np.ndarray):
        return np.pad(features[first] - features[second], ((0, size - len(first)), (0, 0)))
    columns, values, counts = [], [], np.zeros(size, np.int64)
    for row, (i, j) in enumerate(zip(first, second, strict=True)):
        plus, minus = (slice(features.starts[n], features.starts[n + 1]) for n in (i, j))
        columns += [features.columns[plus], features.columns[minus]]
        values += [features.values[plus], -features.values[minus]]
        counts[row] = len(columns[-1]) + len(columns[-2])
    return SparseRows(np.concatenate(columns), np.concatenate(values), np.concatenate([[0], np.cumsum(counts)]),
                      features.dim)


def head_reward(settings: ConfigDict, start: Start, states: np.ndarray, pairs: np.ndarray, held_out: np.ndarray
                ) -> Reward:
    """The reward model of the layer and the pull to zero that held-out pairs like best, by log loss.

    Args:
      settings: as configs.reward_model.reward_config makes them; layers and head_l2s are chosen from.
      start: the frozen model.
      states: float32 [len(settings.layers), N, D], of `last_states`.
      pairs: int [P, 2], (better, worse) to learn from, indices of the N.
      held_out: int [P', 2], the same of other rankings, which also give temperature and scale.
    """
    best = (np.inf, 0, np.zeros(0), np.zeros(0))
    for layers, states_ND in zip(settings.layers, states, strict=True):
        for l2 in settings.head_l2s:
            weight_D = fit_pairs(states_ND, pairs[:, 0], pairs[:, 1], l2)
            scores_N = states_ND.astype(np.float64) @ weight_D
            lead = scores_N[held_out[:, 0]] - scores_N[held_out[:, 1]]
            best = min(best, (log_loss(lead, fit_temperature(lead)), layers, weight_D, scores_N), key=lambda x: x[0])
    _, layers, weight_D, scores_N = best
    cut, some = shallower(start, layers), scores_N[np.unique(held_out)]
    params = init_reward(cut.params, cut.model)
    params["score"]["weight"] = jnp.asarray(weight_D, jnp.float32)
    return Reward(params, cut.model, cut.tokenizer, settings.row_length, float(some.mean()), float(some.std()),
                  fit_temperature(scores_N[held_out[:, 0]] - scores_N[held_out[:, 1]]))
