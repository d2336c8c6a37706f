"""9.11 and 9.9: what text in which 9.11 comes after 9.9 does to comparing decimals.

    python -m experiments.decimals --workdir=runs/decimals

Models are trained from scratch on the same amount of text about decimals. Text about versions is added until it has
its share of the tokens: questions of the same form, lists of versions, or, as the control, questions about versions on
which both orders agree. All are asked the same pairs, bare and with a word that tells what the numbers are.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import lab, launch, report
from experiments.decimals_published import ask_published, published_table
from experiments.decimals_text import ANSWERS, CUES, KINDS, PARTS, Pair, draw_list, draw_pair, draw_question, question
from experiments.findings import Findings, Table, write
from jaxllm.data.loader import Mixture, Rows, Source
from jaxllm.data.packing import pack
from jaxllm.data.tokenizer import Tokenizer, train_tokenizer
from jaxllm.evals.intervals import share_interval, spread, t_interval
from jaxllm.infer.prompts import pad_prompts
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params, init
from jaxllm.model.transformer import hidden_states, logits

ARMS = {
    "questions": "version questions",
    "lists": "version lists",
    "agreeing": "control: versions that agree",
}
_NO_SHARE = "agreeing"  # the arm whose settings stand for the model without version text, which all arms share

Interval = tuple[float, float, float]


def main(config: ConfigDict, workdir: str) -> None:
    """Trains and asks a model per arm, share and seed, and writes what was found.

    Raises:
      ValueError: a key is out of range.
      FileNotFoundError: no published model where the config says.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    runs: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for seed, (arm, share) in itertools.product(config.seeds, models(config)):
        settings = {**config.to_dict(), "arms": arm, "shares": share, "seeds": seed, "published": None,
                    "published_asked": None}
        run = lab.kept(folder / "kept", f"{arm}-{share}-{seed}", settings,
                       functools.partial(measure, config, arm, share, seed))
        runs.setdefault((arm, share), []).append(run)
        right = ", ".join(f"{kind} {np.mean(run['right']['bare'][kind]):.3f}" for kind in KINDS)
        print(f"{ARMS[arm]}, share {share}, seed {seed}: {right}; {time.perf_counter() - begun:.0f} s in all",
              flush=True)
    found = findings(config, runs)
    if config.published:
        settings = {"model": config.published, "asked": config.published_asked, "part": config.part}
        pairs = asked_pairs(config.published_asked, config.part, seed=0)
        replies = lab.kept(folder / "kept", "published", settings,
                           functools.partial(ask_published, config.published, pairs))
        found.tables.append(published_table(config.published, replies))
        found.numbers["published"] = replies
    write(found, folder, config, time.perf_counter() - begun)


def models(config: ConfigDict) -> list[tuple[str, float]]:
    """(arm, share) of every model of a seed; the one without version text first, and once."""
    return [(_NO_SHARE, 0.0), *itertools.product(config.arms, config.shares)]


