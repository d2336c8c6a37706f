"""What clients may send, field by field: OpenAI's request shapes and this server's own.

Types are strict ("0.5" is no number), and a field that is not here is refused: a setting that is silently
ignored looks like one that works. Fields of OpenAI's that this server has no use for stand under "accepted"
(bookkeeping of the caller) or "refused unless off" (they would change the answer); `check_unsupported` says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxllm.infer.sampling import SamplingSettings
from jaxllm.serve.errors import unsupported

MOST_ALTERNATIVES = 20
INT64 = dict(ge=-2**63, le=2**63 - 1)

Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    name: Name
    arguments: str = Field(description="JSON")


class ToolCall(Strict):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Strict):
    """One message. `refusal`, `annotations`, `audio` and `function_call` are there so that an answer can be sent
    back as it came; they must be empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(None, max_length=128)
    tool_calls: list[ToolCall] | None = Field(None, max_length=128)
    tool_call_id: str | None = Field(None, max_length=128)
    refusal: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    def plain(self) -> dict[str, Any]:
        """The message as `jaxllm.data.chat.render` takes it."""
        message = self.model_dump(include={"role", "content", "name", "tool_calls", "tool_call_id"}, exclude_none=True)
        for call in message.get("tool_calls", ()):
            call.pop("index", None)
        if message["role"] == "developer":  # OpenAI's later name of the same thing
            message["role"] = "system"
        return message


class Function(Strict):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments")
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: Name


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    name: Name
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """`json_schema` is only for the type of that name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(Strict):
    """What both completion endpoints take."""

    model: str | None = Field(None, max_length=256, description="must be the served model's name; may be left out")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    n: int | None = Field(None, ge=1, le=1024)
    seed: int | None = Field(None, **INT64)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    temperature: Finite | None = Field(None, ge=0, le=100)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="extension; 0 is off")
    min_p: Finite | None = Field(None, ge=0, le=1, description="extension; 0 is off")
    repetition_penalty: Finite | None = Field(None, ge=1e-6, le=100, description="extension; 1 is off")

    # Accepted: bookkeeping of the caller, which changes no answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    # Refused unless off.
    frequency_penalty: Finite | None = None
    presence_penalty: Finite | None = None
    logit_bias: dict[str, Finite] | None = None

    def settings(self) -> SamplingSettings:
        """How tokens are drawn."""
        given = {key: getattr(self, key) for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
        if given["temperature"] is not None and given["temperature"] < 1e-6:
            given["temperature"] = 0.0  # clients write "almost 0" for greedy
        return SamplingSettings(**{key: value for key, value in given.items() if value is not None})

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatCompletionRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    store: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: Any = None


class CompletionRequest(Sampling):
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]] = Field(
        "", description="text or token ids, one or several; special tokens only as ids")
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class TokenizeRequest(Strict):
    """A text, or messages laid out as the model sees them."""

    model: str | None = Field(None, max_length=256)
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[Tool] | None = Field(None, max_length=128)
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Strict):
    model: str | None = Field(None, max_length=256)
    tokens: list[TokenId]


# Field -> (values that mean "off", why it is not there).
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "frequency_penalty": ((0,), "use repetition_penalty"),
    "presence_penalty": ((0,), "use repetition_penalty"),
    "logit_bias": (({},), "use response_format to restrict what may be written"),
    "store": ((False,), "nothing is stored"),
    "reasoning_effort": (("none",), "the model has no such control"),
    "verbosity": (("medium",), "the model has no such control"),
    "modalities": ((["text"],), "text only"),
    "audio": ((), "text only"),
    "prediction": ((), "there is no predicted output"),
    "web_search_options": ((), "the server reaches no network"),
    "functions": (([],), "it was replaced by tools"),
    "function_call": (("none",), "it was replaced by tool_choice"),
    "best_of": ((1,), "ask for n choices with logprobs and rank them"),
    "suffix": (("",), "the model continues text, it does not fill in"),
}


def check_unsupported(request: Sampling) -> None:
    """Raises ApiError (400) for a setting that would change the answer and is not supported."""
    for field, (off, reason) in _UNSUPPORTED.items():
        value = getattr(request, field, None)
        if value is not None and value not in off:
            raise unsupported(field, reason)
    if request.stream_options is not None and not request.stream:
        raise unsupported("stream_options", "it needs stream=true")
