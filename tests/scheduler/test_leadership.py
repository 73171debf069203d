"""Who leads, and how fast another takes over."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from core.builders import add_worker, submission, submit
from cyclora_core.clock import SystemClock
from cyclora_core.store import Store
from cyclora_scheduler.loop import Scheduler
from cyclora_scheduler.settings import SchedulerSettings
from scheduler.test_loop import CREATE

DEADLINE_S = 20.0
LONG_LEASE_S = 3600.0


def scheduler_of(
    store: Store, *, lease_s: float, idle_wait_s: float = 0.2, name: str = ""
) -> Scheduler:
    settings = SchedulerSettings(
        leader_lease_s=lease_s, idle_wait_s=idle_wait_s, scheduler_name=name
    )
    return Scheduler(store, settings, SystemClock())


async def until_someone_leads(store: Store) -> None:
    """Wait for a leader other than us; without one we lead for an instant, and resign."""
    async with asyncio.timeout(DEADLINE_S):
        while await store.cycles.lead("nobody", LONG_LEASE_S):
            await store.cycles.resign("nobody")
            await store.cycles.wait_for_work(0.05)


async def test_a_leader_that_is_told_to_stop_hands_over_at_once(store: Store) -> None:
    leader = scheduler_of(store, lease_s=LONG_LEASE_S)
    standby = scheduler_of(store, lease_s=LONG_LEASE_S)
    stop_leader, stop_standby = asyncio.Event(), asyncio.Event()
    await leader.tick()
    leading = asyncio.create_task(leader.run(stop_leader))
    waiting = asyncio.create_task(standby.run(stop_standby))
    await add_worker(store)
    stop_leader.set()
    await asyncio.wait_for(leading, DEADLINE_S)

    await submit(store, submission(CREATE, 0))
    cycle = await store.workers.claim("worker-1", 0, DEADLINE_S / 2)

    assert cycle is not None
    stop_standby.set()
    await asyncio.wait_for(waiting, DEADLINE_S)


async def test_a_standby_takes_over_within_the_lease_of_a_leader_that_died(store: Store) -> None:
    lease_s = 0.3
    dead = scheduler_of(store, lease_s=lease_s)
    standby = scheduler_of(store, lease_s=lease_s, idle_wait_s=0.02)
    await add_worker(store)
    await dead.tick()  # and never again
    died_s = time.monotonic()
    await submit(store, submission(CREATE, 0))
    assert await standby.tick() == 0
    stopping = asyncio.Event()
    waiting = asyncio.create_task(standby.run(stopping))

    cycle = await store.workers.claim("worker-1", 0, DEADLINE_S / 2)

    assert cycle is not None
    assert time.monotonic() - died_s < lease_s + 2
    stopping.set()
    await asyncio.wait_for(waiting, DEADLINE_S)


async def test_a_standby_takes_no_wake_up_from_the_leader(store: Store) -> None:
    leader = scheduler_of(store, lease_s=LONG_LEASE_S)
    standby = scheduler_of(store, lease_s=LONG_LEASE_S, idle_wait_s=0.05)
    await leader.tick()
    await submit(store, submission(CREATE, 0))  # nobody waits yet: the wake-up lies there
    stopping = asyncio.Event()
    waiting = asyncio.create_task(standby.run(stopping))
    for _ in range(3):
        await store.cycles.wait_for_vacancy(0.05)  # as long as the standby waits
    stopping.set()
    await asyncio.wait_for(waiting, DEADLINE_S)

    started_s = time.monotonic()
    await store.cycles.wait_for_work(DEADLINE_S / 2)

    assert time.monotonic() - started_s < 2


async def test_the_process_resigns_when_it_gets_sigterm(redis_url: str, tmp_path: Path) -> None:
    prefix = f"test-{tmp_path.name}"
    store = await Store.open(redis_url, prefix, SystemClock())
    environment = {
        **os.environ,
        "CYCLORA_REDIS_URL": redis_url,
        "CYCLORA_KEY_PREFIX": prefix,
        "CYCLORA_LEADER_LEASE_S": str(LONG_LEASE_S),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cyclora_scheduler", env=environment
    )
    try:
        await until_someone_leads(store)
        process.send_signal(signal.SIGTERM)
        exit_code = await asyncio.wait_for(process.wait(), DEADLINE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert exit_code == 0
    assert await store.cycles.lead("next", LONG_LEASE_S)
    await store.close()


async def test_a_new_process_of_a_name_leads_at_once_and_the_old_one_dispatches_nothing(
    store: Store,
) -> None:
    old = scheduler_of(store, lease_s=LONG_LEASE_S, name="place")
    await add_worker(store)
    await old.tick()
    new = scheduler_of(store, lease_s=LONG_LEASE_S, name="place")
    await new.tick()
    await submit(store, submission(CREATE, 0))

    assert await old.tick() == 0
    assert await new.tick() == 1


async def test_a_scheduler_of_another_name_waits_for_the_lease(store: Store) -> None:
    leader = scheduler_of(store, lease_s=LONG_LEASE_S, name="place")
    standby = scheduler_of(store, lease_s=LONG_LEASE_S, name="place-2")
    nameless = scheduler_of(store, lease_s=LONG_LEASE_S)
    await add_worker(store)
    await leader.tick()
    await submit(store, submission(CREATE, 0))

    assert await standby.tick() == 0
    assert await nameless.tick() == 0
    assert await leader.tick() == 1
