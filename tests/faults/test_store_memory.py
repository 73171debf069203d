"""A store without room: refuses what is new as a whole, and finishes what it has accepted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from core.builders import (
    BASE_MODEL,
    LEASE_S,
    SESSION_ID,
    add_worker,
    model_id,
    sample,
    submission,
    submit,
)
from core.test_store_cycles import dispatch_samples, settle_sample
from core.test_store_operations import CREATE, PASS, STEP, assign, gathered, pending_seq_ids, settle
from core.test_store_records import session
from cyclora_core.clock import ManualClock
from cyclora_core.errors import Unavailable
from cyclora_core.partials import Partial, PartialToken
from cyclora_core.records import FutureState, Submission, SubmitOutcome
from cyclora_core.store import Store, patience
from cyclora_core.store.cancellations import CancelOutcome
from cyclora_core.store.operations import SettleOutcome
from cyclora_core.waiting import WorkerStats
from faults.own_valkey import OwnValkey

DEADLINE_S = 20.0
NEXT_TO_NOTHING = 1
ENOUGH = 256 * 1024**2


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnValkey]:
    with OwnValkey(tmp_path, is_durable=False) as process:
        process.start()
        yield process


@pytest.fixture
async def starved(own: OwnValkey, clock: ManualClock) -> AsyncIterator[Store]:
    store = await Store.open(own.url, clock=clock)
    yield store
    await store.close()


@pytest.mark.parametrize(
    "new",
    [
        submission(CREATE, 0, owner_id=model_id(1)),
        submission(PASS, 1),
        submission(PASS, 3),
        submission(PASS, 1, is_refused=True),
        sample(1),
    ],
    ids=["create", "pass", "early", "refused", "sample"],
)
async def test_a_full_store_refuses_new_work_as_a_whole_and_takes_it_later(
    own: OwnValkey, starved: Store, new: Submission
) -> None:
    await submit(starved, submission(CREATE, 0))
    before = own.dump()
    own.set_max_memory(NEXT_TO_NOTHING)

    with pytest.raises(Unavailable, match="no memory left"):
        await starved.operations.submit(new)

    assert own.dump() == before
    own.set_max_memory(ENOUGH)
    outcomes = await submit(starved, new, new)
    assert outcomes == [SubmitOutcome.ACCEPTED, SubmitOutcome.DUPLICATE]


async def test_a_refusal_does_not_use_up_the_seq_id(own: OwnValkey, starved: Store) -> None:
    await submit(starved, submission(CREATE, 0))
    own.set_max_memory(NEXT_TO_NOTHING)
    with pytest.raises(Unavailable):
        await submit(starved, submission(PASS, 1))
    own.set_max_memory(ENOUGH)

    await submit(starved, submission(PASS, 2))
    assert await pending_seq_ids(starved) == [0]
    await submit(starved, submission(PASS, 1))

    assert await pending_seq_ids(starved) == [0, 1, 2]


async def test_whatever_a_full_store_has_accepted_runs_to_its_end_once(
    own: OwnValkey, starved: Store
) -> None:
    """Refusing these steps would keep the store full for ever: only they make it emptier."""
    await add_worker(starved)
    await submit(starved, submission(CREATE, 0), submission(PASS, 1), submission(STEP, 2))
    own.set_max_memory(NEXT_TO_NOTHING)

    epoch = await assign(starved)
    cycle = await starved.workers.claim("worker-1", 0, 0)
    assert cycle is not None
    settled = [
        await settle(starved, seq_id, epoch, kind)
        for seq_id, kind in [(0, CREATE), (1, PASS), (2, STEP), (2, STEP)]
    ]
    assert await starved.models.record_snapshot(model_id(), "worker-1", epoch, 2)
    await starved.workers.release("worker-1", cycle.cycle_id, WorkerStats())

    assert settled == [*[SettleOutcome.SETTLED] * 3, SettleOutcome.ALREADY]
    futures = [await starved.futures.get(f"{model_id()}:{seq_id}") for seq_id in range(3)]
    assert [future and future.state for future in futures] == [FutureState.DONE] * 3
    assert set((await starved.tenants.usage("tenant-a")).values()) == {7}
    assert [worker.is_free for worker in await starved.cycles.workers()] == [True]
    assert (await gathered(starved)).is_empty


async def test_samples_of_a_full_store_are_dispatched_and_settled_once(
    own: OwnValkey, starved: Store
) -> None:
    await add_worker(starved)
    await submit(starved, sample(1), sample(2))
    own.set_max_memory(NEXT_TO_NOTHING)

    assert await dispatch_samples(starved) == 1
    outcomes = [await settle_sample(starved, "worker-1", seq_id) for seq_id in (1, 2, 2)]

    assert outcomes == [SettleOutcome.SETTLED, SettleOutcome.SETTLED, SettleOutcome.ALREADY]
    assert len(await starved.futures.completions(sample(1).owner_id, 0, 0)) == 2


async def test_a_full_store_keeps_leases_buries_the_dead_and_lets_workers_join(
    own: OwnValkey, starved: Store
) -> None:
    await add_worker(starved)
    await submit(starved, sample(1))
    await dispatch_samples(starved)
    own.set_max_memory(NEXT_TO_NOTHING)

    assert await starved.cycles.lead("t", 30)
    assert await starved.workers.renew("worker-1", LEASE_S)
    await add_worker(starved, "worker-2", "worker")  # the same name: worker-1 is dead
    assert await starved.cycles.bury("t", "worker-1", BASE_MODEL)

    assert await dispatch_samples(starved, "worker-2") == 2


async def test_clients_of_a_full_store_keep_their_sessions(
    own: OwnValkey, starved: Store, clock: ManualClock
) -> None:
    """Sessions without a sign of life end however full the store is: so it must hear the signs."""
    await starved.sessions.create(session())
    seen_ms = (await starved.sessions.live())[SESSION_ID]
    own.set_max_memory(NEXT_TO_NOTHING)

    clock.advance(1)
    await starved.sessions.heartbeat(SESSION_ID)

    assert not await starved.sessions.expire(SESSION_ID, seen_ms, "gone")
    last_ms = (await starved.sessions.live())[SESSION_ID]
    assert last_ms > seen_ms
    assert await starved.sessions.expire(SESSION_ID, last_ms, "gone")
    assert await starved.sessions.ending(0, 1) == [SESSION_ID]


async def test_samples_of_a_full_store_are_shown_and_cancelled(
    own: OwnValkey, starved: Store
) -> None:
    await add_worker(starved)
    await submit(starved, sample(1))
    await dispatch_samples(starved)
    await submit(starved, sample(2))
    running, owner_id = sample(1).request_id, sample(1).owner_id
    own.set_max_memory(NEXT_TO_NOTHING)

    token = PartialToken(sample_index=0, token=7, logprob=-1.0)
    await starved.operations.show_partials("worker-1", [Partial(running, 0, [token])])
    shown = await starved.futures.progress(running, 0)
    outcomes = [
        await starved.cancellations.cancel("tenant-a", BASE_MODEL, owner_id, seq_id)
        for seq_id in (1, 2, 2)
    ]

    assert shown.tokens == [token]
    assert outcomes == [CancelOutcome.CANCELLED, CancelOutcome.CANCELLED, CancelOutcome.FINAL]
    assert await starved.cancellations.of_worker("worker-1") == [running]


async def test_an_administrator_who_makes_room_in_a_full_store_is_noted(
    own: OwnValkey, starved: Store
) -> None:
    await add_worker(starved)
    await submit(starved, submission(CREATE, 0), submission(PASS, 1), sample(1))
    own.set_max_memory(NEXT_TO_NOTHING)

    await starved.audit.add("run_delete", {"model_id": model_id()}, "key-1", "tenant-a")
    assert await starved.queues.cancel_tenant("tenant-a", "key-1") == 2

    noted = [each.event for each in await starved.audit.list("tenant-a", 0, 2**52)]
    assert sorted(noted) == ["queue_cancel", "queue_cancel", "run_delete"]


async def until_refused(own: OwnValkey, code: str) -> None:
    """Wait until the store has refused somebody with this code."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with own.client() as client:
                if f"errorstat_{code}" in client.info("errorstats"):
                    return
            await asyncio.sleep(0)


