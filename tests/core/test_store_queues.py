"""What waits, and ending it, against a real Valkey: the order stays whole whatever is ended."""

from __future__ import annotations

import dataclasses
import random

import pytest

from core.builders import BASE_MODEL, add_worker, model_id, sample, submission, submit
from core.test_store_cycles import dispatch_samples, settle_sample
from core.test_store_operations import CREATE, PASS, STEP, assign, pending_seq_ids, settle
from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.errors import ErrorCategory, FencedOut
from cyclora_core.operations import OperationKind
from cyclora_core.queues import QueueLength, WaitingState, lengths
from cyclora_core.records import FutureState, SubmitOutcome
from cyclora_core.store import Store
from cyclora_core.store.operations import SettleOutcome
from cyclora_core.waiting import WorkerStats

TENANT = "tenant-a"
UNLOAD = OperationKind.UNLOAD_MODEL


async def states(store: Store) -> dict[int, WaitingState]:
    return {each.seq_id: each.state for each in await store.queues.waiting()}


async def future_states(store: Store, num: int) -> list[FutureState]:
    found = [await store.futures.get(ids.request_id(model_id(), seq_id)) for seq_id in range(num)]
    return [each.state for each in found if each is not None]


async def release(store: Store, cycle_id: int = 1) -> None:
    await store.workers.release("worker-1", cycle_id, WorkerStats())


async def test_lengths_are_told_by_tenant_with_the_age_of_the_oldest(
    store: Store, clock: ManualClock
) -> None:
    await add_worker(store)
    first_ms = clock.now_ms()
    await submit(store, submission(CREATE, 0), submission(PASS, 1, num_tokens=70))
    clock.advance(5)
    await submit(store, sample(1, num_tokens=10), sample(2, tenant_id="tenant-b", num_tokens=20))

    found = lengths(await store.queues.waiting())

    assert found == [
        QueueLength(TENANT, BASE_MODEL, 1, 2, 1, 80, 0, first_ms),
        QueueLength("tenant-b", BASE_MODEL, 0, 0, 1, 20, 0, first_ms + 5000),
    ]


async def test_what_waits_is_told_with_where_it_stands(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1))
    await assign(store)
    await submit(store, submission(PASS, 2), submission(PASS, 4))

    assert await states(store) == {
        0: WaitingState.RUNNING,
        1: WaitingState.RUNNING,
        2: WaitingState.QUEUED,
        4: WaitingState.HELD,
    }
    assert await store.queues.waiting("tenant-b") == []
    assert await store.queues.waiting(TENANT, model_id(7)) == []


async def test_a_sample_that_a_worker_decodes_still_counts(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)
    await release(store)

    assert await states(store) == {1: WaitingState.RUNNING}
    await settle_sample(store, "worker-1")
    assert await states(store) == {}


async def test_what_is_queued_ends_and_what_comes_later_runs(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), *(submission(PASS, n) for n in range(1, 5)))

    assert await store.queues.cancel_model(TENANT, model_id(), "key-1") == 4
    await submit(store, submission(PASS, 5))

    assert await pending_seq_ids(store) == [0, 5]
    future = await store.futures.get(f"{model_id()}:3")
    assert future is not None
    assert future.error is not None
    assert future.error.category is ErrorCategory.USER
    assert "administrator" in future.error.message
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    assert await settle(store, 5, epoch) is SettleOutcome.SETTLED
    assert await states(store) == {}


async def test_what_a_worker_was_given_runs_to_its_end(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1))
    epoch = await assign(store)
    await submit(store, submission(PASS, 2), submission(STEP, 3))

    assert await store.queues.cancel_model(TENANT, model_id()) == 2

    await settle(store, 0, epoch, CREATE)
    assert await settle(store, 1, epoch) is SettleOutcome.SETTLED
    assert await future_states(store, 4) == [FutureState.DONE] * 2 + [FutureState.FAILED] * 2
    assert (await store.cycles.gather(BASE_MODEL, 10, 10)).models == []


async def test_whoever_runs_what_was_ended_meanwhile_settles_nothing_and_forgets_the_model(
    store: Store,
) -> None:
    """A step that joined the cycle behind its passes, or one that was gathered just before."""
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    await submit(store, submission(STEP, 1))

    assert await store.queues.cancel_model(TENANT, model_id()) == 1

    assert await store.operations.bodies([f"{model_id()}:1"]) == [b"body"]
    with pytest.raises(FencedOut):
        await settle(store, 1, epoch, STEP)


