"""KL: estimators against sums over all outcomes, best-of-n against enumeration of all draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.rl.kl import adapt_kl, best_of_n_kl, best_of_n_mean, exact_best_of_n_kl, kl_estimate

rng = np.random.default_rng(2)
LOGITS, REFERENCE = rng.normal(size=(2, 6)).astype(np.float32)


def kl(logits, other):
    logp, other_logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(logp) * (logp - other_logp))


def test_estimators_and_their_gradients():
    """Exact means over six outcomes: k1 and k3 are unbiased, and only k2 has the gradient of the KL."""
    def mean(logits, kind):
        p = jax.lax.stop_gradient(jax.nn.softmax(logits))  # samples are drawn; no gradient flows through the drawing
        return jnp.sum(p * kl_estimate(jax.nn.log_softmax(logits), jax.nn.log_softmax(REFERENCE), kind))

    found = {kind: jax.jit(jax.value_and_grad(mean), static_argnums=1)(LOGITS, kind) for kind in ("k1", "k2", "k3")}
    exact, gradient = jax.jit(jax.value_and_grad(kl))(LOGITS, REFERENCE)
    other_way = jax.jit(jax.grad(lambda logits: kl(REFERENCE, logits)))(LOGITS)
    np.testing.assert_allclose([found["k1"][0], found["k3"][0]], exact, rtol=1e-5)
    assert abs(found["k2"][0] / exact - 1.0) > 0.05  # its price: a bias
    np.testing.assert_allclose(found["k1"][1], 0.0, atol=1e-6)
    np.testing.assert_allclose(found["k2"][1], gradient, atol=1e-6)
    np.testing.assert_allclose(found["k3"][1], other_way, atol=1e-6)


def test_far_apart_models_have_a_finite_estimate_that_draws_them_together():
    estimate = jax.jit(jax.vmap(jax.value_and_grad(kl_estimate), (0, None)))
    value, slope = map(np.asarray, estimate(np.array([-1e4, -25.0, -19.0, 300.0], np.float32), 0.0))
    assert np.isfinite(value).all() and np.isfinite(slope).all() and (value > 0).all()
    assert (np.sign(slope) == [-1, -1, -1, 1]).all()


def test_controller_holds_the_target():
    """A policy whose KL falls as beta grows settles at the target, slowly, and never jumps."""
    beta, seen = 0.01, []
    for _ in range(200):
        seen.append(1.0 / beta)
        beta_next = adapt_kl(beta, seen[-1], target=6.0, horizon=1000, batch=100)
        assert abs(beta_next / beta - 1.0) <= 0.2 * 100 / 1000 + 1e-12
        beta = beta_next
    assert abs(seen[-1] - 6.0) < 0.1
    with pytest.raises(ValueError, match="target is 0"):
        adapt_kl(0.1, 1.0, target=0.0, horizon=1, batch=1)


@pytest.mark.parametrize("scores", [[0, 1, 2, 3], [0, 1, 1, 2], [5, 5, 5, 5], [3, 0, 0, 3]])
@pytest.mark.parametrize("n", [1, 3])
def test_best_of_n_by_enumeration_of_all_draws(scores, n):
    p = np.array([0.1, 0.4, 0.2, 0.3])
    chosen = np.zeros(4)
    for draw in itertools.product(range(4), repeat=n):
        best = [i for i in draw if scores[i] == max(scores[j] for j in draw)]
        for i in best:  # ties are settled by chance
            chosen[i] += np.prod(p[list(draw)]) / len(best)
    expected = np.sum(chosen * np.log(chosen / p, where=chosen > 0, out=np.zeros(4)))
    assert exact_best_of_n_kl(p, np.array(scores), n) == pytest.approx(expected, abs=1e-12)
    assert expected <= best_of_n_kl(n) + 1e-12


def test_the_formula_is_the_limit_of_many_different_samples():
    many = np.full(20_000, 1.0)
    assert exact_best_of_n_kl(many, rng.normal(size=20_000), 16) == pytest.approx(best_of_n_kl(16), abs=1e-3)
    few = exact_best_of_n_kl(np.ones(3), np.array([0.0, 1.0, 2.0]), 1000)
    assert few == pytest.approx(np.log(3)) and best_of_n_kl(1000) > 5.9
    assert best_of_n_kl(1) == 0.0


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_best_of_n_from_all_subsets(n):
    proxy, gold = np.array([[0.3, -1.0, 2.0, 0.3, 0.3, 1.0, -1.0], rng.normal(size=7)]), rng.normal(size=(2, 7))
    expected = []
    for row in range(2):
        worth = []
        for subset in map(list, itertools.combinations(range(7), n)):
            top = proxy[row, subset] == proxy[row, subset].max()
            worth.append(gold[row, subset][top].mean())  # ties share
        expected.append(np.mean(worth))
    np.testing.assert_allclose(best_of_n_mean(proxy, n, gold), expected, rtol=1e-12)
    np.testing.assert_allclose(best_of_n_mean(proxy, n)[0], np.mean(
        [proxy[0, list(subset)].max() for subset in itertools.combinations(range(7), n)]), rtol=1e-12)


def test_counts_outside_what_there_is_are_refused():
    with pytest.raises(ValueError, match="best of 4 from 3 samples"):
        best_of_n_mean(np.zeros(3), 4)
    with pytest.raises(ValueError, match="at least one"):
        exact_best_of_n_kl(np.ones(2), np.zeros(2), 0)
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(jnp.zeros(1), jnp.zeros(1), "k4")
