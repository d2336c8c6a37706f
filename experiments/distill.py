"""Distillation in miniature: what a small student gets from a teacher that reasons, against RL on the student itself.

    python -m experiments.distill --workdir=runs/distill

Every arm spends the same FLOPs, the teacher's among them: traces that are kept if right, answers only, the traces of
other problems, the teacher's logits on its traces, its logits on the student's own text, and RL without a teacher.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments import distill_report, findings, lab, launch, practice
from experiments.distill_learn import from_traces, learn, on_policy
from experiments.distill_report import NAMES
from experiments.distill_traces import Pair, Traces, conversations, make_pair, measure, teach, write_conversations
from experiments.improve import improve
from jaxllm.model.params import Params
from jaxllm.rl.distill import DIVERGENCES

FROM_TRACES = ("traces", "answers", "shuffled", "logits")
ARMS = (*FROM_TRACES, "on_policy", "rl")


def main(config: ConfigDict, workdir: str) -> None:
    """Runs every arm for every seed and writes what was found, and the traces as conversations for experiments.sft.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ("teacher", "start", *config.arms)}
    for seed in config.seeds:
        study = Study(config, seed)
        for arm in runs:
            settings = {**config.to_dict(), "arms": arm, "seeds": seed, "cache": None}
            run = lab.kept(folder / "kept", f"{arm}-{seed}", settings, functools.partial(run_arm, study, arm))
            runs[arm].append(run)
            print(f"{NAMES[arm]}, seed {seed}: {distill_report.told(run)}; "
                  f"{time.perf_counter() - begun:.0f} s in all", flush=True)
        if not (path := folder / f"traces-{seed}.jsonl").exists():
            write_conversations(path, conversations("traces", study.pair.train, study.traces.kept, ""))
    findings.write(distill_report.findings(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be measured, before anything is trained."""
    unknown = [arm for arm in config.arms if arm not in ARMS]
    if unknown or "traces" not in config.arms or len(set(config.arms)) < len(config.arms):
        raise ValueError(f"config.arms={config.arms}: name traces and some of {', '.join(ARMS)}, each once")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    if config.part not in ("validation", "test"):
        raise ValueError(f"config.part={config.part!r}: ask on test, or on validation to choose settings")
    for key, least in (("batch_size", 1), ("row_length", 2), ("looks", 1), ("traces.samples", 1), ("traces.keep", 1),
                       ("logits.top_k", 0), ("on_policy.prompts", 1), ("on_policy.samples", 1), ("files.train", 0),
                       ("files.asked", 0), ("temperature", 0)):
        if _at(config, key) < least:
            raise ValueError(f"config.{key}={_at(config, key)}: choose {least} or more")
    for key in ("traces.temperature", "logits.temperature", "on_policy.temperature", "rates.text", "rates.logits",
                "rates.on_policy"):
        if not _at(config, key) > 0:
            raise ValueError(f"config.{key}={_at(config, key)} must be above 0")
    for arm in ("logits", "on_policy"):
        if config[arm].divergence not in DIVERGENCES or not 0 < config[arm].beta < 1:
            raise ValueError(f"config.{arm}.divergence={config[arm].divergence!r} with beta={config[arm].beta}: choose "
                             f"one of {', '.join(DIVERGENCES)}, and a beta between 0 and 1")
    for rows, what in ((config.batch_size, "batch_size"), (config.on_policy.prompts * config.on_policy.samples,
                                                           "on_policy.prompts x on_policy.samples")):
        if rows % config.rl.microbatches:
            raise ValueError(f"config.{what} ({rows}) must be a multiple of config.rl.microbatches="
                             f"{config.rl.microbatches}")
    if config.row_length % config.rl.logit_chunks:
        raise ValueError(f"config.rl.logit_chunks={config.rl.logit_chunks} must divide config.row_length="
                         f"{config.row_length}")
    if config.looks > config.rl.steps:
        raise ValueError(f"config.looks={config.looks} must not exceed config.rl.steps={config.rl.steps}")
    practice.check_start(config.teacher.start)
    files = config.files
    if bool(files.teacher) + bool(files.student) + bool(files.tasks) not in (0, 3):
        raise ValueError("config.files.teacher, student and tasks go together: give all three, or none")
    if files.tasks and not 0 < files.held_out < 1:
        raise ValueError(f"config.files.held_out={files.held_out} must lie between 0 and 1")
    if files.tasks and "{}" not in config.answer:
        raise ValueError(f"config.answer={config.answer!r} needs {{}} where the answer goes")


def _at(config: ConfigDict, key: str) -> Any:
    return functools.reduce(lambda part, name: part[name], key.split("."), config)


@dataclasses.dataclass(frozen=True)
class Study:
    """A seed's pair and traces, each made when first asked for; `budget` is what RL on the student costs, FLOPs."""

    config: ConfigDict
    seed: int

    @functools.cached_property
    def pair(self) -> Pair:
        return make_pair(self.config, self.seed)

    @functools.cached_property
    def traces(self) -> Traces:
        found = teach(self.config, self.pair, self.seed)
        print(f"seed {self.seed}: of {found.drawn} traces {found.right} are right; {len(found.kept)} kept, of "
              f"{found.solved} problems", flush=True)
        if not found.kept:
            raise ValueError(f"none of the teacher's {found.drawn} solutions is right and ended by itself: raise "
                             f"config.traces.samples or config.rl.sampler.max_tokens, or take another teacher")
        return found

    @property
    def budget(self) -> float:
        return practice.rl_flops(self.pair.student.model, self.config.rl, self.pair.width)


def run_arm(study: Study, arm: str) -> dict[str, Any]:
    """Trains the student, or takes a model as it is, and asks it.

    Returns:
      "looks": what `measure` says, each with "gflop", what was spent until then; "updates"; "teacher_gflop", the part
      of it that the teacher took; "seconds"; and of arms that learn from traces "traces", their numbers.
    """
    config, pair, begun = study.config, study.pair, time.perf_counter()
    looks: list[dict[str, float]] = []

    def look(gflop: float, params: Params) -> None:
        made = pair.teacher if arm == "teacher" else dataclasses.replace(pair.student, params=params)
        looks.append({"gflop": gflop, **measure(config, pair, made, study.seed)})

    before = by_teacher = updates = 0
    if arm in ("teacher", "start"):
        look(0.0, pair.student.params)
    elif arm == "rl":
        updates = config.rl.steps
        practise(study, lambda number, params: look(study.budget * number / updates / 1e9, params))
    else:
        lessons = (on_policy(config, pair, study.seed) if arm == "on_policy" else
                   from_traces(config, pair, study.traces, arm, study.seed))
        updates, before, by_teacher = lessons.updates(study.budget), lessons.before, lessons.by_teacher
        if updates < config.looks:
            raise ValueError(f"{updates} updates of the arm {arm} are all that the {study.budget:.2g} FLOPs of RL pay "
                             f"for: raise config.rl.steps, or lower config.traces.samples")
        each = by_teacher + lessons.by_student
        learn(pair, lessons, updates, due(updates, config.looks),
              lambda number, params: look((before + number * each) / 1e9, params))
    found = {"looks": looks, "updates": updates, "teacher_gflop": (before + updates * by_teacher) / 1e9,
             "seconds": time.perf_counter() - begun}
    return found | ({"traces": study.traces.counts()} if arm in FROM_TRACES else {})


def practise(study: Study, look: Callable[[int, Params], None]) -> None:
    """RL on the student, rewarded for right answers alone.

    Raises:
      ValueError: when its guard stopped it.
    """
    config, pair = study.config, study.pair
    looked = due(config.rl.steps, config.looks)
    done = improve(config.rl, pair.student, practice.reward(pair.train), study.seed,
                   prompts=practice.prompts(pair.train), title=f"RL on the student, seed {study.seed}",
                   watch=lambda number, params: look(number, params) if number in looked else None)
    if done.stopped:
        raise ValueError(f"RL on the student was stopped: {done.stopped}; lower config.rl.optimizer.learning_rate")


def due(updates: int, looks: int) -> set[int]:
    """After how many updates a model is looked at: evenly, and at the end.

    >>> sorted(due(10, 4))
    [2, 5, 8, 10]
    """
    return {round(updates * (number + 1) / looks) for number in range(looks)}


if __name__ == "__main__":
    launch.run(main, default_config="configs/distill.py")
