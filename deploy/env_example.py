"""Writes what is made from the settings classes: ``python deploy/env_example.py``.

``deploy/env.example`` is for operators; the list of names in core is for processes that meet a
variable they do not know.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings
from typer.main import get_command

import cyclora_core
from cyclora_client.cli import app
from cyclora_core.environment import PREFIX
from cyclora_scheduler.settings import SchedulerSettings
from cyclora_server.settings import Settings
from cyclora_workers.settings import WorkerSettings

EXAMPLE_FILE = Path(__file__).with_name("env.example")
NAMES_FILE = Path(cyclora_core.__file__).with_name("setting_names.txt")

_PROCESSES: dict[str, type[BaseSettings]] = {
    "server": Settings,
    "scheduler": SchedulerSettings,
    "worker": WorkerSettings,
}


def env_example() -> str:
    """Every setting once, with its default, its meaning and the processes that read it."""
    readers: dict[str, list[str]] = {}
    fields: dict[str, Any] = {}
    for process, settings in _PROCESSES.items():
        for name, field in settings.model_fields.items():
            readers.setdefault(name, []).append(process)
            fields.setdefault(name, field)
    blocks = ["# Settings of all processes, with their defaults. Made by deploy/env_example.py."]
    for name, field in fields.items():
        meaning = " ".join((field.description or "").split())
        lines = textwrap.wrap(f"{', '.join(readers[name])}: {meaning}", 97)
        default = "" if field.default is None else _as_text(field.default)
        blocks.append(
            "\n".join([*(f"# {line}" for line in lines), f"#{PREFIX}{name.upper()}={default}"])
        )
    return "\n\n".join(blocks) + "\n"


def _as_text(default: Any) -> str:
    if is_dataclass(default) and not isinstance(default, type):
        given = {name: value for name, value in asdict(default).items() if value is not None}
        return json.dumps(given)
    return str(default)


def setting_names() -> str:
    """Every variable of ours that a process or an option of the client's commands reads."""
    names = {f"{PREFIX}{n.upper()}" for kind in _PROCESSES.values() for n in kind.model_fields}
    names |= {name for name in _variables_of(get_command(app)) if name.startswith(PREFIX)}
    return "\n".join(sorted(names)) + "\n"


def _variables_of(command: Any) -> Iterator[str]:
    """The variables that options of a command and of its subcommands are read from."""
    for option in command.params:
        found: str | Sequence[str] = option.envvar or ()
        yield from [found] if isinstance(found, str) else found
    for subcommand in getattr(command, "commands", {}).values():
        yield from _variables_of(subcommand)


if __name__ == "__main__":
    EXAMPLE_FILE.write_text(env_example())
    NAMES_FILE.write_text(setting_names())
