"""Generation against full forward passes, which know nothing of caches, widths and loops."""

import jax
import numpy as np
import pytest
from random_weights import random_weights

from jaxllm.infer import generate as generation
from jaxllm.infer.generate import generate, stream, stream_text
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import Execution, preset
from jaxllm.model.params import unstack_blocks
from jaxllm.model.transformer import forward

GREEDY = SamplingSettings(temperature=0.0)
CONFIGS = {
    "rotary": preset("nano"),
    "learned": preset("nano", positions="learned", norm="layer", mlp="gelu", bias="all"),
    "windows": preset("nano", windows=(8, 0), attention_softcap=5.0, logit_softcap=9.0,
                      post_norms=True),
    # One prompt longer than a prefill chunk, beside a short one.
    "chunks": preset("nano", max_positions=512),
}
RNG = np.random.default_rng(0)


def prompts_of(*lengths):
    return [RNG.integers(0, 256, length).tolist() for length in lengths]


def sharp_params(config):
    """Random weights scaled so that the likeliest token stands out from rounding."""
    return jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, random_weights(config))


# For tests of the loop, which a second layer would only make slower to compile.
CONFIG = preset("nano", layers=1)
PARAMS = jax.device_put(unstack_blocks(sharp_params(CONFIG)))
PROMPTS = prompts_of(3, 9, 14)


def full_logits(params, config, rows):
    """`forward` on rows padded to one width: what stands to the right cannot reach back."""
    width = max(map(len, rows))
    padded = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
    return np.asarray(jax.jit(forward, static_argnums=1)(params, config, padded))


@pytest.mark.parametrize("name, lengths", [("rotary", (1, 7, 16)), ("learned", (2, 16, 17)),
                                           ("windows", (3, 20, 12)), ("chunks", (300, 5, 256))])
def test_greedy_with_the_cache_equals_repeated_full_forward(name, lengths):
    config, steps = CONFIGS[name], 10
    params, prompts = jax.device_put(sharp_params(config)), prompts_of(*lengths)
    result = generate(params, config, prompts, key=0, max_tokens=steps, settings=GREEDY)
    rows = [prompt + made for prompt, made in zip(prompts, result.rows(), strict=True)]
    # One pass over the finished rows gives the argmax after each of their prefixes.
    best = full_logits(params, config, rows).argmax(-1)
    for row, prompt in enumerate(prompts):
        expected = best[row, len(prompt) - 1:len(prompt) - 1 + steps]
        np.testing.assert_array_equal(result.tokens[row], expected)
    assert not result.stopped.any() and result.lengths.tolist() == [steps] * 3


