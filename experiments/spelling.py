"""Spelling and counting: error against characters per token, with the characters spaced, with a tool; control: bytes.

    python -m experiments.spelling --workdir=runs/spelling

An example is one document. What the model writes is what counts in the loss:

    spell "banana": b a n a n a
    count "a" in "banana": 3
    count "a" in "b a n a n a": 3
    run "a" in "banana": <|tool_call|>"banana".count("a")<|tool_end|><|tool_result|>3<|tool_end|> 3

A call is run as Python in the sandbox (jaxllm/infer/tool_python.py) and its result put behind it, right or wrong.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import pathlib
import random
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import findings, lab, launch, report
from experiments.spelling_questions import SPLITS, TASKS, Example, ask, draw_words, edit_distance, split_of
from jaxllm.data.loader import Rows
from jaxllm.data.packing import Batch, pack
from jaxllm.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from jaxllm.evals.intervals import share_interval, spread
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.infer.tool_python import Sandbox, python_tool
from jaxllm.infer.tools import Tool
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params, count_params, init

NAMES = {"spell": "spelling", "count": "counting", "spaced": "counting, characters spaced",
         "tool": "counting with the tool"}


def main(config: ConfigDict, workdir: str) -> None:
    """Runs every vocabulary and seed, and writes the report.

    Raises:
      ValueError: a key is out of range.
      ImportError: without the extra `tools`.
    """
    begun = time.perf_counter()
    check(config)
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in config.to_dict().items() if key not in ("seeds", "vocab_sizes")}
    material = functools.cache(functools.partial(make_material, config))
    runs = []
    with Sandbox() as sandbox:
        tool = python_tool(sandbox)
        for vocab, seed in itertools.product(config.vocab_sizes, config.seeds):
            found = lab.kept(folder / "parts", f"{vocab}-{seed}", [settings, vocab, seed],
                             lambda: measure(config, material(seed), vocab, seed, tool))  # noqa: B023
            runs.append({"vocab_size": vocab, "seed": seed, **found})
    findings.write(report_of(config, runs), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after words are drawn or a model is trained."""
    least = 256 + len(SPECIAL_TOKENS)
    if not config.seeds or not config.vocab_sizes or min(config.vocab_sizes) < least:
        raise ValueError(f"config.vocab_sizes={config.vocab_sizes} and config.seeds={config.seeds}: name at least one "
                         f"each; {least} is the smallest vocabulary (bytes and special tokens)")
    if config.split not in SPLITS[1:]:
        raise ValueError(f"config.split={config.split!r}: choose one of {SPLITS[1:]}")
    if not 1 <= config.held_out_tenths <= 4:
        raise ValueError(f"config.held_out_tenths={config.held_out_tenths}: choose 1 to 4, of the two held-out splits "
                         f"each")
    for key in ("words", "most", "steps", "batch_size"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")


@dataclasses.dataclass(frozen=True)
class Material:
    """What every vocabulary of a seed learns from and is asked.

    Attributes:
      words: of all splits; tokenizers are trained on them.
      train: questions, each as an example of every task, as many as all updates take.
      test: questions about words that are in none of `train`.
    """

    words: list[str]
    train: list[tuple[Example, ...]]
    test: list[tuple[Example, ...]]


def make_material(config: ConfigDict, seed: int) -> Material:
    """Draws words, splits them by a hash and asks about them."""
    rng = random.Random(f"spelling/{seed}")
    words = draw_words(config.words, rng)
    split = {name: [word for word in words if split_of(word, seed, config.held_out_tenths) == name] for name in SPLITS}
    test = ask(split[config.split], config.most, rng)
    train: list[tuple[Example, ...]] = []
    while len(train) < config.steps * config.batch_size:
        train += ask(split["train"], config.most, rng)
    return Material(words, train[:config.steps * config.batch_size], test)


def make_tokenizer(material: Material, vocab_size: int) -> Tokenizer:
    """Byte-level BPE on every word, held-out ones too, and on some of the training text, whose frame (quotes, "count",
    spaced letters) would else be spelled in bytes."""
    frames = [e.prompt + e.call + e.answer for question in material.train[:len(material.words)] for e in question]
    return train_tokenizer([*(f'"{word}"' for word in material.words), *frames], vocab_size)


def encode(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[int], list[bool]]:
    """(prompt, what follows, which tokens of it the model writes itself)."""
    special = tokenizer.special_tokens
    prompt = [tokenizer.end_of_text, *tokenizer.encode(example.prompt)]
    answer = [*tokenizer.encode(example.answer), tokenizer.end_of_text]
    if example.task != "tool":
        return prompt, answer, [True] * len(answer)
    call = [special["<|tool_call|>"], *tokenizer.encode(example.call), special["<|tool_end|>"]]
    result = result_ids(str(example.count), tokenizer)
    return prompt, call + result + answer, [True] * len(call) + [False] * len(result) + [True] * len(answer)


def result_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """A tool's result as it is put into the context."""
    special = tokenizer.special_tokens
    return [special["<|tool_result|>"], *tokenizer.encode(text), special["<|tool_end|>"]]


def training_rows(questions: Sequence[Sequence[Example]], tokenizer: Tokenizer) -> Batch:
    """Row n holds the examples of question n, in every vocabulary; rows are as long as the longest needs."""
    encoded = [[encode(example, tokenizer) for example in question] for question in questions]
    sequences = [[prompt + rest for prompt, rest, _ in some] for some in encoded]
    weights = [[[False] * len(prompt) + own for prompt, _, own in some] for some in encoded]
    length = -(-max(sum(map(len, some)) for some in sequences) // 16) * 16
    rows = [pack(some, length, counted).batch for some, counted in zip(sequences, weights, strict=True)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def measure(config: ConfigDict, material: Material, vocab_size: int, seed: int, tool: Tool) -> dict[str, Any]:
    """Trains one model with one tokenizer, and asks it."""
    tokenizer = make_tokenizer(material, vocab_size)
    rows = training_rows(material.train, tokenizer)
    model = ModelConfig(vocab_size=vocab_size, max_positions=256, **config.model.to_dict())
    recipe = lab.Recipe(config.steps, config.batch_size, config.learning_rate, config.warmup_steps,
                        config.weight_decay)
    params = lab.train(init(model, jax.random.key(seed)), model, Rows(rows, seed=seed), recipe,
                       f"vocabulary {vocab_size}, seed {seed}")
    test = [example for question in material.test for example in question]
    written, calls = answers(params, model, tokenizer, test, tool)
    wrong = {task: [text != example.answer for text, example in zip(written, test, strict=True)
                    if example.task == task] for task in TASKS}
    letters = [edit_distance(text.split(), example.answer.split()) / len(example.word)
               for text, example in zip(written, test, strict=True) if example.task == "spell"]
    words = sorted({example.word for example in test})
    return {"parameters": count_params(model), "tokens": int((rows.segment_ids > 0).sum()),
            "characters_per_token": sum(len(word) + 1 for word in words)
            / sum(len(tokenizer.encode(f'"{word}')) for word in words),
            "error": {task: float(np.mean(some)) for task, some in wrong.items()}, "asked": len(material.test),
            "letters_wrong": float(np.mean(letters)), "calls_wrong": calls, **guesses(material)}


def answers(params: Params, model: ModelConfig, tokenizer: Tokenizer, examples: Sequence[Example], tool: Tool
            ) -> tuple[list[str], float]:
    """What the model writes in the end for each example, and the share of its calls that are not the right one."""
    special = tokenizer.special_tokens
    prompts = [encode(example, tokenizer)[0] for example in examples]
    longest = -(-max(len(encode(example, tokenizer)[1]) for example in examples) // 16) * 16
    draw = functools.partial(generate, params, model, key=0, settings=SamplingSettings(temperature=0.0), batch=256,
                             stop_tokens=(tokenizer.end_of_text, special["<|tool_end|>"]), execution=lab.EXECUTION)
    first = draw(prompts, max_tokens=longest).rows()
    written = [tokenizer.decode(ids[:-1]) for ids in first]
    asked = [i for i, example in enumerate(examples) if example.task == "tool"]
    good = {i: first[i][0] == special["<|tool_call|>"] and first[i][-1] == special["<|tool_end|>"] for i in asked}
    code = {i: tokenizer.decode(first[i][1:-1]) for i in asked if good[i]}
    again = [prompts[i] + first[i] + result_ids(tool.call({"code": code[i]})[:20], tokenizer) for i in code]
    if again:
        for i, ids in zip(code, draw(again, max_tokens=4).rows(), strict=True):
            written[i] = tokenizer.decode(ids[:-1])
    return written, float(np.mean([code.get(i) != examples[i].call for i in asked]))


def guesses(material: Material) -> dict[str, float]:
    """Errors of counting without reading the word: always the most frequent answer, and the most frequent in training
    for the letter and the number of letters."""
    seen: dict[Any, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for example, *_ in material.train:
        seen[None][example.count] += 1
        seen[example.letter, len(example.word)][example.count] += 1
    asked = [example for example, *_ in material.test]
    always = seen[None].most_common(1)[0][0]
    best = [(seen.get((e.letter, len(e.word))) or seen[None]).most_common(1)[0][0] for e in asked]
    return {"guess_majority": float(np.mean([always != e.count for e in asked])),
            "guess_letter_and_length": float(np.mean([n != e.count for n, e in zip(best, asked, strict=True)]))}


def report_of(config: ConfigDict, runs: list[dict[str, Any]]) -> findings.Findings:
    """Tables, the picture, and the numbers of every run."""
    groups = {vocab: [run for run in runs if run["vocab_size"] == vocab] for vocab in config.vocab_sizes}
    rows = [["vocabulary", "characters per token", *(NAMES[task] for task in TASKS), "letters wrong", "calls wrong"]]
    for vocab, some in groups.items():
        cells = [[run["error"][task] for run in some] for task in TASKS]
        cells = [[run["characters_per_token"] for run in some], *cells, [run["letters_wrong"] for run in some],
                 [run["calls_wrong"] for run in some]]
        rows.append([f"{vocab:,}" + (" (bytes)" if vocab == 256 + len(SPECIAL_TOKENS) else ""),
                     *(spread(share_interval(values), 2) for values in cells)])
    guess = {key: spread(share_interval([run[key] for run in runs[:len(config.seeds)]]), 2)
             for key in ("guess_majority", "guess_letter_and_length")}
    note = (f"Shares wrong on {runs[0]['asked']} questions, each put in every way, about words that were in no "
            f"example of training ({config.split} split). Mean and 95% interval (t) over {len(config.seeds)} seeds. "
            f"Without reading the word: always the most frequent answer {guess['guess_majority']}, the most frequent "
            f"for the letter and the length of the word {guess['guess_letter_and_length']}. Letters wrong: edit "
            f"distance to the spelling over the letters of the word. Calls wrong: not the call that counts this "
            f"letter.")
    sizes = [["vocabulary", "parameters", "tokens read"]]
    sizes += [[f"{vocab:,}", f"{some[0]['parameters']:,}", f"{some[0]['tokens']:,}"]
              for vocab, some in groups.items()]
    return findings.Findings(
        "Spelling and counting", [findings.Table("Error", rows, note),
                                  findings.Table("Models", sizes, f"{config.steps:,} updates on equal examples; "
                                                                  f"only the embedding differs. Tokens of the "
                                                                  f"first seed.")],
        [("Error against characters per token", picture(groups))], {"runs": runs})


def picture(groups: dict[int, list[dict[str, Any]]]) -> str:
    """Error of each task against characters per token: means over seeds, with their range."""
    def draw(axes) -> None:
        x = [np.mean([run["characters_per_token"] for run in some]) for some in groups.values()]
        for i, task in enumerate(TASKS):
            values = [[run["error"][task] for run in some] for some in groups.values()]
            axes.plot(x, [np.mean(v) for v in values], "o-", color=f"C{i}", markersize=4, label=NAMES[task])
            axes.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=f"C{i}", alpha=0.15,
                              linewidth=0)
        some = next(iter(groups.values()))
        axes.axhline(np.mean([run["guess_letter_and_length"] for run in some]), color="0.5", linestyle=":",
                     label="counting without reading the word")
        axes.set(xlabel="characters per token (left: bytes)", ylabel="share wrong", ylim=(-0.03, 1.03))
        axes.legend(frameon=False, fontsize=8)

    return report.picture(draw)


if __name__ == "__main__":
    launch.run(main, default_config="configs/spelling.py")
