"""Tables, pictures and claims of experiments.arena_calibration."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.claims import Claim
from experiments.findings import Findings, Table
from jaxllm.evals.elo import POINTS
from jaxllm.evals.intervals import bootstrap, share, share_interval, spread, t_interval

_BLUE, _ORANGE, _GREEN, _RED = "#2a6fdb", "#d9822b", "#3a8f5c", "#b3402f"
Numbers = Mapping[str, Any]


def findings_of(config: ConfigDict, found: Mapping[str, Sequence[Numbers]]) -> Findings:
    """All tables and pictures; `found` has what each part of the experiment returned."""
    tables = [_coverage(found["coverage"]), _dependent(config, found["dependent"]), _ranks(found["coverage"]),
              _equal(config, found["equal"]), _verbosity(config, found["verbosity"]), _gamed(config, found["gamed"])]
    pictures = [("Do 95% intervals hold the truth?", _coverage_picture(found["coverage"])),
                ("Voters who like length", _verbosity_picture(found["verbosity"])),
                ("Votes until the player that writes longer is first", _gamed_picture(found["gamed"]))]
    return Findings("Can an arena be trusted?", tables, pictures, dict(found), _claims(config, found))


def _share(values: Sequence[float]) -> str:
    return spread(share_interval(values)) if len(values) > 1 else "-"


def _coverage(found: Sequence[Numbers]) -> Table:
    rows = [["votes", "ties", "sandwich holds", "bootstrap holds", "width, Elo", "arenas refused"]]
    for one in found:
        if one["davidson"]:
            ties = "Davidson's, fitted so" if one["ties"] == "davidson" else "Davidson's, fitted as half wins"
        else:
            ties = "half wins"
        values = [_share(one[name]) for name in ("sandwich", "bootstrap")] if "sandwich" in one else ["-", "-"]
        width = f"{POINTS * statistics.fmean(one['width']):.0f}" if "width" in one else "-"
        rows.append([f"{one['votes']:,}", ties, *values, width, f"{one['refused']} of {one['arenas']}"])
    return Table("Coverage of 95% intervals", rows, "Share of the players whose true strength the interval holds [95%, "
                 "t over arenas]; 0.95 is wanted. An arena is refused, without a prior, when a player won or lost "
                 "everything.")


def _dependent(config: ConfigDict, found: Sequence[Numbers]) -> Table:
    rows = [["intervals are made of", "sandwich holds", "bootstrap holds", "width, Elo"]]
    rows += [["battles" if one["grouped"] else "single votes", _share(one["sandwich"]), _share(one["bootstrap"]),
              f"{POINTS * statistics.fmean(one['width']):.0f}"] for one in found]
    return Table("Votes that depend on each other", rows, f"{found[0]['votes']:,} votes, {config.voters} on each "
                 f"battle, of whom each says what the first said with probability {config.repeat:g}.")


def _ranks(found: Sequence[Numbers]) -> Table:
    rows = [["votes", "Kendall's tau", "best player is first", "pairs told apart", "some pair the wrong way round"]]
    rows += [[f"{one['votes']:,}", spread(t_interval(one["tau"])), _share(one["first"]), _share(one["power"]),
              _share(one["joint"])] for one in found if not one["davidson"] and "tau" in one]
    return Table("Ranks", rows, "The last two columns are about what is claimed jointly at 95%: how many of the pairs, "
                 "and how often one of the claims is wrong.")


def _equal(config: ConfigDict, found: Sequence[Numbers]) -> Table:
    rows = [["votes", "95% intervals do not overlap", "each pair at 95%", "all pairs jointly at 95%"]]
    rows += [[f"{one['votes']:,}", *(share(int(sum(one[name])), len(one[name])) for name in ("apart", "pair", "joint"))]
             for one in found]
    return Table("Control: equal players", rows, f"How often an arena of {config.players} equal players claims that "
                 f"one is above another, by three rules [95%, Wilson]. 0.05 is wanted.")


def _verbosity(config: ConfigDict, found: Sequence[Numbers]) -> Table:
    rows = [["bias", "voters see", "error as voted, Elo", "rank", "error at equal style, Elo", "rank", "interval holds",
             "coefficient"]]
    for one in found:
        plain, styled = np.array(one["plain"]), np.array(one["styled"])
        rows.append([f"{one['bias']:g}", one["shape"], _elo(plain[:, 0]), f"{plain[:, 1].mean():.1f}",
                     _elo(styled[:, 0]), f"{styled[:, 1].mean():.1f}", _share(styled[:, 3].tolist()),
                     f"{styled[:, 4].mean():.2f}"])
    return Table("Voters who like length", rows, f"The fourth best player writes {found[0]['longer']:g} standard "
                 f"deviations longer and no better; {config.styled_votes:,} votes, {config.styled_arenas} arenas. Bias "
                 f"in nats for one standard deviation of the difference. Error: of that player's score [95%, t over "
                 f"arenas]; mean ranks. \"longer\": voters see only which of two is longer. \"measured badly\": what "
                 f"is recorded correlates with what they see by {config.reliability:g}.")


def _elo(errors: np.ndarray) -> str:
    return spread(t_interval((POINTS * errors).tolist()), 0)


def _stays(flags_RK: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The first number of votes from which on a flag stays set, for each arena; infinite where it is not at the end."""
    still_RK = np.flip(np.logical_and.accumulate(np.flip(flags_RK, 1), 1), 1)
    at_R = still_RK.argmax(1)
    return np.where(still_RK[:, -1], np.array(sizes, float)[at_R], np.inf)


