"""Converts a model between Hugging Face, GGUF and our own folders.

    python -m experiments.convert --config.source=SmolLM2-135M-Instruct.Q4_1.gguf --config.target=models/smollm2
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments import launch
from jaxllm.data.chat import end_of_turn
from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.data.tokenizer_gguf import tokenizer_from_gguf, tokenizer_to_gguf
from jaxllm.data.tokenizer_hugging_face import (
    JINJA,
    UnsupportedTokenizer,
    tokenizer_from_hugging_face,
    tokenizer_to_hugging_face,
)
from jaxllm.model.config import ModelConfig
from jaxllm.model.convert import HuggingFaceState
from jaxllm.model.gguf_file import MAGIC, read_gguf_file
from jaxllm.model.gguf_read import read_gguf
from jaxllm.model.gguf_write import SCHEMES, write_gguf
from jaxllm.model.hub import PICKLES, find_tensors, inside, read_hugging_face, write_hugging_face
from jaxllm.model.params import Params, count_params
from jaxllm.train.checkpoint import load_weights, save_model

FORMATS = ("hugging_face", "gguf", "jaxllm")
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
ORIGINALS, RECORD = "original", "conversion.json"
# Files of a Hugging Face folder that ride along in ORIGINALS, so that they come back out.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja")
RIDING_FILES = (*TOKENIZER_FILES, "generation_config.json")
LARGEST_RIDER = 256 * 2**20  # bytes


@dataclasses.dataclass
class Model:
    """What is converted.

    Attributes:
      params, config: the weights and the architecture.
      tokenizer: or None, where there is none that is read here; `note` says why.
      dtypes: Hugging Face's name -> dtype of a tensor, where it is not that of `params`.
      originals: a folder with tokenizer files as they were published, or None.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer | None
    note: str = ""
    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
    originals: pathlib.Path | None = None


def main(config: ConfigDict, workdir: str) -> None:
    """Reads the source whole, then writes the target under a temporary name that becomes its own.

    Args:
      config: see configs/convert.py.
      workdir: not used; source and target are named by the config.

    Raises:
      ValueError: for a setting out of range, a damaged or unknown source, or a target of a kind that cannot hold it.
      FileNotFoundError: when there is no such source.
      FileExistsError: when there is something at the target.
    """
    source, target, kind, to = check(config)
    try:
        convert(config, source, target, kind, to)
    except ImportError as error:
        raise ValueError(str(error)) from error


def convert(config: ConfigDict, source: pathlib.Path, target: pathlib.Path, kind: str, to: str) -> None:
    dtype = DTYPES.get(config.dtype)
    model = {"hugging_face": from_hugging_face_folder, "gguf": from_gguf_file, "jaxllm": from_model_folder}[kind](
        source, dtype)
    if model.note:
        print(f"no tokenizer: {model.note}", flush=True)
    if to == "gguf":
        to_gguf_file(target, model, config.gguf)
    else:
        with_new_folder(target, lambda folder: (
            to_hugging_face_folder(folder, model, round(config.shard_gb * 1e9)) if to == "hugging_face"
            else to_model_folder(folder, model, source.name)))
    print(f"{kind} {source} -> {to} {target}: {count_params(model.config) / 1e6:.1f}M parameters, "
          f"{size_of(target) / 1e6:.1f} MB, "
          f"{'no tokenizer' if model.tokenizer is None else f'tokenizer of {model.tokenizer.vocab_size} ids'}",
          flush=True)


def check(config: ConfigDict) -> tuple[pathlib.Path, pathlib.Path, str, str]:
    """(source, target, its format, the other's): refuses what would fail only after the weights were read."""
    if not config.source or not config.target:
        raise ValueError("name both --config.source and --config.target")
    if config.dtype and config.dtype not in DTYPES:
        raise ValueError(f"config.dtype is {config.dtype!r}; choose one of {', '.join(DTYPES)}, or '' to keep it")
    if config.gguf not in SCHEMES:
        raise ValueError(f"config.gguf is {config.gguf!r}; choose one of {', '.join(SCHEMES)}")
    if not config.shard_gb > 0:
        raise ValueError(f"config.shard_gb is {config.shard_gb}; it must be more than 0")
    source, target = pathlib.Path(config.source).absolute(), pathlib.Path(config.target).absolute()
    kind = find_format(source)
    to = config.format or ("gguf" if target.suffix == ".gguf" else "hugging_face" if kind == "jaxllm" else "jaxllm")
    if to not in FORMATS:
        raise ValueError(f"config.format is {to!r}; choose one of {', '.join(FORMATS)}, or '' for the likely one")
    if target.exists() and (to == "gguf" or not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already and is never overwritten; choose another target or remove "
                              f"it first")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"config.target: there is no folder {target.parent}; make it first")
    return source, target, kind, to


