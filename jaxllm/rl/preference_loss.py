"""Losses of preferences, functions of arrays: of scores (reward models) and of log-probabilities (DPO and relatives).

Each returns (loss, metrics): Means over pairs, examples or rankings. Rows may be left out by `valid`; what they hold
does not matter.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.train.metrics import Mean, Metrics

_FAR = -1e30  # stands for log 0: finite, so that no gradient is nan
MOST_COMPLETIONS = 10  # Plackett-Luce walks through 2^K sets


def dpo(policy_chosen: jax.Array, policy_rejected: jax.Array, reference_chosen: jax.Array,
        reference_rejected: jax.Array, *, beta: float = 0.1, label_smoothing: float = 0.0,
        valid: jax.Array | None = None) -> tuple[Mean, Metrics]:
    """Direct preference optimization: logistic regression on how much more the policy has raised the chosen reply.

    h = log pi(y_w)/ref(y_w) - log pi(y_l)/ref(y_l)
    loss = -(1 - label_smoothing) log sigmoid(beta h) - label_smoothing log sigmoid(-beta h)

    Args:
      policy_chosen, policy_rejected: float [B], log-probability of the whole reply under the policy, nats.
      reference_chosen, reference_rejected: the same under the reference; constants.
      beta: > 0, strength of the pull to the reference.
      label_smoothing: share of labels that are taken to be wrong, in [0, 0.5).
      valid: bool [B], or None: all.

    Returns:
      (loss, metrics): "accuracy" (share of h > 0), "margin" (beta h), "chosen_reward" and "rejected_reward"
      (beta log pi/ref).

    References: Rafailov et al., Direct preference optimization, 2023, equation 7. https://arxiv.org/abs/2305.18290
      Mitchell, A note on DPO with noisy preferences, 2023 (label smoothing). https://ericmitchell.ai/cdpo.pdf

    >>> zero = jnp.zeros(1)
    >>> round(float(dpo(zero, zero, zero, zero)[0].value), 4)
    0.6931
    """
    chosen, rejected, valid = _log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected, valid)
    h = beta * (chosen - rejected)
    loss = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(h) - label_smoothing * jax.nn.log_sigmoid(-h)
    return _mean(loss, valid), _direct_metrics(beta * chosen, beta * rejected, valid)


def ipo(policy_chosen: jax.Array, policy_rejected: jax.Array, reference_chosen: jax.Array,
        reference_rejected: jax.Array, *, beta: float = 0.1, valid: jax.Array | None = None) -> tuple[Mean, Metrics]:
    """Identity preference optimization: h, as in `dpo`, is drawn to 1 / (2 beta) instead of to infinity.

    loss = (h - 1 / (2 beta))^2

    Args:
      beta: > 0, the paper's tau.
      The others are those of `dpo`.

    Returns:
      As `dpo`.

    Note: for replies of unequal length TRL averages log-probabilities over their tokens instead of summing them, and
      says that the authors did too: pass those means here for that.

    References: Azar et al., A general theoretical paradigm to understand learning from human preferences, 2023,
      equation 17. https://arxiv.org/abs/2310.12036
    """
    chosen, rejected, valid = _log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected, valid)
    return (_mean(jnp.square(chosen - rejected - 1.0 / (2.0 * beta)), valid),
            _direct_metrics(beta * chosen, beta * rejected, valid))


def kto(policy: jax.Array, reference: jax.Array, desirable: jax.Array, baseline: jax.Array | float, *,
        beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0,
        valid: jax.Array | None = None) -> tuple[Mean, Metrics]:
    """Kahneman-Tversky optimization: replies that are each good or bad, no pairs; gains and losses level off.

    good: weight (1 - sigmoid(beta (log pi/ref - baseline))),  bad: weight (1 - sigmoid(beta (baseline - log pi/ref)))

    Args:
      policy, reference: float [B], log-probability of the whole reply, nats.
      desirable: bool [B].
      baseline: the KL of policy to reference that a reply is held against, of `kto_baseline`; no gradient.
      beta: > 0.
      desirable_weight, undesirable_weight: the paper's lambdas; their ratio times that of the counts should be within
        1 to 4/3.
      valid: bool [B], or None: all.

    Returns:
      (loss, metrics): "chosen_reward" and "rejected_reward", each over its own.

    References: Ethayarajh et al., KTO: model alignment as prospect theoretic optimization, 2024, equation 7.
      https://arxiv.org/abs/2402.01306
    """
    valid = jnp.ones(policy.shape, bool) if valid is None else valid
    log_ratio = jnp.where(valid, policy - jax.lax.stop_gradient(reference), 0.0)
    gain = jnp.where(desirable, 1.0, -1.0) * beta * (log_ratio - jax.lax.stop_gradient(baseline))
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    reward = jax.lax.stop_gradient(beta * log_ratio)
    return (_mean(weight * jax.nn.sigmoid(-gain), valid),
            {"chosen_reward": _mean(reward, valid & desirable), "rejected_reward": _mean(reward, valid & ~desirable)})


def kto_baseline(policy: jax.Array, reference: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """max(0, mean of log pi/ref) over replies that belong to other prompts of the batch: a scalar, no gradient.

    Args:
      policy, reference: float [B], log-probability of reply i + 1 after prompt i (any mismatch of the two will do).
      valid: bool [B], or None: all.
    """
    valid = jnp.ones(policy.shape, bool) if valid is None else valid
    return jax.lax.stop_gradient(jnp.maximum(_mean(policy - reference, valid).value, 0.0))


def bradley_terry(better: jax.Array, worse: jax.Array, *, margin: jax.Array | float | None = None,
                  centring: float = 0.0, valid: jax.Array | None = None) -> tuple[Mean, Metrics]:
    """The reward model's loss on pairs: -log sigmoid(better - worse - margin) + centring (better + worse)^2.

    Args:
      better, worse: float [B], scores.
      margin: float [B] or a number: by how much the better one should lead. None: 0.
      centring: >= 0; holds scores near 0, which the pairs leave open.
      valid: bool [B], or None: all.

    Returns:
      (loss, metrics): "accuracy" (ties are wrong, as in TRL), "margin" (better - worse).

    References: Bradley and Terry, 1952. Touvron et al., Llama 2, 2023, equation 2 (margin).
      https://arxiv.org/abs/2307.09288
      Eisenstein et al., Helping or herding?, 2023 (centring). https://arxiv.org/abs/2312.09244

    >>> round(float(bradley_terry(jnp.ones(1), jnp.zeros(1))[0].value), 4)
    0.3133
    """
    valid = jnp.ones(better.shape, bool) if valid is None else valid
    better, worse = (jnp.where(valid, x, 0.0).astype(jnp.float32) for x in (better, worse))
    loss = -jax.nn.log_sigmoid(better - worse - (0.0 if margin is None else margin))
    loss += centring * jnp.square(better + worse)
    return _mean(loss, valid), _pair_metrics(better - worse, valid)


def pairwise_ranking(scores_BK: jax.Array, tiers_BK: jax.Array, valid_BK: jax.Array, *, margin: float = 0.0,
                     centring: float = 0.0) -> tuple[Mean, Metrics]:
    """`bradley_terry` over all pairs of each ranking, every ranking weighing the same.

    One batch element holds all K completions of a prompt: pairs dealt out over a batch would push each completion K - 1
    times in one epoch, which InstructGPT found to overfit. Tied pairs say nothing and are left out; K = 2 is
    `bradley_terry` itself.

    Args:
      scores_BK: float.
      tiers_BK: int; 0 is best, equal numbers are ties.
      valid_BK: bool; False: no such completion.
      margin: by how much a score should lead per tier of difference.
      centring: as in `bradley_terry`.

    Returns:
      (loss, metrics): the loss over rankings that order at least one pair; "accuracy" and "margin" over pairs.

    References: Ouyang et al., Training language models to follow instructions, 2022, equation 1.
      https://arxiv.org/abs/2203.02155

    >>> args = jnp.array([[1.0, 0.0, 5.0]]), jnp.array([[0, 1, 1]]), jnp.array([[True, True, False]])
    >>> round(float(jax.jit(pairwise_ranking)(*args)[0].value), 4)
    0.3133
    """
    scores_BK, tiers_BK = _ranking(scores_BK, tiers_BK, valid_BK)
    lead_BKK = scores_BK[:, :, None] - scores_BK[:, None, :]
    tiers_BKK = tiers_BK[:, None, :] - tiers_BK[:, :, None]  # how far the second stands below the first
    counts_BKK = valid_BK[:, :, None] & valid_BK[:, None, :] & (tiers_BKK > 0)
    loss_BKK = -jax.nn.log_sigmoid(lead_BKK - margin * tiers_BKK)
    loss_BKK += centring * jnp.square(scores_BK[:, :, None] + scores_BK[:, None, :])
    pairs_B = jnp.sum(counts_BKK, axis=(1, 2))
    loss_B = jnp.sum(jnp.where(counts_BKK, loss_BKK, 0.0), axis=(1, 2)) / jnp.maximum(pairs_B, 1)
    return _mean(loss_B, pairs_B > 0), _pair_metrics(lead_BKK, counts_BKK)


def plackett_luce(scores_BK: jax.Array, tiers_BK: jax.Array, valid_BK: jax.Array, *, centring: float = 0.0
                  ) -> tuple[Mean, Metrics]:
    """Minus the log-probability of a ranking when completions are drawn one after another by softmax of their scores.

    A tie is an order that the annotator did not give: the probability is that of all orders inside the tier together.
    With p(A) that of ordering what is left in the set A,

    p(A) = sum over i in the best tier of A of  exp(s_i) / sum_{j in A} exp(s_j)  p(A without i),  p(empty) = 1

    for all 2^K sets, the small ones first; every term is positive, so nothing cancels.

    Args:
      scores_BK, tiers_BK, valid_BK: as in `pairwise_ranking`; K <= 10.
      centring: >= 0, of the mean square of the scores.

    Returns:
      (loss, metrics): nats over rankings that order at least one pair; "accuracy" and "margin" over their pairs.

    References: Plackett, The analysis of permutations, 1975. Kalbfleisch and Prentice, Marginal likelihoods based on
      Cox's regression and life model, 1973 (ties).

    >>> order, all_valid = jnp.array([[0, 1, 1]]), jnp.ones((1, 3), bool)
    >>> round(float(jax.jit(plackett_luce)(jnp.zeros((1, 3)), order, all_valid)[0].value), 4)  # log 3
    1.0986
    """
    scores_BK, tiers_BK = _ranking(scores_BK, tiers_BK, valid_BK)
    loss_B = -_log_probability(scores_BK, tiers_BK, valid_BK)
    square_BK = jnp.where(valid_BK, jnp.square(scores_BK), 0.0)
    loss_B += centring * jnp.sum(square_BK, axis=1) / jnp.maximum(jnp.sum(valid_BK, axis=1), 1)
    counts_BKK = valid_BK[:, :, None] & valid_BK[:, None, :] & (tiers_BK[:, :, None] < tiers_BK[:, None, :])
    lead_BKK = scores_BK[:, :, None] - scores_BK[:, None, :]
    return _mean(loss_B, jnp.any(counts_BKK, axis=(1, 2))), _pair_metrics(lead_BKK, counts_BKK)


def _log_probability(scores_BK: jax.Array, tiers_BK: jax.Array, valid_BK: jax.Array) -> jax.Array:
    """Log-probability of each partial order, [B]; the recursion of `plackett_luce`, one size of set after another."""
    completions = scores_BK.shape[1]
    if completions > MOST_COMPLETIONS:
        raise ValueError(f"a ranking has {completions} completions; Plackett-Luce with ties takes at most "
                         f"{MOST_COMPLETIONS}: use pairwise_ranking")
    weight_BK = jnp.where(valid_BK, scores_BK, _FAR)
    rank_BK = jnp.where(valid_BK, tiers_BK, jnp.iinfo(jnp.int32).max)
    found_BS = jnp.zeros((scores_BK.shape[0], 2**completions), jnp.float32)
    for sets_S, members_SM, without_SM in _subsets(completions):
        weight_BSM, rank_BSM = weight_BK[:, members_SM], rank_BK[:, members_SM]
        best_BSM = valid_BK[:, members_SM] & (rank_BSM == jnp.min(rank_BSM, axis=-1, keepdims=True))
        orders_BSM = jnp.where(best_BSM, weight_BSM + found_BS[:, without_SM], _FAR)
        # Completions that are not there have log 0 in both sums, equally often: they are passed with probability 1.
        log_BS = jax.nn.logsumexp(orders_BSM, axis=-1) - jax.nn.logsumexp(weight_BSM, axis=-1)
        found_BS = found_BS.at[:, sets_S].set(log_BS)
    return found_BS[:, -1]


@functools.lru_cache
def _subsets(completions: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each size M from 1: the sets of that size as bit masks [S], their members [S, M], the sets without each."""
    masks = np.arange(2**completions)
    member = (masks[:, None] >> np.arange(completions)) & 1
    found = []
    for size in range(1, completions + 1):
        sets_S = masks[member.sum(axis=1) == size]
        members_SM = np.nonzero(member[sets_S])[1].reshape(len(sets_S), size)
        found.append((sets_S, members_SM, sets_S[:, None] - (1 << members_SM)))
    return found


