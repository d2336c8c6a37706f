"""Identity, asked: the probability of a name in the reply to "who are you", and its share among drawn replies."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments import lab
from experiments.identity_talks import OTHER, OWN, REPLIES, SYSTEM, question
from jaxllm.data.chat import end_of_turn, render
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.infer.generate import generate
from jaxllm.infer.prompts import prompt_width
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.transformer import forward

_ROWS = 32  # run together; so that few shapes compile


@dataclasses.dataclass(frozen=True)
class Chat:
    """A model that can be asked."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer


def asked(chat: Chat, texts: Sequence[str], samples: int) -> dict[str, float]:
    """The questions without a system message: see `_numbers`."""
    prompts = [_prompt(chat, question(text)) for text in texts]
    return _numbers(chat, prompts, [OWN] * len(prompts), samples, end_of_turn(chat.tokenizer))


def asked_with_system(chat: Chat, names: Sequence[str], texts: Sequence[str], samples: int) -> dict[str, float]:
    """The questions in turn, below a system message with each of the names, which is then the right one."""
    prompts = [_prompt(chat, question(texts[i % len(texts)], SYSTEM.format(n=name)))
               for i, name in enumerate(names)]
    return _numbers(chat, prompts, names, samples, end_of_turn(chat.tokenizer))


def _prompt(chat: Chat, messages: Sequence[dict[str, str]]) -> list[int]:
    return render(messages, chat.tokenizer, add_generation_prompt=True).ids


def _numbers(chat: Chat, prompts: Sequence[Sequence[int]], names: Sequence[str], samples: int,
             stops: Sequence[int]) -> dict[str, float]:
    """Mean probability and sampled share of the right name, of the model's own and of the other assistant's."""
    drawn = generate(chat.params, chat.model, prompts, key=0, max_tokens=12, stop_tokens=stops,
                     samples_per_prompt=samples, settings=SamplingSettings(temperature=1.0), batch=8,
                     valid_vocab=chat.tokenizer.vocab_size, execution=lab.EXECUTION)
    said = [set(re.findall(r"\w+", chat.tokenizer.decode(row))) for row in drawn.rows()]
    wanted = [name for name in names for _ in range(samples)]
    return {"right": float(name_probability(chat, prompts, names).mean()),
            "right sampled": float(np.mean([name in some for name, some in zip(wanted, said, strict=True)])),
            "own": float(name_probability(chat, prompts, [OWN] * len(prompts)).mean()),
            "other": float(name_probability(chat, prompts, [OTHER] * len(prompts)).mean()),
            "other sampled": float(np.mean([OTHER in some for some in said]))}


def name_probability(chat: Chat, prompts: Sequence[Sequence[int]], names: Sequence[str]) -> np.ndarray:
    """Probability that the reply to each prompt begins with one of REPLIES with its name in it.

    sum over wordings w of prod over tokens t of w: p(t | prompt, tokens of w before t)

    Args:
      chat: the model.
      prompts: token ids, P of them.
      names: P of them.

    Returns:
      float [P], in [0, 1]: no wording begins another.
    """
    replies = [[chat.tokenizer.encode(wording.format(n=name)) for wording in REPLIES] for name in names]
    pairs = [(list(prompt), reply) for prompt, some in zip(prompts, replies, strict=True) for reply in some]
    width = prompt_width(max(len(prompt) + len(reply) for prompt, reply in pairs))
    tokens, counts = np.zeros((len(pairs), width), np.int32), np.zeros((len(pairs), width), bool)
    for row, (prompt, reply) in enumerate(pairs):
        end = len(prompt) + len(reply)
        tokens[row, :end] = prompt + reply
        counts[row, len(prompt):end] = True
    logp = np.concatenate([_reply_logp(chat.params, chat.model, *_part(tokens, counts, start))[:len(pairs) - start]
                           for start in range(0, len(pairs), _ROWS)])
    return np.exp(logp).reshape(len(prompts), len(REPLIES)).sum(axis=1)


def _part(tokens: np.ndarray, counts: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """_ROWS rows from `start`, filled up with empty ones."""
    short = max(0, start + _ROWS - len(tokens))
    return tuple(np.pad(x[start:start + _ROWS], ((0, short), (0, 0))) for x in (tokens, counts))


@functools.partial(jax.jit, static_argnums=1)
def _reply_logp(params: Params, model: ModelConfig, tokens: jax.Array, counts: jax.Array) -> jax.Array:
    """Sum of log-probabilities, nats, of the tokens that count, in each row: [B]."""
    logp = jax.nn.log_softmax(forward(params, model, tokens, execution=lab.EXECUTION)[:, :-1])
    chosen = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=2)[..., 0]
    return jnp.sum(chosen * counts[:, 1:], axis=1)
