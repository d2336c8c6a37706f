"""The parameter table and what is derived from it: init, specs, counts, FLOPs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.model import attention
from jaxllm.model.config import PRESETS, Execution, preset
from jaxllm.model.params import (
    abstract_params,
    check_mesh,
    count_params,
    flops_per_token,
    init,
    parameter_table,
    partition_specs,
    unstack_blocks,
)
from jaxllm.model.transformer import forward

# Parameters of the published checkpoints, tied heads counted once.
PUBLISHED = {
    "gpt2_124m": 124_439_808, "gpt2_355m": 354_823_168, "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200, "llama3_1b": 1_235_814_400, "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248, "llama3_70b": 70_553_706_496, "llama3_405b": 405_853_388_800,
    "qwen2_5_0.5b": 494_032_768, "qwen2_5_1.5b": 1_543_714_304, "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512, "qwen3_0.6b": 596_049_920, "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096, "qwen3_8b": 8_190_735_360, "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984, "gemma2_27b": 27_227_128_320, "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120, "smollm2_1.7b": 1_711_376_384,
}
SMALL = [
    preset("nano"),
    preset("nano", norm="layer", mlp="gelu", positions="learned", bias="all", tied_embedding=False),
    preset("nano", norm="rms_plus_one", mlp="geglu", post_norms=True, qk_norm=True, bias="qkv"),
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    assert count_params(PRESETS[name]) == PUBLISHED[name]


def test_every_preset_but_our_own_has_a_published_count():
    assert set(PRESETS) - set(PUBLISHED) == {"nano", "tiny", "small"}


@pytest.mark.parametrize("config", SMALL)
def test_everything_derived_has_one_tree(config):
    params = jax.eval_shape(lambda: init(config, jax.random.key(0), jnp.bfloat16))
    abstract = abstract_params(config, jnp.bfloat16)
    specs = partition_specs(config)
    assert jax.tree.structure(params) == jax.tree.structure(abstract)
    assert jax.tree.structure(params) == jax.tree.structure(
        specs, is_leaf=lambda node: isinstance(node, P))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count_params(config)
    for leaf, spec in zip(jax.tree.leaves(params), jax.tree.leaves(
            specs, is_leaf=lambda node: isinstance(node, P)), strict=True):
        assert leaf.ndim == len(spec)


@pytest.fixture(scope="module")
def drawn():
    """Seed -> parameters of a model that has a leaf of nearly every kind."""
    config = preset("tiny", vocab_size=512, norm="layer", bias="all", positions="learned",
                    tied_embedding=False)
    draw = jax.jit(lambda seed: init(config, jax.random.key(seed)))
    return lambda seed: jax.device_get(draw(seed))


def test_initial_values(drawn):
    params = drawn(1)
    inner, residual = math.sqrt(2 / (5 * 128)), math.sqrt(2 / (5 * 128)) / math.sqrt(2 * 4)
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    embedding = params["embedding"]
    for leaf, std in [(embedding["tokens"], 0.02), (embedding["positions"], 0.02),
                      (params["head"], inner), (attention["query"], inner),
                      (attention["key"], inner), (attention["value"], inner), (mlp["gate"], inner),
                      (mlp["up"], inner), (attention["output"], residual), (mlp["down"], residual)]:
        assert abs(float(leaf.std()) / std - 1) < 0.02
        assert abs(float(leaf.mean())) < 0.02 * std
    assert not np.allclose(attention["query"], attention["key"])
    for name in ("query_bias", "key_bias", "value_bias", "output_bias"):
        assert not attention[name].any()
    assert (mlp["norm"]["scale"] == 1).all() and not mlp["norm"]["bias"].any()
    assert parameter_table(SMALL[2])["final_norm"]["scale"].constant == 0.0


def test_init_is_a_function_of_the_key(drawn):
    first, again, other = drawn(3), drawn(3), drawn(4)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, again))
    assert (first["blocks"]["mlp"]["up"] != other["blocks"]["mlp"]["up"]).mean() > 0.9


def test_partition_specs_by_hand():
    specs = partition_specs(preset("nano", tied_embedding=False))
    assert specs["embedding"]["tokens"] == P("tensor", "fsdp")
    assert specs["head"] == P("fsdp", "tensor")
    assert specs["blocks"]["attention"]["query"] == P(None, "fsdp", "tensor", None)
    assert specs["blocks"]["attention"]["output"] == P(None, "tensor", None, "fsdp")
    assert specs["blocks"]["mlp"]["down"] == P(None, "tensor", "fsdp")
    assert specs["final_norm"]["scale"] == P(None)
    assert partition_specs(preset("nano"), ("data",))["blocks"]["mlp"]["up"] == P(None, None, None)


def test_check_mesh():
    check_mesh(preset("nano"), {"data": 3, "fsdp": 4, "tensor": 2})
    with pytest.raises(ValueError, match="blocks/attention/key: its 'kv_heads' dimension of 2 .* "
                                         "split over 4 devices of mesh axis tensor"):
        check_mesh(preset("nano"), {"tensor": 4})
    with pytest.raises(ValueError, match="embedding/tokens: its 'vocab' dimension of 257 "):
        check_mesh(preset("nano", vocab_size=257), {"tensor": 2})


def test_unstacked_blocks_are_slices():
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), abstract_params(SMALL[1]))
    unstacked = jax.jit(unstack_blocks)(params)
    assert len(unstacked["blocks"]) == 2 and unstacked.keys() == params.keys()
    for i, layer in enumerate(unstacked["blocks"]):
        jax.tree.map(np.testing.assert_array_equal, layer,
                     jax.tree.map(lambda leaf: leaf[i], params["blocks"]))  # noqa: B023
    assert unstack_blocks(unstacked) is unstacked


@pytest.mark.parametrize("changes", [
    {}, dict(norm="layer", mlp="gelu", positions="learned", bias="all"),
    dict(post_norms=True, mlp="geglu", tied_embedding=False, logit_softcap=30.0)])
def test_flops_are_those_that_xla_counts(changes, monkeypatch):
    """XLA also counts norms, softmax and activations: a few percent more at these sizes.

    What 192 more keys add is attention's part alone; one block of queries, so that no key is skipped.
    """
    monkeypatch.setattr(attention, "QUERY_BLOCK", 256)
    config = preset("nano", dim=256, heads=8, kv_heads=4, head_dim=32, mlp_dim=512,
                    max_positions=256, **changes)
    execution = Execution(scan=False)
    unrolled = jax.jit(functools.partial(forward, execution=execution), static_argnums=1)

    def counted(length):
        tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
        lowered = unrolled.lower(abstract_params(config), config, tokens)
        return lowered.cost_analysis()["flops"] / (2 * length)

    claimed = functools.partial(flops_per_token, config, training=False)
    assert 1.0 < counted(64) / claimed(64) < 1.06
    assert 1.0 < (counted(256) - counted(64)) / (claimed(256) - claimed(64)) < 1.1
    assert flops_per_token(config, 64) == 3 * claimed(64)


def test_flops_of_a_window():
    """Layers with a window of 16 count 16 keys, and the others all 64."""
    full, half, short = (flops_per_token(preset("nano", windows=windows), 64, training=False)
                         for windows in ((0,), (16, 0), (16,)))
    assert full - half == half - short == 4 * 4 * 8 * 48
    assert flops_per_token(preset("nano", windows=(999,)), 64, training=False) == full


def test_flops_of_gpt2_as_nanogpt_counts_them():
    """6 N + 12 L D T with N without position embeddings: nanoGPT's estimate_mfu."""
    matrices = 124_439_808 - 1024 * 768
    expected = 6 * matrices + 12 * 12 * 768 * 1024
    assert flops_per_token(PRESETS["gpt2_124m"], 1024) == pytest.approx(expected, rel=2e-3)


def test_one_leaf_per_parameter_has_an_axis_per_dimension():
    for config in PRESETS.values():
        for leaf in jax.tree.leaves(parameter_table(config), is_leaf=lambda x: hasattr(x, "axes")):
            assert len(leaf.shape) == len(leaf.axes)
