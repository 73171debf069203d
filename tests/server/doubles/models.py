"""Models, as the server sees them in the store."""

from __future__ import annotations

from collections.abc import Sequence

from cyclora_core.types import ModelRecord
from server.doubles.builders import MODEL, model_record


class Models:
    def __init__(self) -> None:
        self.records = {MODEL: model_record()}

    async def get(self, model_id: str) -> ModelRecord | None:
        return self.records.get(model_id)

    async def get_many(self, model_ids: Sequence[str]) -> list[ModelRecord]:
        return [self.records[each] for each in model_ids if each in self.records]

    async def of_session(self, session_id: str) -> list[str]:
        return [key for key, each in self.records.items() if each.session_id == session_id]
