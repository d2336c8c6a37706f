"""Preference losses: rankings against permutations and choix, lies, rows left out. TRL's are in test_trl_parity."""

import functools
import itertools

import choix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxllm.rl.preference_loss import bradley_terry, dpo, ipo, kto, kto_baseline, pairwise_ranking, plackett_luce

rng = np.random.default_rng(4)


def by_permutations(scores, tiers):
    """Minus the log of the summed probabilities of all orders that the tiers allow."""
    total = 0.0
    for order in itertools.permutations(range(len(scores))):
        if all(tiers[a] <= tiers[b] for a, b in itertools.pairwise(order)):
            left = np.exp(np.asarray(scores, np.float64)[list(order)])
            total += np.prod(left / np.cumsum(left[::-1])[::-1])
    return -np.log(total)


def test_plackett_luce_is_the_sum_over_permutations():
    scores = rng.normal(0.0, 2.0, (7, 5)).astype(np.float32)
    scores[1] = 0.3
    tiers = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 0, 1, 1, 1], [2, 0, 0, 0, 5], [1, 1, 1, 1, 1],
                      [0, 9, 1, 9, 0], [0, 1, 0, 2, 1]])
    valid = np.ones((7, 5), bool)
    valid[5, [1, 3]], valid[6, 4] = False, False
    scores[5, 1] = np.nan
    one = jax.jit(jax.vmap(lambda s, t, v: plackett_luce(s[None], t[None], v[None])[0].total))
    expected = [by_permutations(s[v], t[v]) for s, t, v in zip(scores, tiers, valid, strict=True)]
    np.testing.assert_allclose(one(scores, tiers, valid), expected, rtol=1e-5, atol=1e-6)
    (total, weight), slope = jax.jit(jax.value_and_grad(
        lambda s: (lambda mean: (mean.total, mean.weight))(plackett_luce(s, tiers, valid)[0]), has_aux=True))(scores)
    np.testing.assert_allclose(total, np.sum(expected), rtol=1e-5)
    assert weight == 6  # the row that ties all of them orders nothing
    assert np.isfinite(slope).all() and not np.asarray(slope)[~valid].any() and not np.asarray(slope)[4].any()
    np.testing.assert_allclose(np.asarray(slope).sum(1), 0.0, atol=1e-5)  # only differences of scores matter


def test_hopeless_scores_have_a_finite_loss():
    scores = np.array([[-1e4, 1e4, 0.0], [3e4, 3e4, -3e4]], np.float32)
    tiers, valid = np.array([[0, 1, 1], [0, 1, 0]]), np.ones((2, 3), bool)
    for loss in (plackett_luce, pairwise_ranking):
        value, slope = jax.jit(jax.value_and_grad(lambda s, loss=loss: loss(s, tiers, valid)[0].value))(scores)
        assert np.isfinite(value) and value > 1e4 and np.isfinite(slope).all()


def fit(loss, items, rankings, strength):
    """Strengths of the items that have the least loss over rankings, by scipy; each ranking is (items, tiers)."""
    shown = np.array([ranking[0] for ranking in rankings])
    tiers = np.array([ranking[1] for ranking in rankings])
    step = jax.jit(jax.value_and_grad(lambda s: loss(s[shown], tiers, jnp.ones(shown.shape, bool))[0].total
                                      + strength * jnp.sum(s**2)))
    found = minimize(lambda s: tuple(np.asarray(x, np.float64) for x in step(jnp.asarray(s, jnp.float32))),
                     np.zeros(items), jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-4})
    return found.x - found.x.mean()


def test_choix_finds_the_same_strengths():
    """Rankings of three of five items; choix 0.4.1 by its own likelihood, with the same penalty on the strengths."""
    truth = np.array([1.5, 0.8, 0.2, -0.3, -0.9])
    rankings = []
    for _ in range(30):
        shown = rng.choice(5, 3, replace=False)
        rankings.append(shown[np.argsort(-(truth[shown] + rng.gumbel(size=3)))])
    ordered = [(ranking, np.arange(3)) for ranking in rankings]
    np.testing.assert_allclose(fit(plackett_luce, 5, ordered, 0.1), choix.opt_rankings(5, rankings, alpha=0.1),
                               atol=2e-3)
    pairs = [tuple(pair) for ranking in rankings for pair in itertools.combinations(ranking, 2)]
    np.testing.assert_allclose(fit(pairwise_ranking, 5, ordered, 0.1 / 3), choix.opt_pairwise(5, pairs, alpha=0.1),
                               atol=2e-3)  # three pairs to a ranking of ours
    best = [(ranking[0], list(ranking[1:])) for ranking in rankings]  # only the best known: the others are tied
    np.testing.assert_allclose(fit(plackett_luce, 5, [(ranking, [0, 1, 1]) for ranking in rankings], 0.1),
                               choix.opt_top1(5, best, alpha=0.1), atol=2e-3)