def test_logp_equals_forwards_log_softmax():
    settings = SamplingSettings(temperature=0.7, top_k=30, top_p=0.9)
    result = generate(PARAMS, CONFIG, PROMPTS, key=1, max_tokens=8, settings=settings,
                      samples_per_prompt=2, valid_vocab=60)
    rows = [PROMPTS[i // 2] + made for i, made in enumerate(result.rows())]
    logp = np.asarray(jax.nn.log_softmax(full_logits(PARAMS, CONFIG, rows)))
    for i, made in enumerate(result.rows()):
        start = len(PROMPTS[i // 2]) - 1
        expected = logp[i, np.arange(start, start + 8), made]
        np.testing.assert_allclose(result.logp[i], expected, rtol=1e-5, atol=1e-5)
    # Filters sharpen.
    assert (np.asarray(result.sampling_logp) > np.asarray(result.logp)).mean() > 0.9
    assert result.rows()[0] != result.rows()[1]  # two samples of one prompt
    assert int(result.tokens.max()) < 60


def test_a_rows_text_does_not_depend_on_its_batch():
    together = generate(PARAMS, CONFIG, PROMPTS, key=2, max_tokens=8, samples_per_prompt=2).rows()
    for i, prompt in enumerate(PROMPTS):
        alone = generate(PARAMS, CONFIG, [prompt], key=2, max_tokens=8, samples_per_prompt=2,
                         row_ids=[i])
        assert alone.rows() == together[2 * i:2 * i + 2]
    # In wider padding, in another place, and in batches whose last is filled up.
    others = [*prompts_of(30, 20), PROMPTS[1]]
    moved = generate(PARAMS, CONFIG, others, key=2, max_tokens=8, row_ids=[7, 8, 1], batch=2)
    assert moved.rows()[2] == together[2]
    assert generate(PARAMS, CONFIG, PROMPTS, key=3, max_tokens=8).rows()[0] != together[0]


def test_a_row_ends_with_its_stop_token_and_the_others_go_on():
    free = generate(PARAMS, CONFIG, PROMPTS, key=4, max_tokens=8)
    stop = int(free.tokens[1, 3])
    result = generate(PARAMS, CONFIG, PROMPTS, key=4, max_tokens=8, stop_tokens=(stop, 255))
    for row, made in enumerate(free.rows()):
        ends = [i for i, token in enumerate(made) if token in (stop, 255)]
        length = ends[0] + 1 if ends else 8
        assert result.rows()[row] == made[:length]
        assert bool(result.stopped[row]) == bool(ends)
        np.testing.assert_array_equal(result.tokens[row, length:], 0)
        np.testing.assert_array_equal(result.logp[row, length:], 0.0)
        np.testing.assert_allclose(result.logp[row, :length], free.logp[row, :length], rtol=1e-5,
                                   atol=1e-6)
    assert result.stopped[1] and not result.stopped.all()


def test_streaming_gives_the_tokens_of_generate():
    free = generate(PARAMS, CONFIG, PROMPTS, key=5, max_tokens=8, samples_per_prompt=2).rows()
    stop = free[3][5]
    made = list(stream(PARAMS, CONFIG, PROMPTS[1], key=5, max_tokens=8, row_id=1, sample_id=1,
                       stop_tokens=[stop]))
    assert made == free[3][:free[3].index(stop) + 1]
    made = list(stream(PARAMS, CONFIG, PROMPTS[1], key=5, max_tokens=8, row_id=1, sample_id=0,
                       stop_tokens=[stop]))
    assert made == (free[2][:free[2].index(stop) + 1] if stop in free[2] else free[2])


def test_a_penalty_reaches_the_prompt_and_what_was_drawn():
    settings = SamplingSettings(temperature=0.0, repetition_penalty=1e6)
    made = generate(PARAMS, CONFIG, PROMPTS, key=0, max_tokens=20, settings=settings).rows()
    for prompt, row in zip(PROMPTS, made, strict=True):
        assert len(set(row)) == 20 and not set(row) & set(prompt)


def test_padding_is_no_token_of_a_prompt():
    seen = jax.jit(generation._seen, static_argnums=2)(np.array([[3, 1, 0], [2, 0, 2]]), np.array([2, 3]), 5)
    assert [np.flatnonzero(row).tolist() for row in seen] == [[1, 3], [0, 2]]


def test_prompts_of_one_width_share_a_compiled_program():
    generate(PARAMS, CONFIG, PROMPTS, key=0, max_tokens=8)
    compiled = generation._generate._cache_size()
    generate(PARAMS, CONFIG, prompts_of(16, 1, 10), key=9, max_tokens=8)
    assert generation._generate._cache_size() == compiled


def test_bfloat16_activations_stay_near_float32():
    result = generate(PARAMS, CONFIG, PROMPTS, key=1, max_tokens=8,
                      execution=Execution(dtype="bfloat16"))
    rows = [prompt + made for prompt, made in zip(PROMPTS, result.rows(), strict=True)]
    logp = np.asarray(jax.nn.log_softmax(full_logits(PARAMS, CONFIG, rows)))
    expected = [logp[i, len(p) - 1 + np.arange(8), made]
                for i, (p, made) in enumerate(zip(PROMPTS, result.rows(), strict=True))]
    np.testing.assert_allclose(result.logp, np.stack(expected), atol=0.15)


@pytest.mark.parametrize("changes, sentence", [
    (dict(prompts=[[1], []]), "prompt 1 is empty; begin it with the tokenizer's begin_of_text"),
    (dict(prompts=[]), "no prompts"),
    (dict(prompts=[[1] * 60]), "prompt 0 has 60 tokens; with max_tokens=5 that exceeds"),
    (dict(prompts=[[1, 256]]), "outside the model's vocabulary of 256"),
    (dict(prompts=[[-1]]), "outside the model's vocabulary of 256"),
    (dict(max_tokens=0), "max_tokens is 0; it must be at least 1"),
    (dict(samples_per_prompt=0), "samples_per_prompt is 0"),
    (dict(batch=0), "batch is 0"),
    (dict(stop_tokens=[999]), "stop token 999"),
    (dict(valid_vocab=257), "valid_vocab is 257"),
    (dict(row_ids=[1, 2]), "row_ids must be 1 integers"),
])
def test_bad_input_is_refused_before_compiling(changes, sentence):
    compiled = generation._generate._cache_size()
    arguments = dict(prompts=[[1, 2]], key=0, max_tokens=5) | changes
    with pytest.raises(ValueError, match=sentence):
        generate(PARAMS, CONFIG, **arguments)
    assert generation._generate._cache_size() == compiled


def test_stream_refuses_at_the_call():
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        stream(PARAMS, CONFIG, [], key=0, max_tokens=5)


def test_the_last_token_fits_exactly():
    prompt = prompts_of(CONFIG.max_positions - 4)
    result = generate(PARAMS, CONFIG, prompt, key=0, max_tokens=4, settings=GREEDY)
    rows = [prompt[0] + result.rows()[0]]
    best = full_logits(PARAMS, CONFIG, rows).argmax(-1)
    np.testing.assert_array_equal(result.tokens[0], best[0, -5:-1])


def test_text_pieces_never_end_inside_a_character():
    text = "a\u00e9\u4e16\U0001f600z"
    pieces = list(stream_text(text.encode(), bytes))
    assert pieces == list(text)
    assert list(stream_text(b"a\xe4\xb8", bytes)) == ["a", "\ufffd"]  # cut short at the end
    assert "".join(stream_text(b"a\xffb", bytes)) == "a\ufffdb"


def test_an_integer_seed_is_a_key():
    seeds = [4, np.int64(4), jax.random.key(4)]
    made = [generate(PARAMS, CONFIG, PROMPTS, key=seed, max_tokens=8).rows() for seed in seeds]
    assert made[0] == made[1] == made[2]
