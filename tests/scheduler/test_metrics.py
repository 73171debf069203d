"""What a scheduler says of itself, around a real Valkey and on a manual clock."""

from __future__ import annotations

import pytest

from core.builders import BASE_MODEL, add_worker, sample, submission, submit
from cyclora_core.clock import ManualClock
from cyclora_core.operations import OperationKind
from cyclora_core.store import Store
from cyclora_core.store.operations import Outcome
from cyclora_scheduler.loop import Scheduler
from cyclora_scheduler.metrics import SchedulerMetrics
from cyclora_scheduler.settings import SchedulerSettings

CREATE = OperationKind.CREATE_MODEL
PASS = OperationKind.FORWARD_BACKWARD
STEP = OperationKind.OPTIM_STEP
MODEL = {"base_model": BASE_MODEL}


class Watched:
    """A scheduler with its metrics, read as Prometheus reads them."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.metrics = SchedulerMetrics()
        self.scheduler = Scheduler(store, SchedulerSettings(), clock, self.pause, self.metrics)
        self.clock = clock

    async def pause(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.instruments.registry.get_sample_value(f"cyclora_{name}", labels)


@pytest.fixture
def watched(store: Store, clock: ManualClock) -> Watched:
    return Watched(store, clock)


async def test_what_waits_is_measured_without_any_worker(store: Store, watched: Watched) -> None:
    """A queue that nobody works on is the one that somebody must hear of."""
    await add_worker(store)
    await store.workers.retire("worker-1")
    await submit(store, submission(CREATE, 0))
    await submit(store, submission(PASS, 1, datum_tokens=[8, 4]))
    watched.clock.advance(7.0)

    await watched.scheduler.tick()

    assert watched.value("queued_operations", kind="create_model", **MODEL) == 1
    assert watched.value("queued_operations", kind="forward_backward", **MODEL) == 1
    assert watched.value("queued_tokens", kind="forward_backward", **MODEL) == 12
    assert watched.value("queued_tenants", **MODEL) == 1
    assert watched.value("oldest_queued_seconds", **MODEL) == 7.0
    assert watched.value("workers_declared_dead_total") == 1


async def test_a_queue_that_has_become_empty_is_measured_as_empty(
    store: Store, watched: Watched
) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    await watched.scheduler.tick()
    assert watched.value("queued_operations", kind="create_model", **MODEL) == 1

    cycle = await store.workers.claim("worker-1", 0, 0)
    assert cycle is not None
    [model] = cycle.models
    await store.operations.settle(
        worker_id="worker-1",
        epoch=model.epoch,
        tenant_id=model.tenant_id,
        base_model=BASE_MODEL,
        model_id=model.model_id,
        operation=model.operations[0],
        outcome=Outcome(b"done"),
    )
    watched.clock.advance(5.0)
    await watched.scheduler.tick()

    assert watched.value("queued_operations", kind="create_model", **MODEL) == 0
    assert watched.value("queued_tenants", **MODEL) == 0
    assert watched.value("oldest_queued_seconds", **MODEL) == 0


async def test_a_cycle_is_measured_by_what_it_holds(store: Store, watched: Watched) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    await submit(store, submission(PASS, 1, datum_tokens=[8, 4]))
    await submit(store, submission(STEP, 2))
    await submit(store, sample(0, tenant_id="tenant-b"))
    watched.clock.advance(2.0)

    assert await watched.scheduler.tick() == 1

    assert watched.value("cycles_dispatched_total", **MODEL) == 1
    sums = {
        name: watched.value(f"cycle_{name}_sum")
        for name in ("tenants", "models", "operations", "samples", "tokens")
    }
    assert sums == {"tenants": 2, "models": 1, "operations": 3, "samples": 1, "tokens": 12}
    assert watched.value("cycle_fill_ratio_sum") == 12 / SchedulerSettings().min_cycle_tokens
    for kind in ("create_model", "forward_backward", "optim_step", "sample"):
        assert watched.value("queued_seconds_sum", kind=kind) == 2.0
    assert watched.value("plan_seconds_count") == 1
    assert watched.value("workers", state="free", **MODEL) == 1


async def test_waiting_for_company_is_measured(store: Store, watched: Watched) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0))

    await watched.scheduler.tick()

    coalesce_s = SchedulerSettings().coalesce_ms / 1000
    assert watched.value("company_wait_seconds_sum") == pytest.approx(coalesce_s)


async def test_a_worker_with_a_cycle_is_busy(store: Store, watched: Watched) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    await watched.scheduler.tick()
    await watched.scheduler.tick()

    assert watched.value("workers", state="busy", **MODEL) == 1
    assert watched.value("workers", state="free", **MODEL) == 0


async def test_of_two_schedulers_only_the_leader_tells_what_waits(
    store: Store, clock: ManualClock
) -> None:
    """Sums over all schedulers would count everything twice."""
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    leader, standby = Watched(store, clock), Watched(store, clock)
    await leader.scheduler.tick()
    await standby.scheduler.tick()
    leading = [each.value("scheduler_is_leading") for each in (leader, standby)]
    queued = {"kind": "create_model", **MODEL}
    assert leading == [1, 0]
    assert standby.value("queued_operations", **queued) is None

    await leader.scheduler.resign()
    await standby.scheduler.tick()
    await leader.scheduler.tick()

    assert [each.value("scheduler_is_leading") for each in (leader, standby)] == [0, 1]
    assert leader.value("queued_operations", **queued) is None
    assert leader.value("workers", state="busy", **MODEL) is None


async def test_a_scheduler_that_no_longer_gets_round_is_not_moving(
    store: Store, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs, or waits for a store that is away: either way nothing is planned."""
    await watched.scheduler.tick()
    watched.clock.advance(5.0)
    assert watched.scheduler.is_moving

    watched.clock.advance(30.0)
    assert not watched.scheduler.is_moving

    await watched.scheduler.tick()
    assert watched.scheduler.is_moving


async def test_a_standby_that_gets_round_is_moving(store: Store, clock: ManualClock) -> None:
    leader, standby = Watched(store, clock), Watched(store, clock)
    await leader.scheduler.tick()
    clock.advance(30.0)
    await standby.scheduler.tick()

    assert standby.scheduler.is_moving
