"""The world's arena before two more voters, who differ in one thing: one likes length; and what that does."""

from __future__ import annotations

import numpy as np

from experiments import report
from experiments.claims import Claim
from experiments.findings import Findings, Table
from experiments.rank_report import Board, numbers
from experiments.rank_world import LONG, START, TWIN
from jaxllm.evals.intervals import spread

Interval = tuple[float, float, float]


def add_voters(found: Findings, gold: Board, likes: Board, fair: Board) -> None:
    """Adds a table, a picture, claims and numbers to the findings of the gold judge's board.

    Args:
      found: what is added to.
      gold: battles before the hidden judge.
      likes, fair: the same battles before the voter who likes length, and before the same one without that.
    """
    found.tables.insert(1, _table(gold, likes, fair))
    found.pictures.insert(1, ("A voter who likes length", _picture(likes, fair)))
    found.claims += _claims(gold, likes, fair)
    found.numbers |= {"likes_length": numbers(likes), "does_not": numbers(fair)}


def _table(gold: Board, likes: Board, fair: Board) -> Table:
    rows = [["player", "words", "gold rank", "fair voter", "likes length", "at equal style"]]
    words = {name: [] for name in gold.tallied.players}
    for vote in gold.votes:
        for name, text in zip(vote.players, vote.ranking.completions, strict=True):
            words[name].append(len(text.split()))
    for i in fair.order():
        name = fair.tallied.players[i]
        rows.append([name, f"{np.mean(words[name]):.1f}", str(gold.plain.ranks[gold.tallied.players.index(name), 0]),
                     _score(fair, i), _score(likes, i), _score(likes, i, styled=True)])
    return Table("A voter who likes length", rows, "Elo points [95%]. Both voters are simulated people whose taste is "
                 "the gold judge's with noise, on the same battles; one adds config.world.voter.length_bias for six "
                 "words. At equal style its scores should be the fair voter's.")


def _score(board: Board, i: int, styled: bool = False) -> str:
    column = board.styled if styled else board.plain
    return "-" if column is None else f"{column.ranks[i, 0]}: {spread((column.scores[i], *column.ends[i]), 0)}"


def _claims(gold: Board, likes: Board, fair: Board) -> list[Claim]:
    """All leads are paired: the three boards weigh the same prompts alike in every draw of the bootstrap."""
    i, over = likes.tallied.players.index(LONG), f"{likes.plain.fitted.groups} prompts"
    with_bias, without = _of(likes.plain, i), _of(fair.plain, i)
    found = [Claim("A voter who likes length puts the player that was trained on length higher",
                   f"{LONG}, before the voter who likes length", "before the same voter without that", with_bias,
                   without, _lead(likes.plain.scores[i] - fair.plain.scores[i],
                                  likes.plain.draws[:, i] - fair.plain.draws[:, i]), over, 0)]
    if likes.styled is not None:
        before, after = (np.abs(column.draws[:, i] - fair.plain.draws[:, i]) for column in (likes.plain, likes.styled))
        wrong, left = (abs(column.scores[i] - fair.plain.scores[i]) for column in (likes.plain, likes.styled))
        found.append(Claim("Style control brings that score back", "how far it is from the fair voter's, as voted",
                           "how far, at equal style", _lead(wrong, before), _lead(left, after),
                           _lead(wrong - left, before - after), over, 0))
    start, twin = (gold.tallied.players.index(name) for name in (START, TWIN))
    found.append(Claim("Control, not to be settled: the start is stronger than itself under another name", START, TWIN,
                       _of(gold.plain, start), _of(gold.plain, twin),
                       _lead(gold.plain.scores[start] - gold.plain.scores[twin],
                             gold.plain.draws[:, start] - gold.plain.draws[:, twin]), over, 0))
    return found


def _of(column, i: int) -> Interval:
    return float(column.scores[i]), *map(float, column.ends[i])


def _lead(value: float, draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(value), float(low), float(high)


def _picture(likes: Board, fair: Board) -> str:
    """For each player, from the fair voter's score to that of the one who likes length, and to that at equal style."""
    order = fair.order()[::-1]
    names = [fair.tallied.players[i] for i in order]
    places = np.arange(len(order))

    def draw(axes) -> None:
        series = [(fair.plain, "#1b1b1f", "o", "fair voter"), (likes.plain, "#2a6fdb", "o", "likes length")]
        if likes.styled is not None:
            series.append((likes.styled, "#d9822b", "D", "likes length, at equal style"))
        scores = np.stack([column.scores[order] for column, *_ in series])
        axes.hlines(places, scores.min(0), scores.max(0), color="0.8", linewidth=2, zorder=1)
        for column, colour, marker, label in series:
            axes.plot(column.scores[order], places, marker, color=colour, markersize=6, label=label, zorder=2)
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(xlabel="Elo points", ylim=(-0.6, len(order) - 0.4))
        axes.legend(frameon=False, fontsize=9, loc="best")
    return report.picture(draw, height=1.0 + 0.4 * len(order), grid="x")
