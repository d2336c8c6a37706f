"""A page that shows a run while it goes: curves, and samples by their reward.

`index.html` holds everything, so that it can be opened from disk, kept and sent. While the run goes it also loads
`live.js`, which is written beside it every few seconds: a script may be loaded from a page opened from disk, where a
browser refuses to fetch JSON. Both are replaced whole, so a reader never sees half of one.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import report

# What is drawn, where a run has it: column, heading.
PLOTS = (
    ("reward", "reward"), ("kl", "KL to the start, nats a reply"), ("entropy", "entropy, nats a token"),
    ("length", "length, tokens"), ("ratio", "ratio to the policy that drew"), ("clip_fraction", "clip fraction"),
    ("explained_variance", "explained variance of the critic"),
    ("sampler_gap", "sampler's gap, nats a token"), ("sampler_gap_max", "sampler's gap, largest"),
    ("truncated", "share of replies cut off"), ("reward_sd", "reward, standard deviation"),
    ("kl_coefficient", "weight of the KL"), ("grad_norm", "norm of the gradient"), ("seconds", "seconds a step"))
SHOWN, POINTS = 4, 1000  # samples from either end, and points of a curve


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply that the policy drew at a step, to the prompt of this name, and its reward."""

    step: int
    prompt: str
    text: str
    reward: float


