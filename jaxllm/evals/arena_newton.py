"""Newton's method for jaxllm/evals/arena.py: many weightings of the same votes at once.

Votes that are alike in who met, covariates and points are one row with a weight, so without covariates the work does
not grow with the number of votes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse
from scipy.special import expit

from jaxllm.evals.votes import Votes

STEPS, TOLERANCE = 100, 1e-10


@dataclasses.dataclass(frozen=True)
class Rows:
    """Distinct rows of votes: R of them, in G groups, for Q = N + C parameters.

    A row's curvature enters the Hessian at few places, so `outer_RQQ` holds x x^T of every row, flattened and sparse.
    """

    players: int
    design_RQ: sparse.csr_array
    outer_RQQ: sparse.csr_array
    points_R: np.ndarray
    counts_GR: sparse.csr_array


def rows_of(votes: Votes) -> Rows:
    """Votes as rows; a vote is turned so that the player of the smaller number is the first."""
    turned_V = np.asarray(votes.first) > votes.second
    sign_V = np.where(turned_V, -1.0, 1.0)
    table = np.column_stack([np.minimum(votes.first, votes.second), np.maximum(votes.first, votes.second),
                             np.where(turned_V, 1 - np.asarray(votes.points), votes.points),
                             votes.covariates * sign_V[:, None]])
    table, row_V = np.unique(table, axis=0, return_inverse=True)
    groups, group_V = np.unique(votes.groups, return_inverse=True)
    counts = sparse.csr_array((np.ones(len(row_V)), (group_V, row_V.ravel())), (len(groups), len(table)))
    count, size = len(table), len(votes.players) + len(votes.names)
    place_RK = np.column_stack([table[:, :2].astype(int), np.tile(np.arange(len(votes.players), size), (count, 1))])
    value_RK = np.column_stack([np.ones(count), -np.ones(count), table[:, 3:]])
    row_RK = np.broadcast_to(np.arange(count)[:, None], place_RK.shape)
    design = sparse.csr_array((value_RK.ravel(), (row_RK.ravel(), place_RK.ravel())), (count, size))
    square_RKK = value_RK[:, :, None] * value_RK[:, None, :]
    at_RKK = place_RK[:, :, None] * size + place_RK[:, None, :]
    row_RKK = np.broadcast_to(np.arange(count)[:, None, None], at_RKK.shape)
    outer = sparse.csr_array((square_RKK.ravel(), (row_RKK.ravel(), at_RKK.ravel())), (count, size * size))
    return Rows(len(votes.players), design, outer, table[:, 2], counts)


def davidson(margin: np.ndarray, log_nu: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of win, tie and loss."""
    top = np.maximum(np.abs(margin) / 2, log_nu)
    win, tie, lose = np.exp(margin / 2 - top), np.exp(log_nu - top), np.exp(-margin / 2 - top)
    total = win + tie + lose
    return win / total, tie / total, lose / total


def _slopes(rows: Rows, ties: str, parameters_SP: np.ndarray) -> tuple[np.ndarray, ...]:
    """First derivatives of a row's log-likelihood by its margin (and log nu), and the second ones, negated: [S, R]."""
    margin_SR = (rows.design_RQ @ parameters_SP[:, :rows.design_RQ.shape[1]].T).T
    if ties == "half":
        win_SR = expit(margin_SR)
        return rows.points_R - win_SR, win_SR * (1 - win_SR)
    win_SR, tie_SR, lose_SR = davidson(margin_SR, parameters_SP[:, -1:])
    lead_SR = win_SR - lose_SR
    return (rows.points_R - 0.5 - lead_SR / 2, (win_SR + lose_SR - lead_SR**2) / 4,
            (rows.points_R == 0.5) - tie_SR, -lead_SR * tie_SR / 2, tie_SR * (1 - tie_SR))


def newton(rows: Rows, ties: str, prior: float, weights_SG: np.ndarray, parameters_SP: np.ndarray) -> np.ndarray:
    """The maximum for each weighting of the groups; no parameter moves by more than 1 in a step."""
    weights_SR = (rows.counts_GR.T @ weights_SG.T).T
    for _ in range(STEPS):
        slope_SP, curve_SPP = _system(rows, ties, prior, weights_SR, parameters_SP)
        try:
            change_SP = np.linalg.solve(curve_SPP, slope_SP[..., None])[..., 0]
        except np.linalg.LinAlgError:
            break
        change_SP /= np.maximum(np.abs(change_SP).max(1, keepdims=True), 1.0)
        parameters_SP = parameters_SP + change_SP
        if np.abs(change_SP).max() < TOLERANCE:
            return parameters_SP
    raise ValueError("the votes have no likeliest strengths: covariates tell who is preferred without exception, or a "
                     "player ties and wins and never loses, for which ties of their own rate set no bound; leave a "
                     "covariate out, take ties='half', or set a prior above 0")


def _system(rows: Rows, ties: str, prior: float, weights_SR: np.ndarray, parameters_SP: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
    """Slope [S, P] and negated Hessian [S, P, P] of the penalised log-likelihood."""
    size, players = rows.design_RQ.shape[1], rows.players
    slope_SR, curve_SR, *by_nu = _slopes(rows, ties, parameters_SP)
    slope_SP, curve_SPP = np.zeros_like(parameters_SP), np.zeros((*parameters_SP.shape, parameters_SP.shape[1]))
    slope_SP[:, :size] = (rows.design_RQ.T @ (weights_SR * slope_SR).T).T - prior * parameters_SP[:, :size]
    curve_SPP[:, :size, :size] = (rows.outer_RQQ.T @ (weights_SR * curve_SR).T).T.reshape(-1, size, size)
    curve_SPP[:, range(size), range(size)] += prior
    # The mean strength is free: any curvature along it keeps the system solvable and leaves the rest as it is.
    curve_SPP[:, :players, :players] += 1 / players
    if by_nu:
        slope_nu_SR, cross_SR, curve_nu_SR = by_nu
        slope_SP[:, -1], curve_SPP[:, -1, -1] = (weights_SR * slope_nu_SR).sum(1), (weights_SR * curve_nu_SR).sum(1)
        curve_SPP[:, :size, -1] = curve_SPP[:, -1, :size] = (rows.design_RQ.T @ (weights_SR * cross_SR).T).T
    return slope_SP, curve_SPP


def sandwich(rows: Rows, ties: str, prior: float, parameters_1P: np.ndarray) -> np.ndarray:
    """The covariance of the maximum, [P, P]; see `jaxllm.evals.arena.Fit`. nan for one group."""
    groups = rows.counts_GR.shape[0]
    weights_1R = np.asarray(rows.counts_GR.sum(0)).reshape(1, -1)
    _, curve_1PP = _system(rows, ties, prior, weights_1R, parameters_1P)
    slope_1R, _, *by_nu = _slopes(rows, ties, parameters_1P)
    parts = [(rows.counts_GR @ rows.design_RQ.multiply(slope_1R.T)).toarray()]
    parts += [(rows.counts_GR @ by_nu[0].T)] if by_nu else []
    slope_GP = np.concatenate(parts, axis=1)
    if groups < 2:
        return np.full(curve_1PP[0].shape, np.nan)
    slope_GP = slope_GP - slope_GP.mean(0)
    bread_PP = np.linalg.inv(curve_1PP[0])
    return bread_PP @ (slope_GP.T @ slope_GP) @ bread_PP * groups / (groups - 1)
