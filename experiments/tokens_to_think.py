"""Models need tokens to think: the same solutions with the answer before the steps, and with the steps before it.

    python -m experiments.tokens_to_think --workdir=runs/tokens_to_think

Two models are trained from scratch on texts that differ in order alone; a third is given meaningless tokens before its
answer, as many as the steps have; a fourth has more layers. All are asked problems whose numbers none was trained on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import lab, launch, report
from experiments.findings import Findings, Table, write
from experiments.tokens_to_think_problems import PARTS, draw, equations, kinds_of
from jaxllm.data.loader import Rows
from jaxllm.data.packing import pack
from jaxllm.data.tokenizer import Tokenizer, train_tokenizer
from jaxllm.data.world_problems import Problem
from jaxllm.evals.intervals import share_interval, spread, t_interval
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params, count_params, flops_per_token, init

ARMS = {
    "answer_first": "answer first",
    "steps_first": "steps first",
    "filler": "filler, then answer first",
    "deeper": "deeper, answer first",
}
FILLER = "~"  # a token of its own in every tokenizer trained here, and in no problem
_ANSWER = re.compile(r"Answer:(\d+)\.")


def main(config: ConfigDict, workdir: str) -> None:
    """Trains and asks every arm at every seed, and writes what was found.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in config.arms}
    for seed, arm in itertools.product(config.seeds, config.arms):
        settings = {**config.to_dict(), "arms": arm, "seeds": seed, "bar": None}
        run = lab.kept(folder / "kept", f"{arm}-{seed}", settings, functools.partial(measure, config, arm, seed))
        runs[arm].append(run)
        shares = ", ".join(f"{kind} {np.mean(right):.3f}" for kind, right in run["right"].items())
        print(f"{ARMS[arm]}, seed {seed}: {shares}; {time.perf_counter() - begun:.0f} s in all", flush=True)
    write(findings(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what cannot be measured, before anything is trained."""
    for key, allowed in (("arms", tuple(ARMS)), ("kinds", kinds_of(config.family))):
        unknown = [value for value in config[key] if value not in allowed]
        if unknown or len(set(config[key])) < len(config[key]):
            raise ValueError(f"config.{key}={config[key]}: name some of {', '.join(allowed)}, each once")
    if not {"answer_first", "steps_first"} <= set(config.arms) or not config.kinds:
        raise ValueError("config.arms needs answer_first and steps_first, and config.kinds one kind or more")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds={config.seeds}: name at least one seed, each once")
    if config.part not in PARTS[1:]:
        raise ValueError(f"config.part={config.part!r}: ask problems of {' or '.join(PARTS[1:])}")
    if len(config.problems) != len(config.kinds) or min(config.problems) < 1:
        raise ValueError(f"config.problems={config.problems}: give a number of 1 or more for each of the "
                         f"{len(config.kinds)} kinds")
    for key in ("asked", "batch_size", "ask_batch"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if config.deeper_layers <= config.model.layers:
        raise ValueError(f"config.deeper_layers={config.deeper_layers} must exceed config.model.layers="
                         f"{config.model.layers}")
    if config.row_length > config.model.max_positions:
        raise ValueError(f"config.row_length={config.row_length} exceeds config.model.max_positions="
                         f"{config.model.max_positions}")
    ModelConfig(vocab_size=config.vocab_size, **config.model.to_dict())


def measure(config: ConfigDict, arm: str, seed: int) -> dict[str, Any]:
    """Trains one model and asks it.

    Returns:
      "right": 0 or 1 for every problem asked, by kind; "equations": steps of a solution, by kind; "parameters";
      "train_tokens" and "counted_tokens" (targets of the loss); "answer_mflop": what the model computes up to the
      first token of its answer, mean over the problems asked; "seconds".
    """
    begun = time.perf_counter()
    problems = [problem for kind, count in zip(config.kinds, config.problems, strict=True)
                for problem in draw(config.family, kind, "train", count, seed)]
    tokenizer = learn_tokenizer(config)
    model = ModelConfig(vocab_size=tokenizer.vocab_size, **config.model.to_dict())
    if arm == "deeper":
        model = dataclasses.replace(model, layers=config.deeper_layers)
    rows = training_rows(arm, problems, tokenizer, config.row_length, seed)
    recipe = lab.Recipe(rows.steps(config.batch_size), config.batch_size, config.learning_rate, config.warmup_steps,
                        config.weight_decay)
    params = lab.train(init(model, jax.random.key(seed)), model, rows, recipe, f"{ARMS[arm]}, seed {seed}")
    asked = {kind: draw(config.family, kind, config.part, config.asked, seed) for kind in config.kinds}
    found = ask(arm, params, model, tokenizer, [p for some in asked.values() for p in some], config.ask_batch)
    return {"right": {kind: found.right[i * config.asked:(i + 1) * config.asked] for i, kind in enumerate(asked)},
            "equations": {kind: max(map(equations, some)) for kind, some in asked.items()},
            "parameters": count_params(model), "train_tokens": recipe.steps * config.batch_size * config.row_length,
            "counted_tokens": int(rows.batch.weights.sum()), "answer_mflop": found.flops / 1e6,
            "seconds": time.perf_counter() - begun}


def learn_tokenizer(config: ConfigDict) -> Tokenizer:
    """One tokenizer for all arms and seeds, and for every choice of kinds; a digit is a token."""
    problems = [problem for kind in kinds_of(config.family) for problem in draw(config.family, kind, "train", 500, 0)]
    return train_tokenizer((text for problem in problems for text in parts(problem)), config.vocab_size, "digits")


def parts(problem: Problem) -> tuple[str, str, str]:
    """Question, steps and answer as texts.

    >>> parts(Problem("1 step", "dial:6 first+1", " first:6+1=7", 7, ""))
    ('dial:6 first+1', ' Work: first:6+1=7', ' Answer:7.')
    """
    return problem.question, f" Work:{problem.steps}", f" Answer:{problem.answer}."


def sequence(arm: str, problem: Problem, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(what a model is given, what it must write), ids.

    The parts are encoded apart, so that the arms' texts are the same tokens in another order, whatever merges a
    tokenizer has across the seams.
    """
    question, work, answer = map(tokenizer.encode, parts(problem))
    given, end = [tokenizer.end_of_text, *question], [tokenizer.end_of_text]
    if arm == "steps_first":
        return given, work + answer + end
    if arm == "filler":
        given += tokenizer.encode(FILLER) * len(work)
    return given, answer + work + end


def training_rows(arm: str, problems: Sequence[Problem], tokenizer: Tokenizer, row_length: int, seed: int) -> Rows:
    """Packed rows in which every problem stands once; the loss counts what the model must write.

    Raises:
      ValueError: when a problem is longer than a row.
    """
    pairs = [sequence(arm, problem, tokenizer) for problem in problems]
    longest = max(len(given) + len(written) for given, written in pairs)
    if longest > row_length:
        raise ValueError(f"a problem has {longest} tokens: raise config.row_length ({row_length})")
    weights = [[0.0] * len(given) + [1.0] * len(written) for given, written in pairs]
    return Rows(pack([given + written for given, written in pairs], row_length, weights).batch, seed=seed)


@dataclasses.dataclass(frozen=True)
class Asked:
    """Answers to problems: which were right (0 or 1), and the mean FLOPs of one up to its answer."""

    right: list[int]
    flops: float


def ask(arm: str, params: Params, model: ModelConfig, tokenizer: Tokenizer, problems: Sequence[Problem],
        batch: int) -> Asked:
    """Greedy answers of an arm's model; right is the number behind "Answer:", whatever the steps say."""
    pairs = [sequence(arm, problem, tokenizer) for problem in problems]
    answers = [len(tokenizer.encode(parts(problem)[2])) for problem in problems]
    until = max(len(written) for _, written in pairs) if arm == "steps_first" else max(answers)
    drawn = generate(params, model, [given for given, _ in pairs], key=0, max_tokens=until, batch=batch,
                     stop_tokens=(tokenizer.end_of_text,), settings=SamplingSettings(temperature=0.0),
                     valid_vocab=tokenizer.vocab_size, execution=lab.EXECUTION).rows()
    right = [answer_in(tokenizer.decode(row)) == problem.answer for row, problem in zip(drawn, problems, strict=True)]
    before = [len(given) + (len(written) - 1 - answer) * (arm == "steps_first")
              for (given, written), answer in zip(pairs, answers, strict=True)]
    return Asked(list(map(int, right)),
                 float(np.mean([n * flops_per_token(model, n, training=False) for n in before])))


def answer_in(text: str) -> int | None:
    """The first whole answer in a text.

    >>> answer_in(" Work: first:6+1=7 Answer:7."), answer_in(" Answer:1")
    (7, None)
    """
    match = _ANSWER.search(text)
    return int(match[1]) if match else None


def findings(config: ConfigDict, runs: dict[str, list[dict[str, Any]]]) -> Findings:
    """Accuracy by kind and arm, every arm against answer first, what each arm cost, and the bar."""
    kinds, steps = list(config.kinds), runs["answer_first"][0]["equations"]
    accuracy = {arm: {kind: [float(np.mean(run["right"][kind])) for run in runs[arm]] for kind in kinds}
                for arm in runs}
    gain = {arm: {kind: t_interval(np.subtract(accuracy[arm][kind], accuracy["answer_first"][kind]).tolist())
                  for kind in kinds} for arm in runs if arm != "answer_first"}
    interval = {arm: {kind: share_interval(values) for kind, values in by_kind.items()}
                for arm, by_kind in accuracy.items()}
    names = [ARMS[arm] for arm in runs]
    note = f"{len(config.seeds)} seeds, {config.asked} {config.part} problems of a kind each; mean [95%, t over seeds]."
    table = Table("Right answers to problems with other numbers", [
        ["problem", "steps", *names],
        *[[kind, str(steps[kind]), *[spread(interval[arm][kind]) for arm in runs]] for kind in kinds]], note)
    against = Table("Gain over answer first, paired by seed", [
        ["problem", "steps", *[ARMS[arm] for arm in gain]],
        *[[kind, str(steps[kind]), *[spread(gain[arm][kind]) for arm in gain]] for kind in kinds]],
        verdict(config, gain["steps_first"], steps))
    cost = Table("What each arm was given", [
        ["", *names], *[[label, *[f"{np.mean([run[key] for run in runs[arm]]):,.{digits}f}" for arm in runs]]
                        for label, key, digits in (
            ("parameters", "parameters", 0), ("tokens trained on", "train_tokens", 0),
            ("of them in the loss", "counted_tokens", 0),
            ("MFLOP up to the answer", "answer_mflop", 2), ("seconds", "seconds", 0))]],
        "Every arm saw the same problems once. Tokens trained on count padding.")
    return Findings("Tokens to think", [table, against, cost],
                    [("Right answers by steps", report.picture(draw_accuracy(kinds, interval)))],
                    {"accuracy": accuracy, "gain": gain, "equations": steps, "runs": runs})


def verdict(config: ConfigDict, gain: dict[str, tuple[float, float, float]], steps: dict[str, int]) -> str:
    """Whether the bar was reached on the problems of two steps."""
    lines = []
    for kind in [kind for kind in gain if steps[kind] == 2]:
        mean, low, high = gain[kind]
        word = "reached" if mean >= config.bar else "missed"
        sure = "the whole interval is above it" if low >= config.bar else (
            "the interval holds it" if high >= config.bar else "the whole interval is below it")
        lines.append(f"Bar: +{config.bar} for steps first on problems of two steps ({kind}): {word}, {sure}.")
    return " ".join(lines) or "No kind has two steps: the bar was not measured."


def draw_accuracy(kinds: Sequence[str], interval: dict[str, dict[str, tuple[float, float, float]]]
                  ) -> Callable[[Any], None]:
    """A line per arm with its intervals, over the kinds."""
    def draw_on(axes: Any) -> None:
        for i, (arm, by_kind) in enumerate(interval.items()):
            mean, low, high = np.array([by_kind[kind] for kind in kinds]).T
            low, high = np.maximum(low, 0.0), np.minimum(high, 1.0)
            axes.errorbar(np.arange(len(kinds)) + 0.06 * (i - 1.5), mean, [mean - low, high - mean], label=ARMS[arm],
                          marker="o", markersize=4, linewidth=1.4, capsize=3)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set(ylabel="right answers", ylim=(-0.03, 1.03))
        axes.legend(frameon=False)
    return draw_on


if __name__ == "__main__":
    launch.run(main, default_config="configs/tokens_to_think.py")
