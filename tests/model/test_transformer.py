"""The whole model: causality, packing, cached decoding, and the ways to run it agree."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.model.cache import empty_cache
from jaxllm.model.config import Execution, preset
from jaxllm.model.params import parameter_table, unstack_blocks
from jaxllm.model.transformer import decode, forward, hidden_states, logits

B, T = 3, 12
SMALL = dict(vocab_size=50, max_positions=T)
VARIANTS = {
    "llama": preset("nano", **SMALL),
    "gpt2": preset("nano", **SMALL, norm="layer", mlp="gelu", positions="learned", bias="all",
                   kv_heads=4),
    "gemma2": preset("nano", **SMALL, layers=4, norm="rms_plus_one", mlp="geglu", post_norms=True,
                     windows=(3, 0), attention_softcap=2.0, logit_softcap=3.0, query_scale=0.3,
                     scale_embedding=True),
    "qwen3": preset("nano", **SMALL, qk_norm=True, bias="qkv", tied_embedding=False),
}
TOKENS = np.random.default_rng(0).permutation(50)[:B * T].reshape(B, T).astype(np.int32)
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12, [3] * 2 + [4] * 10], np.int32)
POSITIONS = np.array([[*range(5), *range(4), *range(3)], [*range(12)], [*range(2), *range(10)]],
                     np.int32)

run = jax.jit(forward, static_argnums=1, static_argnames="execution")


@functools.cache
def parameters(config):
    """Weights far from their start: no bias is 0, no scale is 1, logits are of order one."""
    generator = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jax.device_put(generator.normal(leaf.constant, 0.2, leaf.shape).astype(np.float32)),
        parameter_table(config), is_leaf=lambda node: hasattr(node, "axes"))


@functools.cache
def reference(name):
    return np.asarray(run(parameters(VARIANTS[name]), VARIANTS[name], TOKENS))


@functools.partial(jax.jit, static_argnums=1)
def study(params, config, segment_ids, positions, counted):
    """Logits, and the gradient of those at the `counted` [B, T] by each position's embedding."""
    def total(table):
        changed = {**params, "embedding": {**params["embedding"], "tokens": table}}
        out = forward(changed, config, TOKENS, segment_ids=segment_ids, positions=positions)
        return jnp.einsum("btv,v,bt->", out, jnp.linspace(-1, 1, config.vocab_size), counted), out

    gradient, out = jax.grad(total, has_aux=True)(params["embedding"]["tokens"])
    return out, gradient[TOKENS]  # all tokens differ, so a row of the table is a position


def untied(config):
    """The same function with a head of its own: the table has the embeddings' gradient alone."""
    params = parameters(config)
    if config.tied_embedding:
        params = {**params, "head": params["embedding"]["tokens"].T}
    return params, dataclasses.replace(config, tied_embedding=False)


def influence(config, segment_ids, positions) -> np.ndarray:
    """[B, T, T]: does the logit at t depend, to any degree at all, on the embedding at s?"""
    rows = []
    for t in range(T):
        counted = np.zeros((B, T), np.float32)
        counted[:, t] = 1
        _, gradient = study(*untied(config), segment_ids, positions, counted)
        rows.append(np.asarray(gradient != 0).any(-1))
    return np.stack(rows, axis=1)


ONE_SEGMENT = np.ones((B, T), np.int32), np.tile(np.arange(T, dtype=np.int32), (B, 1))


@pytest.mark.parametrize("name, reach", [("llama", T), ("gpt2", T), ("qwen3", T), ("gemma2", T),
                                         ("window", 4)])
def test_causality_by_gradient(name, reach):
    """A logit depends on every position before it, within reach and its segment, and on no other.

    Two layers with windows of 3 reach 2 + 2 positions back; with full layers between, all of them.
    """
    config = preset("nano", **SMALL, windows=(3,)) if name == "window" else VARIANTS[name]
    t, s = np.mgrid[:T, :T]
    visible = np.tile((s <= t) & (t - s <= reach), (B, 1, 1))
    np.testing.assert_array_equal(influence(config, *ONE_SEGMENT), visible)
    together = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
    np.testing.assert_array_equal(influence(config, SEGMENTS, POSITIONS), visible & together)


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_documents_are_separate_ones(name):
    """Documents side by side in a row have the logits that each has alone."""
    config, params = VARIANTS[name], parameters(VARIANTS[name])
    packed, _ = study(*untied(config), SEGMENTS, POSITIONS, np.zeros((B, T), np.float32))
    packed = np.asarray(packed)
    assert np.isfinite(packed).all()
    alone = TOKENS.copy()  # causality makes what follows a document immaterial
    alone[0, :4], alone[2, :10] = TOKENS[0, 5:9], TOKENS[2, 2:]
    separate = np.asarray(run(params, config, alone))
    np.testing.assert_allclose(packed[0, :5], reference(name)[0, :5], atol=1e-5)
    np.testing.assert_allclose(packed[0, 5:9], separate[0, :4], atol=1e-5)
    np.testing.assert_allclose(packed[1], reference(name)[1], atol=1e-5)
    np.testing.assert_allclose(packed[2, 2:], separate[2, :10], atol=1e-5)
    assert np.abs(packed[2, 2:] - reference(name)[2, 2:]).max() > 0.01


