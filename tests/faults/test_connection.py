"""Connections whose peer went silent without closing: nothing hangs, nothing happens twice."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from core.builders import add_worker, sample, submission, submit
from core.test_store_cycles import dispatch_samples, settle_sample
from core.test_store_operations import CREATE, PASS, assign, pending_seq_ids, settle
from cyclora_core.clock import SystemClock
from cyclora_core.errors import Unavailable
from cyclora_core.records import SubmitOutcome
from cyclora_core.store import Store, patience
from cyclora_core.store.operations import SettleOutcome
from cyclora_core.waiting import WorkerStats
from cyclora_scheduler.loop import Scheduler
from cyclora_scheduler.settings import SchedulerSettings
from faults.proxy import Proxy

TIMEOUT_S = 0.4
"""Without an answer for this long, a connection counts as dead in these tests."""

DEADLINE_S = 20.0
"""A test that takes this long has hung."""


@dataclass
class Side:
    """The store as seen directly, and through a proxy that can go silent."""

    direct: Store
    proxied: Store
    proxy: Proxy


@pytest.fixture
async def side(redis_url: str) -> AsyncIterator[Side]:
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    direct = await Store.open(redis_url, prefix)
    async with Proxy(redis_url) as proxy:
        proxied = await Store.open(proxy.url, prefix, timeout_s=TIMEOUT_S)
        yield Side(direct, proxied, proxy)
        await proxied.close()
    await direct.close()


both_ways = pytest.mark.parametrize("answers_only", [False, True], ids=["all", "answers"])


@both_ways
async def test_a_submission_into_a_silent_connection_is_recorded_once(
    side: Side, answers_only: bool
) -> None:
    await submit(side.direct, submission(CREATE, 0))  # the store knows the script from here on
    assert side.proxy.freeze(answers_only=answers_only) == 1

    async with asyncio.timeout(DEADLINE_S):
        outcomes = await submit(side.proxied, submission(PASS, 1), submission(PASS, 2))

    first = SubmitOutcome.DUPLICATE if answers_only else SubmitOutcome.ACCEPTED
    assert outcomes == [first, SubmitOutcome.ACCEPTED]
    assert await pending_seq_ids(side.direct) == [0, 1, 2]


@both_ways
async def test_a_silent_connection_costs_one_timeout_and_not_more(
    side: Side, answers_only: bool
) -> None:
    side.proxy.freeze(answers_only=answers_only)
    started_s = time.monotonic()

    await submit(side.proxied, submission(CREATE, 0))

    assert TIMEOUT_S <= time.monotonic() - started_s < 2 * TIMEOUT_S + 2


async def test_a_result_whose_answer_was_lost_is_settled_and_metered_once(side: Side) -> None:
    await add_worker(side.direct)
    await submit(side.direct, submission(CREATE, 0), submission(PASS, 1))
    epoch = await assign(side.direct)
    await settle(side.direct, 0, epoch, CREATE)
    side.proxy.freeze(answers_only=True)

    async with asyncio.timeout(DEADLINE_S):
        outcome = await settle(side.proxied, 1, epoch)

    assert outcome is SettleOutcome.ALREADY
    assert (await side.direct.tenants.usage("tenant-a"))["forward_backward_tokens"] == 7


@both_ways
async def test_a_dispatch_whose_answer_was_lost_hands_over_one_cycle(
    side: Side, answers_only: bool
) -> None:
    await add_worker(side.direct)
    await submit(side.direct, submission(CREATE, 0))
    side.proxy.freeze(answers_only=answers_only)

    async with asyncio.timeout(DEADLINE_S):
        epoch = await assign(side.proxied)

    cycle = await side.direct.workers.claim("worker-1", 0, 0)
    assert epoch == 1
    assert cycle is not None
    assert cycle.cycle_id == 1


async def test_a_worker_that_waits_for_its_cycle_gets_it_over_a_new_connection(side: Side) -> None:
    await add_worker(side.direct)
    claiming = asyncio.create_task(side.proxied.workers.claim("worker-1", 0, TIMEOUT_S / 2))
    side.proxy.freeze()
    await submit(side.direct, sample(1))
    await dispatch_samples(side.direct)

    cycle = await asyncio.wait_for(claiming, DEADLINE_S)

    assert cycle is not None
    assert [each.seq_id for each in cycle.samples] == [1]


@both_ways
async def test_a_subscriber_hears_of_settlements_after_its_connection_went_silent(
    side: Side, answers_only: bool
) -> None:
    """Its "" comes after the new subscription: what was missed is found by looking again."""
    await add_worker(side.direct)
    await submit(side.direct, sample(1), sample(2))
    await dispatch_samples(side.direct)
    heard: list[str] = []

    async with side.proxied.futures.subscribe() as announcements, asyncio.timeout(DEADLINE_S):
        heard.append(await anext(announcements))
        side.proxy.freeze(answers_only=answers_only)
        await settle_sample(side.direct, "worker-1", 1)
        heard.append(await anext(announcements))
        await settle_sample(side.direct, "worker-1", 2)
        heard.append(await anext(announcements))

    assert heard == ["", "", f"{sample(2).owner_id}:2"]


async def test_a_subscriber_of_a_store_with_nothing_to_say_is_left_alone(side: Side) -> None:
    # Longer than the others: a pause of this busy machine must not look like silence.
    store = await Store.open(side.proxy.url, timeout_s=1.0)
    async with store.futures.subscribe() as announcements:
        await anext(announcements)
        before = side.proxy.num_accepted
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await anext(announcements)

    assert side.proxy.num_accepted == before
    await store.close()


async def test_the_scheduler_goes_on_after_its_connection_went_silent(side: Side) -> None:
    settings = SchedulerSettings(idle_wait_s=0.05)
    stopping = asyncio.Event()
    scheduler = Scheduler(side.proxied, settings, SystemClock())
    running = asyncio.create_task(scheduler.run(stopping))
    await add_worker(side.direct)
    await submit(side.direct, submission(CREATE, 0))
    first = await side.direct.workers.claim("worker-1", 0, DEADLINE_S / 2)
    assert first is not None
    await settle(side.direct, 0, first.models[0].epoch, CREATE)
    side.proxy.freeze()
    await side.direct.workers.release("worker-1", first.cycle_id, WorkerStats())
    await submit(side.direct, submission(PASS, 1, datum_tokens=[4]))

    second = await side.direct.workers.claim("worker-1", first.cycle_id, DEADLINE_S / 2)

    stopping.set()
    await asyncio.wait_for(running, DEADLINE_S)
    assert second is not None
    assert [o.seq_id for model in second.models for o in model.operations] == [1]


async def test_a_store_that_accepts_connections_and_says_nothing_is_unavailable(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RECONNECT_S", 0.0)
    side.proxy.is_silent = True

    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(Unavailable, match="does not answer"):
            await Store.open(side.proxy.url, timeout_s=0.1, patience_s=3600)