def _ranking(scores_BK: jax.Array, tiers_BK: jax.Array, valid_BK: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(valid_BK, scores_BK, 0.0).astype(jnp.float32), jnp.asarray(tiers_BK, jnp.int32)


def _log_ratios(policy_chosen: jax.Array, policy_rejected: jax.Array, reference_chosen: jax.Array,
                reference_rejected: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    valid = jnp.ones(policy_chosen.shape, bool) if valid is None else valid
    chosen = jnp.where(valid, policy_chosen - jax.lax.stop_gradient(reference_chosen), 0.0)
    rejected = jnp.where(valid, policy_rejected - jax.lax.stop_gradient(reference_rejected), 0.0)
    return chosen, rejected, valid


def _mean(values: jax.Array, valid: jax.Array) -> Mean:
    return Mean(jnp.sum(jnp.where(valid, values, 0.0)), jnp.sum(valid).astype(jnp.float32))


def _pair_metrics(lead: jax.Array, valid: jax.Array) -> Metrics:
    lead = jax.lax.stop_gradient(lead)
    return {"accuracy": _mean(lead > 0.0, valid), "margin": _mean(lead, valid)}


def _direct_metrics(chosen: jax.Array, rejected: jax.Array, valid: jax.Array) -> Metrics:
    chosen, rejected = jax.lax.stop_gradient((chosen, rejected))
    return _pair_metrics(chosen - rejected, valid) | {"chosen_reward": _mean(chosen, valid),
                                                      "rejected_reward": _mean(rejected, valid)}
