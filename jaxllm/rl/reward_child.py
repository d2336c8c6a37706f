"""The child process of `reward_worker`: runs one library's grading, a request a line.

Its standard input and output carry JSON alone; what a library prints goes nowhere. A request that takes too much time
of the processor is broken off by a signal, which is why this stands in the main thread of a process of its own. Nothing
in it evaluates text as Python: of math-verify the LaTeX parser alone is used, and reasoning-gym's scorers get a text
only where `reward_gym.may_read` lets it pass.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


class _TimeIsUp(BaseException):
    """Not an Exception: the libraries catch those and go on."""


# A library is a function of a request; what it returns is called under the time limit.
_Library = Callable[..., Callable[[], Any]]


def _math() -> _Library:
    import math_verify

    target = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)

    def equal(truth: str, said: str) -> bool:
        parsed = [math_verify.parse(f"\\boxed{{{text}}}", target, parsing_timeout=None) for text in (truth, said)]
        return bool(math_verify.verify(*parsed, timeout_seconds=None))
    equal("x^2+2x+1", "(x+1)^2")  # sympy imports and caches much of itself at its first simplification
    return lambda truth, said: lambda: equal(truth, said)


def _reasoning_gym() -> _Library:
    import reasoning_gym

    @functools.lru_cache(maxsize=64)
    def dataset(task: str, config: str) -> Any:
        return reasoning_gym.create_dataset(task, seed=0, **json.loads(config))

    def score(task: str, config: Mapping[str, Any], entry: Mapping[str, Any], said: str) -> Callable[[], float]:
        scorer = dataset(task, json.dumps(config, sort_keys=True))  # a few load for seconds: not the text's fault
        return lambda: float(scorer.score_answer(said, _restored(entry)))
    return score


def _restored(value: Any) -> Any:
    """The tuples of an entry back from JSON; see `jaxllm.data.verifiable`."""
    if isinstance(value, dict):
        return (tuple(map(_restored, value["<tuple>"])) if set(value) == {"<tuple>"} else
                {name: _restored(part) for name, part in value.items()})
    return [_restored(part) for part in value] if isinstance(value, list) else value


def main(kind: str, seconds: float) -> None:
    """Answers requests until the input ends; {"value": ...} or {"error": sentence}."""
    inward, outward = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(silence, number)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    def ring(*_: Any) -> None:
        raise _TimeIsUp
    signal.signal(signal.SIGPROF, ring)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to answer
    library: _Library = {"math": _math, "reasoning_gym": _reasoning_gym}[kind]()
    os.dup2(silence, 2)  # only now: why an import failed is told
    print(json.dumps({"value": "ready"}), file=outward, flush=True)
    for line in inward:
        try:
            call = library(**json.loads(line))
            signal.setitimer(signal.ITIMER_PROF, seconds)
            try:
                reply = {"value": call()}
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except _TimeIsUp:
            reply = {"error": "it took too long"}
        except Exception as error:  # whatever a library raises on a text is the text's fault
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(reply), file=outward, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
