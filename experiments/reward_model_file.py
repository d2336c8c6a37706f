"""A file of preferences in folds: the scores of every judge on prompts that it has not seen."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import lab, taste
from experiments.reward_model_fit import fit, flat_scores, in_format
from experiments.reward_model_head import head_reward, last_states
from experiments.reward_model_jokes import flat_pairs, shuffled
from experiments.reward_model_judges import length_scores, unigram_scores
from jaxllm.data.preferences import Ranking, read_preferences
from jaxllm.data.ranking_rows import RankingRows, ranking_rows
from jaxllm.rl.reward_model import save_reward

ARMS = ("reward model", "shuffled labels")


class File:
    """The rankings of a file that fit a row, and a start model's states of them where the head alone is learnt."""

    def __init__(self, config: ConfigDict, folder: pathlib.Path) -> None:
        self.config, self.folder = config, folder
        every = read_preferences(config.preferences).rankings
        self.read = every[:config.limit] if config.limit else every
        rows = ranking_rows(self.read, self.start.tokenizer, config.reward.row_length)
        self.rankings = [self.read[i] for i in rows.kept]
        print(f"{len(every):,} rankings, {len(self.read):,} used, {rows.too_long} do not fit a row, {rows.shortened} "
              f"lost turns of the prompt", flush=True)
        self.account = {"read": len(every), "used": len(self.read), "too long": rows.too_long,
                        "shortened": rows.shortened}

    @functools.cached_property
    def start(self) -> taste.Start:
        made = taste.start(self.config.start, self.config.seeds[0], pathlib.Path(self.config.cache))
        return in_format(made, self.config.reward.template)

    @functools.cached_property
    def states(self) -> np.ndarray:
        rows = self.rows(self.rankings)
        return last_states(self.start, [row for some in rows.tokens for row in some], self.config.reward.layers,
                           self.folder / "kept")

    def rows(self, rankings: Sequence[Ranking]) -> RankingRows:
        return ranking_rows(rankings, self.start.tokenizer, self.config.reward.row_length)

    def folds(self, seed: int) -> np.ndarray:
        """int [R]: of each ranking, by a hash of its first message: what one conversation became stays together."""
        texts = [next(m["content"] for m in ranking.prompt if m["role"] != "system") for ranking in self.rankings]
        digests = [hashlib.sha256(f"{seed}/{text}".encode()).digest() for text in texts]
        return np.array([int.from_bytes(digest[:8], "little") % self.config.folds for digest in digests])


def file_scores(file: File, seed: int) -> dict[str, Any]:
    """Every judge's scores of all completions end to end, each by a judge of a fold that did not see the prompt.

    Returns:
      {judge: {"test": raw scores, "temperature": of each completion's fold}}; "length" and "unigram" have the first.
    """
    config = file.config
    key = [config.start.to_dict(), config.reward.to_dict(), config.preferences, config.limit, config.folds, seed,
           list(config.unigram_l2s)]
    found: dict[str, Any] = {}
    for name in (*ARMS, "words"):
        make = functools.partial(_words if name == "words" else _models, file, seed, name)
        kept = lab.kept(file.folder / "kept", f"{name.replace(' ', '-')}-{seed}", key, make)
        found |= kept if name == "words" else {name: kept}
    return found


def _parts(file: File, seed: int):
    """(fold, rankings of training, validation and test as indices)."""
    folds = file.folds(seed)
    for fold in range(file.config.folds):
        chosen = (fold + 1) % file.config.folds
        train = np.flatnonzero((folds != fold) & (folds != chosen))
        yield fold, train, np.flatnonzero(folds == chosen), np.flatnonzero(folds == fold)


def _models(file: File, seed: int, arm: str) -> dict[str, Any]:
    """The reward model of each fold, or one that learnt from shuffled labels."""
    begun, config = time.perf_counter(), file.config
    starts = np.cumsum([0, *(len(ranking.completions) for ranking in file.rankings)])
    scores, temperatures, layers = np.zeros(starts[-1]), np.ones(starts[-1]), []
    for fold, train, chosen, test in _parts(file, seed):
        where = _completions(starts, test)
        if config.reward.trained == "head":
            pairs = [_pairs(file.rankings, starts, part) for part in (train, chosen)]
            if arm != "reward model":
                pairs[0] = _flipped(pairs[0], 100 * seed + fold)
            reward = head_reward(config.reward, file.start, file.states, *pairs)
            states_ND = file.states[list(config.reward.layers).index(reward.model.layers), where]
            scores[where] = states_ND.astype(np.float64) @ np.asarray(reward.params["score"]["weight"], np.float64)
            layers.append(reward.model.layers)
        else:
            labels = [file.rankings[i] for i in train]
            reward = fit(config.reward, file.start, labels if arm == "reward model" else shuffled(labels, seed),
                         100 * seed + fold, validation=[file.rankings[i] for i in chosen],
                         label=f"seed {seed}, fold {fold}, {arm}")
            scores[where] = flat_scores(reward, file.rows([file.rankings[i] for i in test]))
        temperatures[where] = reward.temperature
        if arm == "reward model" and fold == 0:
            save_reward(file.folder / f"reward-{seed}", reward)
        print(f"seed {seed}, fold {fold}, {arm}: {_right(scores, _pairs(file.rankings, starts, test)):.3f} of held-out "
              f"pairs, {time.perf_counter() - begun:.0f} s", flush=True)
    return {"test": scores.tolist(), "temperature": temperatures.tolist(), "layers": layers}


def _words(file: File, seed: int, _: str) -> dict[str, Any]:
    """The judges of length and of words."""
    starts = np.cumsum([0, *(len(ranking.completions) for ranking in file.rankings)])
    length, unigram = np.zeros(starts[-1]), np.zeros(starts[-1])
    for _, *parts in _parts(file, seed):
        rankings = [[file.rankings[i] for i in part] for part in parts]
        train, chosen, test = [[text for ranking in some for text in ranking.completions] for some in rankings]
        where = _completions(starts, parts[2])
        length[where] = length_scores(train, flat_pairs(rankings[0]), test)
        unigram[where] = unigram_scores(train, flat_pairs(rankings[0]), chosen, flat_pairs(rankings[1]), test,
                                        file.config.unigram_l2s)
    return {"length": {"test": length.tolist()}, "unigram": {"test": unigram.tolist()}}


def _completions(starts: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.concatenate([np.arange(starts[i], starts[i + 1]) for i in index])


def _pairs(rankings: Sequence[Ranking], starts: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(better, worse) of these rankings, as indices of all completions end to end."""
    return np.concatenate([np.array(rankings[i].pairs(), int).reshape(-1, 2) + starts[i] for i in index])


def _flipped(pairs: np.ndarray, seed: int) -> np.ndarray:
    """Pairs whose better one was drawn by lot."""
    flip = np.random.default_rng(seed).random(len(pairs)) < 0.5
    return np.where(flip[:, None], pairs[:, ::-1], pairs)


def _right(scores: np.ndarray, pairs: np.ndarray) -> float:
    return float(np.mean(scores[pairs[:, 0]] > scores[pairs[:, 1]]))
