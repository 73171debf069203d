"""With which settings the processes run, as each said when it started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cyclora_core import codec
from cyclora_core.shown import shown
from cyclora_core.store.connection import Connection

MAX_PROCESSES = 500
"""Of all kinds; beyond them those that started longest ago are forgotten."""


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """The settings in force in one process, without secrets."""

    kind: str
    """``server``, ``scheduler`` or ``worker``."""
    name: str
    started_at_ms: int
    settings: Mapping[str, Any]


class Processes:
    """One entry for each name of a process, replaced by its next start."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock

    async def put(self, kind: str, name: str, settings: Mapping[str, Any]) -> None:
        """Say with which settings a process runs that starts now."""
        record = ProcessSettings(kind, name, self._clock.now_ms(), shown(settings))
        key = self._keys.process_settings()
        field = json.dumps([kind, name])
        await self._connection.run("put_process", [key], [field, codec.dump(record)])
        found = await self.list()
        for old in sorted(found, key=lambda each: each.started_at_ms)[:-MAX_PROCESSES]:
            await self._redis.hdel(key, json.dumps([old.kind, old.name]))

    async def list(self) -> list[ProcessSettings]:
        rows = await self._redis.hvals(self._keys.process_settings())
        found = (codec.load(ProcessSettings, row) for row in rows)
        return sorted(found, key=lambda each: (each.kind, each.name))