def test_a_ranking_of_two_is_a_pair():
    scores = rng.normal(size=(5, 2)).astype(np.float32)
    tiers = np.array([[0, 1], [1, 0], [0, 1], [0, 0], [0, 1]])
    valid = np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0]], bool)
    better, worse = scores[[0, 1, 2], [0, 1, 0]], scores[[0, 1, 2], [1, 0, 1]]
    expected, told = jax.jit(functools.partial(bradley_terry, margin=0.7, centring=0.01))(better, worse)
    found, metrics = jax.jit(functools.partial(pairwise_ranking, margin=0.7, centring=0.01))(scores, tiers, valid)
    np.testing.assert_allclose([found.total, found.weight], [expected.total, 3.0], rtol=1e-6)
    assert metrics["accuracy"].value == told["accuracy"].value and metrics["margin"].value == told["margin"].value
    plain, _ = jax.jit(bradley_terry)(better, worse)
    np.testing.assert_allclose(jax.jit(plackett_luce)(scores, tiers, valid)[0].value, plain.value, rtol=1e-6)


def test_every_ranking_weighs_the_same_however_long_and_margins_grow_by_tier():
    scores = np.array([[3.0, 1.0, 0.0], [0.5, 0.0, 99.0]], np.float32)
    tiers, valid = np.array([[0, 1, 2], [0, 1, 0]]), np.array([[1, 1, 1], [1, 1, 0]], bool)
    found, metrics = jax.jit(functools.partial(pairwise_ranking, margin=0.5))(scores, tiers, valid)
    first = np.mean([np.logaddexp(0, -(lead - margin)) for lead, margin in ((2.0, 0.5), (3.0, 1.0), (1.0, 0.5))])
    np.testing.assert_allclose(found.value, (first + np.logaddexp(0, 0.0)) / 2, rtol=1e-6)
    assert float(metrics["accuracy"].weight) == 4.0 and float(metrics["margin"].value) == pytest.approx(6.5 / 4)


def test_smoothed_labels_and_ipo_stop_where_their_papers_say():
    """cDPO is least where sigmoid(beta h) is the share of true labels, IPO where h is 1 / (2 beta)."""
    zero = np.zeros(1, np.float32)
    best = {"dpo": np.log(0.9 / 0.1) / 0.2, "ipo": 1 / 0.4}
    for loss, settings in ((dpo, {"label_smoothing": 0.1}), (ipo, {})):
        slope = jax.jit(jax.grad(lambda h, loss=loss, settings=settings: loss(
            h, zero, zero, zero, beta=0.2, **settings)[0].total))(np.full(1, best[loss.__name__], np.float32))
        assert abs(float(slope[0])) < 1e-6


@pytest.mark.parametrize("loss", [dpo, ipo])
def test_rows_left_out_and_references_push_nothing(loss):
    sums, valid = rng.normal(-20, 9, (4, 3)).astype(np.float32), np.array([True, False, True])
    sums[:, 1] = np.nan
    found = jax.jit(jax.value_and_grad(lambda x, valid: (lambda f: (f[0].value, f[1]))(loss(*x, valid=valid)),
                                       has_aux=True))
    (value, _), slope = found(sums, valid)
    assert not np.asarray(slope)[2:].any() and not np.asarray(slope)[:, 1].any() and np.isfinite(slope).all()
    (kept, _), _ = found(np.where(valid, sums, 7.0).astype(np.float32), valid)
    assert value == kept
    (none, metrics), slope = found(sums, np.zeros(3, bool))
    assert float(none) == 0.0 and float(metrics["accuracy"].value) == 0.0 and not np.asarray(slope).any()


def test_kto_levels_off_and_its_baseline_is_never_negative():
    policy, start = np.array([1e4, -1e4, 0.0, np.nan], np.float32), np.zeros(4, np.float32)
    good, valid = np.array([True, False, True, True]), np.array([True, True, True, False])
    value, slope = jax.jit(jax.value_and_grad(lambda x: kto(x, start, good, 0.0, valid=valid)[0].total))(policy)
    assert float(value) == pytest.approx(0.5) and slope.tolist() == pytest.approx([0.0, 0.0, -0.025, 0.0])
    baseline = jax.jit(kto_baseline)
    assert [float(baseline(policy, start, np.array(counts, bool))) for counts in (
        [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0])] == [0.0, 0.0, 5000.0]


def test_rankings_too_long_for_ties_are_refused():
    with pytest.raises(ValueError, match="11 completions.*pairwise_ranking"):
        plackett_luce(jnp.zeros((1, 11)), jnp.zeros((1, 11), int), jnp.ones((1, 11), bool))
