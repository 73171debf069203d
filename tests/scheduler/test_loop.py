"""The scheduler around a real Valkey, with a worker that only settles."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from core.builders import BASE_MODEL, add_worker, model_id, sample, submission, submit
from cyclora_core.clock import ManualClock
from cyclora_core.operations import OperationKind
from cyclora_core.records import Submission
from cyclora_core.store import Store
from cyclora_core.store.operations import Outcome
from cyclora_core.types import Cycle, PendingOperation
from cyclora_core.waiting import Waiting, WaitingModel, WorkerState, WorkerStats
from cyclora_scheduler.loop import LastCycle, Scheduler, coalesce_s, cycle_budget
from cyclora_scheduler.planner import Budget
from cyclora_scheduler.settings import SchedulerSettings
from cyclora_scheduler.weights import TenantWeights

CREATE = OperationKind.CREATE_MODEL
PASS = OperationKind.FORWARD_BACKWARD
STEP = OperationKind.OPTIM_STEP


class Harness:
    """A scheduler on a manual clock, and what a worker does with its cycles."""

    def __init__(
        self, store: Store, clock: ManualClock, settings: SchedulerSettings | None = None
    ) -> None:
        self.store = store
        self.clock = clock
        self.scheduler = Scheduler(store, settings or SchedulerSettings(), clock, self.pause)
        self.pauses_s: list[float] = []
        self.on_wait: Callable[[], Awaitable[object]] | None = None
        self.last_cycle_id = 0

    async def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.clock.advance(seconds)
        if self.on_wait is not None:
            await self.on_wait()

    async def cycle(self, took_s: float = 0.0) -> Cycle:
        """Dispatch one cycle, settle it as a worker would, release the worker."""
        assert await self.scheduler.tick() == 1
        cycle = await self.store.workers.claim("worker-1", self.last_cycle_id, 0)
        assert cycle is not None
        for model in cycle.models:
            for operation in model.operations:
                await self.store.operations.settle(
                    worker_id="worker-1",
                    epoch=model.epoch,
                    tenant_id=model.tenant_id,
                    base_model=BASE_MODEL,
                    model_id=model.model_id,
                    operation=operation,
                    outcome=Outcome(b"done"),
                )
        self.last_cycle_id = cycle.cycle_id
        self.clock.advance(took_s)
        await self.store.workers.release("worker-1", cycle.cycle_id, WorkerStats())
        return cycle


def planned_seq_ids(cycle: Cycle) -> list[list[int]]:
    return [[operation.seq_id for operation in model.operations] for model in cycle.models]


async def test_k_pipelined_steps_use_k_consecutive_cycles(store: Store, clock: ManualClock) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    first = (await harness.cycle()).cycle_id
    for step in range(5):
        await submit(store, submission(PASS, 2 * step + 1, datum_tokens=[8]))
        await submit(store, submission(STEP, 2 * step + 2))

    cycles = [await harness.cycle() for _ in range(5)]

    assert [cycle.cycle_id - first for cycle in cycles] == [1, 2, 3, 4, 5]
    assert [planned_seq_ids(cycle) for cycle in cycles] == [
        [[2 * step + 1, 2 * step + 2]] for step in range(5)
    ]
    assert await harness.scheduler.run_until_idle() == 0


async def test_awaiting_in_between_uses_two_cycles_per_step(
    store: Store, clock: ManualClock
) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    cycle_ids = [(await harness.cycle()).cycle_id]
    for step in range(2):
        await submit(store, submission(PASS, 2 * step + 1, datum_tokens=[8]))
        cycle_ids.append((await harness.cycle()).cycle_id)
        await submit(store, submission(STEP, 2 * step + 2))
        cycle_ids.append((await harness.cycle()).cycle_id)

    assert [cycle_id - cycle_ids[0] for cycle_id in cycle_ids] == [0, 1, 2, 3, 4]


async def test_tenants_that_submit_at_once_share_a_cycle(store: Store, clock: ManualClock) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    for number in range(3):
        owner = model_id(number)
        tenant = f"tenant-{number}"
        await submit(store, submission(CREATE, 0, owner_id=owner, tenant_id=tenant))
        await submit(store, submission(PASS, 1, owner_id=owner, tenant_id=tenant, datum_tokens=[4]))

    assert len((await harness.cycle()).models) == 3


async def test_a_lone_operation_waits_a_few_milliseconds_for_company(
    store: Store, clock: ManualClock
) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    await submit(store, submission(CREATE, 0))

    await harness.cycle()

    assert harness.pauses_s == [0.004]


async def test_what_waited_behind_a_busy_worker_waits_no_longer(
    store: Store, clock: ManualClock
) -> None:
    harness = Harness(store, clock)
    await submit(store, submission(CREATE, 0))
    clock.advance(1)
    await add_worker(store)

    await harness.cycle()

    assert harness.pauses_s == []


async def test_samples_reach_the_worker_with_the_training_of_others(
    store: Store, clock: ManualClock
) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    await submit(store, submission(CREATE, 0), sample(1, tenant_id="tenant-b"))

    cycle = await harness.cycle()

    assert (len(cycle.models), len(cycle.samples)) == (1, 1)


async def test_a_dead_workers_model_moves_to_a_living_one(store: Store, clock: ManualClock) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    await harness.cycle()
    await submit(store, submission(PASS, 1, datum_tokens=[4]))
    await harness.scheduler.tick()
    await add_worker(store, "worker-2", "worker")  # the same name: worker-1 is dead

    await harness.scheduler.tick()

    cycle = await store.workers.claim("worker-2", 0, 0)
    assert cycle is not None
    assert planned_seq_ids(cycle) == [[1]]
    assert cycle.models[0].epoch == 2
    assert [worker.worker_id for worker in await store.cycles.workers()] == ["worker-2"]


async def test_a_standby_does_nothing_while_the_leader_lives(
    store: Store, clock: ManualClock
) -> None:
    leader, standby = Harness(store, clock), Harness(store, clock)
    await add_worker(store)
    await leader.scheduler.tick()
    await submit(store, submission(CREATE, 0))

    assert await standby.scheduler.tick() == 0
    assert await leader.scheduler.tick() == 1


async def test_running_ends_when_it_is_told_to(store: Store, clock: ManualClock) -> None:
    scheduler = Scheduler(store, SchedulerSettings(idle_wait_s=0.01), clock)
    stopping = asyncio.Event()
    running = asyncio.create_task(scheduler.run(stopping))

    stopping.set()

    await asyncio.wait_for(running, 5)


async def test_a_free_worker_is_looked_at_at_once_and_not_after_the_idle_wait(
    store: Store, clock: ManualClock
) -> None:
    """After each dispatch the scheduler waits; what is released or submitted must wake it."""
    settings = SchedulerSettings(idle_wait_s=2.0)
    scheduler = Scheduler(store, settings, clock, Harness(store, clock).pause)
    await add_worker(store)
    stopping = asyncio.Event()
    running = asyncio.create_task(scheduler.run(stopping))

    last_cycle_id = 0
    for number in range(3):
        await submit(store, submission(CREATE, 0, owner_id=model_id(2 * number)))
        for _ in range(2):  # the second one waits for the release of the first
            cycle = await store.workers.claim("worker-1", last_cycle_id, 1.0)
            assert cycle is not None
            last_cycle_id = cycle.cycle_id
            await submit(store, submission(CREATE, 0, owner_id=model_id(2 * number + 1)))
            await store.workers.release("worker-1", last_cycle_id, WorkerStats())

    stopping.set()
    await asyncio.wait_for(running, 5)


@pytest.mark.parametrize(("early", "late"), [("one", "two"), ("two", "one")])
async def test_a_wait_for_company_takes_no_other_workers_wake_up(
    store: Store, clock: ManualClock, early: str, late: str
) -> None:
    """While it waits beside the early worker, work for the late one arrives and wakes that wait."""

    def work(base_model: str) -> Submission:
        return replace(
            submission(CREATE, 0, owner_id=model_id(base_model == f"base/{late}")),
            base_model=base_model,
        )

    async def wait(seconds: float) -> None:
        await submit(store, work(f"base/{late}"))
        await store.cycles.wait_for_work(seconds)
        clock.advance(seconds)

    for name in (early, late):
        await add_worker(store, name, name, base_model=f"base/{name}")
    scheduler = Scheduler(store, SchedulerSettings(idle_wait_s=2.0), clock, wait)
    stopping = asyncio.Event()
    await submit(store, work(f"base/{early}"))
    running = asyncio.create_task(scheduler.run(stopping))

    assert await store.workers.claim(late, 0, 1.0) is not None

    stopping.set()
    await asyncio.wait_for(running, 5)


def worker(tokens_per_s: float) -> WorkerState:
    return WorkerState("w", BASE_MODEL, True, True, WorkerStats(tokens_per_s, 7))


def test_a_cycles_budget_follows_the_measured_speed_within_bounds() -> None:
    settings = SchedulerSettings(target_cycle_s=2, min_cycle_tokens=10, max_cycle_tokens=1000)

    budgets = [cycle_budget(worker(speed), settings) for speed in (0, 100, 1e9)]

    assert [budget.max_pass_tokens for budget in budgets] == [10, 200, 1000]
    assert budgets[0].free_sample_tokens == 7


def test_half_a_cycle_of_work_waits_for_no_company() -> None:
    pending = PendingOperation("r", PASS, "t", "m", 1, 500, [500], submitted_at_ms=1000)
    waiting = Waiting([WaitingModel("m", "t", None, 0, -1, 0, [pending])], [])

    assert coalesce_s(waiting, Budget(1000, 0), 1000, 4.0) == 0.0
    assert coalesce_s(waiting, Budget(1001, 0), 1000, 4.0) == 0.004
    assert coalesce_s(waiting, Budget(1001, 0), 1003, 4.0) == 0.001


def waiting_for(*model_ids: str) -> Waiting:
    pending = PendingOperation("r", PASS, "t", "m", 1, 10, [10], submitted_at_ms=0)
    return Waiting([WaitingModel(m, "t", None, 0, -1, 0, [pending]) for m in model_ids], [])


def test_the_models_of_the_last_cycle_are_waited_for_up_to_half_its_length() -> None:
    last = LastCycle({"a": "t", "b": "t"}, dispatched_s=10.0, ended_s=10.04)
    budget = Budget(1000, 0)

    assert last.return_s(waiting_for("b"), budget, 10.04, 25.0) == pytest.approx(0.02)
    assert last.return_s(waiting_for("b"), budget, 10.05, 25.0) == pytest.approx(0.01)
    assert last.return_s(waiting_for("b"), budget, 10.07, 25.0) == 0.0
    assert last.return_s(waiting_for("c"), budget, 10.04, 5.0) == pytest.approx(0.005)


def test_nobody_is_waited_for_when_all_are_back_or_much_is_waiting() -> None:
    last = LastCycle({"a": "t", "b": "t"}, dispatched_s=10.0, ended_s=10.04)

    assert last.return_s(waiting_for("a", "b", "c"), Budget(1000, 0), 10.04, 25.0) == 0.0
    assert last.return_s(waiting_for("b"), Budget(20, 0), 10.04, 25.0) == 0.0
    assert last.return_s(Waiting([], []), Budget(1000, 0), 10.04, 25.0) == 0.0


def test_beside_much_work_only_a_tenant_without_any_is_waited_for_and_for_less() -> None:
    """The one that waits is of tenant t; its other model may come a cycle later."""
    same, other = (
        LastCycle({"a": tenant, "b": "t"}, dispatched_s=10.0, ended_s=10.2) for tenant in ("t", "u")
    )
    much = Budget(20, 0)

    assert same.return_s(waiting_for("b"), much, 10.2, 50.0) == 0.0
    assert other.return_s(waiting_for("b"), much, 10.2, 50.0) == pytest.approx(0.02)
    assert other.return_s(waiting_for("b"), much, 10.2, 5.0) == pytest.approx(0.005)
    assert other.return_s(waiting_for("b"), much, 10.23, 50.0) == 0.0
    assert other.return_s(waiting_for("a", "b"), much, 10.2, 50.0) == 0.0


async def test_two_clients_that_await_their_results_end_up_in_one_cycle(
    store: Store, clock: ManualClock
) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    first, second = model_id(0), model_id(1)
    await submit(store, submission(CREATE, 0, owner_id=first))
    await harness.cycle(took_s=0.04)
    await submit(store, submission(CREATE, 0, owner_id=second))
    back = submission(PASS, 1, owner_id=first, datum_tokens=[4])
    harness.on_wait = lambda: submit(store, back)  # while the scheduler waits for it

    cycle = await harness.cycle(took_s=0.04)

    assert sorted(model.model_id for model in cycle.models) == [first, second]


async def test_a_client_that_does_not_come_back_is_waited_for_once(
    store: Store, clock: ManualClock
) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    first, second = model_id(0), model_id(1)
    await submit(store, submission(CREATE, 0, owner_id=first))
    await harness.cycle(took_s=0.04)
    await submit(store, submission(CREATE, 0, owner_id=second))

    await harness.cycle(took_s=0.04)
    waited_s = sum(harness.pauses_s)
    await submit(store, submission(PASS, 1, owner_id=second, datum_tokens=[4]))
    clock.advance(1)
    await harness.cycle()

    assert waited_s == pytest.approx(0.004 + 0.02)
    assert sum(harness.pauses_s) == waited_s


async def test_a_weight_acts_within_a_second(store: Store, clock: ManualClock) -> None:
    weights = TenantWeights(store, clock)
    tenant = await store.tenants.create("heavy")
    before = await weights.of([tenant.tenant_id, "unknown"])
    await store.tenants.update(tenant.tenant_id, "", weight=3.0)

    clock.advance(0.9)

    assert before == {tenant.tenant_id: 1.0, "unknown": 1.0}
    assert await weights.of([tenant.tenant_id]) == {tenant.tenant_id: 3.0}


async def test_what_one_worker_does_takes_no_credit_from_another(
    store: Store, clock: ManualClock
) -> None:
    """A model stays with its worker: its tenant is absent from every cycle of the others."""
    harness = Harness(store, clock, SchedulerSettings(min_cycle_tokens=3000))
    await add_worker(store)
    for number in range(2):
        owner, tenant = model_id(number), f"tenant-{number}"
        await submit(store, submission(CREATE, 0, owner_id=owner, tenant_id=tenant))
        sizes = [[2000], [1500, 2000]][number]
        step = submission(PASS, 1, owner_id=owner, tenant_id=tenant, datum_tokens=sizes)
        await submit(store, step)
    await harness.scheduler.tick()  # not all of the two fits into the cycle that now runs
    carried = dict(harness.scheduler.credits("worker-1").passes)
    await add_worker(store, "worker-2", "other")
    await submit(store, submission(CREATE, 0, owner_id=model_id(2), tenant_id="tenant-2"))

    await harness.scheduler.tick()

    assert carried
    assert dict(harness.scheduler.credits("worker-1").passes) == carried


async def test_a_sample_larger_than_the_memory_keeps_no_other_tenant_out(
    store: Store, clock: ManualClock
) -> None:
    harness = Harness(store, clock)
    await add_worker(store)
    used = {"tenant-huge": 5000}
    stats = WorkerStats(max_sample_tokens=1000, used_sample_tokens=used)
    await store.workers.report("worker-1", stats)
    await submit(store, sample(1, tenant_id="tenant-huge"), sample(2, tenant_id="tenant-small"))

    cycle = await harness.cycle()

    assert [each.tenant_id for each in cycle.samples] == ["tenant-small"]
