"""How the supervisor learns that a child is ready, and how far it is before that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Report:
    """What a child says about itself."""

    stage: str
    progress: float | None = None
    """Part of the start that is done, 0 to 1; None when it does not know."""
    is_ready: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Probe(Protocol):
    """One child's way of saying how it is."""

    def reset(self) -> None:
        """Forget what an earlier process of this child said; called before each start."""
        ...

    def read(self) -> Report | None:
        """The newest report, or None when there is none yet."""
        ...


class ReadyFile:
    """The JSON file a process writes to CYCLORA_READY_FILE; it holds ``pid`` once it is ready."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def reset(self) -> None:
        self._path.unlink(missing_ok=True)

    def read(self) -> Report | None:
        try:
            value: Any = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(value, dict):
            return None
        if "pid" in value:
            return Report(stage="ready", progress=1.0, is_ready=True, facts=value)
        progress = value.get("progress")
        is_number = isinstance(progress, int | float)
        return Report(str(value.get("stage", "starting")), float(progress) if is_number else None)
