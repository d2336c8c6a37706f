"""Tables and pictures of experiments.self_play."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.claims import Claim, of_values
from experiments.findings import Findings, Table
from experiments.self_play_moves import best_of, better, by_chance
from experiments.self_play_rating import BEST, CHANCE, EXPERT
from jaxllm.evals.intervals import share, spread, t_interval
from jaxllm.rl.games import Game, draw, load

BAR = 100  # Elo by which the league must lead the imitator
_COLOURS = {"league": "C0", "alone": "C3", "alone_openings": "C1"}
_NAMES = {EXPERT: "the expert", CHANCE: "random legal moves", "imitation": "imitation",
          "longer": "control: imitation for longer", "league": "league",
          "alone": "self-play alone, no random openings", "alone_openings": "self-play alone, random openings"}

Run = Mapping[str, Any]


def findings_of(config: ConfigDict, runs: Sequence[Run]) -> Findings:
    """All tables and pictures."""
    game = load(config.game)
    tables = [_ratings(config, runs, place) for place in range(len(config.temperatures))]
    tables += [_leads(config, runs), _variety(config, runs), _rare(config, game, runs)]
    pictures = [("Elo on the way", _curves(config, runs))]
    board, example = _board(config, game, runs)
    if board:
        pictures.append(("A move that the imitator would hardly have made", board))
        tables.append(example)
    return Findings(f"Self-play: {game.name.replace('_', ' ')}", tables, pictures, {"runs": list(runs)}, claims(runs))


def claims(runs: Sequence[Run]) -> list[Claim]:
    """That playing oneself goes beyond imitation, and that more imitation would not."""
    against = {"imitation": "Self-play goes beyond the model that imitates",
               "longer": "More imitation would not have done it", EXPERT: "Self-play goes beyond the teacher itself"}
    return [_ahead(text, runs, name) for name, text in against.items()]


def _ahead(text: str, runs: Sequence[Run], name: str) -> Claim:
    """The league's lead in Elo at the first temperature: over seeds, or over the games of the one seed.

    The interval of one seed adds the two players' as if their games were others, though they share some.
    """
    if len(runs) > 1:
        return of_values(text, "league, Elo", [_of(run, 0, "elo", "league") for run in runs], _NAMES[name],
                         [_of(run, 0, "elo", name) for run in runs], digits=0)
    rated = runs[0]["ratings"][0]
    league, other = (tuple(rated["elo"][rated["players"].index(one)]) for one in ("league", name))
    low, high = (league[0] - other[0] + sign * np.hypot(*[(one[2] - one[1]) / 2 for one in (league, other)])
                 for sign in (-1, 1))
    lead = (league[0] - other[0], float(low), float(high))
    return Claim(text, "league, Elo", _NAMES[name].removeprefix("control: "), league, other, lead,
                 "the games of one seed", digits=0)


def _of(run: Run, place: int, key: str, name: str) -> float:
    rated = run["ratings"][place]
    value = rated[key][rated["players"].index(name)]
    return value[0] if key == "elo" else value


def _over(runs: Sequence[Run], place: int, key: str, name: str, digits: int = 0) -> str:
    return _mean([_of(run, place, key, name) for run in runs], digits)


def _mean(values: Sequence[float], digits: int = 3) -> str:
    """Mean of the seeds' values with its interval; one seed has none."""
    return spread(t_interval(values), digits) if len(values) > 1 else f"{values[0]:.{digits}f}"


def _ratings(config: ConfigDict, runs: Sequence[Run], place: int) -> Table:
    """Elo of all players at one temperature."""
    judge = "perfect play (OpenSpiel's solver)" if config.game == "tic_tac_toe" else (
        f"OpenSpiel's search, {config.player_simulations} leaves a move")
    names = {**_NAMES, BEST: judge}
    rows = [["player", "Elo above the expert", "half-width over games", "score against the expert", "illegal"]]
    players = [name for name in runs[0]["ratings"][place]["players"] if "@" not in name]
    for name in sorted(players, key=lambda name: -np.mean([_of(run, place, "elo", name) for run in runs])):
        ends = [run["ratings"][place]["elo"][run["ratings"][place]["players"].index(name)] for run in runs]
        width = np.mean([(high - low) / 2 for _, low, high in ends])
        rows.append([names[name], _over(runs, place, "elo", name), f"{width:.0f}",
                     _over(runs, place, "score", name, 2), _over(runs, place, "illegal", name, 3)])
    count = 2 * config.rounds * config.games
    return Table(f"Elo, models at temperature {config.temperatures[place]:g}", rows,
                 f"Bradley-Terry on a round robin of each seed, {count} games of every two of these players; mean "
                 f"[95%, t over {len(runs)} seeds]. The half-width is that of one seed's 95% interval by drawing its "
                 f"games anew, a mean of the seeds. A draw is half a win; an illegal move loses.")


