"""Wall clocks that jump, and leases that end early: nothing is given up early, nothing late."""

from __future__ import annotations

import pytest

from core.builders import BASE_MODEL, add_worker, model_id, submission, submit
from core.test_store_operations import settle
from cyclora_core.clock import ManualClock
from cyclora_core.errors import FencedOut
from cyclora_core.records import FutureState
from cyclora_core.store import Store
from cyclora_core.types import PendingOperation
from cyclora_core.waiting import Waiting, WaitingModel
from cyclora_scheduler.loop import Scheduler, coalesce_s
from cyclora_scheduler.planner import Budget
from cyclora_scheduler.settings import SchedulerSettings
from scheduler.test_loop import CREATE, PASS, STEP, Harness, planned_seq_ids

DAY_S = 24 * 3600.0
TIMEOUT_S = SchedulerSettings().gap_timeout_s


def scheduler_of(store: Store, clock: ManualClock) -> Scheduler:
    return Scheduler(store, SchedulerSettings(), clock)


async def state(store: Store, seq_id: int) -> FutureState:
    future = await store.futures.get(f"{model_id()}:{seq_id}")
    assert future is not None
    return future.state


async def open_gap(store: Store) -> None:
    await submit(store, submission(CREATE, 0), submission(PASS, 2))


async def test_a_gap_is_given_up_after_its_timeout_and_not_before(
    store: Store, clock: ManualClock
) -> None:
    scheduler = scheduler_of(store, clock)
    await open_gap(store)
    await scheduler.tick()
    clock.advance(TIMEOUT_S - 1)
    await scheduler.tick()
    assert await state(store, 2) is FutureState.PENDING
    clock.advance(1)

    await scheduler.tick()

    assert await state(store, 2) is FutureState.FAILED


async def test_a_jump_of_a_day_forward_gives_up_nothing_early(
    store: Store, clock: ManualClock
) -> None:
    scheduler = scheduler_of(store, clock)
    await open_gap(store)
    await scheduler.tick()
    clock.jump_wall(DAY_S)
    clock.advance(TIMEOUT_S / 2)

    await scheduler.tick()

    assert await state(store, 2) is FutureState.PENDING


async def test_a_jump_of_a_day_backward_delays_nothing(store: Store, clock: ManualClock) -> None:
    scheduler = scheduler_of(store, clock)
    await open_gap(store)
    await scheduler.tick()
    clock.jump_wall(-DAY_S)
    clock.advance(TIMEOUT_S)

    await scheduler.tick()

    assert await state(store, 2) is FutureState.FAILED


async def test_a_gap_behind_a_filled_one_is_waited_for_anew(
    store: Store, clock: ManualClock
) -> None:
    scheduler = scheduler_of(store, clock)
    await submit(store, submission(CREATE, 0), submission(PASS, 2), submission(PASS, 4))
    await scheduler.tick()
    clock.advance(TIMEOUT_S - 1)
    await submit(store, submission(PASS, 1))
    await scheduler.tick()
    clock.advance(TIMEOUT_S - 1)

    await scheduler.tick()

    assert await state(store, 4) is FutureState.PENDING
    clock.advance(1)
    await scheduler.tick()
    assert await state(store, 4) is FutureState.FAILED


async def test_a_new_leader_counts_anew(store: Store, clock: ManualClock) -> None:
    first, second = scheduler_of(store, clock), scheduler_of(store, clock)
    await open_gap(store)
    await first.tick()
    clock.advance(TIMEOUT_S)
    await first.resign()

    await second.tick()
    assert await state(store, 2) is FutureState.PENDING
    clock.advance(TIMEOUT_S)
    await second.tick()

    assert await state(store, 2) is FutureState.FAILED


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
async def test_a_lone_operation_waits_no_longer_for_company_when_the_clock_jumps(
    store: Store, clock: ManualClock, jump_s: float
) -> None:
    """By a wall clock that is a day behind the server's it would wait for a day."""
    harness = Harness(store, clock)
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    clock.jump_wall(jump_s)

    async def patience_ends() -> None:
        assert len(harness.pauses_s) < 10, "the wait for company has no end"

    harness.on_wait = patience_ends
    await harness.cycle()

    assert sum(harness.pauses_s) <= 0.004


@pytest.mark.parametrize(("jump_ms", "wait_s"), [(86_400_000, 0.0), (-86_400_000, 0.004)])
def test_one_wait_for_company_is_bounded_by_its_window(jump_ms: int, wait_s: float) -> None:
    pending = PendingOperation("r", PASS, "t", "m", 1, 10, [10], submitted_at_ms=1000)
    waiting = Waiting([WaitingModel("m", "t", None, 0, -1, 0, [pending])], [])

    assert coalesce_s(waiting, Budget(1000, 0), 1000 + jump_ms, 4.0) == wait_s


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
async def test_operations_of_before_and_after_a_jump_run_in_their_order(
    store: Store, clock: ManualClock, jump_s: float
) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1, datum_tokens=[4]))
    clock.jump_wall(jump_s)
    await submit(store, submission(STEP, 2), submission(PASS, 3, datum_tokens=[4]))

    cycles = [await harness.cycle(), await harness.cycle()]

    assert [planned_seq_ids(cycle) for cycle in cycles] == [[[0, 1, 2]], [[3]]]


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
async def test_a_jump_of_our_clocks_ends_no_future(
    store: Store, clock: ManualClock, jump_s: float
) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1, datum_tokens=[4]))
    await harness.cycle()
    clock.jump_wall(jump_s)

    await harness.scheduler.tick()

    assert [await state(store, seq_id) for seq_id in (0, 1)] == [FutureState.DONE] * 2


async def test_a_lease_that_ends_early_fences_its_worker_and_nothing_is_applied_twice(
    store: Store, clock: ManualClock, redis_url: str
) -> None:
    """As when the clock of the store's machine jumps forward: all leases end at once."""
    harness = Harness(store, clock)
    await add_worker(store, "worker-1", "one")
    await add_worker(store, "worker-2", "two")
    await store.workers.retire("worker-2")
    await submit(store, submission(CREATE, 0), submission(PASS, 1, datum_tokens=[4]))
    await harness.scheduler.tick()
    first = await store.workers.claim("worker-1", 0, 0)
    assert first is not None
    epoch = first.models[0].epoch
    await settle(store, 0, epoch, CREATE, worker_id="worker-1")
    await store.workers.retire("worker-1")  # its lease is gone; the worker does not know
    await add_worker(store, "worker-3", "three")

    await harness.scheduler.tick()

    with pytest.raises(FencedOut):
        await settle(store, 1, epoch, worker_id="worker-1")
    assert not await store.workers.renew("worker-1", 30)
    second = await store.workers.claim("worker-3", 0, 0)
    assert second is not None
    assert planned_seq_ids(second) == [[1]]
    assert second.models[0].epoch == epoch + 1
    await settle(store, 1, epoch + 1, worker_id="worker-3")
    assert await state(store, 1) is FutureState.DONE
    assert await store.tenants.usage("tenant-a") == {
        "create_model_tokens": 7,
        "forward_backward_tokens": 7,
    }
    assert (await store.cycles.gather(BASE_MODEL, 10, 10)).is_empty