async def until_saved(own: OwnValkey, status: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with own.client() as client:
                if client.info("persistence")["rdb_last_bgsave_status"] == status:
                    return
            await asyncio.sleep(0)


async def test_a_patient_caller_waits_until_there_is_memory_and_says_so_once(
    own: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_SILENT_S", 0.0)
    patient = await Store.open(own.url, patience_s=3600)
    own.set_max_memory(NEXT_TO_NOTHING)
    with capture_logs() as logs:
        creating = asyncio.create_task(patient.tenants.create("late"))
        await until_refused(own, "OOM")
        assert not creating.done()
        own.set_max_memory(ENOUGH)
        tenant = await asyncio.wait_for(creating, DEADLINE_S)

    assert await patient.tenants.list() == [tenant]
    assert [line["event"] for line in logs] == ["waiting for the store", "store goes on"]
    assert "no memory left" in logs[0]["reason"]
    await patient.close()


async def test_a_patient_caller_repeats_transactions_as_a_whole(own: OwnValkey) -> None:
    patient = await Store.open(own.url, patience_s=3600)
    tenant = await patient.tenants.create("first")
    own.set_max_memory(NEXT_TO_NOTHING)
    creating = asyncio.create_task(patient.api_keys.create(tenant.tenant_id, "key"))
    await until_refused(own, "OOM")
    own.set_max_memory(ENOUGH)

    secret, record = await asyncio.wait_for(creating, DEADLINE_S)

    found = await patient.api_keys.of_secret(secret)
    assert found is not None
    assert found.key == record
    await patient.close()


async def test_a_store_that_cannot_write_its_files_refuses_everything_as_a_whole(
    own: OwnValkey, starved: Store
) -> None:
    await add_worker(starved)
    await submit(starved, submission(CREATE, 0))
    epoch = await assign(starved)
    with own.client() as client:
        client.config_set("save", "3600 1000000")
        (own.data / "dump.rdb").mkdir()  # in the way of the file of this name
        client.bgsave()
    await until_saved(own, "err")
    before = own.dump()

    for step in (submit(starved, submission(PASS, 1)), settle(starved, 0, epoch, CREATE)):
        with pytest.raises(Unavailable, match="cannot write to its disk"):
            await step

    assert own.dump() == before
    with own.client() as client:
        (own.data / "dump.rdb").rmdir()
        client.bgsave()
    await until_saved(own, "ok")
    assert await submit(starved, submission(PASS, 1)) == [SubmitOutcome.ACCEPTED]
    assert await settle(starved, 0, epoch, CREATE) is SettleOutcome.SETTLED


async def test_a_read_only_replica_refuses_everything_and_can_be_read(
    own: OwnValkey, starved: Store
) -> None:
    await submit(starved, submission(CREATE, 0))
    with own.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")

    with pytest.raises(Unavailable, match="read-only replica"):
        await submit(starved, submission(PASS, 1))

    assert await pending_seq_ids(starved) == [0]
    with own.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
    assert await submit(starved, submission(PASS, 1)) == [SubmitOutcome.ACCEPTED]
