"""New tokens: their rows are the means asked for, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import random_weights

from jaxllm.model.config import preset
from jaxllm.model.lora import lora
from jaxllm.model.new_tokens import grow_vocabulary, start_rows
from jaxllm.model.params import abstract_params
from jaxllm.model.transformer import forward

TIED, UNTIED = preset("nano"), preset("nano", tied_embedding=False)
PARAMS = {config: jax.device_put(random_weights(config)) for config in (TIED, UNTIED)}


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_growing_leaves_the_old_tokens_alone(config):
    params, tokens = PARAMS[config], np.arange(24, dtype=np.int32).reshape(2, 12)
    grown, larger = grow_vocabulary(params, config, 260)
    assert larger.vocab_size == 260
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(lambda leaf: leaf.shape, abstract_params(larger))
    run = jax.jit(forward, static_argnums=1)
    new, old = run(grown, larger, tokens), run(params, config, tokens)
    np.testing.assert_allclose(new[..., :256], old, rtol=0, atol=1e-6)
    np.testing.assert_allclose(new[..., 256:], np.repeat(np.mean(old, -1, keepdims=True), 4, -1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="cannot shrink"):
        grow_vocabulary(grown, larger, 256)


@settings(max_examples=10, deadline=None)
@given(data=st.data(), config=st.sampled_from([TIED, UNTIED]))
def test_rows_are_the_means_asked_for(data, config):
    new = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=4, unique=True))
    trained = st.sampled_from([id for id in range(256) if id not in new])
    starts = {id: data.draw(st.one_of(st.none(), st.lists(trained, min_size=1, max_size=4))) for id in new}
    params, found = PARAMS[config], start_rows(PARAMS[config], config, starts)
    tables = [(tree["embedding"]["tokens"], None if config.tied_embedding else tree["head"].T)
              for tree in (params, found)]
    for before, after in zip(*tables, strict=True):
        if before is None:
            continue
        others = np.setdiff1d(np.arange(256), new)
        np.testing.assert_array_equal(after[others], before[others])
        for id, start in starts.items():
            rows = np.asarray(before, np.float64)[others if start is None else start]
            np.testing.assert_allclose(after[id], rows.mean(0), rtol=0, atol=1e-7)
    assert found["blocks"] is params["blocks"]


def test_noise_tells_equal_starts_apart_and_dtypes_are_kept():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS[TIED])
    table = start_rows(params, TIED, {7: None, 8: None}, noise=0.5, key=jax.random.key(0))["embedding"]["tokens"]
    assert table.dtype == jnp.bfloat16 and not np.array_equal(table[7], table[8])
    spread = np.std(np.asarray(table[7:9], np.float32)) / np.std(np.asarray(table, np.float32))
    assert 0.35 < spread < 0.65
    copied = start_rows(params, TIED, {7: [65]})["embedding"]["tokens"]
    np.testing.assert_array_equal(copied[7], params["embedding"]["tokens"][65])


@pytest.mark.parametrize("starts, words", [({256: None}, "outside the vocabulary"), ({1: [-1]}, "outside"),
                                           ({1: []}, "no token"), ({1: [2], 2: [3]}, "being started itself"),
                                           ({id: None for id in range(256)}, "none left")])
def test_bad_starts_are_refused(starts, words):
    with pytest.raises(ValueError, match=words):
        start_rows(PARAMS[TIED], TIED, starts)


def test_overlays_and_noise_without_a_key_are_refused():
    with pytest.raises(ValueError, match="needs a key"):
        start_rows(PARAMS[TIED], TIED, {1: None}, noise=0.1)
    tree = lora(PARAMS[TIED], TIED, rank=1, alpha=1.0, key=jax.random.key(0), targets=["embedding/tokens"])
    with pytest.raises(ValueError, match="overlay"):
        grow_vocabulary(tree, TIED, 257)
