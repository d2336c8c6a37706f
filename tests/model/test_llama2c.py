"""llama2.c files: the published greedy text of stories260K, and files that are damaged."""

import dataclasses
import functools
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.model import llama2c
from jaxllm.model.cache import empty_cache
from jaxllm.model.params import abstract_params
from jaxllm.model.transformer import decode, forward, logits


@functools.partial(jax.jit, static_argnums=(1, 2))
def greedy(params, config, steps):
    """The `steps` most likely tokens after <s>, one by one through the cache."""
    def step(carry, _):
        token, cache = carry
        hidden, cache = decode(params, config, token[:, None], cache)
        token = logits(params, config, hidden)[:, -1].argmax(-1).astype(jnp.int32)
        return (token, cache), token

    start = jnp.full((1,), llama2c.BEGIN, jnp.int32), empty_cache(config, 1, steps)
    return jax.lax.scan(step, start, length=steps)[1][:, 0]


@pytest.fixture(scope="module")
def stories(real_data):
    folder = real_data("weights/stories260K")
    params, config = llama2c.read_llama2c(folder / "stories260K.bin")
    return folder, jax.device_put(params), config


def test_published_greedy_text_is_reproduced_exactly(stories):
    folder, params, config = stories
    expected = (folder / "expected_greedy_200.txt").read_bytes()
    tokens = greedy(params, config, 200).tolist()
    assert llama2c.read_llama2c_tokenizer(folder / "tok512.bin").decode(tokens) == expected


def test_encoding_the_text_gives_the_tokens_that_the_model_wrote(stories):
    """The model was trained on sentencepiece's own encoding, so its greedy text has it."""
    folder, params, config = stories
    tokenizer = llama2c.read_llama2c_tokenizer(folder / "tok512.bin")
    tokens = [llama2c.BEGIN, *greedy(params, config, 200).tolist()]
    assert tokenizer.encode(tokenizer.decode(tokens).decode()) == tokens


def test_forward_finds_the_story_likely(stories):
    """Teacher-forced: every token of the greedy text is the argmax of the full forward pass too."""
    _, params, config = stories
    tokens = jnp.concatenate([jnp.array([llama2c.BEGIN]), greedy(params, config, 200)])
    predicted = jax.jit(forward, static_argnums=1)(params, config, tokens[None])[0].argmax(-1)
    np.testing.assert_array_equal(predicted[:-1], tokens[1:])


def test_unknown_characters_become_bytes_and_come_back(stories):
    folder, *_ = stories
    tokenizer = llama2c.read_llama2c_tokenizer(folder / "tok512.bin")
    tokens = tokenizer.encode("日x\t")
    assert {byte + llama2c.FIRST_BYTE for byte in "日".encode()} <= set(tokens)
    assert tokenizer.decode(tokens).decode() == "日x\t"
    assert tokenizer.encode("") == [llama2c.BEGIN]


def write_checkpoint(path, vocab_size):
    """A tiny checkpoint whose weights are 0, 1, 2, ... in file order."""
    dim, mlp_dim, layers, heads, kv_heads, length = 4, 6, 2, 2, 1, 3
    V, H = abs(vocab_size), dim // heads
    block = 2 * dim + 2 * dim * dim + 2 * kv_heads * H * dim + 3 * dim * mlp_dim
    count = V * dim * (2 if vocab_size < 0 else 1) + layers * block + dim + length * H
    header = struct.pack("<7i", dim, mlp_dim, layers, heads, kv_heads, vocab_size, length)
    path.write_bytes(header + np.arange(count, dtype="<f4").tobytes())


def test_layout_of_a_small_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "model.bin", vocab_size=-5)
    params, config = llama2c.read_llama2c(tmp_path / "model.bin")
    assert (config.vocab_size, config.tied_embedding) == (5, False)
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(config))
    assert jax.tree.map(np.shape, params) == shapes
    np.testing.assert_array_equal(params["embedding"]["tokens"][1], [4, 5, 6, 7])
    attention = params["blocks"]["attention"]
    np.testing.assert_array_equal(attention["norm"]["scale"][1], [24, 25, 26, 27])
    # query of layer 0 starts at 28 and is [outputs, inputs]: head 1 has outputs 2 and 3
    np.testing.assert_array_equal(attention["query"][0, :, 1, 0], [36, 37, 38, 39])
    np.testing.assert_array_equal(params["head"][:, -1], np.arange(4) + params["head"].max() - 3)


def test_rotary_pairs_are_reordered(tmp_path):
    """With 4 per head: their rows (0, 1), (2, 3) turn together; ours are (0, 2), (1, 3)."""
    dim, V, length = 4, 3, 2
    count = V * dim + 2 * dim + 4 * dim * dim + 3 * dim + dim + length * dim
    header = struct.pack("<7i", dim, 1, 1, 1, 1, V, length)
    (tmp_path / "model.bin").write_bytes(header + np.arange(count, dtype="<f4").tobytes())
    attention = llama2c.read_llama2c(tmp_path / "model.bin")[0]["blocks"]["attention"]
    first = V * dim + dim
    np.testing.assert_array_equal(attention["query"][0, 0, 0] - first, [0, 8, 4, 12])
    np.testing.assert_array_equal(attention["value"][0, 0, 0] - first - 2 * 16, [0, 4, 8, 12])


@pytest.mark.parametrize("damage", [lambda raw: raw[:-4], lambda raw: raw + b"\0\0\0\0",
                                    lambda raw: raw[:20], lambda raw: b"", lambda raw: b"\0" * 99])
def test_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "model.bin"
    write_checkpoint(path, vocab_size=5)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="model.bin"):
        llama2c.read_llama2c(path)


@pytest.mark.parametrize("raw", [b"", b"\7\0\0\0" + b"\0" * 5, b"\7\0\0\0" + b"\0" * 16,
                                 b"\7\0\0\0" + struct.pack("<fi", 0.0, 1_000_000_000)])
def test_damaged_tokenizer_is_refused_by_name(tmp_path, raw):
    (tmp_path / "tok.bin").write_bytes(raw)
    with pytest.raises(ValueError, match="tok.bin"):
        llama2c.read_llama2c_tokenizer(tmp_path / "tok.bin")


def test_configuration_of_stories260k(stories):
    _, _, config = stories
    assert dataclasses.astuple(config)[:8] == (512, 64, 5, 8, 4, 8, 172, 512)
