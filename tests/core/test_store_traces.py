"""What is remembered of when operations ran, against a real Valkey."""

from __future__ import annotations

import dataclasses

import pytest

from core.builders import SESSION_ID, add_worker, model_id, sample, submission, submit
from core.test_store_cycles import dispatch_samples
from core.test_store_operations import CREATE, PASS, assign
from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.errors import ErrorCategory
from cyclora_core.operations import OperationKind
from cyclora_core.records import OperationError
from cyclora_core.store import Store, operations
from cyclora_core.store.operations import Outcome
from cyclora_core.store.traces import TracedOperation
from cyclora_core.types import Execution, PlannedOperation


def ran(clock: ManualClock) -> Execution:
    return Execution(7, clock.now_ms() - 30, clock.now_ms() - 20)


async def settle(
    store: Store, clock: ManualClock, seq_id: int, epoch: int, outcome: Outcome
) -> None:
    kind = CREATE if seq_id == 0 else PASS
    await store.operations.settle(
        worker_id="worker-1",
        epoch=epoch,
        tenant_id="tenant-a",
        base_model="test/base",
        model_id=model_id(),
        operation=PlannedOperation(f"{model_id()}:{seq_id}", kind, seq_id),
        outcome=outcome,
        ran=ran(clock),
    )


async def test_an_operation_is_traced_from_its_submission_to_its_end(
    store: Store, clock: ManualClock
) -> None:
    submitted_at_ms = clock.now_ms()
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1), submission(PASS, 2))
    epoch = await assign(store)
    clock.advance(1)
    await settle(store, clock, 0, epoch, Outcome(b"done"))
    await settle(store, clock, 1, epoch, Outcome(None, OperationError("no", ErrorCategory.USER)))

    created = TracedOperation(
        f"{model_id()}:0", CREATE, submitted_at_ms, ran(clock), clock.now_ms(), True
    )
    failed = dataclasses.replace(created, request_id=f"{model_id()}:1", kind=PASS, is_done=False)
    assert await store.traces.settled(SESSION_ID) == [created, failed]
    assert await store.traces.waiting([model_id()], 10) == [
        TracedOperation(f"{model_id()}:2", PASS, submitted_at_ms)
    ]


async def test_a_sample_is_traced_too(store: Store, clock: ManualClock) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)
    owner = sample(1).owner_id
    await store.operations.settle_sample(
        worker_id="worker-1",
        tenant_id="tenant-a",
        base_model="test/base",
        sampling_session_id=owner,
        seq_id=1,
        request_id=ids.request_id(owner, 1),
        outcome=Outcome(b"tokens"),
        ran=ran(clock),
    )

    [traced] = await store.traces.settled(SESSION_ID)

    assert traced.kind is OperationKind.SAMPLE
    assert traced.ran == ran(clock)


async def test_only_the_newest_are_remembered(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "MAX_TRACED", 2)
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1), submission(PASS, 2))
    epoch = await assign(store)
    for seq_id in range(3):
        await settle(store, clock, seq_id, epoch, Outcome(b"done"))

    traced = await store.traces.settled(SESSION_ID)

    assert [each.request_id for each in traced] == [f"{model_id()}:{n}" for n in (1, 2)]


async def test_nothing_is_traced_of_an_unknown_session(store: Store) -> None:
    assert await store.traces.settled(SESSION_ID) == []
    assert await store.traces.waiting([], 10) == []
