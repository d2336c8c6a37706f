"""Means that are divided once, and where numbers go: one json line a step, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mean:
    """A sum and the weight it is to be divided by, kept apart until everything has been summed.

    Means of micro-batches, devices or hosts of unequal token counts add up to the exact mean of the whole; a mean of
    means does not.

    Attributes:
      total: weighted sum, scalar.
      weight: sum of the weights, scalar.

    >>> a, b = Mean(6.0, 3.0), Mean(10.0, 1.0)
    >>> float((a + b).value)
    4.0
    """

    total: jax.Array | float
    weight: jax.Array | float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> jax.Array:
        """total / weight; 0 where the weight is 0 (nothing counted)."""
        return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1.0), 0.0)


Metrics = dict[str, Mean]


def bits_per_byte(cross_entropy: Mean, targets: jax.Array, weights: jax.Array, token_bytes: jax.Array) -> Mean:
    """Cross entropy in bits per byte of text: comparable between tokenizers, as a loss per token is not.

    Args:
      cross_entropy: its total is the summed cross entropy of the counted tokens, in nats.
      targets: int32 [B, T].
      weights: float [B, T]; 0 = not counted.
      token_bytes: int32 [V], UTF-8 bytes that each token stands for; 0 for special tokens, whose nats count all the
        same (the model is asked to end documents too).
    """
    counted = jnp.where(weights > 0, token_bytes[targets], 0)
    return Mean(cross_entropy.total / math.log(2.0), jnp.sum(counted).astype(jnp.float32))


def norms(tree: Any) -> dict[str, jax.Array]:
    """The L2 norm of all leaves that bear one name, at whatever depth; float32 scalars.

    >>> float(norms({"first": {"scale": jnp.array([3.0])}, "last": {"scale": jnp.array([4.0])}})["scale"])
    5.0
    """
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        squares[name] = squares.get(name, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    return {name: jnp.sqrt(square) for name, square in squares.items()}


class MetricsWriter:
    """Appends scalars to `metrics.jsonl` and TensorBoard events in a run folder, and to W&B when asked.

    A resumed run goes on in the same file; lines of steps that it repeats are cut first, so that every step stands
    there once.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int = 0, wandb_project: str = "",
                 config: Mapping[str, Any] | None = None) -> None:
        wandb = _import_wandb() if wandb_project else None
        os.makedirs(folder, exist_ok=True)
        self._path = os.path.join(folder, "metrics.jsonl")
        _keep_lines_up_to(self._path, resume_step)
        self._file = open(self._path, "a", encoding="utf-8")
        self._events = _summary_writer()(os.path.join(folder, "events"), purge_step=resume_step + 1)
        self._wandb = None if wandb is None else wandb.init(
            project=wandb_project, dir=os.fspath(folder), config=dict(config or {}),
            id=os.path.basename(os.path.abspath(folder)), resume="allow")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records `scalars` under `step`, at once (a kill loses nothing that was written)."""
        values = {name: float(value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def _summary_writer() -> type:
    """tensorboardX's writer. Its import takes seconds over torch wherever that is installed; without, it does as well.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # an ImportError to whoever asks
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError("wandb_project is set and wandb is missing: pip install 'jaxllm[wandb]', or "
                         "leave wandb_project empty") from error
    return wandb


def read_metrics(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a last line cut short by a kill is left out."""
    path = os.path.join(folder, "metrics.jsonl")
    records = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    records.append(json.loads(line))
    return records


def _keep_lines_up_to(path: str, step: int) -> None:
    if not os.path.exists(path):
        return
    kept = [record for record in read_metrics(os.path.dirname(path)) if record["step"] <= step]
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    os.replace(temporary, path)
