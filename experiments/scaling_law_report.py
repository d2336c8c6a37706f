"""What the scaling law and its controls foresaw: tables, pictures, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import report
from experiments.findings import Findings, Table
from jaxllm.evals.intervals import spread, t_interval

_METHODS = {"law": "the law of size and tokens", "compute": "control: a law of compute alone",
            "nearest": "control: the nearest model in the fit"}
_COLOURS = ("#2a6fdb", "#2e8b57", "#b8860b", "#7b5ea7", "#d1495b", "#3a8fb7", "#6b6b74")


def findings_of(config: ConfigDict, data: dict[str, Any], found: dict[str, Any]) -> Findings:
    """Tables of the law, of each prediction and of the methods; pictures of the losses and of the predictions."""
    seen_WB, asked_WB = np.array(found["seen"]), np.array(found["asked"])
    errors = {name: np.abs(errors_of(data, found, name))[:, asked_WB].mean(1) for name in _METHODS}
    numbers = {"data": data, "fits": found, "held_out_error": {
        name: t_interval(list(error_S)) for name, error_S in errors.items()}}
    return Findings("A scaling law of small models", [_methods(errors, seen_WB, asked_WB, data, found),
                                                      _law(found, bends(data, seen_WB)),
                                                      _points(config, data, found, asked_WB)],
                    [("Loss against tokens", _losses(data, found, seen_WB, asked_WB)),
                     ("Held out: predicted against measured", _predictions(data, found, asked_WB))], numbers)


def errors_of(data: dict[str, Any], found: dict[str, Any], method: str) -> np.ndarray:
    """Relative errors of the predictions from one seed's runs, against the same seed's losses: [S, W, B]."""
    losses_SWB = np.array(data["losses"]).swapaxes(0, 1)
    return np.array(found["by_seed"][method]) / losses_SWB - 1.0


def _methods(errors: dict[str, np.ndarray], seen_WB: np.ndarray, asked_WB: np.ndarray, data: dict[str, Any],
             found: dict[str, Any]) -> Table:
    rows = [["prediction", "held-out error, %", "more than the law's, points", "mean signed error, %",
             "error where fitted, %"]]
    for name, title in _METHODS.items():
        signed = errors_of(data, found, name)
        more = "" if name == "law" else spread(t_interval(list(100 * (errors[name] - errors["law"]))), 2)
        rows.append([title, spread(t_interval(list(100 * errors[name])), 2), more,
                     f"{100 * signed[:, asked_WB].mean():+.2f}",
                     "0" if name == "nearest" else f"{100 * np.abs(signed[:, seen_WB]).mean():.2f}"])
    losses_WSB = np.array(data["losses"])
    about = (f"Mean absolute error of the loss over {asked_WB.sum()} sizes that no fit saw; fitted on "
             f"{seen_WB.sum()} of {asked_WB.size}")
    if losses_WSB.shape[1] == 1:
        return Table("Held-out prediction", rows, f"{about}. One seed: nothing is known of its noise.")
    noise = 100 * np.sqrt(2) * (losses_WSB.std(1, ddof=1) / losses_WSB.mean(1))[asked_WB].mean()
    return Table("Held-out prediction", rows, (
        f"{about}, fitted and judged seed by seed; mean [95%, Student's t over {losses_WSB.shape[1]} seeds]. Noise: "
        f"two seeds of one size differ by {noise:.2f}% (standard deviation of the difference). {verdict(errors)}"))


def verdict(errors: dict[str, np.ndarray]) -> str:
    """What the seeds allow to say."""
    parts = []
    for name in ("compute", "nearest"):
        _, low, high = t_interval(list(errors[name] - errors["law"]))
        what = _METHODS[name].removeprefix("control: ")
        parts.append(f"better than {what}" if low > 0 else f"worse than {what}" if high < 0
                     else f"not shown to differ from {what}")
    return f"The law is {parts[0]} and {parts[1]}."


def bends(data: dict[str, Any], seen_WB: np.ndarray) -> tuple[int, int]:
    """At how many budgets of the fit the loss begins to fall faster, and of how many.

    Of any law of this form the logarithm of L is convex in that of D: the fall slows down. Where it speeds up, learning
    is still at its beginning and no such law can hold.
    """
    faster = count = 0
    for runs, seen_B in zip(data["losses"], seen_WB, strict=True):
        logs, tokens = np.log(np.mean(runs, 0)[seen_B]), np.log(np.array(data["tokens"], float)[seen_B])
        change = np.diff(np.diff(logs) / np.diff(tokens))
        faster, count = faster + int((change < 0).sum()), count + change.size
    return faster, count


def _law(found: dict[str, Any], bent: tuple[int, int]) -> Table:
    """E, A, B and the exponents, with the share of compute that should go into parameters: beta / (alpha + beta)."""
    def values(law: dict[str, Any]) -> list[float]:
        alpha, beta = law["exponents"]
        return [law["floor"], law["log_scales"][0], alpha, law["log_scales"][1], beta, beta / max(alpha + beta, 1e-9)]

    drawn = [values(law) for law in found["bootstrap"]]
    low, high = _quantiles(drawn, np.shape(values(found["law"])))
    names = ("E, nats", "log A", "alpha", "log B", "beta", "best N grows as C to the power")
    floor, log_scale, exponent = (found["compute"][key] for key in ("floor", "log_scales", "exponents"))
    rows = [["", "fit", "95%, bootstrap over runs"]]
    rows += [[name, f"{value:.3f}", f"{a:.3f} to {b:.3f}" if drawn else "one seed: none"]
             for name, value, a, b in zip(names, values(found["law"]), low, high, strict=True)]
    return Table("L = E + A / N^alpha + B / D^beta", rows, (
        f"N: all parameters, D: tokens. The control has E = {floor:.3f}, log A = {log_scale[0]:.3f}, exponent "
        f"{exponent[0]:.3f} over FLOPs. A draw takes whole runs anew within each width; it knows nothing of whether "
        f"the law has the right form. By the law the fall of log L over log D slows down all along; of the mean losses "
        f"fitted it speeds up at {bent[0]} of {bent[1]} budgets."))


def _points(config: ConfigDict, data: dict[str, Any], found: dict[str, Any], asked_WB: np.ndarray) -> Table:
    low, high = _quantiles(found["predicted_bootstrap"], asked_WB.shape)
    rows, inside = [["width", "parameters", "tokens", "measured", "predicted [95%, bootstrap]", "error, %"]], 0
    for w, b in zip(*np.nonzero(asked_WB), strict=True):
        measured, predicted = t_interval([run[b] for run in data["losses"][w]]), found["predicted"][w][b]
        inside += bool(low[w, b] <= measured[0] <= high[w, b])
        rows.append([str(config.widths[w]), f"{data['params'][w]:,}", f"{data['tokens'][b]:,}", spread(measured),
                     spread((predicted, low[w, b], high[w, b])), f"{100 * (predicted / measured[0] - 1):+.2f}"])
    note = "Measured: mean over seeds [95%, Student's t]."
    return Table("Each size held out", rows, note if not found["bootstrap"] else (
        f"{note} {inside} of the {asked_WB.sum()} measured means lie in the interval of their prediction."))


def _quantiles(draws: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Ends of the central 95% of draws, [2, *shape]; infinite where there are none."""
    return np.quantile(np.array(draws), (0.025, 0.975), axis=0) if draws else np.stack(
        [np.full(shape, -np.inf), np.full(shape, np.inf)])


