"""What is sampled from: chat messages or prompts, as tokens of one base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cyclora_core.errors import UserError
from cyclora_server.inference.errors import RefusedField
from cyclora_server.inference.requests import MAX_PROMPTS
from cyclora_server.inference.tokenizer import TextTokenizer

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXT_FIELDS = ("name", "reasoning_content")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; ``text`` is what an echo gives back."""

    tokens: Sequence[int]
    text: str


def of_messages(
    messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], tokenizer: TextTokenizer
) -> Prompt:
    """The prompt that the base model's chat template makes.

    Raises:
        UserError: there is no template, or it or we refuse the messages.
    """
    if tokenizer.template is None:
        raise UserError(
            "the base model has no chat template; use /v1/completions with a prompt in the form "
            "that the model was trained on"
        )
    plain = [_message(each, f"messages.{number}") for number, each in enumerate(messages)]
    text = tokenizer.template.render(plain, options)
    return Prompt(tokenizer.encode(text, add_special_tokens=False), text)


def of_completion(prompt: Any, tokenizer: TextTokenizer) -> list[Prompt]:
    """Prompts of a completion: a text, a list of texts, tokens, or a list of tokens.

    Raises:
        RefusedField: it is none of these.
    """
    if isinstance(prompt, str) or _is_tokens(prompt):
        return [_prompt(prompt, tokenizer)]
    if isinstance(prompt, list):
        prompts: list[Any] = prompt
        if 1 <= len(prompts) <= MAX_PROMPTS:
            return [_prompt(each, tokenizer) for each in prompts]
    raise _not_a_prompt()


def _prompt(prompt: Any, tokenizer: TextTokenizer) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(tokenizer.encode(prompt, add_special_tokens=True), prompt)
    if not _is_tokens(prompt):
        raise _not_a_prompt()
    return Prompt(prompt, tokenizer.decode([each for each in prompt if 0 <= each < 2**31]))


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)  # pyright: ignore[reportUnknownVariableType]


def _not_a_prompt() -> RefusedField:
    return RefusedField(
        f"prompt is not understood; expected a string, tokens, or a list of 1 to {MAX_PROMPTS} "
        "of either",
        "prompt",
    )


def _message(message: Mapping[str, Any], where: str) -> dict[str, str]:
    """A message as templates know it: a role, and content that is one string."""
    role = message.get("role")
    if role not in _ROLES:
        raise RefusedField(
            f"{where}.role is {str(role)[:60]!r}; expected one of {', '.join(_ROLES)}", where
        )
    plain = {"role": _ROLES[role], "content": _content(message.get("content"), where)}
    for name, value in message.items():
        if name in ("role", "content") or value is None or value == []:
            continue
        if name not in _TEXT_FIELDS or not isinstance(value, str):
            raise RefusedField(
                f"{where}.{name[:60]} is not supported by this server; leave it out", where
            )
        plain[name] = value
    return plain


def _content(content: Any, where: str) -> str:
    """Text as it is; parts of text are put together without anything in between."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise RefusedField(f"{where}.content is missing; expected text", where)
    parts: list[Any] = content
    texts: list[str] = []
    for number, part in enumerate(parts):
        kind: Any = part.get("type") if isinstance(part, dict) else None
        text: Any = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise RefusedField(
                f"{where}.content.{number} is of type {str(kind)[:60]!r}; this server takes text "
                "only",
                where,
            )
        texts.append(text)
    return "".join(texts)
