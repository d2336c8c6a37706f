"""What is evaluated: a model with its tokenizer, where it lies, and how texts become its tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from jaxllm.data.tokenizer import Tokenizer
from jaxllm.model.config import Execution, ModelConfig
from jaxllm.model.params import Params

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a context and of a continuation


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """What is evaluated.

    Attributes:
      params, config, tokenizer: the model. Over a mesh the params lie on it already.
      execution: dtype and attention.
      mesh: None is one device.
      begin: whether `begin_of_text` stands before every prompt, as it stood before documents in training. lm-eval's
        transformers backend puts none where the tokenizer's authors did not.
      chat: whether generations are asked as a user's message, in the tokenizer's chat format.
      max_length: positions that may be used; None is the model's.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    execution: Execution = Execution()
    mesh: Mesh | None = None
    begin: bool = True
    chat: bool = False
    max_length: int | None = None

    @property
    def positions(self) -> int:
        """Positions that may be used."""
        return min(self.max_length or self.config.max_positions, self.config.max_positions)

    @property
    def before(self) -> list[int]:
        """The ids that stand before every prompt."""
        return [self.tokenizer.begin_of_text] if self.begin else []

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """Where its programs are called."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    @property
    def parts(self) -> int:
        """Devices over which the rows of a batch are split."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]


def encode_pair(model: LanguageModel, context: str, continuation: str) -> Pair:
    """Token ids of a context and of the continuation as it is cut behind that context.

    Blanks at the end of the context go to the continuation, where a tokenizer joins them to the next word; the pair is
    then encoded as one text, and the continuation is what follows as many tokens as the context has alone. An empty
    context is the token that begins a text.

    Raises:
      ValueError: for an empty continuation.

    References: lm-evaluation-harness, `TemplateLM._encode_pair`. https://github.com/EleutherAI/lm-evaluation-harness
    """
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, continuation = context[:-blanks], context[-blanks:] + continuation
    if not continuation:
        raise ValueError(f"the continuation of {context[-40:]!r} is empty; it must have a text to score")
    own, whole = _encoded(model.tokenizer, context), model.tokenizer.encode(context + continuation)
    if len(whole) <= len(own):  # cut inside a word whose token is longer: the continuation takes that token
        own = [id for id, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(own, whole, strict=False))]
    return [*model.before, *own] or [model.tokenizer.begin_of_text], whole[len(own):]


def encode_context(model: LanguageModel, context: str) -> list[int]:
    """Token ids of a prompt, with what the model wants before it."""
    return [*model.before, *_encoded(model.tokenizer, context)]


@functools.lru_cache(maxsize=64)  # the candidates of an item have one context
def _encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text))
