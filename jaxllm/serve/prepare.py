"""From what a client sent to what the engine runs: prompts as tokens, limits checked, grammars made."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

from jaxllm.data import chat
from jaxllm.data.chat_formats import FORMATS
from jaxllm.data.chat_tools import CALLS, call_style
from jaxllm.infer.engine import Request
from jaxllm.serve.errors import ApiError, unsupported
from jaxllm.serve.grammar import GrammarConstraint
from jaxllm.serve.schema import ChatCompletionRequest, CompletionRequest, NamedTool, Sampling, check_unsupported
from jaxllm.serve.served import Served

# OpenAI's, where /v1/completions does not say how many tokens it wants.
DEFAULT_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked request.

    Attributes:
      requests: for the engine: prompt by prompt, the samples of one beside each other.
      prompts: the token ids of each prompt.
      samples: choices per prompt.
      stops: stop strings.
      alternatives: likeliest tokens to state per token, or None when no log-probabilities are wanted.
      call_style: how the model writes tool calls, a key of `chat_tools.CALLS`; None when none are to be read.
      forced_call: True when the text is the JSON of a tool call and nothing else.
    """

    requests: tuple[Request, ...]
    prompts: tuple[tuple[int, ...], ...]
    samples: int
    stops: tuple[str, ...]
    alternatives: int | None
    call_style: str | None = None
    forced_call: bool = False


def check_model(served: Served, model: str | None) -> None:
    """Raises ApiError (404) for the name of another model."""
    if model is not None and model != served.model_id:
        raise ApiError(404, f"the model {model!r} does not exist here; this server has {served.model_id!r}",
                       param="model", code="model_not_found")


def prepare_chat(served: Served, asked: ChatCompletionRequest) -> Prepared:
    """Checks a chat request and lays its conversation out as tokens.

    Raises:
      ApiError: 400 or 404, with the reason.
    """
    check_model(served, asked.model)
    check_unsupported(asked)
    alternatives = None
    if asked.logprobs:
        alternatives = asked.top_logprobs or 0
    elif asked.top_logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    offered = _offered_tools(asked)
    template = served.tokenizer.chat_template
    style = style_of(template) if offered else None
    if offered and style is None:
        raise unsupported("tools", "the model's chat format has no tool calls")
    messages = [message.plain() for message in asked.messages]
    try:
        prompt = chat.render(messages, served.tokenizer, tools=[tool.model_dump(exclude_none=True) for tool in offered]
                             or None, add_generation_prompt=True).ids
        stop_tokens = chat.end_of_turn(served.tokenizer)
    except (ValueError, ImportError) as error:  # the latter where a template's Jinja is not installed
        raise ApiError(400, str(error), param="messages") from error
    constraint, forced = _constraint(served, asked, offered, style), _must_call(asked)
    if forced:
        prompt = [*prompt, *_opening(served, style)]
    requests = _requests(served, asked, [tuple(prompt)], asked.max_completion_tokens or asked.max_tokens,
                         stop_tokens, alternatives, constraint)
    return Prepared(requests, (tuple(prompt),), asked.n or 1, asked.stops(), alternatives, style, forced)


def prepare_completion(served: Served, asked: CompletionRequest) -> Prepared:
    """Checks a request of /v1/completions; a text prompt begins with the tokens that begin a document.

    Raises:
      ApiError: 400 or 404, with the reason.
    """
    check_model(served, asked.model)
    check_unsupported(asked)
    if asked.echo and asked.logprobs is not None:
        raise unsupported("echo", "log-probabilities of the prompt are not computed; leave out echo or logprobs")
    prompts = [tuple(ids) for ids in _prompt_ids(served, asked.prompt)]
    if len(prompts) > served.limits.max_prompts:
        raise ApiError(400, f"{len(prompts)} prompts are more than the {served.limits.max_prompts} that one call "
                            f"takes here", param="prompt")
    stop_tokens = (served.tokenizer.end_of_text,)
    requests = _requests(served, asked, prompts, asked.max_tokens, stop_tokens, asked.logprobs, None, DEFAULT_TOKENS)
    return Prepared(requests, tuple(prompts), asked.n or 1, asked.stops(), asked.logprobs)


def style_of(template: str | None) -> str | None:
    """How a model over this chat template writes tool calls."""
    if not template:
        return None
    return FORMATS[template].tool_calls if template in FORMATS else call_style(template)


