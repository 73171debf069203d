"""What takes space, and with which settings the processes run."""

from __future__ import annotations

from collections.abc import Sequence

from cyclora_core.records import Checkpoint
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.store.processes import ProcessSettings
from cyclora_core.types import ModelRecord
from server.doubles.accounts import Tenants
from server.doubles.checkpoints import Checkpoints
from server.doubles.models import Models


class Inventory:
    def __init__(self, tenants: Tenants, models: Models, checkpoints: Checkpoints) -> None:
        self._tenants = tenants
        self._models = models
        self._checkpoints = checkpoints
        self.writing: set[CheckpointFiles] = set()
        self.in_memory: set[str] = set()
        self.in_use: set[str] = set()

    async def tenant_ids(self) -> list[str]:
        return sorted(self._tenants.tenants)

    async def runs(self, tenant_id: str | None) -> list[ModelRecord]:
        records = self._models.records.values()
        return [each for each in records if tenant_id in (None, each.tenant_id)]

    async def checkpoints(
        self, tenant_id: str | None, *, with_unlisted: bool = False
    ) -> list[Checkpoint]:
        records = self._checkpoints.records.values()
        found = [each for each in records if tenant_id in (None, each.tenant_id)]
        return [each for each in found if each.is_listed or with_unlisted]

    async def handed_over(self, model_ids: Sequence[str]) -> set[str]:
        return self.in_memory

    async def doomed_later(self) -> set[CheckpointFiles]:
        return self.writing

    async def ended_runs(
        self, tenant_id: str, before_ms: int, offset: int, limit: int
    ) -> tuple[list[ModelRecord], bool]:
        runs = [each for each in await self.runs(tenant_id) if each.created_at_ms <= before_ms]
        page = runs[offset : offset + limit]
        ended = [each for each in page if each.is_ended and each.last_request_at_ms < before_ms]
        return ended, len(page) == limit

    async def drop_run(self, model: ModelRecord) -> bool:
        if model.model_id in self.in_use or await self._checkpoints.of_model(model.model_id):
            return False
        return self._models.records.pop(model.model_id, None) is not None


class Processes:
    def __init__(self) -> None:
        self.records: list[ProcessSettings] = []

    async def list(self) -> list[ProcessSettings]:
        return self.records
