"""Everything that a user of the installed SDK can call: methods of its clients, and commands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType

import click
import tinker
from tinker.cli.__main__ import main_cli

CLIENTS = (
    tinker.ServiceClient,
    tinker.TrainingClient,
    tinker.SamplingClient,
    tinker.RestClient,
    tinker.AdminClient,
    tinker.APIFuture,
)
_ASYNC = "_async"


def call_names() -> list[str]:
    """``Class.method``, ``auth.function`` and ``tinker group command``, in the SDK's order.

    The asynchronous twin of a method is the same call to the server, and so has no name of its own.
    """
    names = [name for owner in CLIENTS for name in _folded(owner)]
    names += [f"auth.{name}" for name in tinker.auth.__all__]
    return [*names, *(" ".join(words) for words in commands(main_cli, ("tinker",)))]


def public_functions(owner: type) -> Iterator[str]:
    """Names of the methods that a class itself defines for its users."""
    for name, value in vars(owner).items():
        if not name.startswith("_") and (inspect.isroutine(value) or callable(value)):
            yield name


def folded_name(owner: type | ModuleType, name: str) -> str:
    """The name under which a method is counted."""
    twin = name.removesuffix(_ASYNC)
    short = owner.__name__.rsplit(".", 1)[-1]
    return f"{short}.{twin if hasattr(owner, twin) else name}"


def commands(group: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words of every command below a group."""
    if not isinstance(group, click.Group):
        yield words
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{name} is listed and missing"
        yield from commands(command, (*words, name))


def _folded(owner: type) -> list[str]:
    names = [folded_name(owner, name) for name in public_functions(owner)]
    return list(dict.fromkeys(names))
