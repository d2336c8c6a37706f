"""A Hugging Face folder to our parameters and back, tensor by tensor: config.json and safetensors, whole or in shards.

Peak memory is the parameters and one tensor; nothing in the folder is executed or unpickled, and nothing outside it is
read.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.model.config import ModelConfig
from jaxllm.model.convert import HuggingFaceState, check_state, from_hugging_face
from jaxllm.model.convert_config import config_from_hugging_face, config_to_hugging_face
from jaxllm.model.params import Params
from jaxllm.model.tensor_file import FLOATS, Pending, Tensor, read_header, write_tensors

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LARGEST_JSON = 64 * 2**20  # bytes, of a config or an index
SHARD_BYTES = 5 * 10**9
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Progress = Callable[[int], None]  # called with the bytes of each tensor that is through


class LazyState(Mapping[str, np.ndarray]):
    """Tensors of files by name, each read when it is asked for.

    Args:
      tensors: where each lies: something with `read()` and `size`, in bytes.
      dtype: to convert to on reading; None keeps each tensor's own.
      progress: called with the bytes of each tensor read.
    """

    def __init__(self, tensors: Mapping[str, Any], dtype: Any = None, progress: Progress | None = None) -> None:
        self._tensors, self._dtype, self._progress = tensors, dtype, progress

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._read(name)
        if self._progress:
            self._progress(self._tensors[name].size)
        return array if self._dtype is None else array.astype(self._dtype, copy=False)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _read(self, name: str) -> np.ndarray:
        return self._tensors[name].read()


def inside(folder: str | os.PathLike, name: str) -> pathlib.Path:
    """The path of a folder's entry, which may be a link within the folder, or in Hugging Face's cache to its blobs.

    The cache of a repository holds snapshots/<revision>/<file>, each a link to ../../blobs/<hash>.

    Raises:
      ValueError: when it is a link to anywhere else.
    """
    folder = pathlib.Path(folder)
    path = folder / name
    if path.exists():  # a link to nothing is a file that is missing
        root, target = folder.resolve(), path.resolve()
        if not target.is_relative_to(root) and not any(
                parent.name == "snapshots" and target.parent == parent.parent / "blobs" for parent in root.parents):
            raise ValueError(f"{path} is a link to {target}, outside the folder, and is not followed; copy the file "
                             f"into the folder if it belongs there")
    return path


def find_tensors(folder: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files, by name, none of them read.

    Raises:
      FileNotFoundError: when there is none, or a shard is missing.
      ValueError: when a file is damaged or a link out of the folder, the index names one elsewhere, or the checkpoint
        is a pickle.
    """
    folder = pathlib.Path(folder)
    if inside(folder, INDEX_FILE).exists():
        return _find_in_shards(folder)
    if inside(folder, WEIGHTS_FILE).exists():
        return read_header(folder / WEIGHTS_FILE)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ValueError(f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when it is read; "
                         f"convert it to safetensors first (transformers: model.save_pretrained(folder))")
    raise FileNotFoundError(f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _find_in_shards(folder: pathlib.Path) -> dict[str, Tensor]:
    path = folder / INDEX_FILE
    places = _read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{path} is damaged: its weight_map does not name a file for each tensor")
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(places.values()):
        if file != os.path.basename(file) or "\\" in file or "\0" in file or not file.endswith(".safetensors"):
            raise ValueError(f"{path} names the shard {file[:200]!r}; a shard is a .safetensors file beside it")
        if not inside(folder, file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing, though {INDEX_FILE} names it; copy it too")
        shard = read_header(folder / file)
        for name in shard:
            if places.get(name) != file:
                raise ValueError(f"{folder / file} holds {name[:200]}, which {INDEX_FILE} does not place there")
        tensors |= shard
    absent = [name for name in places if name not in tensors]
    if absent:
        raise ValueError(f"{path} names {', '.join(absent[:20])}, which no shard holds")
    return tensors


def read_config(folder: str | os.PathLike) -> ModelConfig:
    """The architecture that a Hugging Face folder's config.json describes.

    Raises:
      FileNotFoundError: when there is none.
      ValueError: when it is damaged, or asks for what we do not compute.
    """
    path = inside(folder, CONFIG_FILE)
    content = _read_json(path)
    try:
        return config_from_hugging_face(content)
    except (TypeError, KeyError, AttributeError, ArithmeticError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_hugging_face(folder: str | os.PathLike, *, dtype: Any = None, progress: Progress | None = None
                      ) -> tuple[Params, ModelConfig]:
    """Reads a Hugging Face folder.

    Args:
      folder: holds config.json and safetensors files.
      dtype: of the parameters; None keeps the checkpoint's.
      progress: called with the bytes of each tensor read.

    Returns:
      (parameters as numpy arrays, configuration).

    Raises:
      FileNotFoundError: when a file is missing.
      ValueError: when a file is damaged, the architecture is unknown, or tensors are missing, unknown or of another
        shape: all are listed.
    """
    config = read_config(folder)
    tensors = find_tensors(folder)
    try:
        check_state({name: tensor.shape for name, tensor in tensors.items()}, config)
        return from_hugging_face(LazyState(tensors, dtype, progress), config), config
    except ValueError as error:
        raise ValueError(f"{os.fspath(folder)}: {error}") from error


def write_hugging_face(folder: str | os.PathLike, params: Params, config: ModelConfig, *,
                       extra: Mapping[str, Any] | None = None, dtypes: Mapping[str, Any] | None = None,
                       shard_bytes: int = SHARD_BYTES, progress: Progress | None = None) -> None:
    """Writes config.json and the weights into a folder that is there and empty.

    Args:
      folder: where; see `new_folder`.
      params: the parameters.
      config: the architecture.
      extra: more keys of config.json, such as eos_token_id.
      dtypes: their name -> dtype of the tensor in the file; those not named keep ours.
      shard_bytes: a file has at most this many bytes of tensors, and at least one.
      progress: called with the bytes of each tensor written.

    Raises:
      ValueError: when the parameters do not fit `config`, or no family there has this architecture.
    """
    folder = pathlib.Path(folder)
    content = config_to_hugging_face(config)
    state = HuggingFaceState(params, config)
    tensors = [_pending(state, name, np.dtype((dtypes or {}).get(name, state.dtype(name))), progress)
               for name in state]
    widest = max(tensors, key=lambda tensor: tensor.size).dtype
    content |= {"torch_dtype": widest.name} | dict(extra or {})
    shards = _split(tensors, shard_bytes)
    files = [WEIGHTS_FILE] if len(shards) == 1 else [
        f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_tensors(folder / file, shard)
    if len(shards) > 1:
        places = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(tensor.size for tensor in tensors)}, "weight_map": places}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _pending(state: HuggingFaceState, name: str, dtype: np.dtype, progress: Progress | None) -> Pending:
    if dtype not in FLOATS.values():
        raise ValueError(f"{name} is of {dtype}; only {', '.join(FLOATS)} can be written")

    def make() -> np.ndarray:
        array = state[name].astype(dtype, copy=False)
        if progress:
            progress(array.nbytes)
        return array
    return Pending(name, dtype, state.shapes[name], make)


def _split(tensors: Sequence[Pending], shard_bytes: int) -> list[list[Pending]]:
    shards: list[list[Pending]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.size
    return shards


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {LARGEST_JSON} that are read")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: not a JSON object")
    return content
