"""deploy/compose.yaml as Compose would read it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy import dockerfile

FILE = Path(__file__).parents[2] / "deploy" / "compose.yaml"

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Service:
    """One service, with what its image says where the file says nothing."""

    name: str
    raw: Mapping[str, Any]
    command: Sequence[str]
    environment: Mapping[str, str]
    healthcheck: Sequence[str]
    """As Docker runs it; a shell command is ``sh -c``."""

    @property
    def image(self) -> str:
        return self.raw["image"]

    @property
    def is_built(self) -> bool:
        return "build" in self.raw

    @property
    def profiles(self) -> Sequence[str]:
        return self.raw.get("profiles", [])

    @property
    def volumes(self) -> Mapping[str, str]:
        """What is mounted, by where."""
        return {text.split(":")[1]: text.split(":")[0] for text in self.raw.get("volumes", [])}

    @property
    def waits_for(self) -> Sequence[str]:
        return list(self.raw.get("depends_on", []))

    @property
    def stop_grace_s(self) -> float:
        return seconds(self.raw["stop_grace_period"])

    @property
    def process(self) -> str:
        """Which of our processes this is, as the Dockerfile calls it."""
        return self.raw["build"]["target"]


def load(variables: Mapping[str, str] | None = None, file: Path = FILE) -> dict[str, Service]:
    """Every service, whatever its profile; ``variables`` are those of deploy/.env."""
    filled = _VARIABLE.sub(
        lambda found: (variables or {}).get(found[1]) or found[2] or "", file.read_text()
    )
    services: dict[str, Any] = yaml.safe_load(filled)["services"]
    return {name: _service(name, raw) for name, raw in services.items()}


def seconds(text: str) -> float:
    """A duration of one unit."""
    return float(text[:-1]) * _UNITS[text[-1]]


def _service(name: str, raw: Mapping[str, Any]) -> Service:
    command: Sequence[str] = raw.get("command", [])
    environment: dict[str, str] = {}
    healthcheck: Sequence[str] = []
    if build := raw.get("build"):
        image = dockerfile.read().image(build["target"], build.get("args"))
        command = command or image.command
        environment |= image.environment
        healthcheck = image.healthcheck
    environment |= {key: str(value) for key, value in raw.get("environment", {}).items()}
    match raw.get("healthcheck", {}).get("test"):
        case ["CMD", *words]:
            healthcheck = words
        case ["CMD-SHELL", text]:
            healthcheck = ["sh", "-c", text]
        case _:
            pass
    return Service(name, raw, command, environment, healthcheck)
