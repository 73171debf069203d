"""Writes deploy/env.example from the settings classes: ``python deploy/env_example.py``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from cyclora_scheduler.settings import SchedulerSettings
from cyclora_server.settings import Settings
from cyclora_workers.settings import WorkerSettings

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
        default = "" if field.default is None else str(field.default)
        blocks.append(
            "\n".join([*(f"# {line}" for line in lines), f"#CYCLORA_{name.upper()}={default}"])
        )
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("env.example").write_text(env_example())
