"""Verbatim extraction: does a model continue the start of a text that it was trained on with the rest, word for word?

The texts are token sequences and the model is a function from prompts to continuations, so that any model can be asked.

References:
  Carlini et al., Quantifying Memorization Across Neural Language Models, 2022. https://arxiv.org/abs/2202.07646
  Kandpal, Wallace and Raffel, Deduplicating Training Data Mitigates Privacy Risks in Language Models, 2022.
    https://arxiv.org/abs/2202.06539
  Carlini et al., The Secret Sharer, 2019 (exposure). https://arxiv.org/abs/1802.08232
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params
from jaxllm.model.transformer import forward

# (prompts, tokens to draw) -> the likeliest continuation of each; one that ends early is shorter.
Continue = Callable[[Sequence[Sequence[int]], int], Sequence[Sequence[int]]]


@dataclasses.dataclass(frozen=True)
class Extraction:
    """How much of a text's rest came out.

    Attributes:
      matched: tokens of the longest prefix of the rest that was produced.
      of: tokens of the rest, at least 1.
    """

    matched: int
    of: int

    @property
    def exact(self) -> bool:
        """Whether all of it came out: "extractable with k tokens of context" in Carlini et al., definition 3.1."""
        return self.matched == self.of

    @property
    def share(self) -> float:
        """Of the rest, in [0, 1]."""
        return self.matched / self.of


def cut(sequences: Sequence[Sequence[int]], prompt_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of `prompt_tokens` tokens, and the rests.

    Raises:
      ValueError: for a sequence that leaves nothing to be continued.

    >>> cut([[1, 2, 3]], 2)
    ([[1, 2]], [[3]])
    """
    if prompt_tokens < 1:
        raise ValueError(f"prompt_tokens is {prompt_tokens}; a model needs at least 1 token to continue")
    for number, sequence in enumerate(sequences):
        if len(sequence) <= prompt_tokens:
            raise ValueError(f"sequence {number} has {len(sequence)} tokens; prompts of {prompt_tokens} leave nothing "
                             f"to be continued: give longer sequences or a shorter prompt")
    return [list(s[:prompt_tokens]) for s in sequences], [list(s[prompt_tokens:]) for s in sequences]


def compare(produced: Sequence[int], rest: Sequence[int]) -> Extraction:
    """Matches a continuation with the true rest, from its first token to the first difference.

    >>> compare([7, 8, 0, 9], [7, 8, 5])
    Extraction(matched=2, of=3)
    """
    matched = 0
    for ours, theirs in zip(produced, rest, strict=False):
        if ours != theirs:
            break
        matched += 1
    return Extraction(matched, len(rest))


def extract(continue_prompts: Continue, sequences: Sequence[Sequence[int]], prompt_tokens: int
            ) -> tuple[list[Extraction], list[Extraction]]:
    """Prompts a model with the start of each sequence.

    Args:
      continue_prompts: the model, decoding greedily.
      sequences: token ids, each longer than `prompt_tokens`.
      prompt_tokens: tokens that the model is given.

    Returns:
      What came out of each sequence; and, as a control for chance, the same continuations matched with the rest of the
      next sequence instead (the last with the first): what fits a rest that the prompt does not belong to.

    Raises:
      ValueError: as `cut`, or for fewer than two sequences, which leave no other to match with.
    """
    if len(sequences) < 2:
        raise ValueError(f"{len(sequences)} sequences: the control for chance needs at least 2")
    prompts, rests = cut(sequences, prompt_tokens)
    produced = continue_prompts(prompts, max(map(len, rests)))
    own = [compare(ours, rest) for ours, rest in zip(produced, rests, strict=True)]
    other = [compare(ours, rest) for ours, rest in zip(produced, [*rests[1:], rests[0]], strict=True)]
    return own, other


def exposure(nll: float, references: Sequence[float]) -> float:
    """log2(R + 1) - log2(rank), in bits: how far a text stands out from R like it that were never trained on.

    Zero for a text less likely than all references, log2(R + 1) for one more likely than all; about 1.4 on average for
    one that was not seen either. A tie counts against it.

    Args:
      nll: nats, of the text.
      references: nats, of texts drawn in the same way, at least one.

    References: Carlini et al., The Secret Sharer, 2019, section 4.2 (there the text itself is in the space of R).

    >>> exposure(1.0, [2.0, 3.0, 4.0]), exposure(9.0, [2.0, 3.0, 4.0])
    (2.0, 0.0)
    """
    if not len(references):
        raise ValueError("exposure needs at least one reference")
    rank = 1 + sum(reference <= nll for reference in references)
    return math.log2(len(references) + 1) - math.log2(rank)


def rest_nll(params: Params, config: ModelConfig, sequences: jax.Array, prompt_tokens: int,
             execution: Execution = Execution()) -> jax.Array:
    """-sum log p(token | all before) over the tokens behind the prompt.

    Args:
      params, config, execution: as `forward` takes them.
      sequences: int32 [B, T], all of one length.
      prompt_tokens: tokens of each that are given, 1 to T - 1.

    Returns:
      float32 [B], nats.
    """
    logp = jax.nn.log_softmax(forward(params, config, sequences[:, :-1], execution=execution))
    logp = jnp.take_along_axis(logp, sequences[:, 1:, None], axis=-1)[..., 0]
    return -logp[:, prompt_tokens - 1:].sum(axis=-1)
