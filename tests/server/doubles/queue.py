"""Operations on their way: submitted, settled, announced and cancelled."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from cyclora_core import ids, payload
from cyclora_core.operations import Result
from cyclora_core.partials import PartialToken, Progress
from cyclora_core.queues import WaitingOperation
from cyclora_core.records import (
    Completion,
    Future,
    FutureState,
    OperationError,
    Submission,
    SubmitOutcome,
)
from cyclora_core.store.cancellations import CancelOutcome
from server.doubles.builders import model_record, user_error
from server.doubles.models import Models


class Futures:
    def __init__(self) -> None:
        self.records: dict[str, Future] = {}
        self.acknowledged: list[str] = []
        self.handed_out: list[str] = []
        self.order: list[str] = []
        self.partials: dict[str, list[PartialToken]] = {}
        self._subscribers: list[asyncio.Queue[str]] = []
        self.is_subscribed = False

    async def get(self, request_id: str) -> Future | None:
        return self.records.get(request_id)

    async def progress(self, request_id: str, num_seen: int) -> Progress:
        is_final = self.records[request_id].state is not FutureState.PENDING
        shown = [] if is_final else self.partials.get(request_id, [])
        return Progress(shown[num_seen:], is_final)

    def show(self, request_id: str, *tokens: PartialToken) -> None:
        self.partials.setdefault(request_id, []).extend(tokens)
        self.announce(request_id)

    @asynccontextmanager
    async def subscribe(self) -> AsyncGenerator[AsyncIterator[str], None]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._subscribers.append(queue)
        self.is_subscribed = True
        yield self._announcements(queue)

    async def _announcements(self, queue: asyncio.Queue[str]) -> AsyncIterator[str]:
        while True:
            yield await queue.get()

    def announce(self, request_id: str) -> None:
        for queue in self._subscribers:
            queue.put_nowait(request_id)

    def settle(
        self,
        request_id: str,
        result: Result | None = None,
        error: OperationError | None = None,
        *,
        announced: bool = True,
    ) -> None:
        state = FutureState.FAILED if error else FutureState.DONE
        data = payload.encode(result.to_payload()) if result else None
        self.records[request_id] = dataclasses.replace(
            self.records[request_id], state=state, result=data, error=error
        )
        self.order.append(request_id)
        if announced:
            self.announce(request_id)

    async def completions(
        self, sampling_session_id: str, clone_id: int, prev_cursor: int
    ) -> list[Completion]:
        found = [
            Completion(cursor, request_id, self.records[request_id].state)
            for cursor, request_id in enumerate(self.order, 1)
            if request_id.startswith(f"{sampling_session_id}:")
            and int(request_id.rpartition(":")[2]) // 1_000_000_000 == clone_id
        ]
        return [each for each in found if each.cursor > prev_cursor]

    async def fetched(self, request_id: str) -> None:
        self.handed_out.append(request_id)

    async def acknowledge(self, request_ids: Sequence[str]) -> None:
        self.acknowledged += request_ids


class Operations:
    def __init__(self, futures: Futures, models: Models) -> None:
        self.submissions: dict[str, Submission] = {}
        self.expired: set[str] = set()
        self._futures = futures
        self._models = models

    async def submit(self, submission: Submission) -> SubmitOutcome:
        request_id = submission.request_id
        if request_id in self.expired:
            return SubmitOutcome.EXPIRED
        earlier = self.submissions.get(request_id)
        if earlier is not None:
            is_same = earlier.sent == submission.sent
            return SubmitOutcome.DUPLICATE if is_same else SubmitOutcome.CONFLICT
        self.submissions[request_id] = submission
        self._futures.records[request_id] = Future(
            request_id,
            submission.tenant_id,
            submission.owner_id,
            submission.seq_id,
            submission.kind,
            FutureState.FAILED if submission.error else FutureState.PENDING,
            error=submission.error,
        )
        if submission.new_model is not None:
            self._models.records[submission.owner_id] = model_record(
                model_id=submission.owner_id,
                tenant_id=submission.tenant_id,
                lora=submission.new_model.lora,
                user_metadata=dict(submission.new_model.user_metadata),
            )
        return SubmitOutcome.ACCEPTED


class Cancellations:
    def __init__(self, futures: Futures) -> None:
        self.cancelled: list[str] = []
        self._futures = futures

    async def cancel(
        self, tenant_id: str, base_model: str, sampling_session_id: str, seq_id: int
    ) -> CancelOutcome:
        future = await self._futures.get(ids.request_id(sampling_session_id, seq_id))
        if future is None:
            return CancelOutcome.UNKNOWN
        assert future.tenant_id == tenant_id
        assert base_model
        if future.state is not FutureState.PENDING:
            return CancelOutcome.FINAL
        self.cancelled.append(future.request_id)
        self._futures.settle(future.request_id, error=user_error("cancelled"))
        return CancelOutcome.CANCELLED


class Queues:
    def __init__(self) -> None:
        self.operations: list[WaitingOperation] = []
        self.cancelled: list[tuple[str, str]] = []

    async def waiting(self, tenant_id: str | None, model_id: str | None) -> list[WaitingOperation]:
        return [
            each
            for each in self.operations
            if tenant_id in (None, each.tenant_id) and model_id in (None, each.owner_id)
        ]

    async def cancel_model(self, tenant_id: str, model_id: str, by: str) -> int:
        return await self.cancel_samples(tenant_id, await self.waiting(tenant_id, model_id), by)

    async def cancel_tenant(self, tenant_id: str, by: str) -> int:
        return await self.cancel_samples(tenant_id, await self.waiting(tenant_id, None), by)

    async def cancel_samples(
        self, tenant_id: str, samples: Iterable[WaitingOperation], by: str
    ) -> int:
        chosen = list(samples)
        assert all(each.tenant_id == tenant_id for each in chosen)
        self.cancelled += [(each.request_id, by) for each in chosen]
        return len(chosen)


class Gaps:
    def __init__(self) -> None:
        self.awaited: set[tuple[str, int]] = set()

    async def is_awaited(self, model_id: str, seq_id: int) -> bool:
        return (model_id, seq_id) in self.awaited