def find_format(source: pathlib.Path) -> str:
    """Which of FORMATS a source is in."""
    if not source.exists():
        raise FileNotFoundError(f"config.source: there is no {source}")
    if source.is_file():
        with open(source, "rb") as file:
            if file.read(4) == MAGIC:
                return "gguf"
        if source.suffix in PICKLES:
            raise ValueError(f"{source} is a pickle, which can run code when it is read; convert it to safetensors "
                             f"first (transformers: model.save_pretrained(folder))")
        raise ValueError(f"{source} is no GGUF file; give a folder for the other formats")
    if (source / "params").is_dir() or (source / "model" / "params").is_dir():
        return "jaxllm"
    if (source / "config.json").exists():
        return "hugging_face"
    inside = sorted(path.name for path in source.glob("*.gguf"))
    raise ValueError(f"{source} is neither a Hugging Face folder (config.json) nor a model folder (params/)"
                     + (f"; did you mean {source / inside[0]}?" if inside else ""))


def from_hugging_face_folder(source: pathlib.Path, dtype: np.dtype | None) -> Model:
    originals = check_riders(source)
    tokenizer, note = read_tokenizer(lambda: tokenizer_from_hugging_face(source))
    total = sum(tensor.size for tensor in find_tensors(source).values())
    with progress_bar(total, "reading") as bar:
        params, config = read_hugging_face(source, dtype=dtype, progress=bar.update)
    return Model(params, config, tokenizer, note, originals=originals)


def from_gguf_file(source: pathlib.Path, dtype: np.dtype | None) -> Model:
    file = read_gguf_file(source)
    tokenizer, note = read_tokenizer(lambda: tokenizer_from_gguf(file.metadata, source.stem))
    with progress_bar(sum(tensor.size for tensor in file.tensors.values()), "reading") as bar:
        params, config = read_gguf(file, dtype=dtype or np.float32, progress=bar.update)
    return Model(params, config, tokenizer, note)


def from_model_folder(source: pathlib.Path, dtype: np.dtype | None) -> Model:
    if not (source / "params").is_dir():
        source = source / "model"
    originals = check_riders(inside(source, ORIGINALS))
    path, record = source / RECORD, {"dtype": "float32", "others": {}}
    if path.exists():
        record = json.loads(path.read_bytes())
        if record.get("dtype") not in DTYPES or not isinstance(record.get("others"), dict):
            raise ValueError(f"{path} is damaged; remove it to convert in float32")
    others = {} if dtype else record["others"]
    wanted = dtype or DTYPES["float32" if others else record["dtype"]]
    note = "" if (source / "tokenizer").is_dir() else f"{source} was converted without one"
    print(f"reading {source}", flush=True)
    params, config = load_weights(source, dtype=wanted)
    tokenizer = None if note else load_tokenizer(source / "tokenizer")
    names = HuggingFaceState(params, config) if others else ()
    return Model(params, config, tokenizer, note, {name: others.get(name, record["dtype"]) for name in names},
                 originals if originals.is_dir() else None)


def read_tokenizer(read: Callable[[], Tokenizer]) -> tuple[Tokenizer | None, str]:
    """The tokenizer, or None and why: one of another kind does not stop the weights, a damaged one does."""
    try:
        return read(), ""
    except (UnsupportedTokenizer, FileNotFoundError) as error:
        return None, str(error)


