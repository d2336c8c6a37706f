"""Counters and histograms in Prometheus' text format.

References: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Counter:
    """A sum that only grows."""

    def __init__(self, help_text: str) -> None:
        self.help_text = help_text
        self.value = 0.0
        self._lock = threading.Lock()

    def add(self, amount: float) -> None:
        with self._lock:
            self.value += amount

    def lines(self, name: str) -> list[str]:
        return [*_head(name, self.help_text, "counter"), f"{name} {self.value:g}"]


class LabelledCounter:
    """A `Counter` for each value of some labels, of which there must be few."""

    def __init__(self, help_text: str, labels: Sequence[str]) -> None:
        self.help_text = help_text
        self.labels = tuple(labels)
        self.values: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float, *values: str) -> None:
        with self._lock:
            self.values[values] = self.values.get(values, 0.0) + amount

    def lines(self, name: str) -> list[str]:
        with self._lock:
            values = sorted(self.values.items())
        return [*_head(name, self.help_text, "counter"), *(
            f"{name}{_labels(dict(zip(self.labels, key, strict=True)))} {value:g}" for key, value in values)]


class Histogram:
    """Counts of observed values up to each bound.

    >>> seconds = Histogram("of a step", bounds=(0.1, 1.0))
    >>> seconds.observe(0.5)
    >>> seconds.lines("step_seconds")[2:]
    ['step_seconds_bucket{le="0.1"} 0', 'step_seconds_bucket{le="1"} 1', 'step_seconds_bucket{le="+Inf"} 1', \
'step_seconds_sum 0.5', 'step_seconds_count 1']
    """

    def __init__(self, help_text: str, bounds: Sequence[float] = SECONDS) -> None:
        self.help_text = help_text
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        with self._lock:
            self._counts[bisect.bisect_left(self.bounds, value)] += 1
            self._sum += value

    def lines(self, name: str) -> list[str]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines, so_far = _head(name, self.help_text, "histogram"), 0
        for bound, count in zip((*map("{:g}".format, self.bounds), "+Inf"), counts, strict=True):
            so_far += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
        return [*lines, f"{name}_sum {total:g}", f"{name}_count {so_far}"]


class Metrics:
    """Everything that /metrics shows of the past; gauges of the moment are given to `text`."""

    def __init__(self) -> None:
        self.http_requests = LabelledCounter("answers by path and status", ("path", "status"))
        self.requests_cancelled = Counter("requests ended before their last token, by a client that hung up or a "
                                          "stop string")
        self.prompt_tokens = Counter("prompt tokens of requests that began")
        self.cached_tokens = Counter("prompt tokens whose keys and values were there already")
        self.generated_tokens = Counter("tokens drawn")
        self.first_token_seconds = Histogram("from the queue to the first token")
        self.between_tokens_seconds = Histogram("from one token of a request to its next")

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """The page.

        Args:
          gauges: name -> (help, value), without the prefix.
        """
        lines: list[str] = []
        for name, (help_text, value) in gauges.items():
            lines += [*_head(f"jaxllm_{name}", help_text, "gauge"), f"jaxllm_{name} {value:g}"]
        for name, metric in vars(self).items():
            suffix = "" if isinstance(metric, Histogram) else "_total"
            lines += metric.lines(f"jaxllm_{name}{suffix}")
        return "\n".join(lines) + "\n"


def _head(name: str, help_text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]


def _labels(values: Mapping[str, str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return "{" + ",".join(f'{key}="{escaped(value)}"' for key, value in values.items()) + "}"