def _offered_tools(asked: ChatCompletionRequest) -> list[Any]:
    """The tools that the model is told of."""
    tools, choice = asked.tools or [], asked.tool_choice
    if len({tool.function.name for tool in tools}) != len(tools):
        raise ApiError(400, "two tools have the same name", param="tools")
    if choice in (None, "auto", "none"):
        return [] if choice == "none" else tools
    if not tools:
        raise ApiError(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in {tool.function.name for tool in tools}:
        raise ApiError(400, f"tool_choice names {choice.function.name!r}, which is not among the tools",
                       param="tool_choice")
    return tools


def _must_call(asked: ChatCompletionRequest) -> bool:
    return asked.tool_choice == "required" or isinstance(asked.tool_choice, NamedTool)


def _constraint(served: Served, asked: ChatCompletionRequest, offered: Sequence[Any],
                style: str | None) -> GrammarConstraint | None:
    wanted = asked.response_format
    if wanted is not None and wanted.type != "json_schema" and wanted.json_schema is not None:
        raise ApiError(400, 'response_format.json_schema is for the type "json_schema"', param="response_format")
    plain = wanted is None or wanted.type == "text"
    if not plain and offered:
        raise unsupported("response_format", "not together with tools that may be called; say tool_choice=none")
    if _must_call(asked):
        choice = asked.tool_choice
        functions = [tool.function.model_dump(exclude_none=True) for tool in offered
                     if not isinstance(choice, NamedTool) or tool.function.name == choice.function.name]
        return served.grammars().tool_call(functions, "parameters" if style == "json" else "arguments")
    if plain:
        return None
    if wanted.type == "json_object":
        return served.grammars().json_object()
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise ApiError(400, "response_format of type json_schema needs json_schema.schema", param="response_format")
    return served.grammars().json_schema(wanted.json_schema.schema_)


def _opening(served: Served, style: str | None) -> list[int]:
    """What the model writes before the JSON of a call."""
    spelling = CALLS[style][0] if style else ""
    ids = [served.tokenizer.special_tokens[spelling]] if spelling in served.tokenizer.special_tokens else \
        served.tokenizer.encode(spelling)
    return ids + served.tokenizer.encode("\n") if style == "hermes" else ids


def _prompt_ids(served: Served, prompt: str | list) -> list[list[int]]:
    if isinstance(prompt, str):
        return [[*served.begin_tokens, *served.tokenizer.encode(prompt)]]
    if prompt and isinstance(prompt[0], str):
        return [ids for text in prompt for ids in _prompt_ids(served, text)]
    if prompt and isinstance(prompt[0], list):
        return prompt
    if not prompt:
        raise ApiError(400, "prompt is an empty list; give a text, token ids, or several of either", param="prompt")
    return [prompt]


def _requests(served: Served, asked: Sampling, prompts: Sequence[tuple[int, ...]], max_tokens: int | None,
              stop_tokens: tuple[int, ...], alternatives: int | None, constraint: GrammarConstraint | None,
              default_tokens: int | None = None) -> tuple[Request, ...]:
    limits, n = served.limits, asked.n or 1
    if n > limits.max_samples:
        raise ApiError(400, f"n is {n}; this server gives at most {limits.max_samples} choices", param="n")
    if n * len(prompts) > served.worker.most_open:
        raise ApiError(400, f"{n * len(prompts)} choices at once are more than the {served.worker.most_open} requests "
                            f"that this server ever holds", param="n")
    if max_tokens is not None and max_tokens > limits.max_tokens:
        raise ApiError(400, f"max_tokens is {max_tokens}; this server writes at most {limits.max_tokens}",
                       param="max_tokens")
    seed = secrets.randbits(32) if asked.seed is None else asked.seed % 2**64
    settings, requests = asked.settings(), []
    for prompt in prompts:
        room = _room(served, prompt, max_tokens, default_tokens)
        requests += [Request(prompt=prompt, max_tokens=room, settings=settings, seed=seed, sample=sample,
                             stop_tokens=stop_tokens, alternatives=alternatives or 0,
                             constraint=constraint.copy() if constraint is not None else None)
                     for sample in range(n)]
    return tuple(requests)


def _room(served: Served, prompt: tuple[int, ...], max_tokens: int | None, default_tokens: int | None) -> int:
    """Tokens that may be written after this prompt; where none are asked for, the default or all there is room for."""
    if not prompt:
        raise ApiError(400, "the prompt holds no token; give at least one", param="prompt")
    if max(prompt) >= served.config.vocab_size:
        raise ApiError(400, f"{max(prompt)} is no token id of this model, whose vocabulary has "
                            f"{served.config.vocab_size}", param="prompt")
    capacity = served.limits.capacity
    left = capacity - len(prompt)
    if left < (max_tokens or 1):
        raise ApiError(400, f"This model's maximum context length is {capacity} tokens. However, you requested "
                            f"{len(prompt) + (max_tokens or 1)} tokens ({len(prompt)} in the prompt, {max_tokens or 1} "
                            f"in the completion). Please reduce the length of either.", param="messages",
                       code="context_length_exceeded")
    return max_tokens or min(left, served.limits.max_tokens, default_tokens or left)
