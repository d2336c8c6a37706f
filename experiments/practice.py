"""Practice problems and the model that practises on them: made once, asked and measured.

    python -m experiments.practice --workdir=runs/practice

`start`, `tasks`, `reward` and `measure` are what experiments.sft_to_rl, learn_or_sharpen, from_base and distill share.
A base model reads documents of solved problems, half with the working and half with the bare answer; the fine-tuned
one has also seen a few conversations, most of them with the bare answer. Run by itself it measures both.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import findings, lab, launch
from experiments.practice_problems import (
    DOCUMENT,
    Judged,
    Tasks,
    demonstrations,
    documents,
    judge,
    learn_tokenizer,
    prompts,
    reply,
    reward,
    tasks,
    wording,
)
from experiments.tokens_to_think_problems import PARTS, kinds_of
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.conversations import conversation_rows
from jaxllm.data.loader import Rows
from jaxllm.data.packing import pack
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.evals.intervals import share_interval, spread
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params, flops_per_token, init
from jaxllm.train.checkpoint import load_model, save_model

__all__ = ["DOCUMENT", "Judged", "Start", "Tasks", "demonstrations", "documents", "fine_tune", "flops", "judge",
           "learn_tokenizer", "measure", "prompts", "reply", "reward", "rl_flops", "said", "start", "tasks", "wording"]
STAGES = ("base", "sft")
TOLD = ("right", "flawless_of", "answers", "said")  # what `measure` returns of each task
_OF_FINE_TUNING = ("kinds", "demonstrations", "epochs", "worked", "sft_learning_rate")


def main(config: ConfigDict, workdir: str) -> None:
    """Makes the base and the fine-tuned model of every seed and asks them, each in its own form.

    Raises:
      ValueError: a key is out of range.
    """
    check_start(config.start)
    if not config.seeds or config.samples < 1 or config.part not in PARTS[1:]:
        raise ValueError(f"config.seeds={config.seeds}, config.samples={config.samples}, config.part={config.part!r}: "
                         f"give seeds, 1 or more samples, and {' or '.join(PARTS[1:])}")
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs: dict[str, list[dict[str, Any]]] = {stage: [] for stage in STAGES}
    for seed, stage in itertools.product(config.seeds, STAGES):
        made = start(config.start, seed, pathlib.Path(config.cache), stage=stage)
        found = measure(made, tasks(config.start, seed, config.part), samples=config.samples, temperature=1.0,
                        seed=seed, max_tokens=config.start.max_tokens)
        runs[stage].append(found)
        print(f"{stage}, seed {seed}: {said(found)}; {time.perf_counter() - begun:.0f} s in all", flush=True)
    columns = ("accuracy", "worked", "flawless", "ended")
    table = findings.Table("Where practice starts", [
        ["model", *columns, *config.start.kinds],
        *[[stage, *[spread(share_interval([run[name] for run in some])) for name in columns],
           *[spread(share_interval([run["kinds"][kind] for run in some])) for kind in config.start.kinds]]
          for stage, some in runs.items()]],
        f"{config.part} problems, {config.samples} replies each at temperature 1; mean [95%, t over "
        f"{len(config.seeds)} seeds]. The base is asked in the form of its documents.")
    findings.write(findings.Findings("Practice problems", [table], [], {"runs": runs}), folder, config,
                   time.perf_counter() - begun)


@dataclasses.dataclass(frozen=True)
class Start:
    """A model that practice begins with; its tokenizer knows the form in which the model is asked."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer


