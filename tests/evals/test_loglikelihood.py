"""Log-likelihoods: those of the whole forward pass, shared contexts or not, on one device and on eight; long texts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_weights

from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.evals import loglikelihood_steps, rolling
from jaxllm.evals.language_model import LanguageModel, encode_pair
from jaxllm.evals.loglikelihood import fitted, loglikelihoods
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import abstract_params
from jaxllm.model.transformer import forward
from jaxllm.train.sharding import make_mesh, state_shardings

POSITIONS = 40
CONFIG = ModelConfig(vocab_size=304, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_dim=32, max_positions=64)
TOKENIZER = train_tokenizer(["the cat sat on the mat, and the dog sat on the cat"] * 3, 275)
MODEL = LanguageModel(random_weights(CONFIG), CONFIG, TOKENIZER, Execution(scan=False), max_length=POSITIONS)
BATCH = 512  # padded tokens, so that there are several batches


@pytest.fixture(scope="module")
def next_logp():
    """Log-probabilities [T, V] of what follows each token of a row, by the whole row through `forward`."""
    run = jax.jit(lambda params, tokens: jax.nn.log_softmax(forward(params, CONFIG, tokens)))

    def of(row):
        tokens = np.zeros((1, CONFIG.max_positions), np.int32)
        tokens[0, :len(row)] = row
        return np.asarray(run(MODEL.params, tokens))[0, :len(row)]
    return of


@pytest.fixture(scope="module")
def reference(next_logp):
    """(context, continuation) -> (log-likelihood, greedy)."""
    def score(context, continuation):
        logp = next_logp([*context, *continuation][:-1])[len(context) - 1:]
        return logp[np.arange(len(continuation)), continuation].sum(), (logp.argmax(-1) == continuation).all()
    return score


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Chunks and pieces of few positions, so that there are several of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loglikelihood_steps, "CHUNK", 16)
        patch.setattr(loglikelihood_steps, "POSITIONS", 64)
        yield


def drawn(groups=24, seed=0):
    """Contexts of 17 to 32 tokens with three or four continuations of 1 to 8 each: one shape."""
    rng = np.random.default_rng(seed)
    asked = []
    for _ in range(groups):
        context = rng.integers(CONFIG.vocab_size, size=rng.integers(17, 33)).tolist()
        asked += [(context, rng.integers(CONFIG.vocab_size, size=size).tolist())
                  for size in (8, *rng.integers(1, 9, size=rng.integers(2, 4)))]
    return [asked[i] for i in rng.permutation(len(asked))]


def test_equal_to_whole_rows_whatever_shares_the_batch(reference):
    asked = drawn()
    asked += [(list(range(60)), [1]), (list(range(50)), [2, 3, 4])]  # longer than the model
    told = []
    found = loglikelihoods(MODEL, asked, batch_tokens=BATCH, progress=lambda done, count: told.append((done, count)))
    for pair, scored in zip(asked, found, strict=True):
        expected, greedy = reference(*fitted(pair, POSITIONS))
        assert abs(scored.logp - expected) < 1e-4 and scored.greedy == greedy
        assert scored.tokens == len(pair[1])
    assert told[-1] == (len(asked), len(asked)) and len(told) > 1


def test_contexts_that_begin_alike_share_that_beginning(reference, monkeypatch):
    rng = np.random.default_rng(3)
    shots = rng.integers(CONFIG.vocab_size, size=20).tolist()
    asked = [([*shots, *rng.integers(CONFIG.vocab_size, size=size).tolist()], rng.integers(CONFIG.vocab_size, size=n))
             for size in (1, 4, 9, 12, 15) for n in (1, 3)]
    asked.append((shots, [5]))  # all of it is shared but its last token
    seen, score = [], loglikelihood_steps.score
    monkeypatch.setattr(loglikelihood_steps, "score", lambda params, shared, count, *rest: (
        seen.append(int(count)), score(params, shared, count, *rest))[1])
    found = loglikelihoods(MODEL, asked, batch_tokens=BATCH)
    assert set(seen) == {19}
    for (context, continuation), scored in zip(asked, found, strict=True):
        expected, greedy = reference(context, continuation)
        assert abs(scored.logp - expected) < 1e-4 and scored.greedy == greedy


def test_greedy_is_what_the_model_would_write(next_logp):
    context, written = list(range(20)), []
    for _ in range(7):
        written.append(int(next_logp([*context, *written])[-1].argmax()))
    other = [*written[:-1], (written[-1] + 1) % 256]
    asked = [(context, written), (context, other), (context, written[:1])]
    found = loglikelihoods(MODEL, [*asked, *drawn(7)], batch_tokens=BATCH)
    assert [scored.greedy for scored in found[:3]] == [True, False, True]


def test_same_numbers_on_one_device_and_on_eight():
    asked = drawn(seed=1)
    mesh = make_mesh((4, 2, 1))
    layout = state_shardings(abstract_params(CONFIG), CONFIG, mesh)
    spread = dataclasses.replace(MODEL, params=jax.tree.map(jax.device_put, MODEL.params, layout), mesh=mesh)
    one, eight = loglikelihoods(MODEL, asked, batch_tokens=BATCH), loglikelihoods(spread, asked, batch_tokens=64)
    np.testing.assert_allclose([s.logp for s in eight], [s.logp for s in one], atol=1e-5)
    assert [s.greedy for s in eight] == [s.greedy for s in one]


def test_context_is_cut_from_the_left_and_the_last_token_takes_no_position():
    assert fitted((range(10), [1, 2]), 11) == (tuple(range(10)), (1, 2))
    assert fitted((range(10), [1, 2]), 10) == (tuple(range(1, 10)), (1, 2))
    assert fitted((range(10), [1] * 10), 10) == ((9,), (1,) * 10)
    for pair, words in (((range(3), [1] * 11), "does not fit the model's 10 positions"), (([], [1]), "no tokens"),
                        (([1], []), "no tokens")):
        with pytest.raises(ValueError, match=words):
            fitted(pair, 10)
    with pytest.raises(ValueError, match="another tokenizer"):
        loglikelihoods(MODEL, [([1], [CONFIG.vocab_size])])


def test_pairs_are_cut_into_tokens_as_one_text():
    for context, continuation in (("the cat", " sat on"), ("the cat ", "sat on"), ("the c", "at sat"), ("", "the cat")):
        before, after = encode_pair(MODEL, context, continuation)
        assert TOKENIZER.decode([*before, *after]) == f"<|endoftext|>{context}{continuation}"
        assert [*before[1:], *after] == TOKENIZER.encode(context + continuation) and after
    # A blank at the end of a context belongs to the next word.
    assert encode_pair(MODEL, "the cat ", "sat") == encode_pair(MODEL, "the cat", " sat")
    bare = dataclasses.replace(MODEL, begin=False)
    assert encode_pair(bare, "the cat", " sat")[0] == TOKENIZER.encode("the cat")
    assert encode_pair(bare, "", "the cat")[0] == [TOKENIZER.begin_of_text]
    with pytest.raises(ValueError, match="is empty"):
        encode_pair(MODEL, "the cat", "")


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 29])
def test_windows_predict_each_token_once_with_as_much_context_as_fits(count):
    found = rolling.windows(range(count), -1, 8)
    assert [token for _, predicted in found for token in predicted] == list(range(count))
    text = [-1, *range(count)]
    for context, predicted in found:
        end = text.index(predicted[-1])
        first = text.index(predicted[0])
        assert [*context, *predicted] == text[max(first - len(context), 0):end + 1]
        assert len(context) + len(predicted) - 1 == min(8, end)


def test_bits_per_byte_of_a_text_longer_than_the_model(reference):
    text = "the cat sat on the mat, and the dog sat on the cat; " * 4
    tokens = TOKENIZER.encode(text)
    assert len(tokens) > 2 * POSITIONS
    short = "the cat sat"
    long, brief = rolling.score_texts(MODEL, [text, short], batch_tokens=BATCH)
    expected = sum(reference(*window)[0] for window in rolling.windows(tokens, TOKENIZER.begin_of_text, POSITIONS))
    assert abs(long.logp - expected) < 1e-3 and long.tokens == len(tokens) and long.bytes == len(text)
    assert abs(long.bits_per_byte + expected / math.log(2) / len(text)) < 1e-6
    alone, _ = reference([TOKENIZER.begin_of_text], TOKENIZER.encode(short))
    assert abs(brief.logp - alone) < 1e-4
    with pytest.raises(ValueError, match="text 0 is empty"):
        rolling.score_texts(MODEL, [""])
    assert jnp.isfinite(long.logp)
