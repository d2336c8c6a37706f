"""Our side of the policy-gradient benchmark: the steps of experiments/improve.py, timed in their own process."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from configs.policy_gradient import policy_config
from experiments.improve import Learner, make_mesh, make_plan
from experiments.launch import set_up_process
from experiments.taste import Start
from jaxllm.data.chat import end_of_turn
from jaxllm.infer.engine import Engine, Request
from jaxllm.rl.policy_step import PolicyModel
from jaxllm.train.checkpoint import load_model

WARM_UP = 3  # steps before any is counted: two compile


def train(folder: str, algorithm: str, by: str, prompts: int, samples: int, max_tokens: int
          ) -> tuple[Callable[[int], float], dict[str, Any]]:
    """run(count) takes `count` steps; see `Worker`. About: shares of a step, drawn tokens/s, and the engine's own."""
    set_up_process()
    start = Start(*load_model(pathlib.Path(folder) / "model"))
    asked = json.loads((pathlib.Path(folder) / "prompts.json").read_text(encoding="utf-8"))
    config = policy_config()
    config.update({"algorithm": algorithm, "prompts": prompts, "samples": samples})
    config.sampler.update({"by": by, "max_tokens": max_tokens})
    plan = make_plan(config, start)
    talks = {text: [{"role": "user", "content": text}] for text in asked}
    learner = Learner(config, plan, start, talks, 0, make_mesh(config))
    rows: list[dict[str, float]] = []

    def run(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            row, _ = learner.draw(len(rows) + 1, reward)
            learner.update(row)
            rows.append(row)
        return time.perf_counter() - begun

    before = _mean_logp(start, pathlib.Path(folder))
    run(WARM_UP)
    run(3)
    timed = rows[WARM_UP:]
    shares = {part: float(np.median([row[f"seconds_{part}"] / row["seconds"] for row in timed]))
              for part in ("sampling", "rewarding", "scoring", "updating")}
    rate = float(np.median([row["tokens"] / row["seconds_sampling"] for row in timed]))
    return run, {"logp": before, "shares": shares, "sampled_per_second": rate,
                 "tokens": float(np.mean([row["tokens"] for row in timed])),
                 "engine_per_second": _engine_rate(start, talks, learner, prompts * samples, max_tokens)}


def reward(names: Sequence[str], said: Sequence[Sequence[str]]) -> np.ndarray:
    """The length of a text, which costs nothing."""
    return np.array([[len(text) / 100 for text in row] for row in said])


def _mean_logp(start: Start, folder: pathlib.Path) -> float:
    """Mean log-probability of fixed tokens: where it is the peer's, both compute the same function."""
    tokens = np.array(json.loads((folder / "tokens.json").read_text(encoding="utf-8")), np.int32)
    outputs = jax.jit(PolicyModel.outputs, static_argnums=0)
    logp, _, _ = outputs(PolicyModel(start.model), {"model": start.params}, tokens)
    return float(np.asarray(logp)[:, 1:].mean())


def _engine_rate(start: Start, talks: dict[str, Any], learner: Learner, slots: int, max_tokens: int) -> float:
    """Tokens a second of the engine at its best: slots always full, no new weights, many requests."""
    engine = Engine(start.params, start.model, slots=slots, capacity=learner.drawing.width,
                    valid_vocab=start.tokenizer.vocab_size)
    ids = list(learner.drawing.prompt_ids.values())
    requests = [Request(tuple(ids[i % len(ids)]), max_tokens, seed=i, stop_tokens=end_of_turn(start.tokenizer))
                for i in range(4 * slots)]
    engine.run(requests[:slots])
    begun = time.perf_counter()
    done = engine.run(requests)
    return sum(len(one.tokens) for one in done) / (time.perf_counter() - begun)
