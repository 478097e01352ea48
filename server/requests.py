"""What clients may send, field by field: understood, ignored because no answer depends on it, or refused.

A field that would change the answer and is not understood is refused unless it has the value that it has when
left out; so is one that nobody knows, as the API itself does.
"""

from collections.abc import Iterable, Mapping
from reprlib import repr as shortened
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from poss_export.runtime.sampling import Sampling
from poss_export.server.errors import ApiError
from poss_export.server.forms import Kind
from poss_export.text import Message

# Bookkeeping, and hints that change at most the speed.
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "prediction", "parallel_tool_calls"),
    }
)
_LONGEST_STOP = 1000  # characters


def _only(*values: Any) -> AfterValidator:
    """Refuse other values than these, with which a field asks for nothing that there is not."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in values):
            raise ValueError("it is not supported; leave it out")
        return value

    return AfterValidator(check)


Unsupported = Annotated[Any, _only(None, [], {}, False)]
Zero = Annotated[Any, _only(None, 0, 0.0)]
Count = Annotated[int, Field(ge=1, le=1 << 31)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=_LONGEST_STOP)]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Fields):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Fields):
    """A message of the dialogue; what answers of this server hold beside it may be sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Unsupported = None
    refusal: Unsupported = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Unsupported = None

    @property
    def message(self) -> Message:
        """What the chat template reads; to it, the developer is the system."""
        role = "system" if self.role == "developer" else self.role
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": role, "content": text}


class ResponseFormat(_Fields):
    """How the answer is written: as text."""

    model_config = ConfigDict(extra="ignore")

    type: Annotated[str, _only("text")]


class StreamOptions(_Fields):
    """What a stream holds beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False  # ignored: none is added


class _Asked(_Fields):
    """What chat and plain completions have in common; `top_k` and `min_p` are not in OpenAI's API."""

    model: str
    n: Count | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Count | None = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Unsupported = None

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name not in IGNORED}

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """The strings that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, choice: int) -> Sampling:
        """Return how the tokens of an answer are chosen: with a seed of its own where one was given.

        Raises:
            InputError: a value cannot be used.
        """
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else (self.seed + choice) % (1 << 64),
        )


class ChatRequest(_Asked):
    """A body of `/v1/chat/completions`; `chat_template_kwargs` are the variables of the chat template."""

    kind: ClassVar[Kind] = "chat"
    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    logprobs: Annotated[Any, _only(None, False)] = None
    top_logprobs: Zero = None
    tools: Unsupported = None
    tool_choice: Annotated[Any, _only(None, "none", "auto")] = None
    functions: Unsupported = None
    function_call: Annotated[Any, _only(None, "none", "auto")] = None
    modalities: Annotated[Any, _only(None, ["text"])] = None
    audio: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Annotated[Any, _only(None, "medium")] = None
    web_search_options: Unsupported = None

    @model_validator(mode="after")
    def _one_length(self) -> "ChatRequest":
        lengths = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(lengths) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; leave max_tokens out")
        return self

    @property
    def new_tokens(self) -> int | None:
        """The longest answer that is wanted."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def length_field(self) -> str:
        """The field that says so."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def variables(self) -> Mapping[str, Any]:
        """What the chat template reads beside messages."""
        return self.chat_template_kwargs or {}


TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], Field(min_length=1)]


class CompletionRequest(_Asked):
    """A body of `/v1/completions`: prompts are continued as they are, control tokens and all."""

    kind: ClassVar[Kind] = "text"
    prompt_field: ClassVar[str] = "prompt"
    length_field: ClassVar[str] = "max_tokens"

    prompt: str | TokenIds | Annotated[list[str | TokenIds], Field(min_length=1)]
    echo: Annotated[Any, _only(None, False)] = None
    suffix: Annotated[Any, _only(None, "")] = None
    logprobs: Annotated[Any, _only(None)] = None
    best_of: Count | None = None

    @model_validator(mode="after")
    def _no_choice_among_answers(self) -> "CompletionRequest":
        if self.best_of not in (None, self.choices):
            raise ValueError("best_of differs from n; this server returns all that it makes")
        return self

    @property
    def new_tokens(self) -> int:
        """The longest answer that is wanted; left out, that of the API."""
        return self.max_tokens or 16

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, as text or ids."""
        match self.prompt:
            case str():
                return [self.prompt]
            case [int(), *_]:
                return [[int(token) for token in self.prompt if isinstance(token, int)]]
            case several:
                return [one for one in several if not isinstance(one, int)]


def unreadable(error: ValidationError) -> ApiError:
    """Return what a client is told of a body that is no request: the first that is wrong with it."""
    errors = error.errors(include_url=False)
    # Of a field that may be of several kinds, what is wrong with the kind that it is of.
    first = next((one for one in errors if not one["type"].endswith("_type")), errors[0])
    where = _place(part for part in first["loc"] if isinstance(part, int) or part in _NAMES)
    match first["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
        case "extra_forbidden":
            where = _place(first["loc"])
            return ApiError(
                400, f"{where} is {shortened(first['input'])}: there is no such field", param=where
            )
        case "missing":
            return ApiError(400, f"{where} is missing", param=where)
    said = str(first.get("ctx", {}).get("error", first["msg"]))
    if not where:
        return ApiError(400, said)
    return ApiError(400, f"{where} is {shortened(first['input'])}: {said}", param=where)


def _place(parts: Iterable[int | str]) -> str:
    return ".".join(map(str, parts))


_NAMES = {
    name
    for model in (ChatRequest, CompletionRequest, ChatMessage, TextPart, ResponseFormat, StreamOptions)
    for name in model.model_fields
}
