"""Filters against Hugging Face's processors on the same logits; the draw against what it claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.infer import sampling
from jaxllm.infer.sampling import SamplingSettings, process, sample, stack_settings

B, V = 6, 257
RNG = np.random.default_rng(0)
# Two rows of distinct logits, one peaked, one rounded (many ties), one all equal, one with barred
# tokens.
LOGITS = np.concatenate([3 * RNG.normal(size=(2, V)), 30 * RNG.normal(size=(1, V)),
                         np.round(2 * RNG.normal(size=(1, V))), np.zeros((1, V)),
                         np.where(RNG.random((1, V)) < 0.9, -np.inf, RNG.normal(size=(1, V)))])
LOGITS = LOGITS.astype(np.float32)
IDS = RNG.integers(0, V, (B, 20))
SEEN = np.zeros((B, V), bool)
np.put_along_axis(SEEN, IDS, True, axis=1)

draw = jax.jit(sample, static_argnames=("settings", "valid_vocab"))
draw_rows = jax.jit(sample)
processed = jax.jit(process, static_argnames="settings")
processed_rows = jax.jit(process)


@pytest.fixture(scope="module")
def processors():
    """Hugging Face's processors, as functions of (ids, logits) in numpy."""
    reason = "parity with Hugging Face: install the extra `interop` (pip install -e '.[interop]')"
    torch = pytest.importorskip("torch", reason=reason)
    pytest.importorskip("transformers", reason=reason)
    from transformers.generation import logits_process

    # torch.sort leaves open which of two equals comes first, so which of them top-p drops; here the
    # first.
    stable = functools.partial(torch.sort, stable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "sort", stable)

        def run(name, value, logits):
            processor = getattr(logits_process, name)(value)
            return processor(torch.from_numpy(IDS), torch.from_numpy(logits.copy())).numpy()

        yield run


CASES = [("TemperatureLogitsWarper", sampling.temperature, (0.1, 0.7, 1.0, 1.9)),
         ("TopKLogitsWarper", sampling.top_k, (1, 2, 50, V, V + 10)),
         ("TopPLogitsWarper", sampling.top_p, (1e-6, 0.1, 0.5, 0.9, 0.999)),
         ("MinPLogitsWarper", sampling.min_p, (0.0, 0.01, 0.3, 1.0)),
         ("RepetitionPenaltyLogitsProcessor",
          lambda x, penalty: sampling.repetition_penalty(x, SEEN, penalty), (0.5, 1.0, 1.3))]


@pytest.mark.parametrize("name, function, values", CASES, ids=[name for name, _, _ in CASES])
def test_each_filter_equals_hugging_faces(processors, name, function, values):
    of_number, of_rows = jax.jit(function, static_argnums=1), jax.jit(function)
    for value in values:
        expected = processors(name, value, LOGITS)
        np.testing.assert_allclose(of_number(LOGITS, value), expected, rtol=1e-6, err_msg=str(value))
        rows = jnp.full((B,), value, jnp.int32 if isinstance(value, int) else jnp.float32)
        np.testing.assert_allclose(of_rows(LOGITS, rows), expected, rtol=1e-6,
                                   err_msg=f"{name} by row, {value}")


def test_a_row_of_different_values_equals_each_value_alone(processors):
    ks = [1, 0, 3, 7, 100, 2]
    alone = [processors("TopKLogitsWarper", k or V, LOGITS)[row] for row, k in enumerate(ks)]
    np.testing.assert_array_equal(jax.jit(sampling.top_k)(LOGITS, jnp.array(ks)), np.stack(alone))
    ps = [0.3, 1.0, 0.9, 0.5, 0.01, 0.75]
    alone = [LOGITS[row] if p == 1 else processors("TopPLogitsWarper", p, LOGITS)[row]
             for row, p in enumerate(ps)]
    np.testing.assert_array_equal(jax.jit(sampling.top_p)(LOGITS, jnp.array(ps)), np.stack(alone))


@pytest.mark.parametrize("candidates", [1, 40])
def test_top_p_beyond_its_candidates_equals_hugging_faces(processors, monkeypatch, candidates):
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    # A function of its own for JAX, which else may have it compiled with other candidates.
    nucleus = jax.jit(lambda logits, p: sampling.top_p(logits, p), static_argnums=1)
    for p in (1e-6, 0.5, 0.9, 0.999):
        expected = processors("TopPLogitsWarper", p, LOGITS)
        np.testing.assert_array_equal(nucleus(LOGITS, p), expected)
    for row in range(B):  # alone, a peaked row stays within them
        np.testing.assert_array_equal(nucleus(LOGITS[row:row + 1], p)[0], expected[row])


