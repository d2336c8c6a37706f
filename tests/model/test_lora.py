"""LoRA: no change at the start, gradients on the factors alone, and a merged tree that is the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from random_weights import random_weights

from jaxllm.data.packing import Batch
from jaxllm.model.cache import empty_cache
from jaxllm.model.config import Execution, preset
from jaxllm.model.lora import Lora, factors, lora, lora_specs, merge, trainable_mask, with_factors
from jaxllm.model.params import unstack_blocks
from jaxllm.model.quantize import quantize
from jaxllm.model.transformer import decode, forward, head_matrix, logits
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.objective import next_token_objective
from jaxllm.train.optimizer import make_optimizer
from jaxllm.train.sharding import make_mesh
from jaxllm.train.step import init_state, make_train_step

TIED = preset("nano", norm="layer", mlp="gelu", positions="learned", bias="all", kv_heads=4)
UNTIED = preset("nano", qk_norm=True, tied_embedding=False)
EVERYWHERE = ("query", "key", "value", "output", "up", "down", "embedding/tokens")
TARGETS = {TIED: EVERYWHERE, UNTIED: (*EVERYWHERE, "gate", "head")}
TOKENS = np.random.default_rng(0).integers(256, size=(8, 12)).astype(np.int32)
BATCH = Batch(TOKENS, np.roll(TOKENS, -1, 1), np.ones(TOKENS.shape, np.float32))
run = jax.jit(forward, static_argnums=1, static_argnames="execution")
add = jax.jit(merge)


@functools.cache
def plain(config, dtype=jnp.float32):
    return jax.device_put(jax.tree.map(lambda leaf: leaf.astype(dtype), random_weights(config)))


@functools.cache
def overlaid(config, targets=None):
    return lora(plain(config), config, rank=3, alpha=6.0, key=jax.random.key(2), targets=targets)


def trained(tree):
    """The tree with random factors, as after some steps."""
    rng = np.random.default_rng(3)
    own = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape).astype(np.float32),
                       jax.device_get(factors(tree)))
    return with_factors(tree, jax.device_put(own))


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_no_change_at_the_start_and_merged_is_the_same_function(config):
    params, tree = plain(config), overlaid(config, TARGETS[config])
    before = run(params, config, TOKENS)
    np.testing.assert_allclose(run(tree, config, TOKENS), before, rtol=0, atol=1e-6)
    tree = trained(tree)
    merged = add(tree)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    flat, shapes = traverse_util.flatten_dict(merged, sep="/"), traverse_util.flatten_dict(params, sep="/")
    for name, leaf in flat.items():
        assert (leaf.shape, leaf.dtype) == (shapes[name].shape, shapes[name].dtype)
        changed = name.rsplit("/")[-1] in TARGETS[config] or name in TARGETS[config]
        assert changed != np.array_equal(leaf, shapes[name]), name
    expected = run(merged, config, TOKENS)
    assert np.abs(expected - before).max() > 0.1
    close = functools.partial(np.testing.assert_allclose, desired=expected, rtol=0, atol=3e-5)
    close(run(tree, config, TOKENS))
    layers = unstack_blocks(tree)
    close(run(layers, config, TOKENS))
    hidden, _ = jax.jit(decode, static_argnums=1)(layers, config, TOKENS, empty_cache(config, 8, 16))
    close(jax.jit(logits, static_argnums=1)(layers, config, hidden))
    head = jax.jit(head_matrix, static_argnums=1)
    np.testing.assert_allclose(head(tree, config), head(merged, config), rtol=0, atol=1e-6)


def test_merged_by_hand():
    """W + (alpha / rank) A B of one projection in numpy, the layer axis and the head axes in their places."""
    tree = trained(overlaid(UNTIED))
    found = add(tree)["blocks"]["attention"]
    for name, rows in (("query", 32), ("output", 32)):
        leaf: Lora = tree["blocks"]["attention"][name]
        for layer in range(2):
            a, b = (np.asarray(side[layer], np.float64) for side in (leaf.left, leaf.right))
            assert a.shape == (rows, 3)
            expected = np.asarray(leaf.weight[layer]) + (2.0 * a @ b).reshape(leaf.weight.shape[1:])
            np.testing.assert_allclose(found[name][layer], expected, rtol=0, atol=1e-6)


def test_low_precision_weights_keep_their_dtype():
    tree = lora(plain(UNTIED, jnp.bfloat16), UNTIED, rank=2, alpha=2.0, key=jax.random.key(0))
    assert factors(tree)["blocks"]["mlp"]["up"]["left"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(add(tree))} == {jnp.dtype(jnp.bfloat16)}
    execution = Execution(dtype="bfloat16")
    np.testing.assert_array_equal(run(tree, UNTIED, TOKENS, execution=execution),
                                  run(plain(UNTIED, jnp.bfloat16), UNTIED, TOKENS, execution=execution))


def test_gradients_reach_the_factors_alone_and_equal_those_of_the_merged_weight():
    """The chain rule through W + s A B from the plain model's gradient is the oracle."""
    tree = trained(overlaid(UNTIED, TARGETS[UNTIED]))
    loss_fn = next_token_objective(UNTIED)

    def total(params):
        return loss_fn(params, BATCH)[0].total
    gradients = jax.jit(jax.grad(total))(tree)
    of_weights = jax.jit(jax.grad(total))(add(tree))
    tree, *both = jax.device_get((tree, gradients, of_weights))
    found, weights = (traverse_util.flatten_dict(gradient, sep="/") for gradient in both)
    for name, leaf in traverse_util.flatten_dict(tree, sep="/").items():
        if isinstance(leaf, Lora):
            assert not np.any(found[name].weight)
            shape = (*leaf.left.shape[:-1], leaf.right.shape[-1])
            full = weights[name].reshape(shape)
            expected = 2.0 * full @ np.swapaxes(leaf.right, -1, -2), 2.0 * np.swapaxes(leaf.left, -1, -2) @ full
            for side, value in zip((found[name].left, found[name].right), expected, strict=True):
                np.testing.assert_allclose(side, value, rtol=0, atol=2e-4 * np.abs(value).max(), err_msg=name)
    mask = trainable_mask(tree)
    assert jax.tree.structure(mask) == jax.tree.structure(tree)
    counted = sum(leaf.size for leaf, own in zip(*map(jax.tree.leaves, (tree, mask)), strict=True) if own)
    assert counted == sum(leaf.size for leaf in jax.tree.leaves(factors(tree)))


