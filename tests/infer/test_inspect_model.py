"""The look inside: the model's own logits at the last layer, and Hugging Face's attention."""

import warnings

import jax
import numpy as np
import pytest
from random_weights import random_weights

from jaxllm.infer.inspect_model import look
from jaxllm.model.config import preset
from jaxllm.model.convert import config_from_hugging_face, from_hugging_face
from jaxllm.model.params import unstack_blocks
from jaxllm.model.transformer import forward

TOKENS = np.random.default_rng(0).integers(0, 96, 21).tolist()


@pytest.fixture(scope="module")
def nano():
    config = preset("nano")
    params = jax.device_put(jax.tree.map(lambda leaf: 3 * leaf, random_weights(config)))
    return params, config


def test_the_last_layer_is_the_model(nano):
    params, config = nano
    seen = look(params, config, TOKENS, top=5)
    logp = np.asarray(jax.nn.log_softmax(jax.jit(forward, static_argnums=1)(params, config, np.array([TOKENS]))[0]))
    L, N, T = config.layers, config.heads, len(TOKENS)
    assert seen.attention.shape == (L, N, T, T) and seen.lens_tokens.shape == seen.lens_logp.shape == (L + 1, T, 5)
    np.testing.assert_allclose(seen.lens_logp[-1], -np.sort(-logp)[:, :5], atol=1e-5)
    assert seen.lens_tokens[-1, :, 0].tolist() == logp.argmax(-1).tolist()
    np.testing.assert_allclose(seen.next_logp[-1, :-1], logp[np.arange(T - 1), TOKENS[1:]], atol=1e-5)
    assert np.isnan(seen.next_logp[:, -1]).all() and not np.isnan(seen.next_logp[:, :-1]).any()
    assert not np.allclose(seen.lens_logp[0], seen.lens_logp[-1], atol=1e-2)
    np.testing.assert_allclose(seen.attention.sum(-1), 1, atol=1e-5)
    assert not np.triu(seen.attention, 1).any()


def test_some_positions_are_those_of_all(nano):
    params, config = nano
    whole, some = look(params, config, TOKENS, top=3), look(unstack_blocks(params), config, TOKENS, queries=[20, 3, 7],
                                                            top=3)
    np.testing.assert_allclose(some.attention, whole.attention[:, :, [20, 3, 7]], atol=1e-6)
    np.testing.assert_allclose(some.lens_logp, whole.lens_logp[:, [20, 3, 7]], atol=1e-5)
    np.testing.assert_allclose(some.next_logp, whole.next_logp[:, [20, 3, 7]], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_attention_is_hugging_faces(family):
    """Grouped heads; and with Gemma's sliding window, soft-caps and query scale."""
    torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[interop]'")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install -e '.[interop]'")
    shape = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=56, max_position_embeddings=128, initializer_range=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about their own deprecations
        config = (transformers.LlamaConfig(**shape) if family == "llama" else transformers.Gemma2Config(
            **shape, head_dim=16, sliding_window=7, query_pre_attn_scalar=10, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0, pad_token_id=None))
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([TOKENS]), output_attentions=True)
    ours = config_from_hugging_face(model.config.to_dict())
    params = from_hugging_face({key: value.detach().numpy() for key, value in model.state_dict().items()}, ours)
    seen = look(jax.device_put(params), ours, TOKENS, top=4)
    expected = np.stack([layer[0].numpy() for layer in theirs.attentions])
    assert expected.std() > 0.02
    np.testing.assert_allclose(seen.attention, expected, atol=2e-5)
    np.testing.assert_allclose(seen.lens_logp[-1], -np.sort(-torch.log_softmax(theirs.logits[0], -1).numpy())[:, :4],
                               atol=1e-4)


@pytest.mark.parametrize("change, message", [
    ({"tokens": []}, "prompt 0 is empty"), ({"tokens": [999]}, "prompt 0 holds an id outside"),
    ({"tokens": [1] * 65}, "exceeds the model's 64 positions"), ({"top": 0}, "top is 0; it must be 1 to"),
    ({"queries": [21]}, "queries must be positions from 0 to 20"), ({"queries": []}, "at least one"),
])
def test_bad_input(nano, change, message):
    with pytest.raises(ValueError, match=message):
        look(*nano, **{"tokens": TOKENS, **change})