def to_model_folder(folder: pathlib.Path, model: Model, name: str) -> None:
    """params/, config.json, tokenizer/ and what rides along."""
    dtypes = {key: str(dtype) for key, dtype in model.dtypes.items()} or names_of_dtypes(model)
    usual = collections.Counter(dtypes.values()).most_common(1)[0][0]
    print(f"writing {folder}", flush=True)
    # orbax copies arrays of numpy before it writes, and arrays of JAX not
    leaves, tree = jax.tree.flatten(model.params)
    model.params = None
    for i in range(len(leaves)):
        leaves[i] = jax.device_put(leaves[i], jax.local_devices(backend="cpu")[0]).block_until_ready()
    save_model(folder, tree.unflatten(leaves), model.config, model.tokenizer)
    record = {"source": name, "dtype": usual, "others": {key: d for key, d in dtypes.items() if d != usual}}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if model.originals:
        (folder / ORIGINALS).mkdir()
        copy_riders(model.originals, folder / ORIGINALS, RIDING_FILES)


def names_of_dtypes(model: Model) -> dict[str, str]:
    """Hugging Face's name of each tensor -> dtype; no reference to the weights is left behind."""
    state = HuggingFaceState(model.params, model.config)
    return {name: state.dtype(name).name for name in state}


def to_hugging_face_folder(folder: pathlib.Path, model: Model, shard_bytes: int) -> None:
    """config.json, safetensors, and the tokenizer: as it was published if it is still that one, else ours."""
    tokenizer, extra = model.tokenizer, {}
    if tokenizer is not None:
        end = ending(tokenizer)
        extra = {"bos_token_id": tokenizer.begin_of_text, "eos_token_id": tokenizer.special_tokens[end]}
    state = HuggingFaceState(model.params, model.config)
    total = sum(int(np.prod(state.shapes[name])) * np.dtype(DTYPES.get(model.dtypes.get(name), state.dtype(name))
                                                            ).itemsize for name in state)
    with progress_bar(total, "writing") as bar:
        write_hugging_face(folder, model.params, model.config, extra=extra, shard_bytes=shard_bytes,
                           dtypes={name: DTYPES[dtype] for name, dtype in model.dtypes.items()}, progress=bar.update)
    published = model.originals is not None and (
        tokenizer is None or read_tokenizer(lambda: tokenizer_from_hugging_face(model.originals, tokenizer.name)
                                            )[0] == tokenizer)
    if published:
        copy_riders(model.originals, folder, RIDING_FILES)
    elif tokenizer is not None:
        tokenizer_to_hugging_face(tokenizer, folder, chat_source(tokenizer), end)


def to_gguf_file(target: pathlib.Path, model: Model, scheme: str) -> None:
    if model.tokenizer is None:
        raise ValueError(f"llama.cpp reads no model without its tokenizer, and there is none here: {model.note}")
    metadata = tokenizer_to_gguf(model.tokenizer, model.config.vocab_size, chat_source(model.tokenizer),
                                 ending(model.tokenizer))
    with progress_bar(4 * count_params(model.config), "writing") as bar:
        write_gguf(target, model.params, model.config, metadata, scheme=scheme, name=target.stem, progress=bar.update)


def ending(tokenizer: Tokenizer) -> str:
    """The special token at which generation stops: of a turn where there is a chat format, else of a document."""
    if tokenizer.chat_template is None:
        return tokenizer.end_token
    id = end_of_turn(tokenizer)[0]
    return next(token for token, other in tokenizer.special_tokens.items() if other == id)


def chat_source(tokenizer: Tokenizer) -> str | None:
    """The Jinja template of the tokenizer's chat format."""
    template = tokenizer.chat_template
    return JINJA.get(template, template) if template is not None else None


def check_riders(folder: pathlib.Path) -> pathlib.Path:
    """The folder, none of whose riders is a link to a file elsewhere."""
    for name in RIDING_FILES:
        inside(folder, name)
    return folder


def copy_riders(source: pathlib.Path, folder: pathlib.Path, names: tuple[str, ...]) -> None:
    for name in names:
        path = source / name
        if path.is_file() and path.stat().st_size <= LARGEST_RIDER:
            shutil.copyfile(path, folder / name)


def with_new_folder(target: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Has `write` fill a folder under a temporary name, which becomes `target` when it is whole."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
        if target.exists():
            target.rmdir()  # refuses one that something has been put into meanwhile
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def progress_bar(total: int, what: str) -> tqdm:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5)


def size_of(target: pathlib.Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(path.stat().st_size for path in ([target] if target.is_file() else target.rglob("*")) if path.is_file())


if __name__ == "__main__":
    launch.run(main, default_config="configs/convert.py")
