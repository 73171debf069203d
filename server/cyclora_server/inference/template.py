"""Chat templates as transformers runs them, without transformers.

Source: ``apply_chat_template`` of transformers 5.23; compared with it in
tests/server/inference/test_template.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cyclora_core.errors import UserError

_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", *_SPECIAL_TOKENS})


class ChatTemplate:
    """Makes one prompt of messages, ending where the assistant's answer begins."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile a template.

        Raises:
            TemplateError: it is none.
        """
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens)

    @classmethod
    def of(cls, config: Mapping[str, Any], template_file: str | None) -> ChatTemplate | None:
        """The template of a ``tokenizer_config.json``; one in a file of its own goes before."""
        source: Any = template_file or config.get("chat_template")
        if isinstance(source, list):  # several with names, of which one is the default
            named: list[Any] = source
            source = {each["name"]: each["template"] for each in named}.get("default")
        return cls(source, _special_tokens(config)) if source else None

    def render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """The prompt; ``options`` are variables of this template's own.

        Raises:
            UserError: the template refuses the messages, or an option is not its own.
        """
        taken = _GIVEN.intersection(options)
        if taken:
            raise UserError(f"chat_template_kwargs has {min(taken)!r}, which the server sets")
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
                **options,
            )
        except (TemplateError, TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise UserError(
                f"the base model's chat template refuses these messages: {str(error)[:500]}"
            ) from error


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant writes; rendering leaves it as it is."""

    tags = {"generation"}  # noqa: RUF012 - declared so by the base class

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.Scope(body).set_lineno(lineno)]


class _Dict:
    """``dict`` in templates, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` in templates; no attribute of it leads to the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportSelfClsParameterName]
        self, rest = args[0], args[1:]
        values: dict[Any, Any] = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    functions: dict[str, Any] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    environment.globals.update(functions)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Tokens that templates know by role; each is a string, or a record that has its content."""
    found: dict[str, str] = {}
    for name in _SPECIAL_TOKENS:
        token: Any = config.get(name)
        text: Any = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[name] = text
    return found
