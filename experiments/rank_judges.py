"""Who judges the battles of experiments.rank, by the name in its config."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from experiments import lab, rank_players, rank_world
from jaxllm.data.preferences import read_prompts
from jaxllm.data.verifiable import read_tasks
from jaxllm.evals.arena_judges import CRITERION, ModelJudge, by_score
from jaxllm.evals.arena_play import Judge, Prompt
from jaxllm.rl.reward_model import load_reward, score_texts
from jaxllm.rl.rewards import grade

KINDS = ("gold", "verifier", "reward", "model", "people")


def prompts_of(config: ConfigDict) -> list[Prompt]:
    """What the players are asked."""
    if not config.prompts:
        return rank_world.prompts_of(config)
    if config.judge.kind == "verifier":
        return [task.prompt for task in read_tasks(config.prompts)]
    return read_prompts(config.prompts)


def judge_of(config: ConfigDict, prompts: Sequence[Prompt]) -> Judge:
    """The judge that the config names, but for people, who need a page.

    Raises:
      ValueError, FileNotFoundError: it cannot be opened.
    """
    settings = config.judge
    if settings.kind == "model":
        return ModelJudge(rank_players.connect(settings.model, config.api), settings.criterion or CRITERION,
                          config.api.attempts)
    scores = {"gold": rank_world.gold_of, "verifier": lambda _: _verified(config.prompts),
              "reward": lambda prompts: _rewarded(settings.reward, prompts)}
    return by_score(scores[settings.kind](prompts), settings.tie, settings.bad)


def version_of(config: ConfigDict) -> str:
    """Stands for a judge as it is now: another one's votes are in another file."""
    settings = {name: value for name, value in config.judge.items() if name not in ("host", "port", "overlap")}
    seen = {"reward": lambda: rank_players.version_of(config.judge.reward, {}),
            "verifier": lambda: hashlib.sha256(pathlib.Path(config.prompts).expanduser().read_bytes()).hexdigest(),
            "gold": lambda: config.world.voter.to_dict()}
    return lab.key_of([settings, seen[config.judge.kind]() if config.judge.kind in seen else None])


def _verified(file: str) -> Callable[[int, str], float]:
    tasks = list(read_tasks(file))
    return lambda number, text: grade(tasks[number].verifier, text, tasks[number].answer).score


def _rewarded(folder: str, prompts: Sequence[Prompt]) -> Callable[[int, str], float]:
    """Each reply is scored once, alone: a reward model does not know what it is compared with."""
    reward = load_reward(pathlib.Path(folder).expanduser())
    known: dict[tuple[int, str], float] = {}

    def score(number: int, text: str) -> float:
        if (number, text) not in known:
            known[number, text] = float(score_texts(reward, [prompts[number]], [[text]], batch=1)[0, 0])
        return known[number, text]
    return score
