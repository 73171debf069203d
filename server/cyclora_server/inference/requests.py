"""What OpenAI's clients may ask for, read strictly: a field either acts or is refused by name.

Fields that label a request (``user``, ``metadata`` and the like) ask for nothing and are accepted.
Those that would change the answer are accepted with the value that changes nothing. ``top_k`` and
``chat_template_kwargs`` are common additions of other servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from cyclora_server.inference.errors import RefusedField
from cyclora_server.problems import describe_violations
from cyclora_server.wire.reading import Body

MAX_CHOICES = 128
MAX_PROMPTS = 128
MAX_ALTERNATIVES = 0
"""Alternatives to sampled tokens."""
MAX_PROMPT_ALTERNATIVES = 20
DEFAULT_COMPLETION_TOKENS = 16  # of OpenAI's

_LABELS = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "user"})

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}

_INSTEAD: Mapping[str, str] = {
    "functions": "describe them in the system message",
    "response_format": "describe the format in a message, and set stop to what follows it",
    "suffix": "put it into the prompt, in the form that the model was trained on",
    "tools": "describe them in the system message",
}


class StreamOptions(Body):
    """``stream_options``."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Request(Body):
    """What both endpoints take."""

    model: str = Field(min_length=1, max_length=1000)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop: Any = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict[str, Any])

    @property
    def most_tokens(self) -> int | None:
        """Tokens that an answer may get; None leaves it to the server."""
        if self.max_completion_tokens is None:
            return self.max_tokens
        if self.max_tokens not in (None, self.max_completion_tokens):
            raise RefusedField(
                f"max_tokens is {self.max_tokens} and max_completion_tokens "
                f"{self.max_completion_tokens}; send one of them",
                "max_tokens",
            )
        return self.max_completion_tokens


class CompletionRequest(Request):
    """``POST /v1/completions``."""

    prompt: Any
    max_tokens: int = Field(default=DEFAULT_COMPLETION_TOKENS, ge=0)
    echo: bool = False
    logprobs: int | None = None
    best_of: int | None = None


RequestT = TypeVar("RequestT", bound=Request)


def read(model: type[RequestT], value: Any) -> RequestT:
    """Read a decoded JSON body.

    Raises:
        RefusedField: names the field, what it holds, and what would be accepted.
    """
    if isinstance(value, dict):
        fields: dict[str, Any] = value
        for name, item in fields.items():
            if item is not None and name not in model.model_fields:
                _check_extra(name, item)
    try:
        request = model.model_validate(value)
    except ValidationError as error:
        violations = error.errors(include_url=False)
        where = violations[0]["loc"]
        param = str(where[0]) if where else ""
        raise RefusedField(describe_violations(violations), param) from None
    if request.stream_options is not None:
        _check_stream_options(request, request.stream_options)
    return request


def check_chat(request: ChatRequest) -> None:
    """Refuse what a chat completion cannot have."""
    if request.top_logprobs is not None and not request.logprobs:
        raise RefusedField("top_logprobs needs logprobs to be true", "top_logprobs")
    _check_alternatives("top_logprobs", request.top_logprobs or 0, MAX_ALTERNATIVES)


def check_completion(request: CompletionRequest) -> None:
    """Refuse what a completion cannot have."""
    if request.best_of not in (None, request.n):
        raise RefusedField(
            f"best_of is {request.best_of}; ask for n choices with logprobs and choose among them",
            "best_of",
        )
    if request.max_tokens == 0 and not request.echo:
        raise RefusedField("max_tokens is 0; expected at least 1, or echo", "max_tokens")
    if request.echo and request.stream and request.logprobs is not None:
        raise RefusedField("logprobs of an echoed prompt cannot be streamed", "stream")
    most = MAX_PROMPT_ALTERNATIVES if request.max_tokens == 0 else MAX_ALTERNATIVES
    _check_alternatives("logprobs", request.logprobs or 0, most)


def _check_alternatives(name: str, count: int, most: int) -> None:
    if not 0 <= count <= most:
        raise RefusedField(
            f"{name} is {count}; alternatives of sampled tokens are not supported by this server, "
            "0 gives the logprobs of the tokens themselves"
            if most == 0
            else f"{name} is {count}; expected 0 to {most}",
            name,
        )


def _check_extra(name: str, item: Any) -> None:
    if name in _LABELS or any(item == each for each in _NEUTRAL.get(name, ())):
        return
    instead = _INSTEAD.get(name, "leave it out")
    if name in _NEUTRAL:
        raise RefusedField(f"{name} is not supported by this server; {instead}", name)
    raise RefusedField(f"{name[:100]!r} is not a field this server knows; {instead}", name[:100])


def _check_stream_options(request: Request, options: StreamOptions) -> None:
    if not request.stream:
        raise RefusedField("stream_options needs stream to be true", "stream_options")
    if options.include_obfuscation:
        raise RefusedField(
            "stream_options.include_obfuscation is not supported by this server; leave it out",
            "stream_options",
        )