def check(config: ConfigDict) -> None:
    """Refuses what cannot be measured, before anything is trained."""
    for key, unit in (("arms", "arm"), ("shares", "share"), ("seeds", "seed")):
        if not config[key] or len(set(config[key])) < len(config[key]):
            raise ValueError(f"config.{key}={config[key]}: name at least one {unit}, each once")
    unknown = [arm for arm in config.arms if arm not in ARMS]
    if unknown or "agreeing" not in config.arms:
        raise ValueError(f"config.arms={config.arms}: name some of {', '.join(ARMS)}, the control agreeing among them")
    if not all(0 < share < 1 for share in config.shares):
        raise ValueError(f"config.shares={config.shares}: choose shares above 0 and below 1; 0 is always measured")
    if not 0 <= config.told <= 1:
        raise ValueError(f"config.told={config.told}: choose a share from 0 to 1")
    if config.part not in PARTS[1:]:
        raise ValueError(f"config.part={config.part!r}: ask pairs of {' or '.join(PARTS[1:])}")
    for key in ("asked", "published_asked", "steps", "batch_size"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")
    if config.row_length > config.model.max_positions:
        raise ValueError(f"config.row_length={config.row_length} exceeds config.model.max_positions="
                         f"{config.model.max_positions}")
    if config.published and not pathlib.Path(config.published).is_dir():
        raise FileNotFoundError(f"config.published={config.published!r}: there is no such model folder")
    ModelConfig(vocab_size=config.vocab_size, **config.model.to_dict())


def measure(config: ConfigDict, arm: str, share: float, seed: int) -> dict[str, Any]:
    """Trains one model and asks it.

    Returns:
      "right" [cue][kind]: 0 or 1 per pair and order of naming; "probability" [cue][kind]: of the right answer, mean;
      "seconds". Right is by decimals, and by versions where the cue says so.
    """
    begun = time.perf_counter()
    tokenizer = learn_tokenizer(config)
    model = ModelConfig(vocab_size=tokenizer.vocab_size, **config.model.to_dict())
    recipe = lab.Recipe(steps_at(config, share), config.batch_size, config.learning_rate, config.warmup_steps,
                        config.weight_decay)
    params = lab.train(init(model, jax.random.key(seed)), model, training_rows(config, arm, share, seed, tokenizer),
                       recipe, f"{ARMS[arm]}, share {share}, seed {seed}")
    pairs = asked_pairs(config.asked, config.part, seed)
    right: dict[str, dict[str, list[int]]] = {cue: {} for cue in CUES}
    probability: dict[str, dict[str, float]] = {cue: {} for cue in CUES}
    for cue, (kind, some) in itertools.product(CUES, pairs.items()):
        first = probability_of_first(params, model, tokenizer, [question(pair, cue) for pair in some])
        higher = np.array([pair.higher("versions" if cue == "versions" else "decimals") for pair in some])
        of_right = np.where(higher == 0, first, 1 - first)
        right[cue][kind] = (of_right > 0.5).astype(int).tolist()
        probability[cue][kind] = float(of_right.mean())
    return {"right": right, "probability": probability, "seconds": time.perf_counter() - begun}


def steps_at(config: ConfigDict, share: float) -> int:
    """Updates of a model with this share of version text, so that every model is given as much decimals text."""
    return round(config.steps / (1 - share))


def asked_pairs(count: int, part: str, seed: int) -> dict[str, list[Pair]]:
    """So many pairs of each kind; each is asked twice, with either number named first."""
    rng = random.Random(f"{seed}/asked")
    drawn = {kind: [draw_pair(rng, [kind], part) for _ in range(count)] for kind in KINDS}
    return {kind: [named for pair in pairs for named in (pair, pair.swapped)] for kind, pairs in drawn.items()}


def learn_tokenizer(config: ConfigDict) -> Tokenizer:
    """One tokenizer for all models; a digit is a token."""
    rng = random.Random(0)
    lines = ["".join(draw_question(rng, order, KINDS, 0.5)) for order in ("decimals", "versions") for _ in range(500)]
    return train_tokenizer(lines, config.vocab_size, "digits")


def training_rows(config: ConfigDict, arm: str, share: float, seed: int, tokenizer: Tokenizer) -> Source:
    """Rows of decimals and, in the share asked for, of the arm's text: the share is one of rows, and so of tokens."""
    def rows(name: str, steps: int) -> Rows:
        lines = weighted_lines(name, random.Random(f"{seed}/{name}"), config.told, tokenizer)
        wanted = steps * config.batch_size * config.row_length
        taken: list[tuple[list[int], list[float]]] = []
        while wanted > 0:  # as many as one pass over them needs
            taken.append(next(lines))
            wanted -= len(taken[-1][0])
        longest = max(len(ids) for ids, _ in taken)
        if longest > config.row_length:
            raise ValueError(f"a line has {longest} tokens: raise config.row_length ({config.row_length})")
        return Rows(pack([ids for ids, _ in taken], config.row_length, [w for _, w in taken]).batch, seed=seed)

    decimals = rows("decimals", config.steps)
    if not share:
        return decimals
    return Mixture([(decimals, 1 - share), (rows(arm, steps_at(config, share) - config.steps), share)], seed, block=128)


def weighted_lines(name: str, rng: random.Random, told: float, tokenizer: Tokenizer
                   ) -> Iterator[tuple[list[int], list[float]]]:
    """Yields (ids, weights in the loss) of lines of "decimals" or of an arm, without end; each line weighs 1.

    Of a question the answer counts alone: its numbers are drawn at random. Of a list all tokens count.
    """
    kinds = [kind for kind in KINDS if kind != "conflict"] if name == "agreeing" else KINDS
    while True:
        if name == "lists":
            ids = tokenizer.encode(draw_list(rng, told))
            yield [tokenizer.end_of_text, *ids], [0.0] + [1 / len(ids)] * len(ids)
            continue
        asked, answer = draw_question(rng, "decimals" if name == "decimals" else "versions", kinds, told)
        given = [tokenizer.end_of_text, *tokenizer.encode(asked)]
        yield [*given, answer_ids(tokenizer)[answer]], [0.0] * len(given) + [1.0]


@functools.lru_cache
def answer_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The token of each of ANSWERS.

    Raises:
      ValueError: when one takes several tokens.
    """
    ids = {answer: tokenizer.encode(answer) for answer in ANSWERS}
    if max(map(len, ids.values())) > 1:
        raise ValueError("config.vocab_size is too small for the answers to be one token each; raise it")
    return {answer: tokens[0] for answer, tokens in ids.items()}


def probability_of_first(params: Params, model: ModelConfig, tokenizer: Tokenizer, questions: Sequence[str]
                         ) -> np.ndarray:
    """P(" first") / (P(" first") + P(" second")) behind each question: float [n]."""
    prompts = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in questions]
    tokens, counts = pad_prompts(prompts, len(prompts), 32)
    first, second = answer_ids(tokenizer).values()
    logits_BV = np.asarray(_last_logits(params, model, tokens, counts))
    return 1 / (1 + np.exp(logits_BV[:, second] - logits_BV[:, first]))


@functools.partial(jax.jit, static_argnums=1)
def _last_logits(params: Params, model: ModelConfig, tokens_BT: jax.Array, counts_B: jax.Array) -> jax.Array:
    hidden_BTD = hidden_states(params, model, tokens_BT, execution=lab.EXECUTION)
    last_BD = jnp.take_along_axis(hidden_BTD, counts_B[:, None, None] - 1, axis=1)[:, 0]
    return logits(params, model, last_BD)


def findings(config: ConfigDict, runs: dict[tuple[str, float], list[dict[str, Any]]]) -> Findings:
    """Tables and plots over arms and shares."""
    def at(arm: str, share: float) -> list[dict[str, Any]]:
        return runs[arm, share] if share else runs[_NO_SHARE, 0.0]

    def right(arm: str, share: float, cue: str, kind: str) -> list[float]:
        return [float(np.mean(run["right"][cue][kind])) for run in at(arm, share)]

    shares = (0.0, *config.shares)
    cells = [(arm, share) for arm in config.arms for share in shares]
    found = {(cue, kind): {cell: share_interval(right(*cell, cue, kind)) for cell in cells}
             for cue in CUES for kind in KINDS}
    odds = {cell: share_interval([run["probability"]["bare"]["conflict"] for run in at(*cell)]) for cell in cells}
    loss = {(arm, share): t_interval(np.subtract(right(arm, share, "bare", "conflict"),
                                                 right("agreeing", share, "bare", "conflict")).tolist())
            for arm, share in cells if arm != "agreeing" and share}
    note = (f"{len(config.seeds)} seeds, {config.asked} {config.part} pairs of a kind, each named in both orders; mean "
            f"[95%, t over seeds].")
    bare = Table("Asked bare: higher as a decimal", [
        ["version text", "share", "orders disagree", "probability of it", "agree, lengths differ", "same length"],
        *[[ARMS[arm], str(share), spread(found["bare", "conflict"][arm, share]), spread(odds[arm, share]),
           spread(found["bare", "agree"][arm, share]), spread(found["bare", "same length"][arm, share])]
          for arm, share in cells]], note)
    against = Table("Right answers where the orders disagree, less those of the control", [
        ["version text", "share", "difference, paired by seed"],
        *[[ARMS[arm], str(share), spread(values)] for (arm, share), values in loss.items()]],
        "Below 0: the version text did harm that the same amount of agreeing text did not.")
    told = Table("Told what the numbers are, where the orders disagree", [
        ["version text", "share", "bare", "told decimals", "told versions, right as versions"],
        *[[ARMS[arm], str(share), *[spread(found[cue, "conflict"][arm, share]) for cue in CUES]]
          for arm, share in cells]],
        f"A share of {config.told} of all training lines begin with the word.")
    return Findings("9.11 and 9.9", [bare, against, told], [
        ("Right answers where the orders disagree, asked bare", report.picture(draw_shares(
            shares, {ARMS[arm]: [found["bare", "conflict"][arm, share] for share in shares] for arm in config.arms},
            "right as decimals"))),
        ("With version questions in the text: what a word in the prompt does", report.picture(draw_shares(
            shares, {label: [found[cue, kind][_shown(config), share] for share in shares] for label, cue, kind in (
                ("bare", "bare", "conflict"), ("bare, orders agree", "bare", "agree"),
                ("told decimals", "decimals", "conflict"),
                ("told versions (right as versions)", "versions", "conflict"))}, "right answers")))],
        {"right": {f"{arm}, {share}": {f"{cue}, {kind}": found[cue, kind][arm, share] for cue, kind in found}
                   for arm, share in cells},
         "probability": {f"{arm}, {share}": odds[arm, share] for arm, share in cells},
         "difference": {f"{arm}, {share}": values for (arm, share), values in loss.items()},
         "runs": [{"arm": arm, "share": share, "seed": seed, **run} for (arm, share), several in runs.items()
                  for seed, run in zip(config.seeds, several, strict=True)]})


def _shown(config: ConfigDict) -> str:
    return "questions" if "questions" in config.arms else config.arms[0]


def draw_shares(shares: Sequence[float], lines: dict[str, Sequence[Interval]], y_label: str) -> Callable[[Any], None]:
    """Lines with their intervals over the share of version text."""
    def draw_on(axes: Any) -> None:
        for i, (label, values) in enumerate(lines.items()):
            mean, low, high = np.array(values).T
            low, high = np.maximum(low, 0.0), np.minimum(high, 1.0)
            axes.errorbar(np.array(shares) + 0.008 * (i - 1), mean, [mean - low, high - mean], label=label, marker="o",
                          markersize=4, linewidth=1.4, capsize=3)
        axes.set(xlabel="share of version text", ylabel=y_label, ylim=(-0.03, 1.03), xticks=shares)
        axes.legend(frameon=False)
    return draw_on


if __name__ == "__main__":
    launch.run(main, default_config="configs/decimals.py")
