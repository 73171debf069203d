"""Submit, settle and the command log, against a real Valkey."""

from __future__ import annotations

import random

import pytest

from core.builders import BASE_MODEL, add_worker, model_id, sample, submission, submit
from cyclora_core.errors import ErrorCategory, FencedOut, ServerError
from cyclora_core.operations import OperationKind
from cyclora_core.records import FutureState, OperationError, SubmitOutcome
from cyclora_core.store import Store
from cyclora_core.store.operations import Outcome, SettleOutcome
from cyclora_core.types import Cycle, PlannedModel, PlannedOperation
from cyclora_core.waiting import Assignment, Waiting

CREATE = OperationKind.CREATE_MODEL
PASS = OperationKind.FORWARD_BACKWARD
STEP = OperationKind.OPTIM_STEP


async def gathered(store: Store) -> Waiting:
    return await store.cycles.gather(BASE_MODEL, 100, 100)


async def pending_seq_ids(store: Store) -> list[int]:
    waiting = await gathered(store)
    return [operation.seq_id for model in waiting.models for operation in model.operations]


async def assign(store: Store, worker_id: str = "worker-1", token: str = "t") -> int:
    """Dispatch all that waits of model 0 to a worker; returns the epoch."""
    await store.cycles.lead(token, 30)
    model = (await gathered(store)).models[0]
    planned = PlannedModel(
        model.model_id,
        model.tenant_id,
        model.epoch + 1,
        [PlannedOperation(o.request_id, o.kind, o.seq_id) for o in model.operations],
    )
    assignment = Assignment(planned, model.worker_id, model.epoch)
    cycle = Cycle(0, BASE_MODEL, worker_id, [planned], [])
    assert isinstance(await store.cycles.dispatch(token, cycle, [assignment], []), int)
    return planned.epoch


async def settle(
    store: Store,
    seq_id: int,
    epoch: int,
    kind: OperationKind = PASS,
    *,
    worker_id: str = "worker-1",
    error: OperationError | None = None,
) -> SettleOutcome:
    operation = PlannedOperation(f"{model_id()}:{seq_id}", kind, seq_id)
    return await store.operations.settle(
        worker_id=worker_id,
        epoch=epoch,
        tenant_id="tenant-a",
        base_model=BASE_MODEL,
        model_id=model_id(),
        operation=operation,
        outcome=Outcome(
            None if error else b"result", error, num_tokens=7, is_replayed=error is None
        ),
    )


async def test_the_same_submission_twice_is_one_operation(store: Store) -> None:
    outcomes = await submit(store, submission(CREATE, 0), submission(CREATE, 0))

    assert outcomes == [SubmitOutcome.ACCEPTED, SubmitOutcome.DUPLICATE]
    assert await pending_seq_ids(store) == [0]


async def test_a_used_seq_id_with_another_body_is_a_conflict(store: Store) -> None:
    await submit(store, submission(CREATE, 0), submission(PASS, 1, body=b"one"))

    outcomes = await submit(store, submission(PASS, 1, body=b"two"), submission(STEP, 1))

    assert outcomes == [SubmitOutcome.CONFLICT, SubmitOutcome.CONFLICT]


async def test_operations_that_arrive_in_any_order_are_logged_in_seq_id_order(
    store: Store,
) -> None:
    await submit(store, submission(CREATE, 0))
    seq_ids = list(range(1, 20))
    random.Random(5).shuffle(seq_ids)

    for seq_id in seq_ids:
        await submit(store, submission(PASS, seq_id))

    assert await pending_seq_ids(store) == list(range(20))


async def test_a_gap_holds_back_what_comes_after_it(store: Store) -> None:
    await submit(store, submission(CREATE, 0), submission(PASS, 2), submission(PASS, 3))

    assert await pending_seq_ids(store) == [0]
    await submit(store, submission(PASS, 1))
    assert await pending_seq_ids(store) == [0, 1, 2, 3]


