"""Sessions and what belongs to one: samplers, custom losses and runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from cyclora_core import ids, payload
from cyclora_core.custom_loss import CustomLoss
from cyclora_core.operations import CustomLossResult, OperationKind
from cyclora_core.records import (
    DEFAULT_PROJECT,
    EXPIRED,
    Future,
    FutureState,
    SamplingSession,
    Session,
)
from cyclora_core.store.custom_losses import CreateLossOutcome
from cyclora_core.types import ModelRecord
from server.doubles.builders import BASE, SAMPLER, SESSION, TENANT
from server.doubles.checkpoints import Checkpoints
from server.doubles.models import Models
from server.doubles.queue import Futures


class Sessions:
    def __init__(self) -> None:
        self.records = {SESSION: Session(SESSION, TENANT, 1000, 1000)}
        self.by_idempotency_key: dict[str, str] = {}
        self.heartbeats: list[str] = []
        self.to_clean_up: list[str] = []
        self.busy: set[str] = set()

    async def create(self, session: Session, idempotency_key: str | None) -> Session:
        session_id = session.session_id
        if idempotency_key:
            session_id = self.by_idempotency_key.setdefault(idempotency_key, session_id)
        return self.records.setdefault(session_id, session)

    async def get(self, session_id: str) -> Session | None:
        return self.records.get(session_id)

    async def get_many(self, session_ids: Sequence[str]) -> dict[str, Session]:
        return {each: self.records[each] for each in session_ids if each in self.records}

    async def heartbeat(self, session_id: str) -> None:
        self.heartbeats.append(session_id)

    async def finish(self, session_id: str, reason: str, detail: str | None = None) -> bool:
        record = self.records[session_id]
        if record.finished_reason is not None:
            return False
        self.records[session_id] = dataclasses.replace(
            record, finished_reason=reason, finished_detail=detail
        )
        self.to_clean_up.append(session_id)
        return True

    async def live(self) -> dict[str, int]:
        records = self.records.values()
        return {each.session_id: 1000 for each in records if each.finished_reason is None}

    async def expire(self, session_id: str, last_sign_ms: int, detail: str) -> bool:
        assert last_sign_ms == 1000
        return session_id not in self.busy and await self.finish(session_id, EXPIRED, detail)

    async def ending(self, for_s: float, limit: int) -> list[str]:
        assert for_s > 0
        return self.to_clean_up[:limit]

    async def postpone(self, session_id: str) -> None:
        self.to_clean_up.remove(session_id)
        self.to_clean_up.append(session_id)

    async def cleaned_up(self, session_id: str) -> None:
        if session_id in self.to_clean_up:
            self.to_clean_up.remove(session_id)

    async def assign_project(self, session: Session, project_id: str, by: str) -> None:
        assert by
        self.records[session.session_id] = dataclasses.replace(session, project_id=project_id)

    async def list(self, tenant_id: str, offset: int, limit: int) -> list[Session]:
        return self._newest_first(tenant_id)[offset : offset + limit]

    async def older_than(
        self, tenant_id: str, created_at_ms: int, session_id: str, limit: int
    ) -> list[Session]:
        before = (created_at_ms, session_id)
        found = self._newest_first(tenant_id)
        return [each for each in found if (each.created_at_ms, each.session_id) < before][:limit]

    def _newest_first(self, tenant_id: str) -> list[Session]:
        found = [each for each in self.records.values() if each.tenant_id == tenant_id]
        return sorted(found, key=lambda each: (each.created_at_ms, each.session_id))[::-1]


class Sampling:
    def __init__(self) -> None:
        session = SamplingSession(SAMPLER, TENANT, SESSION, BASE.name, None, None, 1000)
        self.records = {SAMPLER: session}
        self.num_clones = 0
        self.next_seq_id = 1000

    async def create(self, record: SamplingSession) -> SamplingSession:
        return self.records.setdefault(record.sampling_session_id, record)

    async def number(self, record: SamplingSession, count: int, kept_s: int) -> int:
        self.records.setdefault(record.sampling_session_id, record)
        self.next_seq_id += count
        return self.next_seq_id - count

    async def get(self, sampling_session_id: str) -> SamplingSession | None:
        return self.records.get(sampling_session_id)

    async def join(self, sampling_session_id: str) -> int:
        assert sampling_session_id in self.records
        self.num_clones += 1
        return self.num_clones

    async def of_session(self, session_id: str) -> list[str]:
        return [key for key, each in self.records.items() if each.session_id == session_id]


class CustomLosses:
    def __init__(self, sessions: Sessions, futures: Futures) -> None:
        self.records: dict[str, CustomLoss] = {}
        self.outcome: CreateLossOutcome | None = None
        """What the next creation comes to, if not what the records say."""
        self._sessions = sessions
        self._futures = futures

    async def create(
        self, tenant_id: str, session_id: str, custom_loss_seq_id: int, loss: CustomLoss
    ) -> CreateLossOutcome:
        if self.outcome is not None:
            return self.outcome
        loss_id = ids.loss_id(session_id, custom_loss_seq_id)
        if loss_id in self.records:
            is_same = self.records[loss_id] == loss
            return CreateLossOutcome.DUPLICATE if is_same else CreateLossOutcome.CONFLICT
        if self._sessions.records[session_id].finished_reason is not None:
            return CreateLossOutcome.FINISHED
        self.records[loss_id] = loss
        kind = OperationKind.CREATE_CUSTOM_LOSS
        owner_id = ids.loss_owner_id(session_id)
        result = payload.encode(CustomLossResult(loss_id).to_payload())
        self._futures.records[loss_id] = Future(
            loss_id, tenant_id, owner_id, custom_loss_seq_id, kind, FutureState.DONE, result
        )
        return CreateLossOutcome.ACCEPTED

    async def get(self, loss_id: str) -> CustomLoss | None:
        return self.records.get(loss_id)


class Runs:
    def __init__(self, models: Models, sessions: Sessions, checkpoints: Checkpoints) -> None:
        self._models = models
        self._sessions = sessions
        self._checkpoints = checkpoints

    async def list(self, tenant_id: str, offset: int, limit: int) -> tuple[list[ModelRecord], int]:
        return self._page(offset, limit, lambda model: model.tenant_id == tenant_id)

    async def list_of_project(
        self, tenant_id: str, project_id: str, offset: int, limit: int
    ) -> tuple[list[ModelRecord], int]:
        def is_in_it(model: ModelRecord) -> bool:
            session = self._sessions.records.get(model.session_id)
            inherited = (session.project_id if session else None) or DEFAULT_PROJECT
            return model.tenant_id == tenant_id and project_id == (model.project_id or inherited)

        return self._page(offset, limit, is_in_it)

    async def list_accessible(
        self, tenant_id: str, offset: int, limit: int
    ) -> tuple[list[ModelRecord], int]:
        records = self._checkpoints.records.values()
        published = {each.model_id for each in records if each.is_public}
        return self._page(
            offset,
            limit,
            lambda model: model.tenant_id == tenant_id or model.model_id in published,
        )

    def _page(
        self, offset: int, limit: int, is_shown: Callable[[ModelRecord], bool]
    ) -> tuple[list[ModelRecord], int]:
        found = [each for each in self._models.records.values() if is_shown(each)]
        return found[::-1][offset : offset + limit], len(found)
