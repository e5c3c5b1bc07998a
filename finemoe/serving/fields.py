"""The fields of requests: which count, which are accepted without effect, and which are refused unless they ask for nothing."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from finemoe.serving.refusals import Refusal

WITHOUT_EFFECT = frozenset(
    {
        *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier"),
        *("store", "stream_options", "user"),
    }
)
ONE_ANSWER = "this server gives one answer to a request"
NO_LOGPROBS = "this server returns no log probabilities"
PENALTIES = "this server has no such penalty"
TEXT_ONLY = "this server answers in text"
BATCHED = {"logit_bias": "have no biased tokens", "stop": "have no stop sequences"}
KEEPS_NOTHING = "this server keeps no answers"
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {  # what asks for nothing, and why anything else is refused
    "audio": ((), TEXT_ONLY),
    "background": ((False,), KEEPS_NOTHING),
    "best_of": ((1,), ONE_ANSWER),
    "conversation": ((), KEEPS_NOTHING),
    "echo": ((False,), "this server returns no prompts"),
    "frequency_penalty": ((0,), PENALTIES),
    "function_call": (("auto", "none"), "functions are superseded by tools"),
    "functions": (([],), "functions are superseded by tools"),
    "generation_config": ((), "use temperature, top_p, seed, stop and the number of tokens"),
    "include": (([],), "this server has nothing to include"),
    "logprobs": ((False,), NO_LOGPROBS),
    "modalities": ((["text"],), TEXT_ONLY),
    "n": ((1,), ONE_ANSWER),
    "prediction": ((), "this server takes no predicted outputs"),
    "presence_penalty": ((0,), PENALTIES),
    "previous_response_id": ((), KEEPS_NOTHING),
    "response_format": (({"type": "text"},), "this server does not constrain answers"),
    "suffix": (("",), "this server only continues texts"),
    "text": (({"format": {"type": "text"}}, {}), "this server does not constrain answers"),
    "tool_choice": (("auto",), "the model chooses"),
    "top_logprobs": ((0,), NO_LOGPROBS),
    "truncation": (("disabled",), "this server refuses prompts that are too long"),
    "web_search_options": ((), "this server searches nothing"),
}


class _Fields(BaseModel):
    """What every endpoint takes."""

    model_config = ConfigDict(extra="forbid")

    model: StrictStr | None = None
    stream: StrictBool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=1 << 63)] | None = None


_Length = Annotated[StrictInt, Field(ge=1)]
_Text = Annotated[str, Field(min_length=1)]
_Stops = _Text | Annotated[list[_Text], Field(max_length=4)]


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(BaseModel):
    """A message of a chat; templates may read more of it."""

    model_config = ConfigDict(extra="allow")

    role: _Text
    content: str | list[TextPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatFields(_Fields):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: _Length | None = None
    max_completion_tokens: _Length | None = None
    stop: _Stops | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionFields(_Fields):
    """`/v1/completions`."""

    prompt: str
    max_tokens: _Length | None = None
    stop: _Stops | None = None


class ResponseFields(_Fields):
    """`/v1/responses`."""

    input: _Text | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: _Length | None = None
    tools: list[dict[str, Any]] | None = None


def checked(body: dict[str, Any], fields: type[BaseModel]) -> dict[str, Any]:
    """The fields of a body that are set and count, in their types.

    Raises:
        Refusal: a field is unknown, missing or of the wrong type, or asks for something that the server does not do.
    """
    kept = {name: value for name, value in body.items() if value is not None and name not in WITHOUT_EFFECT}
    for name in [name for name in kept if name in NEUTRAL and name not in fields.model_fields]:
        neutral, reason = NEUTRAL[name]
        if kept.pop(name) not in neutral:
            raise Refusal(f"{name} is not supported: {reason}", param=name, code="unsupported_parameter")
    try:
        return fields.model_validate(kept).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise _refusal_of(error) from None


def require_greedy(options: dict[str, Any]) -> None:
    """Refuse what a batch, which serves all requests alike, cannot do for one of them.

    Raises:
        Refusal: the answer would be drawn, its tokens biased, or ended by a text.
    """
    is_greedy = options.get("temperature") == 0
    wanted = {
        "temperature": not is_greedy and options.get("temperature") is not None,
        "top_p": not is_greedy and options.get("top_p") not in (None, 1),
        "seed": not is_greedy and options.get("seed") is not None,
        "logit_bias": bool(options.get("logit_bias")),
        "stop": bool(options.get("stop")),
    }
    for name in (name for name, is_wanted in wanted.items() if is_wanted):
        reason = f"answers of a server with --batched {BATCHED.get(name, 'are greedy; leave it out')}"
        raise Refusal(f"{name} is not supported: {reason}", param=name, code="unsupported_parameter")


def _refusal_of(error: ValidationError) -> Refusal:
    errors = error.errors(include_url=False, include_context=False)
    field = errors[0]["loc"][0]
    of_field = [one for one in errors if one["loc"][0] == field]  # one for each type that the value might have
    first = max(of_field, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    path = ".".join(str(part) for part in first["loc"] if not _is_alternative(part))
    if first["type"] == "extra_forbidden":
        return Refusal(f"{path} is not a field of this endpoint", param=path, code="unknown_parameter")
    if first["type"] == "missing":
        return Refusal(f"{path} is missing", param=path, code="missing_required_parameter")
    return Refusal(f"{path}: {first['msg'][:1].lower()}{first['msg'][1:]}", param=path, code="invalid_value")


def _is_alternative(part: int | str) -> bool:
    """Whether a part of a path is pydantic's name for one of several types."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool", "constrained-str"))