async def test_a_pass_of_which_a_part_has_run_is_not_ended(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1), submission(PASS, 2))
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    await release(store)
    client = store.queues._redis  # pyright: ignore[reportPrivateUsage]
    key = store.queues._keys.model(model_id())  # pyright: ignore[reportPrivateUsage]
    await client.hset(key, "partial_seq_id", 1)

    assert await store.queues.cancel_model(TENANT, model_id()) == 1
    assert await pending_seq_ids(store) == [1]


async def test_a_creation_and_an_unloading_stay(store: Store) -> None:
    await add_worker(store)
    operations = [submission(CREATE, 0), submission(PASS, 1), submission(UNLOAD, 2)]
    await submit(store, *operations)

    assert await store.queues.cancel_model(TENANT, model_id()) == 1
    assert await pending_seq_ids(store) == [0, 2]


async def test_what_waits_behind_a_gap_keeps_its_place_until_the_gap_is_filled(
    store: Store,
) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 2), submission(PASS, 3))

    assert await store.queues.cancel_model(TENANT, model_id()) == 2
    assert await states(store) == {0: WaitingState.QUEUED}
    await submit(store, submission(PASS, 1), submission(PASS, 4))

    assert await pending_seq_ids(store) == [0, 1, 4]


async def test_a_snapshot_covers_what_never_came_too(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 2))
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    assert await store.cycles.close_gap("t", model_id(), 0, 1.0)

    assert await store.models.record_snapshot(model_id(), "worker-1", epoch, 2)
    assert await store.operations.logged(model_id(), 0) == []


async def test_a_retry_of_what_was_ended_finds_its_failure(store: Store) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1))
    await store.queues.cancel_model(TENANT, model_id())

    assert await submit(store, submission(PASS, 1)) == [SubmitOutcome.DUPLICATE]
    assert await pending_seq_ids(store) == [0]


async def test_all_of_a_tenant_ends_and_nothing_of_another(
    store: Store, clock: ManualClock
) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1), sample(1))
    theirs = dataclasses.replace(sample(2, tenant_id="tenant-b"))
    await submit(store, theirs)

    assert await store.queues.cancel_tenant(TENANT, "key-1") == 2

    left = await store.queues.waiting()
    assert sorted((each.tenant_id, each.seq_id) for each in left) == [(TENANT, 0), ("tenant-b", 2)]
    entries = await store.audit.list(TENANT, 0, clock.now_ms() + 1)
    assert [each.event for each in entries] == ["queue_cancel", "queue_cancel"]
    assert {each.details["key_id"] for each in entries} == {"key-1"}
    assert await store.audit.list("tenant-b", 0, clock.now_ms() + 1) == []


async def test_nothing_to_end_is_nothing_noted(store: Store, clock: ManualClock) -> None:
    await add_worker(store)

    assert await store.queues.cancel_tenant(TENANT) == 0
    assert await store.audit.list(TENANT, 0, clock.now_ms() + 1) == []


@pytest.mark.parametrize("seed", range(10))
async def test_every_future_ends_and_every_pass_that_ran_ran_in_order(
    store: Store, seed: int
) -> None:
    """Submissions in any order, cancellations at any moment, each cycle settled in between."""
    await add_worker(store)
    chance = random.Random(seed)
    await submit(store, submission(CREATE, 0))
    unsent = list(range(1, 60))
    ran: list[int] = []
    cycle_id = 0
    while unsent or await pending_seq_ids(store):
        for _ in range(min(len(unsent), chance.randrange(4))):
            seq_id = unsent.pop(chance.randrange(min(3, len(unsent))))
            await submit(store, submission(PASS, seq_id))
        planned = await pending_seq_ids(store)
        if not planned:
            continue
        epoch = await assign(store)
        cycle_id += 1
        for seq_id in planned:
            if chance.random() < 0.2:
                for _ in range(min(len(unsent), 3)):
                    await submit(store, submission(PASS, unsent.pop(0)))
                await store.queues.cancel_model(TENANT, model_id())
            kind = PASS if seq_id else CREATE
            assert await settle(store, seq_id, epoch, kind) is SettleOutcome.SETTLED
            ran.append(seq_id)
        await release(store, cycle_id)

    states = await future_states(store, 60)
    assert ran == sorted(ran)
    assert [n for n, state in enumerate(states) if state is FutureState.DONE] == ran
    assert FutureState.PENDING not in states
    assert len(states) == 60
