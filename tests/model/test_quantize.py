"""Quantised weights: levels as GGUF has them, and models that compute with exactly the weights they stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from random_weights import random_weights

from jaxllm.model import quantize as quantize_module
from jaxllm.model.cache import empty_cache
from jaxllm.model.config import Execution, preset
from jaxllm.model.overlay import Int8Dynamic, Overlay, Panels, contract, int4_rows, int8_rows
from jaxllm.model.params import abstract_params, partition_specs, unstack_blocks
from jaxllm.model.quantize import prepare_for_decoding, quantize, quantized_specs, tree_bytes
from jaxllm.model.transformer import decode, forward, head_matrix, logits

TIED = preset("nano", norm="layer", mlp="gelu", positions="learned", bias="all", kv_heads=4)
UNTIED = preset("nano", qk_norm=True, bias="qkv", tied_embedding=False)
TOKENS = np.random.default_rng(0).integers(256, size=(2, 12)).astype(np.int32)
run = jax.jit(forward, static_argnums=1, static_argnames="execution")


@functools.cache
def parameters(config):
    return jax.device_put(jax.tree.map(lambda leaf: leaf * 3, random_weights(config)))


fewer_bits = jax.jit(quantize, static_argnames=("config", "scheme", "group"))


@functools.cache
def quantized(config, scheme):
    return fewer_bits(parameters(config), config, scheme)


@jax.jit
def stood_for(tree, params):
    """The arrays that the overlays of a tree stand for, in the shapes of `params`."""
    flat, shapes = traverse_util.flatten_dict(tree, sep="/"), traverse_util.flatten_dict(params, sep="/")
    for name, leaf in flat.items():
        if isinstance(leaf, Overlay):
            first = 0 if name == "head" else 1
            flat[name] = jnp.moveaxis(leaf.rows(slice(None)), -1, first).reshape(shapes[name].shape)
    return traverse_util.unflatten_dict(flat, sep="/")


def test_levels_are_those_of_gguf():
    """Rows of one group: GGUF's Q8_0 and Q4_0 have a scale per 32 inputs, in float16."""
    gguf = pytest.importorskip("gguf", reason="needs the package `gguf`")
    rows = np.random.default_rng(3).normal(size=(200, 32)).astype(np.float32)
    rows[0] = 0
    theirs = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
    found = int8_rows(jnp.asarray(rows))
    np.testing.assert_array_equal(found.values, theirs[:, 2:].view(np.int8))
    np.testing.assert_array_equal(found.scale.astype(jnp.float16), theirs[:, :2].view(np.float16)[:, 0])
    theirs = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q4_0)
    found = int4_rows(jnp.asarray(rows), 32)
    np.testing.assert_array_equal(found.scale[1:, 0].astype(jnp.float16), theirs[1:, :2].view(np.float16)[:, 0])
    halves = [[packed & 15, packed >> 4] for packed in (np.asarray(found.packed[1:, 0]), theirs[1:, 2:])]
    steps = np.subtract(*halves, dtype=np.int32)
    assert np.abs(steps).max() <= 1 and np.count_nonzero(steps) < 5  # a value halfway between two levels
    np.testing.assert_allclose(found.rows(slice(None)), gguf.quants.dequantize(
        theirs, gguf.GGMLQuantizationType.Q4_0), rtol=0, atol=2e-3 + np.abs(found.scale).max())


