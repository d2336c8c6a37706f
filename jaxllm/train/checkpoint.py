"""Checkpoints of a run and folders of models; the only file that imports orbax.

A run keeps `checkpoints/<step>/` (the whole TrainState). A model folder holds `config.json`, `tokenizer/` and
`params/`; every experiment reads one by path and writes one.
"""

from __future__ import annotations

import logging
import math
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.model.config import ModelConfig, load_config, save_config
from jaxllm.model.params import Params, abstract_params

Path = str | os.PathLike


def _not_raised_again(record: logging.LogRecord) -> bool:
    """orbax logs every failure from each of its threads, a traceback each, before it raises; once is enough."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_not_raised_again)


class Checkpoints:
    """Saves a TrainState in the background, atomically; keeps the last `keep_last` and the best one.

    A checkpoint is written under a temporary name and renamed when whole: a kill at any moment leaves the one before.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, best_metric: str = "validation_loss") -> None:
        self.folder = pathlib.Path(folder).absolute()
        self._clear_unfinished()

        def goodness(metrics: dict[str, float]) -> float:
            value = metrics[best_metric]
            return -value if math.isfinite(value) else -math.inf
        best = policies.BestN(get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False)
        policy = policies.AnyPreservationPolicy([policies.LatestN(keep_last), best])
        self._manager = ocp.CheckpointManager(
            self.folder, item_handlers=ocp.StandardCheckpointHandler(), options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, enable_async_checkpointing=True))

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metrics: dict[str, float] | None = None) -> None:
        """Starts saving; returns once the arrays are copied. A step that is already there is left alone.

        Raises:
          OSError: when this save, or the one before it, could not be written; names the last good one.
        """
        if step in self._manager.all_steps():
            return
        try:
            self._manager.check_for_errors()
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Blocks until what was started is on disk. Raises OSError as `save` does."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error

    def restore(self, target: Any, step: int | None = None) -> Any:
        """Reads a checkpoint (the latest) into the shapes, dtypes and shardings of `target`.

        Args:
          target: tree of arrays or `jax.ShapeDtypeStruct` with shardings, on any mesh.
          step: which; None is the latest.

        Raises:
          FileNotFoundError: when there is none.
          ValueError: when it holds arrays of other names or shapes; lists the first of them.
        """
        step = self.latest if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(f"{self.folder} holds no checkpoint{'' if step is None else f' of step {step}'}")
        metadata = self._manager.item_metadata(step)
        _check_same(metadata, target, self.folder / str(step))
        return self._manager.restore(step, args=ocp.args.StandardRestore(target))

    def close(self) -> None:
        self._manager.close()

    def _clear_unfinished(self) -> None:
        """Removes what a killed or failed save left under a temporary name."""
        if jax.process_index() == 0:
            for path in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(path, ignore_errors=True)

    def _failure(self, error: Exception) -> OSError:
        """The sentence for a save that failed; clears away what it left, which a full disk can use."""
        self._clear_unfinished()
        steps = [int(path.name) for path in self.folder.glob("*") if path.name.isdigit()]
        last = f"the last good checkpoint is step {max(steps)}" if steps else "there is no good checkpoint"
        return OSError(f"a checkpoint could not be written to {self.folder} ({_reason(error)}); {last}; free space on "
                       f"the disk and run the same command again")


def _reason(error: Exception) -> str:
    """The end of an error's first line, which is where TensorStore says what the system said."""
    line = (str(error).strip() or type(error).__name__).split("\n")[0].split(" [tensorstore_spec")[0]
    return line if len(line) <= 200 else "..." + line[-200:]


