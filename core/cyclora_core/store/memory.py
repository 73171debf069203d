"""How full the store is."""

from __future__ import annotations

from dataclasses import dataclass

from cyclora_core.store.connection import Connection


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The store's memory at one moment, in bytes."""

    used_bytes: int
    limit_bytes: int
    """Beyond this the store refuses what would take memory."""

    @property
    def fraction(self) -> float:
        return self.used_bytes / self.limit_bytes


class Memory:
    """Readings of the store's memory."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client

    async def read(self) -> MemoryReading:
        """The memory in use and its limit: ``maxmemory``, or else the whole machine's."""
        info = await self._redis.info("memory")
        limit_bytes = int(info["maxmemory"]) or int(info["total_system_memory"])
        return MemoryReading(int(info["used_memory"]), limit_bytes)