def _leads(config: ConfigDict, runs: Sequence[Run]) -> Table:
    """What the league leads the others by, seed by seed, and the bar."""
    rows = [["league's lead in Elo over", *(f"temperature {t:g}" for t in config.temperatures)]]
    for name in ("imitation", "longer", *(arm for arm in config.arms if arm != "league"), EXPERT):
        leads = [[_of(run, place, "elo", "league") - _of(run, place, "elo", name) for run in runs]
                 for place in range(len(config.temperatures))]
        rows.append([_NAMES[name], *(_mean(lead, 0) for lead in leads)])
    first = [_of(run, 0, "elo", "league") - _of(run, 0, "elo", "imitation") for run in runs]
    mean, low, _ = t_interval(first)
    met = "reached" if low >= BAR else "reached on average, not by the whole interval" if mean >= BAR else "missed"
    return Table("What self-play gained", rows,
                 f"Mean [95%, t over {len(runs)} seeds] of the difference within a seed. The bar, {BAR} Elo above "
                 f"imitation at temperature {config.temperatures[0]:g}, is {met}.")


def _variety(config: ConfigDict, runs: Sequence[Run]) -> Table:
    """What the games of the learner against itself were like in the last tenth of the iterations."""
    rows = [["games against itself, last iterations", "draws", "different games", "illegal", "entropy, nats"]]
    for arm in config.arms:
        last = [run["rows"][arm][-max(len(run["rows"][arm]) // 10, 1):] for run in runs]
        rows.append([_NAMES[arm], *(_mean([float(np.mean([row[key] for row in some])) for some in last])
                                    for key in ("draws", "different", "illegal", "entropy"))])
    return Table("What self-play came to", rows, "At temperature 1. Different games: of those of one iteration, how "
                                                "many are there once; self-play that has collapsed repeats itself.")


def _rare(config: ConfigDict, game: Game, runs: Sequence[Run]) -> Table:
    """Move 37: counts and rates."""
    margin = config.rare.margin
    judged = [run["moves"]["judged"] for run in runs]
    hits = [sum(better(one, margin) for one in some) for some in judged]
    chance = [float(np.mean([by_chance(one, margin) for one in some])) if some else 0.0 for some in judged]
    worse = [sum(one["value"] <= one["own_value"] - margin for one in some) for some in judged]
    moves, rare, asked = (sum(values) for values in (
        [run["moves"]["moves"] for run in runs], [run["moves"]["rare"] for run in runs], map(len, judged)))
    rates = [hit / len(some) for hit, some in zip(hits, judged, strict=True) if some]
    rows = [["", "count and rate"],
            ["different moves of the league", f"{moves:,}"],
            [f"of these under {config.rare.below:g} by the imitator", share(rare, moves)],
            ["judged", f"{asked:,}"],
            ["better than the imitator's own choice", share(sum(hits), asked)],
            ["worse than it", share(sum(worse), asked)]]
    if rates:
        rows += [["better, over seeds", _mean(rates)],
                 ["control: a random legal move as rare there is better", _mean(chance)]]
    by = "OpenSpiel's exact solver" if config.game == "tic_tac_toe" else (
        f"OpenSpiel's search, {config.judge_simulations} leaves after each move")
    return Table("Move 37", rows,
                 f"Moves of the last league model at temperature {config.rare.temperature:g} against the imitator, "
                 f"each text once. Judged by {by}; better and worse mean by {margin:g} or more, where a win is 1 and a "
                 f"loss -1. Wilson intervals of pooled counts, which take moves as independent, and t over seeds.")


def _board(config: ConfigDict, game: Game, runs: Sequence[Run]) -> tuple[str, Table]:
    """The best of these moves: a picture, and the same in text."""
    some = [one for run in runs for one in run["moves"]["judged"]]
    one = best_of(some, config.rare.margin)
    if one is None:
        return "", Table("", [[]])
    lines = draw(game, one["history"])
    to_move = "xo"[len(one["history"]) % 2]
    move, own = game.moves[one["move"]], game.moves[one["own"]]
    words = [["", "move", "the imitator's probability", "the judge's value"],
             ["the league", move, f"{one['probability']:.1e}", f"{one['value']:.2f}"],
             ["the imitator", own, f"{one['own_probability']:.2f}", f"{one['own_value']:.2f}"]]
    note = f"After {game.text(one['history'])}, {to_move} to move: " + " / ".join(lines)
    caption = (f"{to_move} to move. Circle: {move}, which the imitator gave {one['probability']:.1e} and the judge "
               f"{one['value']:.2f}. Cross-hatched: {own}, the imitator's own choice ({one['own_value']:.2f}).")
    places = [_place(game, lines, token) for token in (one["move"], one["own"])]
    return f"{_picture(lines, places)}<p class=\"dim\">{html.escape(caption)}</p>", Table("The move shown", words, note)


def _place(game: Game, lines: Sequence[str], token: int) -> tuple[int, int] | None:
    """(row, column) of a move; None for a pass. In connect four a piece falls to the lowest empty square."""
    if game.name == "connect_four":
        return max(row for row in range(game.rows) if lines[row][token] == "."), token
    return None if game.moves[token] == "pass" else divmod(token, game.columns)


def _picture(lines: Sequence[str], places: Sequence[tuple[int, int] | None]) -> str:
    """The board with the learner's move circled and the imitator's hatched."""
    def paint(axes: Any) -> None:
        from matplotlib.patches import Circle, Rectangle

        rows, columns = len(lines), len(lines[0])
        for row, line in enumerate(lines):
            for column, mark in enumerate(line):
                axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="0.6"))
                if mark != ".":
                    axes.text(column + 0.5, row + 0.53, mark, ha="center", va="center", fontsize=20)
        if places[0]:
            axes.add_patch(Circle((places[0][1] + 0.5, places[0][0] + 0.5), 0.36, fill=False, edgecolor="C0",
                                  linewidth=2.5))
        if places[1]:
            axes.add_patch(Rectangle((places[1][1] + 0.1, places[1][0] + 0.1), 0.8, 0.8, fill=False, edgecolor="C3",
                                     hatch="//", linewidth=0.8))
        axes.set(xlim=(-0.1, columns + 0.1), ylim=(rows + 0.1, -0.1), aspect="equal")
        axes.set_xticks([column + 0.5 for column in range(columns)], list("abcdefg"[:columns]))
        axes.set_yticks([row + 0.5 for row in range(rows)], [str(row + 1) for row in range(rows)])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(visible=False)

    return report.picture(paint, 3.2)


def _curves(config: ConfigDict, runs: Sequence[Run]) -> str:
    """Elo of the arms over their iterations: means over seeds with bands of the range, and who stands still."""
    def paint(axes: Any) -> None:
        for arm in config.arms:
            steps = sorted({int(name.split("@")[1]) for name in runs[0]["ratings"][0]["players"]
                            if name.startswith(f"{arm}@")})
            names = ["imitation", *(f"{arm}@{step}" for step in steps), arm]
            values = np.array([[_of(run, 0, "elo", name) for name in names] for run in runs])
            x = [0, *steps, config.self_play.iterations]
            axes.plot(x, values.mean(0), "o-", markersize=3.5, linewidth=1.5, color=_COLOURS[arm], label=_NAMES[arm])
            axes.fill_between(x, values.min(0), values.max(0), color=_COLOURS[arm], alpha=0.12, linewidth=0)
        for name, style in (("longer", "--"), (EXPERT, ":"), (BEST, "-.")):
            if name in runs[0]["ratings"][0]["players"]:
                level = float(np.mean([_of(run, 0, "elo", name) for run in runs]))
                label = _NAMES.get(name, "OpenSpiel's solver" if config.game == "tic_tac_toe" else "OpenSpiel's search")
                axes.axhline(level, linestyle=style, color="0.4", linewidth=1, label=label)
        axes.set(xlabel="iteration of self-play", ylabel="Elo above the expert")
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.78))  # below the judge

    return report.picture(paint)