def _check_same(saved: Any, target: Any, where: Path) -> None:
    """Raises ValueError listing the arrays that differ between a checkpoint's metadata and `target`."""
    def shapes(tree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
        return {"/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in path):
                tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}
    saved, wanted = shapes(saved), shapes(target)
    wrong = [f"{name}: checkpoint {saved.get(name, 'lacks it')}, run {wanted.get(name, 'lacks it')}"
             for name in sorted(saved.keys() | wanted.keys()) if saved.get(name) != wanted.get(name)]
    if wrong:
        raise ValueError(f"checkpoint {os.fspath(where)} does not fit this model and optimizer: "
                         f"{'; '.join(wrong[:4])}{f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''}. "
                         f"Use the settings it was made with, or another workdir")


def save_model(folder: Path, params: Params, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
    """Writes a model folder, whole or not at all; one that is already there is replaced.

    Without a tokenizer (None: one that is not read here) `load_model` refuses the folder; its weights can be converted.

    Every process of a run must call it: each writes its own part of the weights.

    Raises:
      ValueError: when these are not plain parameters of `config`, before anything is written.
      OSError: when it could not be written.
    """
    folder = pathlib.Path(folder).absolute()
    if jax.tree.structure(params) != jax.tree.structure(abstract_params(config)):
        raise ValueError(f"these parameters cannot be written to {folder}: a model folder holds a plain tree with "
                         f"stacked blocks; merge LoRA factors first, and keep the weights that were quantised or "
                         f"prepared for decoding")
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    first = jax.process_index() == 0
    if first:
        if old.exists() and not folder.exists():  # killed between the two renames below
            os.replace(old, folder)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
    try:
        if first:
            temporary.mkdir(parents=True)
            save_config(config, temporary / "config.json")
            if tokenizer is not None:
                tokenizer.save(temporary / "tokenizer")
        multihost_utils.sync_global_devices("model folder begun")
        largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
        # orbax's buffers hold two leaves at a time, not a second copy of the model; less than one is an error there.
        handler = ocp.StandardCheckpointHandler(save_concurrent_gb=2 * largest / 1e9)
        with ocp.AsyncCheckpointer(handler) as checkpointer:
            checkpointer.save(temporary / "params", args=ocp.args.StandardSave(params))
    except Exception as error:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"the model could not be written to {folder} ({_reason(error)}); what was there before is "
                      f"untouched; free space on the disk") from error
    if first:
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    multihost_utils.sync_global_devices("model folder in place")


def load_model(folder: Path, *, dtype: Any = jnp.float32, shardings: Any = None
               ) -> tuple[Params, ModelConfig, Tokenizer]:
    """Reads a model folder, or the `model/` inside a run folder.

    Args, Raises: as `load_weights`; also FileNotFoundError or ValueError for a tokenizer that is missing or damaged.
    """
    params, config = load_weights(folder, dtype=dtype, shardings=shardings)
    return params, config, load_tokenizer(_model_folder(folder) / "tokenizer")


def _model_folder(folder: Path) -> pathlib.Path:
    folder = pathlib.Path(folder).absolute()
    return folder / "model" if (folder / "model" / "config.json").exists() else folder


def load_weights(folder: Path, *, dtype: Any = jnp.float32, shardings: Any = None) -> tuple[Params, ModelConfig]:
    """Reads a model folder, or the `model/` inside a run folder, but for its tokenizer.

    Args:
      folder: either.
      dtype: of the weights in memory.
      shardings: a tree of `NamedSharding` for the parameters; None puts them on the first device.

    Raises:
      FileNotFoundError: when there is no model, saying what was looked for.
      ValueError: when the weights do not fit the configuration beside them.
    """
    folder = _model_folder(folder)
    if not (folder / "params").exists() or not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} is not a model: it needs config.json, params/ and tokenizer/, or a model/ "
                                f"that holds them; a run writes it when it ends or is interrupted")
    config = load_config(folder / "config.json")
    if shardings is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: one, abstract_params(config))
    target = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
                          abstract_params(config), shardings)
    with ocp.StandardCheckpointer() as checkpointer:
        _check_same(checkpointer.metadata(folder / "params").item_metadata, target, folder / "params")
        params = checkpointer.restore(folder / "params", target)
    return params, config