@functools.partial(jax.jit, static_argnums=1)
def extend(params, config, tokens, cache, counts):
    hidden, cache = decode(params, config, tokens, cache, counts=counts)
    return logits(params, config, hidden), cache


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_decoding_is_the_full_forward(name):
    """Ragged prompts, then chunks, into a cache with room for not one position more.

    Padding of the last chunks falls beyond the cache: it is dropped and moves nothing.
    """
    config = VARIANTS[name]
    params, cache = unstack_blocks(parameters(config)), empty_cache(config, B, T)
    for counts in np.array([[4, 1, 3], [4, 4, 2], [4, 3, 4], [0, 4, 1], [0, 0, 2]], np.int32):
        starts = np.asarray(cache.lengths)
        new = np.full((B, 4), 7, np.int32)
        for b in range(B):
            new[b, :counts[b]] = TOKENS[b, starts[b]:starts[b] + counts[b]]
        out, cache = extend(params, config, new, cache, counts)
        out = np.asarray(out)
        for b in range(B):
            full = reference(name)[b, starts[b]:starts[b] + counts[b]]
            np.testing.assert_allclose(out[b, :counts[b]], full, atol=1e-5)
    np.testing.assert_array_equal(cache.lengths, [T, T, T])


def test_decoding_takes_stacked_blocks_and_counts_all_tokens_by_default():
    config, params = VARIANTS["llama"], parameters(VARIANTS["llama"])
    empty = empty_cache(config, B, T)
    hidden, cache = jax.jit(decode, static_argnums=1)(params, config, TOKENS, empty)
    np.testing.assert_allclose(jax.jit(logits, static_argnums=1)(params, config, hidden), reference("llama"), atol=1e-5)
    np.testing.assert_array_equal(cache.lengths, [T, T, T])


# Windows alternate here, so that a scan that mixed layers up would show.
ALTERNATING = preset("nano", **SMALL, layers=4, windows=(3, 0), mlp="gelu", positions="learned")


def loss_and_gradients(config, execution, params):
    def loss(params):
        logp = jax.nn.log_softmax(forward(params, config, TOKENS, execution=execution))
        return -jnp.take_along_axis(logp[:, :-1], TOKENS[:, 1:, None], axis=-1).mean()

    return jax.value_and_grad(loss)(params)


@pytest.fixture(scope="module")
def scanned():
    return jax.jit(functools.partial(loss_and_gradients, ALTERNATING, Execution()))(
        parameters(ALTERNATING))


@pytest.mark.parametrize("execution, layers", [
    (Execution(scan=False, remat="full"), "stacked"), (Execution(), "tuple"),
    (Execution(remat="dots"), "stacked")])
def test_every_execution_has_one_loss_and_one_gradient(execution, layers, scanned):
    params = parameters(ALTERNATING)
    if layers == "tuple":
        params = unstack_blocks(params)
    loss, gradients = jax.jit(functools.partial(loss_and_gradients, ALTERNATING, execution))(params)
    np.testing.assert_allclose(loss, scanned[0], rtol=1e-6)
    expected = unstack_blocks(scanned[1]) if layers == "tuple" else scanned[1]
    close = functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=1e-4)
    jax.tree.map(close, gradients, expected)


def test_unrolled_layers_are_those_of_the_scan():
    config = VARIANTS["llama"]
    out = run(parameters(config), config, TOKENS, execution=Execution(scan=False))
    np.testing.assert_allclose(out, reference("llama"), atol=1e-5)


def test_remat_changes_what_is_computed():
    """"dots" keeps the weights' products and recomputes the rest, "full" recomputes those too."""
    config, params = VARIANTS["llama"], parameters(VARIANTS["llama"])
    products = {}
    for remat in ("none", "dots", "full"):
        text = str(jax.make_jaxpr(functools.partial(
            loss_and_gradients, config, Execution(remat=remat)))(params))
        assert ("remat" in text or "checkpoint" in text) == (remat != "none")
        products[remat] = text.count("dot_general[")
    assert products["none"] < products["dots"] < products["full"]


def test_bfloat16_is_close_to_float32():
    """On average within 1 % of the logits' spread, and nowhere off by a tenth of it."""
    config, params = VARIANTS["llama"], parameters(VARIANTS["llama"])
    execution = Execution(dtype="bfloat16")
    out = run(params, config, TOKENS, execution=execution)
    assert out.dtype == jnp.float32
    error = np.abs(out - reference("llama")) / reference("llama").std()
    assert 0 < error.mean() < 0.01 and error.max() < 0.1


def test_the_dtype_of_the_parameters_is_not_that_of_the_computation():
    config = VARIANTS["llama"]
    half = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), parameters(config))
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
    np.testing.assert_allclose(run(half, config, TOKENS), run(rounded, config, TOKENS), atol=1e-5)
    for dtype in ("float32", "bfloat16"):
        hidden = jax.eval_shape(functools.partial(
            hidden_states, config=config, tokens=TOKENS, execution=Execution(dtype=dtype)), half)
        assert hidden.dtype == dtype and hidden.shape == (B, T, 32)


def test_numpy_parameters_do_under_jit():
    """Weights fresh from a file can go straight into a jitted function."""
    config = VARIANTS["llama"]
    params = jax.tree.map(np.asarray, parameters(config))
    np.testing.assert_array_equal(run(params, config, TOKENS), reference("llama"))


def test_rows_longer_than_the_positions_are_refused():
    config = VARIANTS["llama"]
    with pytest.raises(ValueError, match=r"rows of 13 tokens exceed .* max_positions \(12\)"):
        forward(parameters(config), config, np.zeros((1, 13), np.int32))
