"""The bodies of requests, each field checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

__all__ = ["ChatBody", "ChatMessage", "CompletionBody", "GenerationBody"]

_MOST_CHOICES = 128  # as OpenAI
_NOTHING: tuple[Any, ...] = (None, False, [], {})


def _wrong(kind: str, text: str, param: str) -> PydanticCustomError:
    # The text has values of users in it, so it must not be a template itself.
    return PydanticCustomError(kind, "{text}", {"text": text, "param": param})  # type: ignore[arg-type]


def _whole(text: str) -> str:
    if not _is_text(text):
        raise PydanticCustomError("text", "Text must have no halves of surrogate pairs")
    return text


def _is_text(value: Any) -> bool:
    """Whether it is a string of whole characters; JSON may have others, tokenizers take none."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return isinstance(value, str)


Text = Annotated[str, AfterValidator(_whole)]
StopString = Annotated[str, Field(min_length=1)]


class _Body(BaseModel):
    """A JSON object without unknown fields.

    Attributes:
        undone: fields that OpenAI's interface has and this one has not, each with values that ask
            for nothing, which are ignored.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    undone: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, value in given.items():
            if name in cls.undone and value not in (*_NOTHING, *cls.undone[name]):
                raise _wrong("unsupported", f"`{name}` is not supported. Leave it out.", name)
        return {name: value for name, value in given.items() if name not in cls.undone}


class StreamOptions(_Body):
    """Of a stream.

    Attributes:
        include_usage: whether the last message counts tokens.
    """

    include_usage: bool | None = None


class GenerationBody(_Body):
    """What completions of texts and of chats share; the attributes are OpenAI's."""

    undone: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,),
        "logit_bias": (),
        "presence_penalty": (0,),
    }
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[StopString], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _require_a_stream(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            text = "`stream_options` needs `stream`: true. Leave it out, or ask for a stream."
            raise _wrong("wrong", text, "stream_options")
        return self

    @property
    def has_usage(self) -> bool:
        """Whether a stream tells how many tokens there were."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionBody(GenerationBody):
    """Of /v1/completions; the attributes are OpenAI's."""

    undone: ClassVar[Mapping[str, tuple[Any, ...]]] = {**GenerationBody.undone, "suffix": ("",)}
    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _require_a_prompt(cls, given: Any) -> Any:
        """Four kinds of prompts would give four complaints about one mistake."""
        if isinstance(given, dict) and "prompt" in given and not _is_prompt(given["prompt"]):
            text = "`prompt` must be a string, or a list of strings, of tokens or of lists of them."
            raise _wrong("wrong", text, "prompt")
        return given

    @model_validator(mode="after")
    def _require_possible(self) -> CompletionBody:
        if self.best_of not in (None, self.n or 1):
            text = "`best_of` other than `n` is not supported. Leave it out."
            raise _wrong("unsupported", text, "best_of")
        if self.echo and self.logprobs is not None:
            text = "`echo` with `logprobs` is not supported: prompts have none. Leave out one."
            raise _wrong("unsupported", text, "logprobs")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or more."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item, return-value]
        return self.prompt  # type: ignore[return-value]


def _is_prompt(prompt: Any) -> bool:
    """Whether all is of one kind, and no list is empty."""
    if not isinstance(prompt, list):
        return _is_text(prompt)
    if prompt and isinstance(prompt[0], list):
        return all(isinstance(tokens, list) and _are_tokens(tokens) for tokens in prompt)
    return bool(prompt) and (all(map(_is_text, prompt)) or _are_tokens(prompt))


def _are_tokens(tokens: list[Any]) -> bool:
    return bool(tokens) and all(type(token) is int and token >= 0 for token in tokens)


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Body):
    """Of a chat; the attributes are OpenAI's."""

    undone: ClassVar[Mapping[str, tuple[Any, ...]]] = dict.fromkeys(
        ("annotations", "audio", "function_call", "refusal", "tool_call_id", "tool_calls"), ()
    )
    role: Literal["system", "developer", "user", "assistant"]
    content: list[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _require_text(cls, given: Any) -> Any:
        parts = given.get("content") if isinstance(given, dict) else None
        if isinstance(parts, str):
            return {**given, "content": [{"type": "text", "text": parts}]}
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict) and part.get("type", "text") != "text":
                text = f"Parts of messages must be texts. Received: {str(part['type'])[:40]}."
                raise _wrong("unsupported", text, "messages")
        return given

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(part.text for part in self.content)


class ChatBody(GenerationBody):
    """Of /v1/chat/completions; the attributes are OpenAI's."""

    undone: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **GenerationBody.undone,
        **dict.fromkeys(("audio", "function_call", "functions", "prediction", "tools"), ()),
        **dict.fromkeys(("reasoning_effort", "verbosity", "web_search_options", "store"), ()),
        **dict.fromkeys(("metadata", "prompt_cache_key", "safety_identifier"), ()),
        "modalities": (["text"],),
        "parallel_tool_calls": (True,),  # of which there are none
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "tool_choice": ("none", "auto"),
    }
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _require_one_meaning(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            text = "`top_logprobs` needs `logprobs`: true. Leave it out, or ask for them."
            raise _wrong("wrong", text, "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens):
            text = "`max_tokens` is the old name of `max_completion_tokens`. Leave out one."
            raise _wrong("wrong", text, "max_tokens")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """As `Server.submit` takes it."""
        return (self.top_logprobs or 0) if self.logprobs else None