def start(settings: ConfigDict, seed: int, cache: pathlib.Path, *, stage: str = "sft") -> Start:
    """The model that practice begins with, trained now or found in the cache.

    Args:
      settings: as configs.practice.start_config makes them.
      seed: of the first weights, the problems and their order.
      cache: the folder of stages.
      stage: "base": pretrained on documents, asked by DOCUMENT; "sft": then fine-tuned on conversations.

    Raises:
      ValueError: a setting is out of range.
    """
    check_start(settings)
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; choose one of {', '.join(STAGES)}")

    def make_base(folder: pathlib.Path) -> None:
        tokenizer = dataclasses.replace(learn_tokenizer(settings), chat_template=DOCUMENT)
        model = ModelConfig(vocab_size=tokenizer.vocab_size, **settings.shape.to_dict())
        rows = document_rows(documents(settings, seed), tokenizer, settings.row_length, seed)
        steps = rows.steps(settings.batch_size)
        recipe = lab.Recipe(steps, settings.batch_size, settings.learning_rate, min(50, steps // 2), weight_decay=0.1)
        params = lab.train(init(model, jax.random.key(seed)), model, rows, recipe, f"practice, base, seed {seed}")
        save_model(folder / "model", params, model, tokenizer)

    def make_sft(folder: pathlib.Path) -> None:
        base = start(settings, seed, cache, stage="base")
        params, tokenizer = lab.chat_start(base.params, base.model, base.tokenizer)
        made = fine_tune(settings, Start(params, base.model, tokenizer), demonstrations(settings, seed), seed,
                         label=f"practice, fine-tuning, seed {seed}")
        save_model(folder / "model", made.params, made.model, made.tokenizer)

    key = {**settings.to_dict(), "seed": seed, "wording": wording(settings, seed)}
    for name in ("train", "validation", "test", "max_tokens", *(stage == "base") * _OF_FINE_TUNING):
        del key[name]
    make = make_base if stage == "base" else make_sft
    folder = lab.stage(pathlib.Path(cache).expanduser(), f"practice-{stage}", key, make)
    return Start(*load_model(folder / "model"))


def fine_tune(settings: ConfigDict, made: Start, shown: Sequence[Conversation], seed: int, *,
              steps: int | None = None, label: str = "fine-tuning") -> Start:
    """Fine-tunes on conversations, `settings.epochs` times over them or for so many steps."""
    rows = Rows(conversation_rows(shown, made.tokenizer, settings.row_length).batch, seed=seed)
    steps = steps or math.ceil(settings.epochs * rows.count / settings.batch_size)
    recipe = lab.Recipe(steps, settings.batch_size, settings.sft_learning_rate, warmup_steps=min(10, steps // 2))
    return dataclasses.replace(made, params=lab.train(made.params, made.model, rows, recipe, label))


def check_start(settings: ConfigDict) -> None:
    """Refuses settings that would fail only after some work."""
    for key in ("kinds", "document_kinds"):
        unknown = [kind for kind in settings[key] if kind not in kinds_of(settings.family)]
        if unknown or not settings[key] or len(set(settings[key])) < len(settings[key]):
            raise ValueError(f"start.{key}={settings[key]}: name some of {', '.join(kinds_of(settings.family))}, each "
                             f"once")
    if settings.lines < 1:
        raise ValueError(f"start.lines={settings.lines}: choose 1 or more")
    if len(settings.documents) != len(settings.document_kinds) or min(settings.documents) < 1:
        raise ValueError(f"start.documents={settings.documents}: give a number of 1 or more for each of the "
                         f"{len(settings.document_kinds)} kinds")
    for key in ("train", "validation", "test", "demonstrations", "batch_size", "max_tokens"):
        if settings[key] < 1:
            raise ValueError(f"start.{key}={settings[key]}: choose 1 or more")
    for key in ("epochs", "learning_rate", "sft_learning_rate"):
        if not settings[key] > 0:
            raise ValueError(f"start.{key}={settings[key]} must be above 0")
    if not 0 <= settings.worked <= 1:
        raise ValueError(f"start.worked={settings.worked}: give a share in [0, 1]")
    if settings.row_length > settings.shape.max_positions:
        raise ValueError(f"start.row_length={settings.row_length} exceeds start.shape.max_positions="
                         f"{settings.shape.max_positions}")


def document_rows(texts: Sequence[str], tokenizer: Tokenizer, row_length: int, seed: int) -> Rows:
    """Packed rows in which every document stands once; the loss counts what follows the question, whose numbers
    nothing foretells.

    Raises:
      ValueError: when a document is longer than a row.
    """
    parts = [text.partition("\n") for text in texts]
    pairs = [([tokenizer.end_of_text, *tokenizer.encode(question + cut)],
              [*tokenizer.encode(solution), tokenizer.end_of_text]) for question, cut, solution in parts]
    longest = max(len(given) + len(written) for given, written in pairs)
    if longest > row_length:
        raise ValueError(f"a document has {longest} tokens: raise start.row_length ({row_length})")
    weights = [[0.0] * len(given) + [1.0] * len(written) for given, written in pairs]
    return Rows(pack([given + written for given, written in pairs], row_length, weights).batch, seed=seed)


def measure(made: Start, asked: Tasks, *, samples: int = 1, temperature: float = 0.0, seed: int = 0,
            max_tokens: int = 48) -> dict[str, Any]:
    """Asks a model and judges its replies.

    Args:
      made: the model, asked in its tokenizer's form.
      asked: tasks by name.
      samples: replies to each.
      temperature: of the draws; 0 is greedy.
      seed: of the draws.
      max_tokens: of a reply.

    Returns:
      Shares of all replies: "accuracy" (right), "worked", "form", "flawless" (see `Judged`), "ended"; "length", mean
      tokens of a reply; "kinds": the accuracy of each kind; "problems": how many; and of each task by name (TOLD):
      "right" and "flawless_of", how many of its replies are, "answers", what they commit themselves to, and "said", the
      first of them.
    """
    drawn = lab.ask(made.params, made.model, made.tokenizer, [task.prompt for task in asked.values()],
                    samples=samples, temperature=temperature, max_tokens=max_tokens, seed=seed,
                    batch=max(1, 512 // samples))
    judged = {name: [judge(task, one.text) for one in row]
              for (name, task), row in zip(asked.items(), drawn, strict=True)}
    every = [one for row in judged.values() for one in row]
    replies = [one for row in drawn for one in row]
    kinds: dict[str, list[bool]] = {}
    for name, row in judged.items():
        kinds.setdefault(name.partition(": ")[0], []).extend(one.right for one in row)
    return {"accuracy": float(np.mean([one.right for one in every])),
            **{part: float(np.mean([getattr(one, part) for one in every])) for part in ("worked", "form", "flawless")},
            "ended": float(np.mean([one.ended for one in replies])),
            "length": float(np.mean([len(one.tokens) for one in replies])),
            "kinds": {kind: float(np.mean(right)) for kind, right in kinds.items()},
            "problems": len(asked),
            "right": {name: sum(one.right for one in row) for name, row in judged.items()},
            "flawless_of": {name: sum(one.flawless for one in row) for name, row in judged.items()},
            "answers": {name: [one.answer for one in row] for name, row in judged.items()},
            "said": {name: row[0].text for name, row in zip(asked, drawn, strict=True)}}


def said(found: Mapping[str, Any]) -> str:
    """What `measure` found, in a line."""
    kinds = ", ".join(f"{kind} {share:.3f}" for kind, share in found["kinds"].items())
    return (f"accuracy {found['accuracy']:.3f} ({kinds}), worked {found['worked']:.3f}, length {found['length']:.1f}")


def flops(model: ModelConfig, length: int, *, read: float = 0, learnt: float = 0) -> float:
    """Floating-point operations of a run, by `params.flops_per_token`: about 2N for a token read, 6N for one learnt.

    Args:
      model: N is of its weights in matrix products; attention counts as well.
      length: of the rows, tokens.
      read: tokens, padding included, of which a forward pass was made: drawn, or scored.
      learnt: tokens, padding included, of which forward and backward passes were made.
    """
    return flops_per_token(model, length, training=False) * (read + 3 * learnt)


def rl_flops(model: ModelConfig, rl: ConfigDict, width: int, steps: int | None = None) -> float:
    """What a run of `experiments.improve` costs: each row is drawn, scored by policy and reference, and learnt from.

    Args:
      model: of the policy.
      rl: as configs.policy_gradient.policy_config makes it; its algorithm updates once on a rollout.
      width: tokens of a row, prompt and padding included.
      steps: None is all of them.
    """
    tokens = (rl.steps if steps is None else steps) * rl.prompts * rl.samples * width
    return flops(model, width, read=3 * tokens, learnt=tokens)


if __name__ == "__main__":
    launch.run(main, default_config="configs/practice.py")