@pytest.mark.slow
def test_training_the_factors_on_a_mesh_and_back_from_a_checkpoint_of_them_alone(tmp_path):
    config, mesh = UNTIED, make_mesh((2, 2, 2))
    tree = overlaid(config)
    specs = lora_specs(config, rank=3, alpha=6.0)
    def is_spec(node):
        return isinstance(node, P)

    assert jax.tree.structure(specs, is_leaf=is_spec) == jax.tree.structure(tree)
    optimizer = make_optimizer("adamw", 1e-2)

    def step(state, batch, frozen):
        def loss_fn(own, batch):
            return next_token_objective(config)(with_factors(frozen, own), batch)
        return make_train_step(loss_fn, optimizer, microbatches=2)(state, batch)

    compiled = jax.jit(step)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes on its own
        state = jax.jit(lambda own: init_state(own, optimizer))(factors(tree))
        losses = []
        for _ in range(4):
            state, metrics = compiled(state, BATCH, tree)
            losses.append(float(metrics["loss"]))
        assert losses[-1] < losses[0] - 0.05
        with jax.set_mesh(mesh):
            placed = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), tree, specs,
                                  is_leaf=is_spec)
            on_mesh = init_state(factors(placed), optimizer)
            for _ in range(4):
                on_mesh, metrics = compiled(on_mesh, BATCH, placed)
        np.testing.assert_allclose(float(metrics["loss"]), losses[-1], rtol=1e-4)
    sides = placed["blocks"]["attention"]["query"]
    assert (sides.left.sharding.spec, sides.right.sharding.spec) == (P(None, "fsdp", None), P(None, None, "tensor"))

    saved = Checkpoints(tmp_path / "factors")
    saved.save(4, {"factors": state.params})
    saved.wait()
    again = saved.restore({"factors": factors(tree)})["factors"]
    saved.close()
    jax.tree.map(np.testing.assert_array_equal, again, state.params)
    np.testing.assert_array_equal(run(with_factors(tree, again), config, TOKENS),
                                  run(with_factors(tree, state.params), config, TOKENS))
    assert sum(leaf.size for leaf in jax.tree.leaves(again)) < sum(leaf.size for leaf in jax.tree.leaves(tree)) / 3


def test_the_mask_serves_optax():
    tree = overlaid(UNTIED)
    frozen = jax.tree.map(lambda own: not own, trainable_mask(tree))
    optimizer = optax.chain(optax.sgd(1.0), optax.masked(optax.set_to_zero(), frozen))
    updates, _ = jax.jit(lambda tree: optimizer.update(jax.tree.map(jnp.ones_like, tree), optimizer.init(tree)))(tree)
    assert np.all(updates["blocks"]["mlp"]["up"].right == -1) and not np.any(updates["blocks"]["mlp"]["up"].weight)
    assert not np.any(updates["head"]) and not np.any(updates["final_norm"]["scale"])


def test_what_cannot_be_done_is_refused():
    params, tree = plain(UNTIED), overlaid(UNTIED)
    make = functools.partial(lora, config=UNTIED, rank=2, alpha=2.0, key=jax.random.key(0))
    for change, words in ((dict(targets=["querry"]), "querry; name some of"), (dict(targets=[]), "no matrix"),
                          (dict(rank=0), "at least 1"), (dict(alpha=0.0), "above 0")):
        with pytest.raises(ValueError, match=words):
            make(params, **change)
    with pytest.raises(ValueError, match="no matrix gate"):
        lora(plain(TIED), TIED, rank=2, alpha=2.0, key=jax.random.key(0), targets=["gate"])
    with pytest.raises(ValueError, match="overlay already"):
        make(tree)
    with pytest.raises(ValueError, match="overlay already"):
        make(jax.jit(lambda params: quantize(params, UNTIED, "int8"))(params))
    with pytest.raises(ValueError, match="stacked blocks"):
        make(unstack_blocks(params))
    with pytest.raises(ValueError, match="no LoRA factors"):
        factors(params)
    with pytest.raises(ValueError, match="do not belong"):
        with_factors(tree, factors(overlaid(UNTIED, ("query",))))
    with pytest.raises(ValueError, match="model and rank"):
        with_factors(tree, factors(lora(params, UNTIED, rank=2, alpha=2.0, key=jax.random.key(0))))
