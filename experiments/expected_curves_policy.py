"""A run of policy gradient of seconds, whose curve is known: replies that begin with a vowel are rewarded.

    python -m experiments.expected_curves_policy
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import expected_curves_band, improve_learner, launch, taste
from experiments.improve import improve
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.model.config import preset
from jaxllm.model.params import init
from jaxllm.train.loop import StopRequest

_PROMPTS = {name: [{"role": "user", "content": name}] for name in "abcdefgh"}


def main(config: ConfigDict, workdir: str) -> bool:
    """Runs or resumes the policy; returns whether all its steps are taken. See configs/policy_nano.py."""
    improve_learner._compiled.cache_clear()  # what a bug has patched must not be found compiled, nor be left behind
    tokenizer = dataclasses.replace(train_tokenizer(["a joke about a thing, banana! "] * 3, 280, "digits",
                                                    SPECIAL_TOKENS), chat_template="im_sep")
    model = preset("nano", layers=1, vocab_size=320)
    start = taste.Start(init(model, jax.random.key(config.seed)), model, tokenizer)
    folder = pathlib.Path(workdir)
    with StopRequest() as stop:
        improved = improve(config.rl, start, begins_with_a_vowel, config.seed, prompts=_PROMPTS, folder=folder,
                           stop=stop)
    finished = len(improved.rows) == config.rl.steps
    if finished and (said := expected_curves_band.verdict(config, folder)):
        print(said, flush=True)
    return finished


def begins_with_a_vowel(names: Sequence[str], said: Sequence[Sequence[str]]) -> np.ndarray:
    """1 or 0 for every reply: [Q, G]."""
    del names
    return np.array([[float(text[:1] in tuple("aeiou")) for text in row] for row in said])


if __name__ == "__main__":
    launch.run(main, default_config="configs/policy_nano.py")
