"""What a run of policy gradient leaves behind: rows, checkpoints, and the page that shows it."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import TypeVar

from ml_collections import ConfigDict

from experiments import report
from experiments.live_page import LivePage, Reply
from jaxllm.model.params import Params
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.metrics import MetricsWriter, read_metrics

State = TypeVar("State")


@dataclasses.dataclass(frozen=True)
class Improved:
    """What came of a run.

    Attributes:
      rows: of each step, see `Learner.draw` and `update`; row n is about the rollout that update n learned from.
      params: of the policy at the end.
      stopped: why it ended early, and where the last good checkpoint is; "" when all steps were taken.
    """

    rows: list[dict[str, float]]
    params: Params
    stopped: str


def check_folder(config: ConfigDict) -> None:
    """Refuses what a run with a folder cannot do; a run without one needs none of these keys."""
    for key, least in (("checkpoint_steps", 0), ("keep_checkpoints", 1), ("page_seconds", 0)):
        if config[key] < least:
            raise ValueError(f"{key} is {config[key]}; it must be at least {least}")


class Record:
    """The files of a run in a folder; without one, rows and progress lines alone.

    Raises:
      ValueError: when the folder holds a run with other settings.
    """

    def __init__(self, config: ConfigDict, folder: pathlib.Path | None, seed: int, title: str) -> None:
        self.config, self.folder, self.title = config, folder, title
        self.rows: list[dict[str, float]] = []
        self._checkpoints = self._writer = self._page = None
        if folder is not None:
            report.claim_folder(folder, ConfigDict({**config.to_dict(), "seed": seed}))
            self._checkpoints = Checkpoints(folder / "checkpoints", keep_last=config.keep_checkpoints)
            self._page = LivePage(folder / "index.html", title, config.steps, config.page_seconds)

    def resume(self, state: State) -> State:
        """The newest checkpoint laid out as `state`, or `state` itself."""
        if self._checkpoints is None or self._checkpoints.latest is None:
            return state
        print(f"{self.title}: resumed at step {self._checkpoints.latest} of {self.config.steps}", flush=True)
        return self._checkpoints.restore(state)

    def keep_rows(self, done: int) -> None:
        """Takes over the rows of the steps that are done, and drops those behind them, which will be taken again."""
        if self.folder is not None:
            self.rows = [{name: math.nan if value is None else value for name, value in row.items()}
                         for row in read_metrics(self.folder) if row["step"] <= done]
            self._writer = MetricsWriter(self.folder, resume_step=done or -1)

    def add(self, row: dict[str, float], replies: Sequence[Reply]) -> None:
        """Takes the row of a step; prints, writes and shows it."""
        self.rows.append(row)
        if row["step"] % self.config.log_steps == 0 or row["step"] == 1:
            print(f"step {row['step']}/{self.config.steps} reward {row['reward']:.3f} KL {row['kl']:.2f} entropy "
                  f"{row['entropy']:.3f} length {row['length']:.1f} gap {row['sampler_gap']:.1e} "
                  f"{row.get('seconds', 0.0):.2f} s", flush=True)
        if self.folder is not None:
            self._writer.write(int(row["step"]), {name: value for name, value in row.items() if name != "step"})
            self._page.update(self.rows, replies)

    def save(self, number: int, state: State) -> None:
        """Starts a checkpoint of the state after `number` steps, where one is due."""
        if self._checkpoints is None:
            return
        every = self.config.checkpoint_steps
        if every and number and number % every == 0:
            self._checkpoints.save(number, state)

    def finish(self, reason: str, done: int, state: State) -> str:
        """Saves the last state of a run that was not stopped; else says why it was, and what it leaves."""
        if reason:
            reason = f"{reason}; {self._last_good()}"
            print(f"stopped: {reason}", flush=True)
        elif self._checkpoints is not None:
            self._checkpoints.save(done, state)
            self._checkpoints.wait()
        if self._page is not None:
            self._page.finish(self.rows, reason)
        return reason

    def _last_good(self) -> str:
        if self._checkpoints is None:
            return "this run keeps no checkpoints"
        self._checkpoints.wait()
        latest = self._checkpoints.latest
        return "no weights after the start model's were in order and saved" if latest is None else (
            f"the last good checkpoint is {self._checkpoints.folder / str(latest)}")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._checkpoints is not None:
            self._checkpoints.close()