ORDERS = [SamplingSettings(0.7, 40, 0.9, 0.02, 1.2), SamplingSettings(1.5, 5, 0.5),
          SamplingSettings(top_p=0.3, min_p=0.5)]


@pytest.mark.parametrize("settings", ORDERS)
def test_filters_are_applied_in_hugging_faces_order(processors, settings):
    torch = pytest.importorskip("torch")
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=32, n_embd=8, n_layer=1, n_head=1))
    config = GenerationConfig(
        do_sample=True, num_beams=1, temperature=settings.temperature, top_k=settings.top_k,
        top_p=settings.top_p, min_p=settings.min_p or None,
        repetition_penalty=settings.repetition_penalty)
    chain = model._get_logits_processor(config, input_ids_seq_length=IDS.shape[1])
    expected = chain(torch.from_numpy(IDS), torch.from_numpy(LOGITS.copy())).numpy()
    np.testing.assert_allclose(processed(LOGITS, settings, SEEN), expected, rtol=1e-6)
    rows = processed_rows(LOGITS, stack_settings([settings] * B), SEEN)
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_disabled_values_change_nothing():
    np.testing.assert_array_equal(process(LOGITS, SamplingSettings()), LOGITS)
    rows = stack_settings([SamplingSettings()] * B)
    np.testing.assert_array_equal(processed_rows(LOGITS, rows, SEEN), LOGITS)


def test_top_p_keeps_the_likeliest_and_drops_the_lower_id_of_equals():
    kept = np.isfinite(sampling.top_p(jnp.array([[0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 9.0]]), 0.5))
    assert kept.tolist() == [[False, False, True, True], [False, False, False, True]]


def test_temperature_zero_is_greedy_and_the_first_of_equals_wins():
    logits = jnp.array([[1.0, 3.0, 3.0, 2.0], [0.0, -1.0, -2.0, -3.0]])
    greedy = SamplingSettings(temperature=0.0)
    for drawer, settings in ((draw, greedy), (draw_rows, stack_settings([greedy, greedy]))):
        drawn = drawer(jax.random.key(3), logits, settings, jnp.zeros(logits.shape, bool))
        assert drawn.tokens.tolist() == [1, 0]
        np.testing.assert_array_equal(drawn.sampling_logp, 0.0)
        expected = jax.nn.log_softmax(logits)
        np.testing.assert_allclose(drawn.logp, [expected[0, 1], expected[1, 0]], rtol=1e-6)


def test_draws_follow_the_processed_distribution():
    # Each frequency within 5 standard deviations: odds of a false alarm about 1e-5 for 20 tokens.
    settings, logits = SamplingSettings(0.8, top_k=12, top_p=0.95), LOGITS[0, :20]
    draws = 40_000
    drawn = draw(jax.random.key(0), jnp.broadcast_to(logits, (draws, 20)), settings)
    expected = np.asarray(jax.nn.softmax(processed(logits[None], settings)[0]))
    frequency = np.bincount(drawn.tokens, minlength=20) / draws
    assert (np.abs(frequency - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)).all()
    assert 1 < (expected > 0).sum() < 12  # both filters bite
    np.testing.assert_allclose(drawn.sampling_logp, np.log(expected[drawn.tokens]), atol=1e-5)
    logp = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(drawn.logp, logp[drawn.tokens], atol=1e-5)


def test_ids_beyond_the_vocabulary_are_never_drawn():
    logits = jnp.zeros((500, 8)).at[:, 5:].set(50.0)
    for settings in (SamplingSettings(temperature=0.0), SamplingSettings(top_p=0.9, top_k=2)):
        drawn = draw(jax.random.key(0), logits, settings, valid_vocab=5)
        assert int(drawn.tokens.max()) < 5
    # The model's own log-probability is over all V.
    np.testing.assert_allclose(drawn.logp, jax.nn.log_softmax(logits)[:, 0], rtol=1e-6)


def test_a_rows_draw_depends_on_its_key_and_logits_alone():
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(B))
    logits = jnp.asarray(LOGITS)
    together = draw(keys, logits).tokens
    for row in range(B):
        assert draw(keys[row:row + 1], logits[row:row + 1]).tokens[0] == together[row]
    assert len(set(together.tolist())) > 1


@pytest.mark.parametrize("field, value", [
    ("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_k", 2.5),
    ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.5), ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0)])
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"sampling.{field} is"):
        SamplingSettings(**{field: value})


def test_a_penalty_without_the_rows_tokens_is_refused():
    with pytest.raises(ValueError, match="needs `seen`"):
        process(LOGITS, SamplingSettings(repetition_penalty=1.1))
