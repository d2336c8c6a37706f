"""Our models in EleutherAI's lm-evaluation-harness: `lm_eval.simple_evaluate(model=Harness(model), tasks=[...])`.

The harness makes the prompts and takes the scores; the numbers come from the same functions as our own evaluation.
Nothing is downloaded for local tasks (a YAML whose `dataset_path` is json with `data_files`).

References: Gao et al., A framework for few-shot language model evaluation.
  https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
except ImportError as error:
    raise ImportError("the adapter needs lm-evaluation-harness: pip install -e '.[harness]'") from error

from jaxllm.data.chat import render
from jaxllm.evals import rolling
from jaxllm.evals.generation import complete
from jaxllm.evals.language_model import LanguageModel, encode_pair
from jaxllm.evals.loglikelihood import BATCH_TOKENS, loglikelihoods

MAX_TOKENS = 256  # of a generation whose task does not say
_KNOWN = {"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature"}


class Harness(LM):
    """A model as the harness calls one.

    Args:
      model: with begin=False it gets the prompts that the harness's transformers backend gives to a tokenizer without a
        token at the beginning; `chat` must be off, since the harness lays out messages itself (apply_chat_template).
      batch_tokens: of a batch, padding included.
      slots: generations at once.

    Raises:
      ValueError: for a model with chat on.
    """

    def __init__(self, model: LanguageModel, *, batch_tokens: int = BATCH_TOKENS, slots: int = 16) -> None:
        super().__init__()
        if model.chat:
            raise ValueError("give a model with chat=False; the harness lays out messages by apply_chat_template=True")
        self._model, self._batch_tokens, self._slots = model, batch_tokens, slots

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is greedy) of each (context, continuation)."""
        asked = [encode_pair(self._model, *request.args) for request in requests]
        found = loglikelihoods(self._model, asked, batch_tokens=self._batch_tokens)
        return self._kept("loglikelihood", requests, [(scored.logp, scored.greedy) for scored in found])

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        """Log-likelihood in nats of each whole text, given the token that begins one."""
        found = rolling.score_texts(self._model, [request.args[0] for request in requests],
                                    batch_tokens=self._batch_tokens)
        return self._kept("loglikelihood_rolling", requests, [score.logp for score in found])

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        """Replies, each ended by its own stop strings. All that share a temperature run together.

        Raises:
          ValueError: for a setting of the generation that we do not have.
        """
        replies: list[str] = [""] * len(requests)
        settings = [_settings(request.args[1]) for request in requests]
        for temperature in sorted({temperature for _, _, temperature in settings}):
            places = [i for i, one in enumerate(settings) if one[2] == temperature]
            found = complete(self._model, [requests[i].args[0] for i in places],
                             max_tokens=[settings[i][1] for i in places], stop=[settings[i][0] for i in places],
                             temperature=temperature, slots=self._slots)
            for place, reply in zip(places, found, strict=True):
                replies[place] = reply
        return self._kept("generate_until", requests, replies)

    @property
    def tokenizer_name(self) -> str:
        """What the harness's caches of requests bear."""
        return self._model.tokenizer.fingerprint

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as text, in the tokenizer's chat format.

        Raises:
          ValueError: where that text does not give the tokens of the format: special tokens cannot be written in it.
        """
        ids = render(chat_history, self._model.tokenizer, add_generation_prompt=add_generation_prompt).ids
        text = self._model.tokenizer.decode(ids)
        if self._model.tokenizer.encode(text) != ids:
            raise ValueError("this tokenizer's chat format has special tokens, which text cannot spell here; evaluate "
                             "chats by python -m experiments.evaluate --config.chat")
        return text

    def _kept(self, kind: str, requests: Sequence[Instance], answers: list) -> list:
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers


def _settings(given: Mapping[str, Any]) -> tuple[tuple[str, ...], int, float]:
    """(stop strings, most new tokens, temperature) of a request."""
    unknown = sorted(set(given) - _KNOWN)
    if unknown:
        raise ValueError(f"generation_kwargs has {', '.join(unknown)}, which this adapter does not know; it knows "
                         f"{', '.join(sorted(_KNOWN))}")
    until = given.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    drawn = given.get("do_sample", float(given.get("temperature", 0.0)) > 0)
    return (tuple(one for one in stops if one), int(given.get("max_gen_toks", given.get("max_new_tokens", MAX_TOKENS))),
            float(given.get("temperature", 1.0)) if drawn else 0.0)
