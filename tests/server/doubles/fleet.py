"""Base models, workers, and the memory of the store."""

from __future__ import annotations

from cyclora_core.peft import TargetModule
from cyclora_core.records import WorkerStatus
from cyclora_core.store.memory import MemoryReading
from cyclora_core.types import BaseModelInfo, Cycle, EndedCycle
from server.doubles.builders import BASE, MODULES

_MIB = 1024 * 1024


class BaseModels:
    def __init__(self) -> None:
        self.records = {BASE.name: BASE}
        self.modules = {BASE.name: MODULES}

    async def get(self, name: str) -> BaseModelInfo | None:
        return self.records.get(name)

    async def list(self) -> list[BaseModelInfo]:
        return list(self.records.values())

    async def target_modules(self, name: str) -> list[TargetModule]:
        return self.modules.get(name, [])


class Workers:
    def __init__(self) -> None:
        self.records = [WorkerStatus("worker-1", BASE.name, 1000, True, None, {"name": "w"})]
        self.ended: list[EndedCycle] = []
        self.running: list[Cycle] = []

    async def list(self) -> list[WorkerStatus]:
        return self.records

    async def ended_cycles(self, base_model: str, limit: int) -> list[EndedCycle]:
        return [each for each in self.ended if each.base_model == base_model][:limit]

    async def running_cycles(self) -> list[Cycle]:
        return self.running


class Memory:
    def __init__(self) -> None:
        self.reading = MemoryReading(used_bytes=10 * _MIB, limit_bytes=1000 * _MIB)

    async def read(self) -> MemoryReading:
        return self.reading
