"""The chat format of a fine-tuning run, and where its control tokens start in a model that never saw them.

A token that pretraining never saw has a row that was only pushed away from every context. In a small tied model a
short fine-tuning does not repair that, so such rows get new starts; docs/sft.md has the measurement of which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from jaxllm.data.chat import FORMATS
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.model.config import ModelConfig
from jaxllm.model.new_tokens import start_rows
from jaxllm.model.params import Params

STARTS = ("like", "mean", "untouched")
# What a control token is like in plain text. The end of a turn is like the end of a text.
LIKE: Mapping[str, str] = {
    "<|im_start|>": "\n\n", "<|im_sep|>": ":", "<|tool_call|>": "Q:", "<|tool_result|>": "\n", "<|tool_end|>": ".",
    "<|start_header_id|>": "\n\n", "<|end_header_id|>": ":\n", "<start_of_turn>": "\n\n"}
# Equal starts must part at the first step; as a share of the trained rows' spread.
NOISE = 0.1


def chat_format(tokenizer: Tokenizer, wanted: str) -> tuple[str, bool]:
    """(format, whether its tokens are new to the model).

    A tokenizer without a chat template is that of a base model, which has seen none of the format's tokens.

    Args:
      tokenizer: of the model.
      wanted: a name of FORMATS, the source of a Jinja template, or "": the tokenizer's own; for a base model im_sep,
        or chatml where the tokenizer lacks a token of im_sep.

    Raises:
      ValueError: when nothing is wanted and neither fits.
    """
    new = not tokenizer.chat_template
    if wanted or not new:
        return wanted or tokenizer.chat_template, new
    for name in ("im_sep", "chatml"):
        if all(token in tokenizer.special_tokens for token in FORMATS[name].needs):
            return name, new
    raise ValueError(f"the tokenizer {tokenizer.name} has no chat template and lacks the tokens of im_sep and of "
                     f"chatml; name a format of its special tokens in config.template")


def start_tokens(params: Params, model: ModelConfig, tokenizer: Tokenizer, template: str, how: str, seed: int = 0
                 ) -> Params:
    """Starts the control tokens of a chat format in the embedding, and in the head.

    Args:
      params, model, tokenizer: plain weights of a base model, and what they belong to.
      template: a name of FORMATS or the source of a Jinja template.
      how: "like": from the tokens of a text that serves the same end (LIKE; the mean of all where a token has none);
        "mean": from the mean of all trained tokens; "untouched": left as they are.
      seed: of the noise.

    Raises:
      ValueError: for another `how`.
    """
    if how not in STARTS:
        raise ValueError(f"start_tokens is {how!r}; choose one of {', '.join(STARTS)}")
    tokens = _control_tokens(tokenizer, template)
    if how == "untouched" or not tokens:
        return params
    ids = {tokenizer.special_tokens[token] for token in tokens}
    # Not the rows beyond the tokenizer's vocabulary, which were never trained either.
    trained = [id for id in range(tokenizer.vocab_size) if id not in ids]
    starts: dict[int, Sequence[int]] = {}
    for token in tokens:
        like = [tokenizer.end_of_text] if token in _ends(template) else tokenizer.encode(LIKE.get(token, ""))
        starts[tokenizer.special_tokens[token]] = like if how == "like" and like else trained
    return start_rows(params, model, starts, noise=NOISE, key=jax.random.key(seed))


def _control_tokens(tokenizer: Tokenizer, template: str) -> list[str]:
    """The special tokens that a format writes, but the end of text, which pretraining has seen."""
    if template in FORMATS:
        used = [*FORMATS[template].needs, *_ends(template)]
    else:
        used = [token for token in tokenizer.special_tokens if token in template]
    known = (tokenizer.end_token, tokenizer.begin_token)
    return [token for token in dict.fromkeys(used) if token in tokenizer.special_tokens and token not in known]


def _ends(template: str) -> tuple[str, ...]:
    return FORMATS[template].ends if template in FORMATS else ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")
