"""A task put to a model: scores of every item, those of its control, and the difference between two models.

    result = evaluate(model, task)
    result.interval(), result.control_interval(), result.chance
    compare(result, other)
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from jaxllm.evals import rolling
from jaxllm.evals.generation import complete
from jaxllm.evals.intervals import bootstrap, share_interval, t_interval, wilson
from jaxllm.evals.language_model import LanguageModel, encode_pair
from jaxllm.evals.loglikelihood import BATCH_TOKENS, PROGRAM_TOKENS, Progress, Scored, loglikelihoods
from jaxllm.evals.tasks import METRICS, Item, Task, counterfactual, pairs, prefix

# (verifier, reply, answer) -> something with a score of 0 to 1; `jaxllm.rl.rewards.grade` is one.
Grade = Callable[[str, str, str], Any]
DRAWS = 2000  # of a bootstrap


@dataclasses.dataclass(frozen=True)
class Result:
    """What a model earned on a task; JSON holds it whole (`dataclasses.asdict`).

    Attributes:
      task, kind, metric, chance, note: as the task says.
      keys: of the items.
      scores: metric -> a value per item: 0 or 1, a share, nats a token or bits per byte.
      weights: of the items, bytes or tokens where a mean of items would be none of the text; else 1.
      control: the headline metric per item with the informative part swapped; None for an item that has no other.
      tokens: scored or written.
      seconds: by the clock.
      logp: of every candidate of every item in turn, or of every document, nats; none of a generation.
      replies: of a generation.
    """

    task: str
    kind: str
    metric: str
    chance: float
    keys: list[str]
    scores: dict[str, list[float]]
    weights: list[float]
    control: list[float | None]
    tokens: int
    seconds: float
    note: str = ""
    logp: list[float] = dataclasses.field(default_factory=list)
    replies: list[str] = dataclasses.field(default_factory=list)

    def interval(self, metric: str | None = None) -> tuple[float, float, float]:
        """A metric (the headline) with its 95% interval: Wilson's for shares of items, the bootstrap over items for
        weighted means, Student's t for other means.
        """
        metric = metric or self.metric
        return _interval(self.scores[metric], self.weights, metric != "perplexity")

    def control_interval(self) -> tuple[float, float, float] | None:
        """The control of the headline, likewise; None where there is none."""
        values = [value for value in self.control if value is not None]
        return _interval(values, [1.0] * len(values), self.metric != "perplexity") if values else None


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first model less the second on the items that both have.

    Attributes:
      mean, low, high: of the headline metric, with the paired 95% interval by bootstrap over items.
      p: two-sided, by McNemar's exact test, where every value is 0 or 1; else None.
      items: compared.
    """

    mean: float
    low: float
    high: float
    p: float | None
    items: int


def evaluate(model: LanguageModel, task: Task, *, seed: int = 0, control: bool = True, grade: Grade | None = None,
             batch_tokens: int = BATCH_TOKENS, program_tokens: int = PROGRAM_TOKENS, slots: int = 16,
             progress: Progress | None = None) -> Result:
    """Puts every item of a task to a model.

    Args:
      model: see `LanguageModel`.
      task: see `Task`.
      seed: of the shots and of the swaps.
      control: whether to measure the counterfactual too; it costs as much as the task, but nothing for generations,
        where each reply is graded against another item's answer.
      grade: for generations.
      batch_tokens, program_tokens: as `loglikelihoods` takes them.
      slots: replies written at once, on each device.
      progress: called with (done, in all).

    Raises:
      ValueError: for an item that does not fit the model, or a generation without `grade`.
    """
    begun = time.perf_counter()
    if task.kind == "document":
        found = _documents(model, task, batch_tokens, program_tokens, progress)
    elif task.kind == "generation":
        found = _generations(model, task, seed, control, grade, slots, progress)
    else:
        found = _candidates(model, task, seed, control, batch_tokens, program_tokens, progress)
    return Result(task.name, task.kind, task.metric, task.chance, list(map(task.key, range(len(task.items)))),
                  seconds=time.perf_counter() - begun, note=task.note, **found)


def _documents(model: LanguageModel, task: Task, batch_tokens: int, program_tokens: int, progress: Progress | None
               ) -> dict[str, Any]:
    found = rolling.score_texts(model, [item.choices[0] for item in task.items], batch_tokens=batch_tokens,
                                program_tokens=program_tokens, progress=progress)
    return {"scores": {"bits_per_byte": [score.bits_per_byte for score in found]},
            "weights": [float(score.bytes) for score in found], "control": [None] * len(found),
            "tokens": sum(score.tokens for score in found), "logp": [score.logp for score in found]}


