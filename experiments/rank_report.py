"""What votes say: the leaderboard with its intervals, the win matrix, style control beside, and what to doubt."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import report
from experiments.findings import Findings, Table
from jaxllm.evals import arena, elo
from jaxllm.evals.agreement import agreement
from jaxllm.evals.arena_votes import Vote, position_bias, tally
from jaxllm.evals.intervals import share, spread
from jaxllm.evals.votes import Votes

_LEVEL = "#2a6fdb"
_STYLED = "#d9822b"


@dataclasses.dataclass(frozen=True)
class Rating:
    """How votes are rated, see configs/rank.py: ties, prior, style, anchor, resamples and orders; and a seed."""

    ties: str = "half"
    prior: float = 0.1
    style: tuple[str, ...] = ("length",)
    anchor: str = ""
    samples: int = 1000
    orders: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Column:
    """Players on one scale.

    Attributes:
      scores: float64 [N], Elo points.
      draws: float64 [S, N], of the bootstrap.
      ends: float64 [N, 2], of their 95% intervals by these draws.
      sandwich: float64 [N, 2], the same by the sandwich.
      better: bool [N, N], who is above whom, all pairs jointly at 95%.
      fitted: the fit.
      coefficients: (name, nats for one root mean square of the difference, low, high).
    """

    scores: np.ndarray
    draws: np.ndarray
    ends: np.ndarray
    sandwich: np.ndarray
    better: np.ndarray
    fitted: arena.Fit
    coefficients: tuple[tuple[str, float, float, float], ...]

    @property
    def ranks(self) -> np.ndarray:
        """int [N, 3]: by score, and the first and last that the votes allow."""
        by_score = 1 + (self.scores[None, :] > self.scores[:, None]).sum(1)
        return np.column_stack([by_score, arena.rank_intervals(self.better)])


@dataclasses.dataclass(frozen=True)
class Board:
    """Everything that the report shows; `styled` is None where style cannot be controlled, which `why` explains."""

    votes: Sequence[Vote]
    tallied: Votes
    rating: Rating
    plain: Column
    styled: Column | None
    why: str

    def order(self) -> list[int]:
        """Players, the best first."""
        return np.argsort(-self.plain.scores, kind="stable").tolist()


def rate(votes: Sequence[Vote], rating: Rating) -> Board:
    """Rates the players of votes, with and without style control.

    Raises:
      ValueError: an unknown anchor, votes on one prompt alone, players that nothing compares, or what `arena.fit`
        refuses.
    """
    tallied = tally(votes)
    if len(np.unique(tallied.groups)) < 2:
        raise ValueError("all votes are on one prompt, so nothing tells how far they would differ on another; let the "
                         "players meet on two prompts or more")
    if rating.anchor and rating.anchor not in tallied.players:
        raise ValueError(f"rating.anchor is {rating.anchor!r}; the players are {', '.join(tallied.players)}")
    arena.check_compared(tallied)
    styled, why = None, "no style was to be controlled"
    if rating.style:
        with_style = tally(votes, rating.style)
        if not with_style.names:
            why = f"the replies do not differ in {', '.join(rating.style)}"
        else:
            try:
                styled = _column(with_style, rating)
            except ValueError as error:
                why = str(error)
    return Board(votes, tallied, rating, _column(tallied, rating), styled, why)


def _column(votes: Votes, rating: Rating) -> Column:
    fitted = arena.fit(votes, ties=rating.ties, prior=rating.prior)
    draws_SP = arena.bootstrap(votes, fitted, rating.samples, rating.seed, rating.prior)
    count = len(votes.players)
    anchor = votes.players.index(rating.anchor) if rating.anchor else None
    contrast_NN = np.eye(count) - (np.full(count, 1 / count) if anchor is None else np.eye(count)[anchor])
    sd_N = np.sqrt(np.einsum("ni,ij,nj->n", contrast_NN, fitted.covariance[:count, :count], contrast_NN))
    scores_N = arena.to_elo(fitted.strengths, anchor)
    sandwich_N2 = scores_N[:, None] + arena.POINTS * arena.critical(fitted.groups) * sd_N[:, None] * np.array([-1, 1])
    ends_C2 = arena.quantiles(draws_SP)[count:count + len(votes.names)]
    elo_SN = arena.to_elo(draws_SP[:, :count], anchor)
    return Column(scores_N, elo_SN, arena.quantiles(elo_SN), sandwich_N2,
                  arena.separated(fitted.strengths, draws_SP[:, :count]), fitted,
                  tuple((name, float(b), *map(float, ends)) for name, b, ends in
                        zip(votes.names, fitted.coefficients, ends_C2, strict=True)))


def findings_of(board: Board, title: str, about: str = "") -> Findings:
    """The tables, pictures and numbers of a board; `about` says who voted on what."""
    tables = [_leaderboard(board, about), _style(board), _doubts(board)]
    if len({vote.ranking.annotator for vote in board.votes}) > 1:
        tables.append(_agreement(board))
    pictures = [("Scores", scores_picture(board)), ("Who beats whom", matrix_picture(board))]
    return Findings(title, [table for table in tables if len(table.rows) > 1], pictures, numbers(board))


def _range(ranks: Sequence[int]) -> str:
    return f"{ranks[1]}" if ranks[1] == ranks[2] else f"{ranks[1]} to {ranks[2]}"


def _leaderboard(board: Board, about: str) -> Table:
    plain, styled = board.plain, board.styled
    points_NN, votes_NN = arena.win_matrix(board.tallied)
    head = ["rank", "player", "score", "ranks allowed", "votes", "win rate"]
    rows = [head + ["at equal style"] * (styled is not None)]
    for i in board.order():
        row = [str(plain.ranks[i, 0]), board.tallied.players[i], spread((plain.scores[i], *plain.ends[i]), 0),
               _range(plain.ranks[i]), f"{votes_NN[i].sum():,}", f"{points_NN[i].sum() / votes_NN[i].sum():.3f}"]
        if styled is not None:
            row.append(f"{styled.ranks[i, 0]}: {spread((styled.scores[i], *styled.ends[i]), 0)}")
        rows.append(row)
    pairs, apart = len(plain.scores) * (len(plain.scores) - 1) // 2, int(plain.better.sum())
    rating, groups = board.rating, plain.fitted.groups
    ties = "a tie is half a win" if rating.ties == "half" else f"ties by Davidson, nu = {plain.fitted.tie:.2f}"
    zero = f"{rating.anchor} is 1000" if rating.anchor else "the mean is 1000"
    return Table("Leaderboard", rows, f"{about} {len(board.tallied.points):,} votes on {groups:,} prompts. "
                 f"Bradley-Terry in Elo points ({zero}; 400 are odds of ten to one); {ties}; prior {rating.prior:g}. "
                 f"[95%, {rating.samples:,} draws of a bootstrap over prompts]. The ranks that the votes allow: all "
                 f"pairs jointly at 95%, which tells {apart} of {pairs} pairs apart.".strip())


def _style(board: Board) -> Table:
    rows = [["what the voters are asked to overlook", "nats for one root mean square of it"]]
    if board.styled is not None:
        rows += [[name, spread((value, low, high))] for name, value, low, high in board.styled.coefficients]
        moved = [board.tallied.players[i] for i in board.order()
                 if board.styled.ranks[i, 0] != board.plain.ranks[i, 0]]
        note = f"Ranks that change at equal style: {', '.join(moved) or 'none'}. "
    else:
        rows.append(["none", "-"])
        note = f"Not controlled: {board.why}. "
    return Table("Style", rows, note + "A style is compared as (a - b) / (a + b), its root mean square over the votes "
                 "being the unit. Control takes away what goes with the style, also where longer is better indeed.")


def _doubts(board: Board) -> Table:
    """How votes came out, what the order of the replies did, and how far the order of the votes moves online Elo."""
    votes, tallied = board.votes, board.tallied
    rows = [["", "value"], ["ties", share(int((tallied.points == 0.5).sum()), len(tallied.points))]]
    if bad := sum(vote.bad for vote in votes):
        rows.append(["both bad", share(bad, len(votes))])
    bias = position_bias(votes)
    if bias.asked:
        rows += [["same verdict in both orders", share(bias.same, bias.asked)],
                 ["of the others, for what is seen first", share(bias.first, bias.first + bias.second)]]
    seen = [vote.points(*vote.shown) for vote in votes if len(vote.shown) == 2 and not vote.said]
    if decided := [points for points in seen if points != 0.5]:
        rows.append(["decided votes for the reply that was seen first", share(int(sum(decided)), len(decided))])
    worst = np.abs(_surplus(board)).max()
    rows.append(["largest gap of a pair's share to the model's", f"{worst:.3f}"])
    if board.rating.orders > 1:
        online_ON = elo.online_elo(tallied, orders=board.rating.orders, seed=board.rating.seed)
        spread_N = np.quantile(online_ON, 0.975, axis=0) - np.quantile(online_ON, 0.025, axis=0)
        kept = np.mean(online_ON[1:].argmax(1) == board.plain.scores.argmax())
        rows += [["online Elo (K = 16): width of a score over random orders of the votes", f"{spread_N.mean():.0f}"],
                 ["online Elo: how often the first here is first", f"{kept:.2f}"]]
    return Table("What to doubt", rows, "A pair's share that is far from the model's means that no single scale orders "
                 "the players. Online Elo depends on the order of the votes and is shown for that alone.")


def _surplus(board: Board) -> np.ndarray:
    """Share of points less the model's, [N, N]; 0 for pairs that did not meet."""
    points_NN, votes_NN = arena.win_matrix(board.tallied)
    return np.where(votes_NN > 0, points_NN / np.maximum(votes_NN, 1) - board.plain.fitted.expected(), 0.0)


