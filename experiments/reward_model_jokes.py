"""Rankings of jokes by simulated people, and the scores of every judge on those held out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pathlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab, taste
from experiments.reward_model_fit import fit, flat_scores, pair_indices
from experiments.reward_model_judges import length_scores, unigram_scores
from jaxllm.data.preferences import Ranking
from jaxllm.data.ranking_rows import ranking_rows
from jaxllm.data.world_taste import Human, gold, rank, things
from jaxllm.rl.reward_model import Reward, save_reward

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Jokes:
    """Rankings by split, gold of the test completions end to end, and another person's order of the same."""

    rankings: dict[str, list[Ranking]]
    gold: np.ndarray
    other_person: np.ndarray


def draw_jokes(config: ConfigDict, start: Callable[[], taste.Start], seed: int, kept: pathlib.Path) -> Jokes:
    """Jokes that the start model tells, ranked.

    Args:
      config: as configs.reward_model.get_config makes it.
      start: gives the model; called only if its jokes are not kept.
      seed: of the draws and the noise.
      kept: folder of what is done.
    """
    counts = dict(zip(SPLITS, (config.rankings, config.validation, config.test), strict=True))
    rankings: dict[str, list[Ranking]] = {}
    human = Human(**config.human.to_dict())
    for number, (split, count) in enumerate(counts.items()):
        asked = _asked(split, count, seed)
        settings = [config.start.to_dict(), seed, split, count, config.completions, config.temperature]
        texts = lab.kept(kept, f"jokes-{split}-{seed}", settings, functools.partial(
            _draw, config, start, asked, seed * len(SPLITS) + number))
        rng = random.Random(f"{seed}/{split}/people")
        rankings[split] = [rank(human, thing, some, rng) for thing, some in zip(asked, texts, strict=True)]
    flat = [(thing, text) for thing, ranking in zip(_asked("test", config.test, seed), rankings["test"], strict=True)
            for text in ranking.completions]
    rng = random.Random(f"{seed}/another person")
    return Jokes(rankings, np.array([gold(*pair) for pair in flat]),
                 np.array([human.taste(*pair) + rng.gauss(0.0, human.noise) for pair in flat]))


def _asked(split: str, count: int, seed: int) -> list[str]:
    """The thing of each ranking: every one as often as another, give or take one."""
    every = list(things(split))
    random.Random(f"{seed}/{split}/things").shuffle(every)
    return [every[i % len(every)] for i in range(count)]


def _draw(config: ConfigDict, start: Callable[[], taste.Start], asked: Sequence[str], seed: int) -> list[list[str]]:
    begun, made = time.perf_counter(), start()
    drawn = taste.draw(made.params, made.model, made.tokenizer, asked, samples=config.completions, seed=seed,
                       temperature=config.temperature, max_tokens=config.start.max_tokens)
    print(f"{len(asked)} x {config.completions} jokes drawn, {time.perf_counter() - begun:.0f} s", flush=True)
    return [[answer.text for answer in answers] for answers in drawn]


def shuffled(rankings: Sequence[Ranking], seed: int) -> list[Ranking]:
    """The same rankings with orders that mean nothing: each is given to its completions in another order."""
    rng = random.Random(f"{seed}/shuffled")
    return [dataclasses.replace(ranking, completions=tuple(rng.sample(ranking.completions, len(ranking.completions))))
            for ranking in rankings]


def joke_scores(config: ConfigDict, seed: int, folder: pathlib.Path) -> tuple[Jokes, dict[str, Any]]:
    """(the jokes, what every judge says of the held-out ones); models are fitted now or were kept.

    Judges that are models, each {"test": scores end to end, raw, "sd", "temperature" of validation}: "member I", "COUNT
    rankings", "other loss", "shuffled labels". Others, {"test": scores}: "length", "unigram".
    """
    start = functools.cache(lambda: taste.start(config.start, seed, pathlib.Path(config.cache)))
    jokes = draw_jokes(config, start, seed, folder / "kept")
    train = jokes.rankings["train"]
    found: dict[str, Any] = {}
    settings = config.reward
    other = copy.deepcopy(settings)
    other.loss = "plackett_luce" if settings.loss == "bradley_terry" else "bradley_terry"
    other.margin = 0.0
    arms = [(f"member {i}", settings, train, i) for i in range(config.members)]
    arms += [(f"{count} rankings", settings, train[:count], 0) for count in config.counts]
    arms += [("other loss", other, train, 0)] if config.other_loss else []
    arms += [("shuffled labels", settings, shuffled(train, seed), 0)]
    for name, some, rankings, number in arms:
        key = [config.start.to_dict(), config.human.to_dict(), some.to_dict(), seed, number, config.rankings,
               config.validation, config.test, config.completions, config.temperature, len(rankings)]
        found[name] = lab.kept(folder / "kept", f"{name.replace(' ', '-')}-{seed}", key, functools.partial(
            _fit, some, start, rankings, jokes, 1000 * seed + number, f"seed {seed}, {name}",
            folder / f"reward-{seed}" if name == "member 0" else None))
    texts = {split: [text for ranking in rankings for text in ranking.completions]
             for split, rankings in jokes.rankings.items()}
    pairs = {split: flat_pairs(rankings) for split, rankings in jokes.rankings.items()}
    found["length"] = {"test": length_scores(texts["train"], pairs["train"], texts["test"])}
    found["unigram"] = {"test": unigram_scores(texts["train"], pairs["train"], texts["validation"], pairs["validation"],
                                               texts["test"], config.unigram_l2s)}
    return jokes, found


def flat_pairs(rankings: Sequence[Ranking]) -> np.ndarray:
    """(better, worse) of all pairs that are not tied, as indices of the completions end to end: int [P, 2]."""
    starts = np.cumsum([0, *(len(ranking.completions) for ranking in rankings)])
    return np.concatenate([np.array(ranking.pairs(), int).reshape(-1, 2) + start
                           for ranking, start in zip(rankings, starts[:-1], strict=True)])


def _fit(settings: ConfigDict, start: Callable[[], taste.Start], rankings: Sequence[Ranking], jokes: Jokes, seed: int,
         label: str, folder: pathlib.Path | None) -> dict[str, Any]:
    begun = time.perf_counter()
    reward = fit(settings, start(), rankings, seed, validation=jokes.rankings["validation"], label=label)
    if folder is not None:
        save_reward(folder, reward)
    return {"test": _scores(reward, jokes.rankings["test"]), "train": _accuracy(reward, rankings), "sd": reward.sd,
            "temperature": reward.temperature, "seconds": time.perf_counter() - begun}


def _scores(reward: Reward, rankings: Sequence[Ranking]) -> list[float]:
    """Raw scores of all completions end to end; every ranking must fit a row."""
    rows = ranking_rows(rankings, reward.tokenizer, reward.row_length)
    if rows.too_long:
        raise ValueError(f"{rows.too_long} of {len(rankings)} rankings do not fit rows of {reward.row_length} tokens: "
                         f"raise reward.row_length")
    return flat_scores(reward, rows).tolist()


def _accuracy(reward: Reward, rankings: Sequence[Ranking]) -> float:
    """Share of the pairs it learnt from that it orders right."""
    rows = ranking_rows(rankings, reward.tokenizer, reward.row_length)
    scores, pairs = flat_scores(reward, rows), pair_indices(rows)
    return float(np.mean(scores[pairs[:, 0]] > scores[pairs[:, 1]]))