async def test_a_refused_operation_fails_at_once_and_uses_up_its_seq_id(store: Store) -> None:
    await submit(store, submission(CREATE, 0), submission(PASS, 1, is_refused=True))
    await submit(store, submission(PASS, 2))

    future = await store.futures.get(f"{model_id()}:1")
    assert future is not None
    assert future.state is FutureState.FAILED
    assert future.error == OperationError("refused", ErrorCategory.USER)
    assert await pending_seq_ids(store) == [0, 2]


async def test_settling_steps_over_refused_operations(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1))
    await submit(store, submission(PASS, 2, is_refused=True), submission(PASS, 3))
    epoch = await assign(store)

    await settle(store, 0, epoch, CREATE)
    await settle(store, 1, epoch)
    assert await pending_seq_ids(store) == [3]
    await settle(store, 3, epoch)

    model = await store.models.get(model_id())
    assert model is not None
    assert model.applied_seq_id == 3
    assert (await gathered(store)).is_empty


async def test_a_result_is_settled_once_and_metered_once(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    epoch = await assign(store)

    outcomes = [await settle(store, 0, epoch, CREATE) for _ in range(3)]

    assert outcomes == [SettleOutcome.SETTLED, SettleOutcome.ALREADY, SettleOutcome.ALREADY]
    assert await store.tenants.usage("tenant-a") == {"create_model_tokens": 7}


async def test_a_worker_that_lost_its_model_settles_nothing(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    old_epoch = await assign(store)
    await add_worker(store, "worker-2", "other")
    await assign(store, "worker-2")

    with pytest.raises(FencedOut):
        await settle(store, 0, old_epoch, CREATE)

    future = await store.futures.get(f"{model_id()}:0")
    assert future is not None
    assert future.state is FutureState.PENDING


async def test_an_operation_cannot_be_settled_before_its_predecessor(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1))
    epoch = await assign(store)

    with pytest.raises(ServerError, match="before an earlier operation"):
        await settle(store, 1, epoch)


async def test_replaying_leaves_out_what_failed_and_what_changes_nothing(store: Store) -> None:
    await add_worker(store)
    kinds = [CREATE, PASS, OperationKind.FORWARD, PASS, OperationKind.SAVE_WEIGHTS, STEP]
    for seq_id, kind in enumerate(kinds):
        await submit(store, submission(kind, seq_id))
    epoch = await assign(store)
    for seq_id, kind in enumerate(kinds):
        error = OperationError("nan", ErrorCategory.USER) if seq_id == 3 else None
        await settle(store, seq_id, epoch, kind, error=error)

    replayed = await store.operations.replayable(model_id(), 0, 5)

    assert [operation.seq_id for operation in replayed] == [0, 1, 5]
    assert await store.operations.bodies([o.request_id for o in replayed]) == [b"body"] * 3


async def test_a_snapshot_drops_the_log_and_the_bodies_it_covers(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1), submission(STEP, 2))
    epoch = await assign(store)
    for seq_id, kind in enumerate([CREATE, PASS, STEP]):
        await settle(store, seq_id, epoch, kind)

    assert await store.models.record_snapshot(model_id(), "worker-1", epoch, 1)

    assert [o.seq_id for o in await store.operations.replayable(model_id(), 0, 2)] == [2]
    with pytest.raises(ServerError, match="missing"):
        await store.operations.bodies([f"{model_id()}:1"])


async def test_a_fenced_worker_records_no_snapshot(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    epoch = await assign(store)

    assert not await store.models.record_snapshot(model_id(), "worker-9", epoch, 0)


async def test_operations_that_follow_a_cycle_are_seen_by_its_worker(store: Store) -> None:
    await submit(store, submission(CREATE, 0), submission(PASS, 1))
    await submit(store, submission(STEP, 2, is_refused=True), submission(STEP, 3))

    logged = await store.operations.logged(model_id(), 1)

    assert [(o.seq_id, o.kind) for o in logged] == [(1, PASS), (3, STEP)]


async def test_samples_wait_in_their_tenants_queue(store: Store) -> None:
    await submit(store, sample(5), sample(6, tenant_id="tenant-b"), sample(5))

    waiting = await gathered(store)

    assert [(s.operation.tenant_id, s.operation.seq_id) for s in waiting.samples] == [
        ("tenant-a", 5),
        ("tenant-b", 6),
    ]
