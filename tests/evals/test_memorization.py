"""Verbatim extraction: matches by definition, its controls, exposure, and likelihoods against scipy."""

import math
import os.path
import random
import statistics

import jax
import numpy as np
import pytest
from random_weights import random_weights
from scipy.special import log_softmax

from jaxllm.evals.memorization import Extraction, compare, cut, exposure, extract, rest_nll
from jaxllm.model.config import preset
from jaxllm.model.transformer import forward


def test_longest_matched_prefix_is_the_common_prefix():
    rng = random.Random(0)
    for _ in range(300):
        ours, theirs = ([rng.randint(0, 1) for _ in range(rng.randint(1, 7))] for _ in range(2))
        found = compare(ours, theirs)
        assert found == Extraction(len(os.path.commonprefix([ours, theirs])), len(theirs))
        assert found.exact == (ours[:len(theirs)] == theirs) and found.share == found.matched / len(theirs)
    assert not compare([], [1]).exact


def test_what_is_known_by_heart_comes_out_and_nothing_else():
    rng = np.random.default_rng(0)
    sequences = rng.integers(0, 1000, (6, 9)).tolist()
    known = {tuple(sequence[:3]): sequence[3:] for sequence in sequences[:3]}

    def continue_prompts(prompts, max_tokens):
        assert max_tokens == 6
        return [known.get(tuple(prompt), [-1] * max_tokens) for prompt in prompts]

    own, other = extract(continue_prompts, sequences, 3)
    assert [found.matched for found in own] == [6, 6, 6, 0, 0, 0]
    assert not any(found.matched for found in other)


def test_control_finds_a_model_that_says_the_same_to_every_prompt():
    own, other = extract(lambda prompts, n: [[7] * n] * len(prompts), [[1, 7, 7], [2, 7, 7], [3, 8, 8]], 1)
    assert [found.matched for found in own] == [2, 2, 0]
    assert [found.matched for found in other] == [2, 0, 2]  # of the sequence that comes next


@pytest.mark.parametrize(("sequences", "prompt_tokens", "words"), [
    ([[1, 2], [1, 2]], 2, "nothing to be continued"), ([[1, 2], [3, 4]], 0, "at least 1"), ([[1, 2]], 1, "at least 2")])
def test_what_cannot_be_extracted_is_refused(sequences, prompt_tokens, words):
    with pytest.raises(ValueError, match=words):
        extract(lambda prompts, n: [[0] * n] * len(prompts), sequences, prompt_tokens)


def test_exposure_by_its_ends_and_its_mean_over_texts_that_were_not_seen():
    assert exposure(0.0, [1.0] * 15) == 4.0 and exposure(2.0, [1.0] * 15) == 0.0
    assert exposure(1.0, [1.0]) == 0.0  # a tie is no evidence
    rng = random.Random(0)
    unseen = [exposure(rng.random(), [rng.random() for _ in range(63)]) for _ in range(3000)]
    expected = statistics.fmean(math.log2(64 / rank) for rank in range(1, 65))  # every rank is equally likely
    assert abs(statistics.fmean(unseen) - expected) < 0.1
    with pytest.raises(ValueError, match="at least one"):
        exposure(1.0, [])


def test_likelihood_of_the_rest_is_that_of_its_tokens():
    model = preset("nano", layers=1)
    params = jax.device_put(random_weights(model))
    sequences = np.random.default_rng(1).integers(0, model.vocab_size, (3, 8)).astype(np.int32)
    logp = log_softmax(np.asarray(jax.jit(forward, static_argnums=1)(params, model, sequences)), axis=-1)
    for prompt in (1, 5):
        expected = [-sum(logp[b, t - 1, sequences[b, t]] for t in range(prompt, 8)) for b in range(3)]
        found = jax.jit(rest_nll, static_argnums=(1, 3))(params, model, sequences, prompt)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_cut_keeps_every_token():
    sequences = [[1, 2, 3, 4], [5, 6]]
    prompts, rests = cut(sequences, 1)
    assert [p + r for p, r in zip(prompts, rests, strict=True)] == sequences and [len(p) for p in prompts] == [1, 1]