def _agreement(board: Board) -> Table:
    found = agreement([vote.ranking for vote in board.votes], samples=min(board.rating.samples, 300))
    rows = [["voters", "pairs of replies", "same verdict", "kappa"]]
    rows += [[", ".join(pair.annotators), f"{pair.pairs:,}", spread(pair.agreed), spread(pair.kappa)]
             for pair in found.two]
    return Table("Agreement of voters", rows, "Cohen's kappa: agreement above chance. [95%, bootstrap over prompts]")


def numbers(board: Board) -> dict[str, Any]:
    """The board for results.json: "board", rows in the order of the ranks; and how votes came out."""
    points_NN, votes_NN = arena.win_matrix(board.tallied)
    rows = []
    for i in board.order():
        row = {"name": board.tallied.players[i], "votes": int(votes_NN[i].sum()),
               "win_rate": float(points_NN[i].sum() / votes_NN[i].sum()), **_row(board.plain, i)}
        if board.styled is not None:
            row["at_equal_style"] = _row(board.styled, i)
        rows.append(row)
    tallied, bias = board.tallied, position_bias(board.votes)
    return {"board": rows, "players": list(tallied.players), "points": points_NN.tolist(), "votes": votes_NN.tolist(),
            "separated": [[tallied.players[i], tallied.players[j]] for i, j in np.argwhere(board.plain.better)],
            "style": [list(one) for one in board.styled.coefficients] if board.styled else [],
            "voters": dict(collections.Counter(vote.ranking.annotator for vote in board.votes)),
            "position_bias": dataclasses.asdict(bias)}