def _median(votes_R: np.ndarray) -> str:
    """The median arena; a bootstrap over arenas that reaches those without an answer says so."""
    if np.isinf(np.median(votes_R)):
        return f"not within the votes ({np.isfinite(votes_R).mean():.2f} of arenas)"
    value, low, high = bootstrap(votes_R, lambda rows: float(np.quantile(rows, 0.5, method="higher")), 1000)
    return f"{value:,.0f} [{low:,.0f}, {high:,.0f}]" if np.isfinite(high) else f"{value:,.0f} [{low:,.0f}, more]"


def _gamed(config: ConfigDict, found: Sequence[Numbers]) -> Table:
    rows = [["longer by, sd", "lead in voters' eyes, Elo", "votes until first", "until first without doubt",
             "first at equal style, at the end"]]
    for one in found:
        sizes = one["sizes"]
        lead = max(config.biases) * one["longer"] / np.sqrt(2) - 3 * config.step
        first, surely = (_stays(np.array(one[name]), sizes) for name in ("first", "surely"))
        rows.append([f"{one['longer']:g}", f"{POINTS * lead:+.0f}", _median(first), _median(surely),
                     share(sum(one["styled"]), len(one["styled"]))])
    return Table("Votes that a gamed player needs", rows, f"Voters' bias {max(config.biases):g}; the player is the "
                 f"fourth best, {POINTS * 3 * config.step:.0f} Elo behind. From how many votes on, in powers of two "
                 f"times 100 (the fewest looked at), it is first and stays first: the median of {config.styled_arenas} "
                 f"arenas [95%, bootstrap over arenas]. Without doubt: above all others jointly at 95%.")


def _claims(config: ConfigDict, found: Mapping[str, Sequence[Numbers]]) -> list[Claim]:
    biased = next(one for one in found["verbosity"] if one["bias"] == max(config.biases) and one["shape"] == "linear")
    plain_R, styled_R = (POINTS * np.abs(np.array(biased[name])[:, 0]) for name in ("plain", "styled"))
    arenas = f"{len(plain_R)} arenas"
    claims = [Claim("Style control gives a player that writes longer its true score", "its error as voted, Elo",
                    "its error at equal style", t_interval(plain_R), t_interval(styled_R),
                    t_interval(plain_R - styled_R), arenas, 0)]
    alone, grouped = found["dependent"]
    claims.append(Claim("Votes on one battle have to be drawn together", "coverage of battles as groups",
                        "coverage of single votes", share_interval(grouped["bootstrap"]),
                        share_interval(alone["bootstrap"]),
                        t_interval(np.subtract(grouped["bootstrap"], alone["bootstrap"]).tolist()),
                        f"{config.arenas} arenas"))
    last = found["equal"][-1]
    claims.append(Claim("Testing each pair by itself finds differences between equal players", "arenas that claim one",
                        "all pairs jointly", share_interval(last["pair"]), share_interval(last["joint"]),
                        t_interval(np.subtract(last["pair"], last["joint"]).tolist()), f"{len(last['pair'])} arenas"))
    return claims


def _coverage_picture(found: Sequence[Numbers]) -> str:
    some = [one for one in found if not one["davidson"] and "sandwich" in one]

    def draw(axes) -> None:
        axes.axhline(0.95, color="0.4", linewidth=1, linestyle="--")
        for name, colour, by in (("sandwich", _BLUE, 0.97), ("bootstrap", _ORANGE, 1.03)):
            means, lows, highs = zip(*(share_interval(one[name]) for one in some), strict=True)
            votes = np.array([one["votes"] for one in some]) * by
            axes.errorbar(votes, means, [np.subtract(means, lows), np.subtract(highs, means)], fmt="o-", color=colour,
                          markersize=4.5, linewidth=1.4, capsize=2.5, label=name)
        axes.set_xscale("log")
        axes.set_xticks([one["votes"] for one in some], [f"{one['votes']:,}" for one in some])
        axes.minorticks_off()
        axes.set(xlabel="votes", ylabel="true strengths held", ylim=(0.85, 1.0))
        axes.legend(frameon=False)
    return report.picture(draw, height=3.2)


def _verbosity_picture(found: Sequence[Numbers]) -> str:
    some = [one for one in found if one["shape"] == "linear"]

    def draw(axes) -> None:
        axes.axhline(0, color="0.4", linewidth=1, linestyle="--")
        for name, colour, label in (("plain", _BLUE, "as voted"), ("styled", _ORANGE, "at equal style")):
            errors = [POINTS * np.array(one[name])[:, 0] for one in some]
            biases = [one["bias"] for one in some]
            axes.plot(biases, [error.mean() for error in errors], "o-", color=colour, markersize=4.5, label=label)
            low, high = np.array([np.quantile(error, (0.025, 0.975)) for error in errors]).T
            axes.fill_between(biases, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="voters' bias, nats for one standard deviation of length",
                 ylabel="error of its score, Elo")
        axes.legend(frameon=False, loc="upper left")
    return report.picture(draw, height=3.2)


def _gamed_picture(found: Sequence[Numbers]) -> str:
    def draw(axes) -> None:
        for one, colour in zip(found, (_GREEN, _BLUE, _ORANGE, _RED, "0.4"), strict=False):
            for name, style in (("first", "-"), ("surely", "--")):
                axes.plot(one["sizes"], np.mean(one[name], axis=0), style, color=colour, linewidth=1.6,
                          marker="o" if style == "-" else None, markersize=4,
                          label=f"{one['longer']:g} sd longer" if style == "-" else None)
        axes.plot([], [], "--", color="0.3", label="without doubt")
        axes.set_xscale("log")
        axes.set_xticks(one["sizes"], [f"{size:,}" for size in one["sizes"]])
        axes.minorticks_off()
        axes.set(xlabel="votes", ylabel="arenas in which it is first", ylim=(-0.03, 1.03))
        axes.legend(frameon=False, fontsize=9)
    return report.picture(draw, height=3.4)
