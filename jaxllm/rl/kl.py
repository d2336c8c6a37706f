"""How far a policy has moved: KL divergence estimated from samples, held near a target, and that of best-of-n."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

_CAP = 20.0  # nats between two models' log-probabilities of a token, from where on exp is continued by its tangent


def kl_estimate(logp: jax.Array, reference_logp: jax.Array, kind: Literal["k1", "k2", "k3"] = "k3") -> jax.Array:
    """KL(policy || reference) from the policy's own samples, one estimate each: their mean over samples is the KL.

    With d = logp - reference_logp:
      k1 = d                   unbiased, of either sign
      k2 = d^2 / 2             biased, never negative, little variance
      k3 = exp(-d) - 1 + d     unbiased, never negative, little variance while the two are near

    As a term of the loss what matters is the gradient, which is another story. On samples of the policy itself the mean
    gradient of k2 is that of KL(policy || reference); that of k3 is the gradient of KL(reference || policy); that of k1
    is 0. In the reward, where no gradient flows, k1 is right.

    Args:
      logp: float, log-probability of each drawn token under the policy, nats; any shape.
      reference_logp: the same under the reference.
      kind: see above.

    Returns:
      Same shape, nats.

    Note: beyond 20 nats exp(-d) is continued by its tangent, so that value and gradient stay finite, and the gradient
      keeps its sign; TRL lets it overflow, verl cuts it off, and the gradient with it.

    References: Schulman, Approximating KL divergence, 2020. http://joschu.net/blog/kl-approx.html
      Tang and Munos, On a few pitfalls in KL divergence gradient estimation for RL, 2025.
      https://arxiv.org/abs/2506.09477

    >>> [round(float(kl_estimate(jnp.log(0.5), jnp.log(0.25), kind)), 4) for kind in ("k1", "k2", "k3")]
    [0.6931, 0.2402, 0.1931]
    """
    difference = logp - reference_logp
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * jnp.square(difference)
    if kind == "k3":
        tangent = math.exp(_CAP) * (1.0 - difference - _CAP)
        return jnp.where(difference < -_CAP, tangent, jnp.exp(-jnp.maximum(difference, -_CAP))) - 1.0 + difference
    raise ValueError(f"KL estimator {kind!r} is unknown; take k1, k2 or k3")


def adapt_kl(coefficient: float, observed: float, target: float, horizon: float, batch: int) -> float:
    """The KL coefficient after a batch: higher where the KL is above its target, by at most a fifth of batch / horizon.

    beta (1 + clip(observed / target - 1, -0.2, 0.2) batch / horizon)

    Args:
      coefficient: beta before.
      observed: KL of the batch, nats per row.
      target: KL that is wanted, same unit, > 0.
      horizon: samples over which the controller acts; Ziegler's K_beta = 0.1 is horizon = 10 batch.
      batch: samples in the batch.

    References: Ziegler et al., 2019, section 2.2. https://arxiv.org/abs/1909.08593

    >>> round(adapt_kl(0.1, observed=12.0, target=6.0, horizon=1000, batch=100), 6)
    0.102
    """
    if target <= 0.0 or horizon <= 0.0:
        raise ValueError(f"the KL target is {target} and the horizon {horizon}; both must be above 0")
    return coefficient * (1.0 + min(max(observed / target - 1.0, -0.2), 0.2) * batch / horizon)


def best_of_n_kl(n: float) -> float:
    """log n - (n - 1) / n, nats: KL of the best of n samples to one sample, where no two samples are ever alike.

    An upper bound where samples can be alike or tie (`exact_best_of_n_kl`); close to it as long as n times the
    probability of any one sample is small.

    References: Stiennon et al., Learning to summarize from human feedback, 2020, appendix G.3.
      https://arxiv.org/abs/2009.01325

    >>> round(best_of_n_kl(4), 4)
    0.6363
    """
    if n < 1:
        raise ValueError(f"best of {n} samples: take at least one")
    return math.log(n) - (n - 1) / n


def exact_best_of_n_kl(probabilities: np.ndarray, scores: np.ndarray, n: int) -> float:
    """KL of best-of-n over a list of all possible samples, nats; ties are settled by chance.

    Outcomes with the same score form a class of probability p_c; best-of-n falls into it with probability
    q_c = F(c)^n - F(below c)^n, where F is the probability of a score no higher, and inside a class the draw is the
    policy's own: KL = sum_c q_c log(q_c / p_c).

    Args:
      probabilities: [V], of the outcomes; they are divided by their sum. N equally likely samples are an empirical
        distribution.
      scores: [V], higher is better; not NaN.
      n: samples, >= 1.

    Note: Beirami et al. take all scores to be different; then every class has one member and this is their exact value.
      It tends to log 1/p(best class) with growing n, where the formula of `best_of_n_kl` grows for ever.

    References: Beirami et al., Theoretical guarantees on the best-of-n alignment policy, 2024.
      https://arxiv.org/abs/2401.01879

    >>> round(exact_best_of_n_kl(np.array([0.5, 0.5]), np.array([0.0, 1.0]), n=2), 4)
    0.1308
    """
    if n < 1:
        raise ValueError(f"best of {n} samples: take at least one")
    _, classes = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    mass_C = np.bincount(classes, weights=np.asarray(probabilities, np.float64))
    mass_C /= mass_C.sum()
    below_C = np.concatenate([[0.0], np.minimum(np.cumsum(mass_C)[:-1], 1.0)])
    at_most_C = np.concatenate([below_C[1:], [1.0]])
    chosen_C = at_most_C**n - below_C**n
    counted_C = (mass_C > 0.0) & (chosen_C > 0.0)
    return float(np.sum(chosen_C[counted_C] * np.log(chosen_C[counted_C] / mass_C[counted_C])))


def best_of_n_mean(scores: np.ndarray, n: int, values: np.ndarray | None = None) -> np.ndarray:
    """Expected value of the best of n, from N >= n samples of each prompt: the mean over all subsets of n of them.

    sum_i C(i - 1, n - 1) / C(N, n) v_(i), where v_(i) is the value of the sample with the i-th lowest score: unbiased,
    and with far less variance than drawing n. Samples whose scores tie share their values.

    Args:
      scores: [..., N], by which the best is picked (a proxy).
      n: 1 <= n <= N.
      values: [..., N], what it is worth (the gold judge's); None: the score itself.

    Returns:
      float64 [...]

    References: Nakano et al., WebGPT, 2021, appendix I. https://arxiv.org/abs/2112.09332

    >>> round(float(best_of_n_mean(np.array([1.0, 2.0, 3.0]), 2)), 4)  # (2 + 3 + 3) / 3
    2.6667
    """
    scores = np.asarray(scores, np.float64)
    values = scores if values is None else np.asarray(values, np.float64)
    total = scores.shape[-1]
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} from {total} samples: take n from 1 to {total}")
    order = np.argsort(scores, axis=-1, kind="stable")
    ranked, worth = np.take_along_axis(scores, order, axis=-1), np.take_along_axis(values, order, axis=-1)
    rank = np.arange(n, total + 1, dtype=np.float64)  # 1 is the lowest; those below n are never the best of n
    weights = np.zeros(total)
    weights[n - 1:] = np.exp(gammaln(rank) - gammaln(rank - n + 1) - gammaln(n) - _log_choose(total, n))
    worth = np.apply_along_axis(_share_ties, -1, np.concatenate([ranked, worth], axis=-1))
    return worth @ weights


def _log_choose(total: int, n: int) -> float:
    return float(gammaln(total + 1) - gammaln(n + 1) - gammaln(total - n + 1))


def _share_ties(pair: np.ndarray) -> np.ndarray:
    """Mean value of each run of equal scores, in its place; `pair` is the sorted scores and then their values."""
    scores, values = np.split(pair, 2)
    _, runs = np.unique(scores, return_inverse=True)
    return (np.bincount(runs, weights=values) / np.bincount(runs))[runs]
