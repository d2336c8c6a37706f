"""The same weights in Hugging Face transformers and here: the same logits and the same gradients.

Needs the extra `interop` (torch and transformers). Models are tiny, their weights random and far
from the usual start, so that every scale, bias, cap and window shows in the logits.
"""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.model.config import PRESETS, ModelConfig
from jaxllm.model.convert import (
    config_from_hugging_face,
    config_to_hugging_face,
    from_hugging_face,
    to_hugging_face,
)
from jaxllm.model.params import count_params
from jaxllm.model.transformer import forward

torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[interop]'")
transformers = pytest.importorskip(
    "transformers", reason="parity needs transformers: pip install -e '.[interop]'")

SHAPE = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, intermediate_size=56, max_position_embeddings=128)
# family -> their configuration class and arguments; T = 40 crosses the window and the old context
FAMILIES = {
    "gpt2": ("GPT2Config", dict(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                                bos_token_id=0, eos_token_id=0)),
    "llama3": ("LlamaConfig", dict(
        SHAPE, rms_norm_eps=1e-5, rope_parameters=dict(
            rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
            high_freq_factor=4.0, original_max_position_embeddings=16))),
    "qwen2_5": ("Qwen2Config", dict(SHAPE, tie_word_embeddings=True)),
    "qwen3": ("Qwen3Config", dict(SHAPE, head_dim=16, tie_word_embeddings=False)),
    "gemma2": ("Gemma2Config", dict(
        SHAPE, head_dim=16, sliding_window=7, query_pre_attn_scalar=10,
        pad_token_id=None,  # else they drop the gradient of that token's embedding
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    "smollm2": ("LlamaConfig", dict(
        SHAPE, tie_word_embeddings=True, num_attention_heads=3, num_key_value_heads=1,
        hidden_size=24, rope_parameters=dict(rope_type="default", rope_theta=100_000.0))),
}
BATCH, LENGTH = 2, 40


@dataclasses.dataclass
class Twin:
    """One family's model in both implementations, on the same weights and tokens."""

    state: dict[str, np.ndarray]
    config: ModelConfig
    their_config: dict
    logits: np.ndarray
    our_logits: np.ndarray
    gradients: dict[str, np.ndarray]
    our_gradients: dict


def their_model(name):
    """A model of theirs whose logits are of order one, and whose norms and biases all matter."""
    class_name, arguments = FAMILIES[name]
    config = getattr(transformers, class_name)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1:  # around the value that each was initialised with
                tensor.add_(0.3 * noise)
            else:
                tensor.copy_(noise * (0.3 if "lm_head" in key or "wte" in key or "embed" in key
                                      else 1.5 * arguments.get("hidden_size", 32) ** -0.5))
    return model.eval()


@functools.cache
def twin(name) -> Twin:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about their own deprecations
        model = their_model(name)
    tokens = np.random.default_rng(0).integers(0, 96, (BATCH, LENGTH + 1))
    inputs, targets = torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:])
    logits = model(input_ids=inputs).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = {key: p.grad.numpy().copy() for key, p in model.named_parameters()}
    state = {key: p.detach().numpy().copy() for key, p in model.state_dict().items()}
    config = config_from_hugging_face(model.config.to_dict())
    params = from_hugging_face(state, config)

    def loss(params, tokens):
        logits = forward(params, config, tokens[:, :-1])
        logp = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1).mean(), logits

    (_, ours), our_gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        jax.device_put(params), tokens.astype(np.int32))
    return Twin(state, config, model.config.to_dict(), logits.detach().numpy(), np.asarray(ours),
                gradients, our_gradients)


def relative_difference(ours, theirs) -> float:
    """Largest difference over the largest magnitude of theirs."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_theirs(name):
    pair = twin(name)
    assert 0.5 < pair.logits.std() < 10, "the logits are not of order one: the test says little"
    difference = relative_difference(pair.our_logits, pair.logits)
    print(f"{name}: logits differ by {difference:.1e} of the largest")
    assert difference <= 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_theirs(name):
    """A gradient maps as its weight does: `from_hugging_face` is linear, and ties are summed."""
    pair = twin(name)
    theirs = from_hugging_face(pair.gradients, pair.config)
    if name == "gpt2":  # a bias of all keys alike moves no softmax: rounding is all there is to see
        for gradients in (theirs, pair.our_gradients):
            assert np.abs(gradients["blocks"]["attention"].pop("key_bias")).max() < 1e-6
    differences = jax.tree.map(relative_difference, pair.our_gradients, theirs)
    worst = max(jax.tree.leaves(differences))
    print(f"{name}: gradients differ by {worst:.1e} of each parameter's largest")
    assert min(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs)) > 1e-3
    assert worst <= 1e-4, differences


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip_is_bitwise(name):
    pair = twin(name)
    back = to_hugging_face(from_hugging_face(pair.state, pair.config), pair.config)
    tied = {"lm_head.weight"} if pair.config.tied_embedding else set()
    assert set(back) == set(pair.state) - tied
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, pair.state[key], err_msg=key, strict=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_configuration_round_trip(name):
    pair = twin(name)
    ours = config_to_hugging_face(pair.config)
    assert config_from_hugging_face(ours) == pair.config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoConfig.for_model(**ours).to_dict()
    for key in ours.keys() - {"architectures"}:
        if pair.their_config.get(key) is not None:
            assert theirs[key] == pair.their_config[key], key
    assert config_from_hugging_face(theirs) == pair.config


@pytest.mark.parametrize("name, change", [
    ("llama3", dict(rope_scaling=None)), ("gemma2", dict(windows=(8, 0))),
    ("gemma2", dict(windows=(0, 7))), ("gemma2", dict(query_scale=None))])
def test_parity_can_fail(name, change):
    """What the other tests cannot see from the shapes is visible at this size and tolerance."""
    pair = twin(name)
    tokens = np.random.default_rng(0).integers(0, 96, (BATCH, LENGTH + 1))[:, :-1]
    params = jax.device_put(from_hugging_face(pair.state, pair.config))
    config = dataclasses.replace(pair.config, **change)
    logits = jax.jit(forward, static_argnums=1)(params, config, tokens.astype(np.int32))
    assert relative_difference(logits, pair.logits) > 1e-3


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in ("nano", "tiny", "small")])
def test_presets_have_as_many_parameters_as_theirs(name):
    config = PRESETS[name]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config_to_hugging_face(config)))
    assert sum(p.numel() for p in model.parameters()) == count_params(config)
    assert config_from_hugging_face(model.config.to_dict()) == config