def _generations(model: LanguageModel, task: Task, seed: int, control: bool, grade: Grade | None, slots: int,
                 progress: Progress | None) -> dict[str, Any]:
    if grade is None:
        raise ValueError(f"task {task.name}: its replies need a grader; pass grade=jaxllm.rl.rewards.grade")
    prompts = [prefix(task, i, seed) + item.contexts[0] + task.delimiter.rstrip(" ")
               for i, item in enumerate(task.items)]
    most = min(task.max_tokens, model.positions // 2)  # a small model keeps room for the question
    # The stop strings are where a text would go on to the next question; in a chat they stand within replies.
    replies = complete(model, prompts, max_tokens=most, stop=() if model.chat else task.stop, slots=slots,
                       progress=progress)
    scores = [float(grade(item.verifier, reply, item.answer).score)
              for item, reply in zip(task.items, replies, strict=True)]
    swapped: list[float | None] = [None] * len(scores)
    if control:
        for i, item in enumerate(task.items):
            other = _other(task, i, seed)
            if other is not None:
                swapped[i] = float(grade(item.verifier, replies[other], item.answer).score)
    tokens = sum(len(model.tokenizer.encode(reply)) for reply in replies)
    return {"scores": {"score": scores}, "weights": [1.0] * len(scores), "control": swapped, "tokens": tokens,
            "replies": replies}


def _other(task: Task, index: int, seed: int) -> int | None:
    """The place of another item with another answer, drawn."""
    order = np.random.default_rng([seed, index]).permutation(len(task.items))
    return next((int(i) for i in order if task.items[i].answer != task.items[index].answer), None)


def _candidates(model: LanguageModel, task: Task, seed: int, control: bool, batch_tokens: int, program_tokens: int,
                progress: Progress | None) -> dict[str, Any]:
    """Items and their controls in one list, so that they share batches."""
    items: list[tuple[int, Item | None]] = [(i, None) for i in range(len(task.items))]
    if control:
        items += [(i, swapped) for i in range(len(task.items))
                  if (swapped := counterfactual(task, i, seed)) is not None]
    texts = [pairs(task, index, seed, item) for index, item in items]
    asked = [encode_pair(model, *pair) for some in texts for pair in some]
    scored = loglikelihoods(model, asked, batch_tokens=batch_tokens, program_tokens=program_tokens, progress=progress)
    scores: dict[str, list[float]] = {name: [] for name in METRICS[task.kind]}
    swapped_scores: list[float | None] = [None] * len(task.items)
    weights, own, at = [], 0, 0
    for (index, swapped), some in zip(items, texts, strict=True):
        part, at = scored[at:at + len(some)], at + len(some)
        values = item_scores(task.kind, task.items[index], part)
        if swapped is None:
            for name, value in values.items():
                scores[name].append(value)
            weights.append(1.0)
            own = at
        else:
            swapped_scores[index] = values[task.metric]
    return {"scores": scores, "weights": weights, "control": swapped_scores,
            "tokens": sum(len(context) + len(continuation) for context, continuation in asked),
            "logp": [one.logp for one in scored[:own]]}


def item_scores(kind: str, item: Item, scored: Sequence[Scored]) -> dict[str, float]:
    """The scores of one item from the log-likelihoods of its candidates.

    acc: the likeliest candidate is right; acc_norm, acc_bytes, acc_token: by log-likelihood a character, a byte of
    UTF-8, a token; mass: the share of the candidates' probability that the right ones hold (TruthfulQA's mc2). Of equal
    candidates the first counts, as numpy's argmax has it. greedy: every token is the likeliest; perplexity: nats a
    token, whose mean's exponential is the perplexity.

    References: lm-evaluation-harness (acc, acc_norm, acc_bytes). DCLM, Li et al., 2024, and llm-foundry (a token).
      https://arxiv.org/abs/2406.11794  Lin et al., TruthfulQA, 2021 (mass). https://arxiv.org/abs/2109.07958
    """
    logp = np.array([one.logp for one in scored])
    per_token = logp / [one.tokens for one in scored]
    if kind == "continuation":
        return {"greedy": float(scored[0].greedy), "perplexity": float(-per_token[0])}

    def right(values: np.ndarray) -> float:
        return float(int(values.argmax()) in item.gold)

    found = {"acc": right(logp), "acc_token": right(per_token)}
    if kind == "choice":
        share = np.exp(logp - logp.max())
        found |= {"acc_norm": right(logp / [len(choice) for choice in item.choices]),
                  "acc_bytes": right(logp / [len(choice.encode()) for choice in item.choices]),
                  "mass": float(share[list(item.gold)].sum() / share.sum())}
    return found


def compare(first: Result, second: Result) -> Difference:
    """The first model less the second on the same items.

    Raises:
      ValueError: for results of different tasks, with no item in common, or with two items of one key.

    References: McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
    """
    if (first.task, first.metric) != (second.task, second.metric):
        raise ValueError(f"{first.task} by {first.metric} cannot be compared with {second.task} by {second.metric}")
    at = {key: i for i, key in enumerate(second.keys)}
    if len(at) < len(second.keys) or len(set(first.keys)) < len(first.keys):
        raise ValueError(f"{first.task}: two items have one key, and nothing tells which belong together; give each a "
                         f"key of its own")
    both = [(i, at[key]) for i, key in enumerate(first.keys) if key in at]
    if not both:
        raise ValueError(f"{first.task}: the two results have no item in common")
    a, b = (np.array([result.scores[result.metric][pair[side]] for pair in both])
            for side, result in enumerate((first, second)))
    weights = np.array([first.weights[i] for i, _ in both])
    mean, low, high = _bootstrap(a - b, weights)
    p = None
    if set(np.unique([a, b])) <= {0.0, 1.0}:
        only = int((a > b).sum()), int((a < b).sum())
        p = float(binomtest(only[0], sum(only), 0.5).pvalue) if sum(only) else 1.0
    return Difference(mean, low, high, p, len(both))


def _interval(values: Sequence[float], weights: Sequence[float], shares: bool) -> tuple[float, float, float]:
    """`shares`: whether unweighted values lie in [0, 1], as then does their interval."""
    if set(weights) == {1.0}:
        if set(values) <= {0.0, 1.0}:
            return (sum(values) / len(values), *wilson(round(sum(values)), len(values)))
        return share_interval(values) if shares else t_interval(values)
    return _bootstrap(np.asarray(values), np.asarray(weights))


def _bootstrap(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Weighted mean over items drawn anew; no interval where there is one item."""
    if len(values) == 1:
        return float(values[0]), -math.inf, math.inf
    return bootstrap(np.stack([values, weights], axis=1),
                     lambda rows: float(rows[:, 0] @ rows[:, 1] / rows[:, 1].sum()), DRAWS)