@pytest.mark.parametrize("rows_of, levels, worst", [(int8_rows, 127, 0.5), (int4_rows, 8, 1.0)])
def test_no_weight_is_off_by_more_than_the_rule_allows(rows_of, levels, worst):
    rows = np.random.default_rng(4).standard_t(3, size=(64, 2, 64)).astype(np.float32)  # heavy tails
    found = rows_of(jnp.asarray(rows))
    scale = np.repeat(np.abs(found.scale).reshape(64, 2, -1), 64 // (found.scale.size // 128), axis=-1)
    error = np.abs(found.rows(slice(None)) - rows)
    assert np.all(error <= scale * (worst + 1e-5))
    assert found.out == (64, 2) and np.sqrt(np.mean((error / scale) ** 2)) < 0.32  # uniform: 1 / sqrt(12) = 0.29
    np.testing.assert_allclose(np.abs(rows.reshape(scale.size // scale.shape[-1], -1)).max(),
                               scale.max() * levels, rtol=1e-6)


@pytest.mark.parametrize("config, scheme", [(UNTIED, "int8"), (TIED, "int4")], ids=["untied", "tied"])
def test_a_quantised_model_computes_with_the_weights_it_stands_for(config, scheme):
    """Scanned, unrolled and through the cache, the same as a plain tree of the rounded weights."""
    params, tree = parameters(config), quantized(config, scheme)
    plain = stood_for(tree, params)
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    expected = run(plain, config, TOKENS)
    close = functools.partial(np.testing.assert_allclose, desired=expected, rtol=0, atol=3e-4 * np.abs(expected).max())
    close(run(tree, config, TOKENS))
    layers = unstack_blocks(tree)
    close(run(layers, config, TOKENS))
    hidden, _ = jax.jit(decode, static_argnums=1)(layers, config, TOKENS, empty_cache(config, 2, 16))
    close(jax.jit(logits, static_argnums=1)(layers, config, hidden))
    head = jax.jit(head_matrix, static_argnums=1)
    np.testing.assert_array_equal(head(tree, config), head(plain, config))
    quantised_late = fewer_bits(unstack_blocks(params), config, scheme)
    assert jax.tree.structure(quantised_late) == jax.tree.structure(layers)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), quantised_late, layers)
    assert np.abs(run(params, config, TOKENS) - expected).max() > 1e-3 * np.abs(expected).max()


def test_bytes_and_what_is_left_alone():
    """A scale of four bytes per output of int8, per group of 32 of int4; norms, biases and positions in float32.

    The embedding is in int8 in both.
    """
    params, table, blocks = parameters(TIED), 256 * 32, 2 * (4 * 32 * 32 + 2 * 32 * 96)
    matrices = table + blocks
    whole = tree_bytes(params)
    outputs = 256 + 2 * (4 * 32 + 96 + 32)
    assert tree_bytes(quantized(TIED, "int8")) == whole - 4 * matrices + matrices + 4 * outputs
    assert tree_bytes(quantized(TIED, "int4")) == (
        whole - 4 * matrices + blocks // 2 + blocks // 32 * 4 + table + 4 * 256)
    assert tree_bytes(fewer_bits(params, TIED, "bfloat16")) == whole // 2
    for scheme in ("int8", "int4"):
        tree = quantized(TIED, scheme)
        assert isinstance(tree["embedding"]["tokens"], Overlay)
        np.testing.assert_array_equal(tree["embedding"]["positions"], params["embedding"]["positions"])
        np.testing.assert_array_equal(tree["blocks"]["mlp"]["up_bias"], params["blocks"]["mlp"]["up_bias"])
        np.testing.assert_array_equal(tree["final_norm"]["scale"], params["final_norm"]["scale"])


def test_weights_prepared_for_decoding_change_no_logit(monkeypatch):
    params = parameters(UNTIED)
    expected = run(params, UNTIED, TOKENS)
    prepared = prepare_for_decoding(params, UNTIED)
    np.testing.assert_allclose(run(prepared, UNTIED, TOKENS), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert isinstance(prepared["blocks"], tuple) and isinstance(prepared["blocks"][0]["mlp"]["up"], Panels)
    halved = prepare_for_decoding(params, UNTIED, dtype=jnp.bfloat16)
    assert halved["head"].dtype == jnp.bfloat16 and halved["final_norm"]["scale"].dtype == jnp.float32
    monkeypatch.setattr(quantize_module, "PANEL", 16)
    monkeypatch.setattr(quantize_module, "NARROW_PANEL", 16)
    prepared = prepare_for_decoding(params, UNTIED)
    assert prepared["blocks"][0]["mlp"]["up"].values.shape == (6, 32, 16)
    np.testing.assert_allclose(run(prepared, UNTIED, TOKENS), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    layers = unstack_blocks(quantized(UNTIED, "int8"))
    assert jax.tree.structure(prepare_for_decoding(quantized(UNTIED, "int8"), UNTIED)) == jax.tree.structure(layers)


@pytest.mark.parametrize("scheme", ["bfloat16", "int8", "int8_dynamic", "int4"])
def test_specs_have_the_tree_of_the_weights_and_fit_a_mesh(scheme):
    config = UNTIED
    tree = jax.eval_shape(functools.partial(quantize, config=config, scheme=scheme, group=16), abstract_params(config))
    specs = quantized_specs(config, scheme)
    leaves = jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, P))
    assert jax.tree.structure(specs, is_leaf=lambda node: isinstance(node, P)) == jax.tree.structure(tree)
    for leaf, spec in zip(jax.tree.leaves(tree), leaves, strict=True):
        assert len(spec) == leaf.ndim
    if scheme != "int8":
        return
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    tree = fewer_bits(parameters(config), config, scheme, group=16)
    laid = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), tree, specs)
    expected = run(tree, config, TOKENS)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(run(laid, config, TOKENS), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    whole, split = (tree["blocks"]["mlp"]["up"] for tree in (specs, partition_specs(config)))
    assert (tuple(whole.values), tuple(whole.scale)) == ((split[0], split[2], split[1]), (split[0], split[2]))


@pytest.mark.parametrize("rows", [1, 5])
def test_dynamic_int8_multiplies_what_was_rounded(rows):
    """Integers on both sides: the product of the two rounded matrices, exactly but for the scales' rounding."""
    generator = np.random.default_rng(5)
    x, weight = generator.normal(size=(rows, 48)), generator.normal(size=(7, 48))
    tree = int8_rows(jnp.asarray(weight, jnp.float32))
    found = jax.jit(lambda x: Int8Dynamic(tree.values, tree.scale).product(x))(jnp.asarray(x, jnp.float32))
    levels = np.round(x / np.abs(x).max(1, keepdims=True) * 127)
    expected = levels @ np.asarray(tree.values, np.float64).T * np.asarray(tree.scale) * np.abs(x).max(1)[:, None] / 127
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert 1e-3 < np.abs(found - x @ weight.T).mean() < 0.1
    digits, cast = (jax.jit(lambda x, few=few: product(tree, x, few))(jnp.asarray(x, jnp.float32))
                    for few in (True, False))
    rest = np.abs(x).max(1)[:, None] / 127 / 508
    assert np.all(np.abs(digits - cast) <= rest * np.abs(tree.rows(slice(None))).sum(1)[None] + 1e-5)
    assert np.abs(digits - cast).max() < np.abs(found - cast).max() / 50


def product(tree, x, few):
    """What `Int8.product` is for few rows on a CPU, and otherwise."""
    return tree.product_of_digits(x) if few else contract(x, tree.values) * tree.scale[None]


def test_bfloat16_activations():
    """What a GPU computes: off by no more than rounding to 8 bits of mantissa is, at the median."""
    tree = quantized(UNTIED, "int8")
    expected = run(tree, UNTIED, TOKENS)
    found = run(tree, UNTIED, TOKENS, execution=Execution(dtype="bfloat16"))
    assert found.dtype == jnp.float32
    assert 0 < np.median(np.abs(found - expected)) < 0.02 * np.std(expected)


@pytest.mark.parametrize("change, message", [
    ({"scheme": "int3"}, "choose one of bfloat16, int8, int8_dynamic, int4"),
    ({"scheme": "int4", "group": 64}, "groups of 64"), ({"scheme": "int4", "group": 5}, "even number")])
def test_what_cannot_be_quantised_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        quantize(parameters(TIED), TIED, **change)
    with pytest.raises(ValueError, match="quantised or prepared already"):
        quantize(quantized(TIED, "int8"), TIED, "int8")