def _row(column: Column, i: int) -> Mapping[str, Any]:
    rank, low, high = map(int, column.ranks[i])
    return {"rank": rank, "rank_low": low, "rank_high": high, "score": float(column.scores[i]),
            "low": float(column.ends[i, 0]), "high": float(column.ends[i, 1]),
            "sandwich": column.sandwich[i].tolist(), "strength": float(column.fitted.strengths[i])}


def scores_picture(board: Board) -> str:
    """A line for each player: score and interval, and those at equal style below."""
    order = board.order()[::-1]
    columns = [(board.plain, _LEVEL, "o", 0.0, "as voted")]
    if board.styled is not None:
        columns = [(board.plain, _LEVEL, "o", 0.13, "as voted"),
                   (board.styled, _STYLED, "D", -0.13, "at equal style")]

    def draw(axes) -> None:
        for column, colour, marker, up, label in columns:
            for place, i in enumerate(order):
                axes.plot(column.ends[i], [place + up] * 2, color=colour, linewidth=2.2, solid_capstyle="butt",
                          alpha=0.45)
            axes.plot(column.scores[order], np.arange(len(order)) + up, marker, color=colour, markersize=5.5,
                      label=label)
        axes.axvline(1000, color="0.6", linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(order)), [f"{board.tallied.players[i]}  {board.plain.ranks[i, 0]}" for i in order])
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="Elo points [95%]", ylim=(-0.6, len(order) - 0.4))
        axes.spines["left"].set_visible(False)
        if len(columns) > 1:
            axes.legend(frameon=False, fontsize=9, loc="lower right")
    return report.picture(draw, height=0.9 + 0.42 * len(order), grid="x")


def matrix_picture(board: Board) -> str:
    """Share of the row's points against the column, the best first: blue above a half, orange below."""
    from matplotlib.colors import LinearSegmentedColormap

    order = board.order()
    points_NN, votes_NN = (found[np.ix_(order, order)] for found in arena.win_matrix(board.tallied))
    share_NN = np.where(votes_NN > 0, points_NN / np.maximum(votes_NN, 1), np.nan)
    names = [board.tallied.players[i] for i in order]
    colours = LinearSegmentedColormap.from_list("wins", [_STYLED, "#ffffff", _LEVEL])

    def draw(axes) -> None:
        axes.grid(False)
        axes.imshow(share_NN, cmap=colours, vmin=0, vmax=1, aspect="auto", alpha=0.85)
        for i, j in np.ndindex(share_NN.shape) if len(names) <= 16 else ():
            if np.isfinite(share_NN[i, j]):
                axes.text(j, i, f"{share_NN[i, j]:.2f}", ha="center", va="center", fontsize=9, color="#1b1b1f")
        upright = max(map(len, names)) * len(names) < 80
        axes.set_xticks(range(len(names)), names, rotation=0 if upright else 20, rotation_mode="anchor",
                        ha="center" if upright else "right", va="top")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.xaxis.tick_bottom()
        axes.spines[:].set_visible(False)
        axes.set_xlabel("share of the row's points against the column")
    return report.picture(draw, height=1.1 + 0.44 * len(names), grid="both")
