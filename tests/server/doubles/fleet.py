"""Base models, workers, and the memory of the store."""

from __future__ import annotations

import dataclasses

from cyclora_core.errors import NotFound
from cyclora_core.peft import TargetModule
from cyclora_core.placement import Held, Place, PlacedModel, Wish
from cyclora_core.records import WorkerStatus
from cyclora_core.store.memory import MemoryReading
from cyclora_core.types import BaseModelInfo, Cycle, EndedCycle
from server.doubles.builders import BASE, MODULES
from server.doubles.models import Models

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

    async def set_draining(self, worker_id: str, is_draining: bool, by: str) -> None:
        assert by
        if worker_id not in {each.worker_id for each in self.records}:
            raise NotFound(f"worker {worker_id!r} does not exist, or has ended")
        self.records = [
            dataclasses.replace(each, is_draining=is_draining)
            if each.worker_id == worker_id
            else each
            for each in self.records
        ]


class Placements:
    def __init__(self, models: Models) -> None:
        self._models = models
        self.wishes: dict[str, Wish] = {}

    async def wish(self, model_id: str, wish: Wish, by: str = "") -> None:
        assert by
        if await self._models.get(model_id) is None:
            raise NotFound(f"model {model_id!r} does not exist")
        self.wishes[model_id] = wish

    async def list(
        self, *, worker_id: str | None = None, tenant_id: str | None = None
    ) -> list[PlacedModel]:
        return [
            PlacedModel(model, Held(Place.STORAGE, 0), self.wishes.get(model.model_id), "")
            for model in self._models.records.values()
            if worker_id in (None, model.worker_id) and tenant_id in (None, model.tenant_id)
        ]


class Memory:
    def __init__(self) -> None:
        self.reading = MemoryReading(used_bytes=10 * _MIB, limit_bytes=1000 * _MIB)

    async def read(self) -> MemoryReading:
        return self.reading