class LivePage:
    """The page of one run.

    Args:
      path: of the page; live.js is put beside it.
      title: of the page.
      steps: that the run will take.
      seconds: least time between two updates; 0 writes every one.
    """

    def __init__(self, path: pathlib.Path, title: str, steps: int, seconds: float = 2.0) -> None:
        self.path, self.title, self.steps, self.seconds = path, title, steps, seconds
        self._written: float | None = None
        self._replies: list[dict[str, Any]] = []

    def update(self, rows: Sequence[Mapping[str, float]], replies: Sequence[Reply]) -> None:
        """Shows the rows so far and the best and worst replies of the last step."""
        self._replies = _ends(replies)
        now = time.monotonic()
        if self._written is not None and now - self._written < self.seconds:
            return
        if self._written is None:
            self._write_page(rows, "running")
        self._written = now
        report.write_text(self.path.with_name("live.js"), f"show({self._data(rows, 'running')});\n")

    def finish(self, rows: Sequence[Mapping[str, float]], stopped: str = "") -> None:
        """Writes the page for good; `stopped` says why the run ended early."""
        state = f"stopped: {stopped}" if stopped else "done" if len(rows) >= self.steps else "interrupted"
        self._write_page(rows, state)
        report.write_text(self.path.with_name("live.js"), f"show({self._data(rows, state)});\n")

    def _write_page(self, rows: Sequence[Mapping[str, float]], state: str) -> None:
        title = html.escape(self.title)
        page = (_PAGE.replace("{style}", report.STYLE + _STYLE).replace("{title}", title)
                .replace("{plots}", json.dumps(PLOTS)).replace("{data}", self._data(rows, state)))
        report.write_text(self.path, page)

    def _data(self, rows: Sequence[Mapping[str, float]], state: str) -> str:
        """JSON that may stand inside a script element."""
        kept = rows[::max(1, -(-len(rows) // POINTS))]
        columns = {name: [_number(row.get(name)) for row in kept] for name in ("step", *(name for name, _ in PLOTS))}
        data = {"steps": self.steps, "step": rows[-1]["step"] if rows else 0, "state": state, "written": time.time(),
                "columns": columns, "replies": self._replies}
        return json.dumps(data).replace("</", "<\\/").replace("<!--", "<\\!--")


def _number(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def _ends(replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """The best replies and the worst, the best first; all where there are few."""
    ordered = sorted(replies, key=lambda reply: -reply.reward if math.isfinite(reply.reward) else math.inf)
    if len(ordered) > 2 * SHOWN:
        ordered = ordered[:SHOWN] + ordered[-SHOWN:]
    return [{**dataclasses.asdict(reply), "reward": _number(reply.reward)} for reply in ordered]


_STYLE = """
#plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem; }
#plots div { border: 1px solid var(--line); border-radius: 8px; padding: .4rem .6rem; }
#plots b { font-weight: 500; font-size: .85rem; } #plots output { float: right; font-variant-numeric: tabular-nums; }
#plots svg { width: 100%; height: 7rem; display: block; } path { fill: none; stroke: #2a6fdb; stroke-width: 1.5;
  vector-effect: non-scaling-stroke; } .range { display: flex; justify-content: space-between; font-size: .75rem; }
th, td.n { white-space: nowrap; overflow-wrap: normal; } td + td { min-width: 7rem; }
progress { width: 100%; } .bad { color: #c0392b; font-weight: 600; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1><p id="state" class="dim"></p><progress id="done"></progress>
<h2>Curves</h2><div id="plots"></div>
<h2>Samples by reward</h2><p class="dim">The best and the worst replies of the last step.</p>
<table><thead><tr><th>reward</th><th>prompt</th><th>reply</th></tr></thead><tbody id="replies"></tbody></table>
<script>
const PLOTS = {plots};
const byId = id => document.getElementById(id);
const plain = x => x === 0 || Math.abs(x) >= 0.001 && Math.abs(x) < 1e5;
const short = x => plain(x) ? String(+x.toPrecision(4)) : x.toExponential(1);
let running = true;

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function plot(steps, values, heading) {
  const box = element("div"), output = element("output"), ends = element("span", "", "range dim");
  const points = steps.map((x, i) => [x, values[i]]).filter(p => p[1] !== null);
  if (!points.length) return null;
  const low = Math.min(...points.map(p => p[1])), high = Math.max(...points.map(p => p[1]));
  const first = points[0][0], last = points[points.length - 1][0];
  const across = x => 100 * (x - first) / (last - first || 1);
  const up = y => high === low ? 30 : 58 - 56 * (y - low) / (high - low);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 60");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", heading + ", now " + short(points[points.length - 1][1]));
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M" + points.map(([x, y]) => across(x).toFixed(2) + " " + up(y).toFixed(2)).join("L"));
  svg.append(path);
  const tell = p => { output.textContent = short(p[1]) + (p[0] === last ? "" : " at " + p[0]); };
  svg.onmousemove = event => {
    const share = event.offsetX / svg.clientWidth, x = first + share * (last - first);
    tell(points.reduce((best, p) => Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
  };
  svg.onmouseleave = () => tell(points[points.length - 1]);
  svg.onmouseleave();
  ends.append(element("span", "step " + first + " to " + last), element("span", short(low) + " to " + short(high)));
  box.append(element("b", heading), output, svg, ends);
  return box;
}

function show(data) {
  running = data.state === "running";
  byId("state").textContent = "step " + data.step + " of " + data.steps + ", " + data.state + ", written "
    + new Date(1000 * data.written).toLocaleTimeString();
  byId("state").className = data.state.startsWith("stopped") ? "bad" : "dim";
  byId("done").max = data.steps;
  byId("done").value = data.step;
  const steps = data.columns.step;
  const drawn = PLOTS.map(([name, heading]) => plot(steps, data.columns[name], heading));
  byId("plots").replaceChildren(...drawn.filter(Boolean));
  byId("replies").replaceChildren(...data.replies.map(reply => {
    const row = element("tr");
    row.append(element("td", reply.reward === null ? "not finite" : reply.reward.toFixed(3), "n"),
      element("td", reply.prompt), element("td", reply.text));
    return row;
  }));
}

show({data});
setInterval(() => {
  if (!running) return;
  const script = element("script");
  script.src = "live.js?" + Date.now();
  script.onload = script.onerror = () => script.remove();
  document.head.append(script);
}, 2000);
</script></body></html>
"""
