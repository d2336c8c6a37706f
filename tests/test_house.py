"""Rules of the house that a machine can hold: who may import whom, and the Flax adapter."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import pytest

from jaxllm.flax_adapter import Transformer
from jaxllm.model.config import preset
from jaxllm.model.transformer import forward

ROOT = pathlib.Path(__file__).parent.parent
# Arrows run one way: data, model <- train, infer <- rl, evals <- serve.
MAY_IMPORT = {
    "data": {"data"},
    "model": {"model"},
    "train": {"data", "model", "train"},
    "infer": {"data", "model", "infer"},
    "rl": {"data", "model", "train", "infer", "rl"},
    "evals": {"data", "model", "train", "infer", "evals"},
    "serve": {"data", "model", "infer", "evals", "serve"},
}


def imports(path: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "jaxllm").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_library_knows_no_config_framework_and_no_experiment(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"ml_collections", "absl", "experiments", "configs", "torch", "transformers", "pickle"}
    assert path.name not in ("utils.py", "tokenize.py", "types.py", "random.py")
    package = path.relative_to(ROOT / "jaxllm").parts[0]
    if package in MAY_IMPORT:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("jaxllm.")}
        assert used <= MAY_IMPORT[package], f"{path} reaches up into {used - MAY_IMPORT[package]}"


def test_flax_adapter_is_the_same_function():
    config = preset("nano", layers=1)
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    module = Transformer(config)
    variables = jax.jit(module.init)(jax.random.key(3), tokens)
    expected = jax.jit(forward, static_argnums=1)(variables["params"]["model"], config, tokens)
    assert jnp.array_equal(jax.jit(module.apply)(variables, tokens), expected)
    grads = jax.eval_shape(jax.grad(lambda v: module.apply(v, tokens).sum()), variables)
    assert jax.tree.structure(grads) == jax.tree.structure(variables)
