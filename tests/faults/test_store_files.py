"""The store's append-only file torn by a crash, and a disk without room for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.builders import add_worker, sample, submission, submit
from core.test_store_cycles import dispatch_samples, settle_sample
from core.test_store_operations import CREATE, PASS, STEP, assign, pending_seq_ids, settle
from cyclora_core.errors import Unavailable
from cyclora_core.records import FutureState, SubmitOutcome
from cyclora_core.store import Store, patience
from faults.own_valkey import OwnValkey

DEADLINE_S = 30.0
TORN_WRITES = {
    "in its length": b"*3\r\n$3\r\nSET\r\n$1",
    "in its value": b"*3\r\n$3\r\nSET\r\n$4\r\ntorn\r\n$1000\r\nhalf of",
    "in a transaction": b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$4\r\ntorn\r\n$1\r\n1\r\n",
}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnValkey]:
    with OwnValkey(tmp_path) as process:
        yield process


@pytest.mark.parametrize("torn", TORN_WRITES.values(), ids=list(TORN_WRITES))
async def test_a_write_torn_by_a_crash_costs_nothing_that_was_acknowledged(
    own: OwnValkey, torn: bytes
) -> None:
    own.start()
    store = await Store.open(own.url)
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1), submission(STEP, 2), sample(1))
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    before = own.dump()
    own.kill()
    with own.append_only_file.open("ab") as file:
        file.write(torn)

    own.start()

    after = own.dump()
    assert {key: value for key, value in after.items() if b"lease" not in key} == {
        key: value for key, value in before.items() if b"lease" not in key
    }
    assert await pending_seq_ids(store) == [1, 2]
    await settle(store, 1, epoch)
    await settle(store, 2, epoch, STEP)
    await store.workers.renew("worker-1", 30)
    assert await submit(store, submission(PASS, 3)) == [SubmitOutcome.ACCEPTED]
    own.kill()
    own.start()
    assert await pending_seq_ids(store) == [3]
    await store.close()


async def submit_until_refused(store: Store, body: bytes) -> list[int]:
    """Submit numbered passes until the store gives up; returns those it acknowledged."""
    acknowledged: list[int] = []
    try:
        while True:
            seq_id = len(acknowledged) + 1
            await store.operations.submit(submission(PASS, seq_id, body=body))
            acknowledged.append(seq_id)
    except Unavailable:
        return acknowledged


async def test_a_full_disk_loses_no_acknowledged_work_and_a_retry_is_recorded_once(
    own: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With appendfsync always the store ends rather than acknowledge what it cannot keep."""
    monkeypatch.setattr(patience, "RECONNECT_S", 0.2)
    own.start(max_file_bytes=300_000)
    store = await Store.open(own.url)
    await add_worker(store)
    await submit(store, submission(CREATE, 0))
    body = bytes(10_000)

    acknowledged = await submit_until_refused(store, body)

    own.wait_until_dead()
    assert 10 < len(acknowledged) < 40
    own.start()
    retried = len(acknowledged) + 1
    outcomes = await submit(store, *[submission(PASS, retried, body=body)] * 2)
    assert outcomes[1] is SubmitOutcome.DUPLICATE
    assert await pending_seq_ids(store) == [0, *acknowledged, retried]
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    for seq_id in [*acknowledged, retried]:
        await settle(store, seq_id, epoch)
    assert await pending_seq_ids(store) == []
    await store.close()


async def test_a_caller_who_waits_gets_through_once_the_disk_has_room(own: OwnValkey) -> None:
    own.start(max_file_bytes=100_000)
    store = await Store.open(own.url)
    await submit(store, submission(CREATE, 0))
    flooding = asyncio.create_task(
        submit(store, *(submission(PASS, seq_id, body=bytes(10_000)) for seq_id in range(1, 31)))
    )
    await asyncio.to_thread(own.wait_until_dead)
    assert not flooding.done()

    await asyncio.to_thread(own.start)
    outcomes = await asyncio.wait_for(flooding, DEADLINE_S)

    assert set(outcomes) <= {SubmitOutcome.ACCEPTED, SubmitOutcome.DUPLICATE}
    assert await pending_seq_ids(store) == list(range(31))
    await store.close()


async def test_results_that_were_settled_outlive_a_killed_store(own: OwnValkey) -> None:
    own.start()
    store = await Store.open(own.url)
    await add_worker(store)
    await submit(store, sample(1), sample(2))
    await dispatch_samples(store)
    await settle_sample(store, "worker-1", 1)
    own.kill()

    own.start()

    futures = [await store.futures.get(f"{sample(n).owner_id}:{n}") for n in (1, 2)]
    assert [future and future.state for future in futures] == [
        FutureState.DONE,
        FutureState.PENDING,
    ]
    await settle_sample(store, "worker-1", 2)
    await store.close()


async def test_a_subscriber_looks_again_after_the_store_was_started_again(own: OwnValkey) -> None:
    own.start()
    store = await Store.open(own.url)
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)

    async with store.futures.subscribe() as announcements, asyncio.timeout(DEADLINE_S):
        heard = [await anext(announcements)]
        own.kill()
        own.start()
        heard.append(await anext(announcements))
        await settle_sample(store, "worker-1", 1)
        heard.append(await anext(announcements))

    assert heard == ["", "", f"{sample(1).owner_id}:1"]
    await store.close()