def _losses(data: dict[str, Any], found: dict[str, Any], seen_WB: np.ndarray, asked_WB: np.ndarray) -> str:
    """A curve of the law for every width, dashed where it was not fitted; measured means full or, held out, hollow."""
    law, tokens_B = found["law"], np.array(data["tokens"], float)
    claimed = tokens_B[(seen_WB | asked_WB).any(0)]

    def draw(axes: Any) -> None:
        at = np.geomspace(claimed[0], claimed[-1], 60)
        for params, runs, seen_B, asked_B, colour in zip(data["params"], data["losses"], seen_WB, asked_WB, _COLOURS,
                                                         strict=False):
            curve = law["floor"] + sum(np.exp(scale - exponent * np.log(size)) for scale, exponent, size in zip(
                law["log_scales"], law["exponents"], (np.full_like(at, params), at), strict=True))
            edge = tokens_B[seen_B].max(initial=at[0])
            axes.plot(at[at <= edge], curve[at <= edge], color=colour, linewidth=1.4)
            axes.plot(at[at >= edge], curve[at >= edge], "--", color=colour, linewidth=1.4)
            mean_B = np.mean(runs, 0)
            for chosen_B, face in ((seen_B, colour), (asked_B, "white")):
                axes.plot(tokens_B[chosen_B], mean_B[chosen_B], "o", color=colour, markersize=5, markerfacecolor=face)
            left_B = ~(seen_B | asked_B)
            axes.plot(tokens_B[left_B], mean_B[left_B], "x", color=colour, markersize=5)
            axes.plot([], [], "o-", color=colour, markersize=5, label=f"{params:,} parameters")
        axes.set(xscale="log", xlabel="tokens", ylabel="held-out loss, nats a token")
        axes.set_xticks(tokens_B, [f"{tokens / 1e6:.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:.0f}k"
                                   for tokens in tokens_B])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)

    return report.picture(draw, 4.2) + ('<p class="dim">Curves: the law. Full points are what it was fitted on, hollow '
                                        'ones and dashed curves what it had not seen; crosses are left out.</p>')


def _predictions(data: dict[str, Any], found: dict[str, Any], asked_WB: np.ndarray) -> str:
    """Predicted less measured, for every held-out size and seed and every method."""
    losses_SWB = np.array(data["losses"]).swapaxes(0, 1)

    def draw(axes: Any) -> None:
        for (name, title), colour, marker in zip(_METHODS.items(), ("#2a6fdb", "#d1495b", "0.55"), "osx", strict=True):
            off_SWB = np.array(found["by_seed"][name]) - losses_SWB
            axes.plot(losses_SWB[:, asked_WB].ravel(), off_SWB[:, asked_WB].ravel(), marker, color=colour,
                      markersize=4.5, alpha=0.75, label=title)
        axes.axhline(0, color="0.4", linewidth=1)
        axes.set(xlabel="measured loss, nats a token", ylabel="predicted less measured, nats")
        axes.legend(frameon=False, fontsize=8)

    return report.picture(draw)
