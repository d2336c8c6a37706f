"""Weights of Hugging Face transformers to ours and back, from one table of rules per family.

Numpy alone. A state is any mapping from names to arrays, so that a lazy one can read a file tensor
by tensor.

References: https://github.com/huggingface/transformers (names and shapes in each `state_dict`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
from flax import traverse_util

from jaxllm.model.config import ModelConfig
from jaxllm.model.convert_config import config_from_hugging_face, config_to_hugging_face, family
from jaxllm.model.overlay import Overlay
from jaxllm.model.params import Leaf, Params, parameter_table

__all__ = ["RULES", "HuggingFaceState", "Rule", "check_state", "config_from_hugging_face", "config_to_hugging_face",
           "family", "from_hugging_face", "hugging_face_shapes", "to_hugging_face"]

Shapes = Mapping[str, tuple[int, ...]]
_MISFIT = "the checkpoint does not fit the model's configuration"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor of theirs and the parameters of ours that it holds.

    Ours, each flattened to [inputs, outputs] and set side by side, are theirs or its transpose.

    Attributes:
      name: their name, with {} for the layer.
      paths: our paths in the parameter tree; several when theirs is fused.
      inputs: how many leading dimensions of ours (the layer's apart) are inputs; 0 for a vector.
      transposed: theirs is [outputs, inputs], as in torch's Linear.
    """

    name: str
    paths: tuple[str, ...]
    inputs: int = 1
    transposed: bool = False

    def shape(self, ours: Shapes) -> tuple[int, ...]:
        """The shape of theirs, given the shapes of ours."""
        rows = (math.prod(ours[self.paths[0]][:self.inputs]),) if self.inputs else ()
        matrix = (*rows, sum(self._widths(ours)))
        return matrix[::-1] if self.transposed else matrix

    def read(self, tensor: np.ndarray, ours: Shapes) -> dict[str, np.ndarray]:
        """Theirs -> ours by path, given the shapes of ours."""
        matrix = tensor.T if self.transposed else tensor
        parts = np.split(matrix, np.cumsum(self._widths(ours))[:-1], axis=-1)
        return {path: part.reshape(ours[path])
                for path, part in zip(self.paths, parts, strict=True)}

    def write(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Ours by path -> theirs: the inverse of `read`."""
        parts = [arrays[path] for path in self.paths]
        matrix = np.concatenate(
            [part.reshape(*part.shape[:self.inputs], -1) for part in parts], axis=-1)
        if self.inputs:
            matrix = matrix.reshape(-1, matrix.shape[-1])
        return np.ascontiguousarray(matrix.T if self.transposed else matrix)

    def _widths(self, ours: Shapes) -> list[int]:
        return [math.prod(ours[path][self.inputs:]) for path in self.paths]


def _mixer(*names: str) -> tuple[str, ...]:
    return tuple(f"blocks/attention/{name}" for name in names)


# GPT-2's Conv1D keeps matrices as [inputs, outputs]; query, key and value are one of them.
_GPT2 = (
    Rule("transformer.wte.weight", ("embedding/tokens",)),
    Rule("transformer.wpe.weight", ("embedding/positions",)),
    Rule("transformer.h.{}.ln_1.weight", _mixer("norm/scale"), inputs=0),
    Rule("transformer.h.{}.ln_1.bias", _mixer("norm/bias"), inputs=0),
    Rule("transformer.h.{}.attn.c_attn.weight", _mixer("query", "key", "value")),
    Rule("transformer.h.{}.attn.c_attn.bias", _mixer("query_bias", "key_bias", "value_bias"),
         inputs=0),
    Rule("transformer.h.{}.attn.c_proj.weight", _mixer("output"), inputs=2),
    Rule("transformer.h.{}.attn.c_proj.bias", _mixer("output_bias"), inputs=0),
    Rule("transformer.h.{}.ln_2.weight", ("blocks/mlp/norm/scale",), inputs=0),
    Rule("transformer.h.{}.ln_2.bias", ("blocks/mlp/norm/bias",), inputs=0),
    Rule("transformer.h.{}.mlp.c_fc.weight", ("blocks/mlp/up",)),
    Rule("transformer.h.{}.mlp.c_fc.bias", ("blocks/mlp/up_bias",), inputs=0),
    Rule("transformer.h.{}.mlp.c_proj.weight", ("blocks/mlp/down",)),
    Rule("transformer.h.{}.mlp.c_proj.bias", ("blocks/mlp/down_bias",), inputs=0),
    Rule("transformer.ln_f.weight", ("final_norm/scale",), inputs=0),
    Rule("transformer.ln_f.bias", ("final_norm/bias",), inputs=0),
    Rule("lm_head.weight", ("head",), transposed=True),
)
# Llama and those that grew from it: rules whose parameters a model lacks do not apply to it.
_COMMON = (
    Rule("model.embed_tokens.weight", ("embedding/tokens",)),
    Rule("model.layers.{}.input_layernorm.weight", _mixer("norm/scale"), inputs=0),
    Rule("model.layers.{}.self_attn.q_proj.weight", _mixer("query"), transposed=True),
    Rule("model.layers.{}.self_attn.k_proj.weight", _mixer("key"), transposed=True),
    Rule("model.layers.{}.self_attn.v_proj.weight", _mixer("value"), transposed=True),
    Rule("model.layers.{}.self_attn.q_proj.bias", _mixer("query_bias"), inputs=0),
    Rule("model.layers.{}.self_attn.k_proj.bias", _mixer("key_bias"), inputs=0),
    Rule("model.layers.{}.self_attn.v_proj.bias", _mixer("value_bias"), inputs=0),
    Rule("model.layers.{}.self_attn.q_norm.weight", _mixer("query_norm/scale"), inputs=0),
    Rule("model.layers.{}.self_attn.k_norm.weight", _mixer("key_norm/scale"), inputs=0),
    Rule("model.layers.{}.self_attn.o_proj.weight", _mixer("output"), inputs=2, transposed=True),
    Rule("model.layers.{}.mlp.gate_proj.weight", ("blocks/mlp/gate",), transposed=True),
    Rule("model.layers.{}.mlp.up_proj.weight", ("blocks/mlp/up",), transposed=True),
    Rule("model.layers.{}.mlp.down_proj.weight", ("blocks/mlp/down",), transposed=True),
    Rule("model.norm.weight", ("final_norm/scale",), inputs=0),
    Rule("lm_head.weight", ("head",), transposed=True),
)
_LLAMA = _COMMON + (
    Rule("model.layers.{}.post_attention_layernorm.weight", ("blocks/mlp/norm/scale",), inputs=0),
)
# In Gemma-2 "post_attention" is literal: that norm is of what attention returns.
_GEMMA2 = _COMMON + (
    Rule("model.layers.{}.post_attention_layernorm.weight", _mixer("post_norm/scale"), inputs=0),
    Rule("model.layers.{}.pre_feedforward_layernorm.weight", ("blocks/mlp/norm/scale",), inputs=0),
    Rule("model.layers.{}.post_feedforward_layernorm.weight", ("blocks/mlp/post_norm/scale",),
         inputs=0),
)
RULES: Mapping[str, tuple[Rule, ...]] = {
    "gpt2": _GPT2, "llama": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gemma2": _GEMMA2}

# Buffers without weights that older checkpoints carry.
_BUFFERS = re.compile(r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.inv_freq)$")


def hugging_face_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a Hugging Face checkpoint of `config`, without a tied head."""
    shapes = _shapes(config)
    return {name: rule.shape(shapes) for name, _, rule in _tensors(config)}


def check_state(found: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Compares the tensors of a checkpoint, none of them read, with those that `config` asks for.

    Args:
      found: their name -> shape, with or without the leading "transformer." or "model.".
      config: the architecture.

    Raises:
      ValueError: listing the tensors that are missing, unknown, or of another shape.
    """
    if config.layers > len(found):  # before a list as long as a damaged configuration says is made
        raise ValueError(f"the configuration has {config.layers} layers, the checkpoint only {len(found)} tensors")
    root = _root(found, config)
    expected = {name.removeprefix(root): shape for name, shape in hugging_face_shapes(config).items()}
    problems = _names(expected, found, config)
    problems += [f"{name} has shape {found[name]}, not {shape}" for name, shape in expected.items()
                 if found.get(name, shape) != shape]
    _refuse(problems, _MISFIT)


def from_hugging_face(state: Mapping[str, np.ndarray], config: ModelConfig) -> Params:
    """Our parameters from Hugging Face's.

    Args:
      state: their name -> array of any float dtype, each asked for once. Names may lack the leading
        "transformer." or "model.", as in checkpoints of the model without its head.
      config: the architecture, for example from `config_from_hugging_face`.

    Returns:
      The tree that `forward` takes, as numpy arrays in the dtype of `state`: `jax.device_put` them,
      or pass them to a jitted function.

    Raises:
      ValueError: listing the tensors that are missing, unknown, or of another shape than `config`
        says, or of another dtype than the same tensor of other layers.
    """
    root = _root(state, config)
    rules = {name.removeprefix(root): (layer, rule) for name, layer, rule in _tensors(config)}
    _refuse(_names(rules, state, config), _MISFIT)
    shapes, problems = _shapes(config), []
    flat: dict[str, np.ndarray] = {}
    for name, (layer, rule) in rules.items():
        tensor = np.asarray(state[name])
        if tensor.shape != rule.shape(shapes):
            problems.append(f"{name} has shape {tensor.shape}, not {rule.shape(shapes)}")
            continue
        for path, array in rule.read(tensor, shapes).items():
            if layer is None:
                flat[path] = np.array(array, order="C")
                continue
            if path not in flat:
                flat[path] = np.empty((config.layers, *array.shape), array.dtype)
            if array.dtype != flat[path].dtype:
                problems.append(f"{name} is of {array.dtype}, other layers of {flat[path].dtype}")
            flat[path][layer] = array
    if config.tied_embedding and "lm_head.weight" in state and "embedding/tokens" in flat:
        if not np.array_equal(state["lm_head.weight"], flat["embedding/tokens"]):
            problems.append("lm_head.weight is not the embedding, though the two are to be tied")
    _refuse(problems, _MISFIT)
    return traverse_util.unflatten_dict(flat, sep="/")


class HuggingFaceState(Mapping[str, np.ndarray]):
    """Hugging Face's state dict of our stacked parameters, each tensor made when it is asked for.

    Args:
      params: the parameters.
      config: the architecture.

    Raises:
      ValueError: when these are not parameters of `config`, or no family there is of its kind.
    """

    def __init__(self, params: Params, config: ModelConfig) -> None:
        flat = traverse_util.flatten_dict(params, sep="/")
        leaves = traverse_util.flatten_dict(parameter_table(config), sep="/")
        if any(isinstance(array, Overlay) for array in flat.values()) or isinstance(params.get("blocks"), tuple):
            raise ValueError("only a plain tree with stacked blocks can be exported; merge LoRA factors first, and "
                             "take the weights from before they were quantised or prepared for decoding")
        problems = [f"{path} is missing" for path in leaves if path not in flat]
        problems += [f"{path} is unknown" for path in flat if path not in leaves]
        problems += [f"{path} has shape {flat[path].shape}, not {leaf.shape}"
                     for path, leaf in leaves.items()
                     if path in flat and flat[path].shape != leaf.shape]
        _refuse(problems, "the parameters do not fit the model's configuration")
        self.shapes = hugging_face_shapes(config)
        self._flat = {path: np.asarray(array) for path, array in flat.items()}
        self._rules = {name: (layer, rule) for name, layer, rule in _tensors(config)}

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor, without making it."""
        return np.result_type(*(self._flat[path] for path in self._rules[name][1].paths))

    def __getitem__(self, name: str) -> np.ndarray:
        layer, rule = self._rules[name]
        return rule.write({path: self._flat[path] if layer is None else self._flat[path][layer]
                           for path in rule.paths})

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)


def to_hugging_face(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """Hugging Face's state dict, bit for bit, from our stacked parameters; without a tied head.

    Raises:
      ValueError: when these are not parameters of `config`, or no family there is of its kind.
    """
    return dict(HuggingFaceState(params, config))


def _root(found: Mapping[str, object], config: ModelConfig) -> str:
    """What the names in `found` lack in front: "transformer.", "model." or nothing."""
    root = "transformer." if family(config) == "gpt2" else "model."
    return "" if any(name.startswith(root) for name in found) else root


def _names(expected: Mapping[str, object], found: Mapping[str, object], config: ModelConfig) -> list[str]:
    problems = [f"{name} is missing" for name in expected if name not in found]
    return problems + [f"{name} is unknown" for name in found
                       if name not in expected and not _BUFFERS.search(name)
                       and not (config.tied_embedding and name == "lm_head.weight")]


def _tensors(config: ModelConfig) -> Iterator[tuple[str, int | None, Rule]]:
    """(their name, layer if any, rule) of every tensor in a checkpoint of `config`."""
    table = traverse_util.flatten_dict(parameter_table(config), sep="/")
    for rule in RULES[family(config)]:
        if rule.paths[0] in table:
            for layer in range(config.layers) if "{}" in rule.name else [None]:
                yield rule.name.format(layer), layer, rule


def _shapes(config: ModelConfig) -> Shapes:
    """Path -> shape of our parameter; of one layer where layers are stacked."""
    leaves: dict[str, Leaf] = traverse_util.flatten_dict(parameter_table(config), sep="/")
    return {path: leaf.shape[leaf.axes[0] == "layer":] for path, leaf in leaves.items()}


def _refuse(problems: list[str], sentence: str) -> None:
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"{sentence}: {'; '.join(problems[:20])}{more}")
