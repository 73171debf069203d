"""Runs and checkpoints of all tenants, and forgetting runs, against a real Valkey."""

from __future__ import annotations

import dataclasses

from core.builders import SESSION_ID, add_worker, model_id, submission, submit
from core.test_store_checkpoints import checkpoint
from core.test_store_operations import CREATE, PASS, assign, settle
from cyclora_core.clock import ManualClock
from cyclora_core.operations import OperationKind
from cyclora_core.records import Session
from cyclora_core.store import Store, processes
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.types import ModelRecord

UNLOAD = OperationKind.UNLOAD_MODEL


async def tenant(store: Store, name: str) -> str:
    return (await store.tenants.create(name)).tenant_id


async def ended_run(store: Store) -> ModelRecord:
    """A model of tenant-a that was created and unloaded."""
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(UNLOAD, 1))
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    await settle(store, 1, epoch, UNLOAD)
    model = await store.models.get(model_id())
    assert model is not None
    return model


async def test_everything_of_all_tenants_is_found_or_of_one(store: Store) -> None:
    first, second = await tenant(store, "first"), await tenant(store, "second")
    operations = [submission(CREATE, 0, tenant_id=first)]
    operations += [submission(CREATE, 0, tenant_id=second, owner_id=model_id(1))]
    await submit(store, *operations)
    await store.checkpoints.put(checkpoint("a", tenant_id=first))
    hidden = checkpoint("e", tenant_id=first, is_listed=False)
    await store.checkpoints.put(hidden)

    assert {each.model_id for each in await store.inventory.runs()} == {model_id(), model_id(1)}
    assert [each.model_id for each in await store.inventory.runs(second)] == [model_id(1)]
    assert [each.name for each in await store.inventory.checkpoints()] == ["a"]
    found = await store.inventory.checkpoints(with_unlisted=True)
    assert [each.name for each in found] == ["a", "e"]
    assert await store.inventory.checkpoints(second) == []


async def test_a_checkpoint_that_has_expired_is_found_until_it_is_dropped(
    store: Store, clock: ManualClock
) -> None:
    owner = await tenant(store, "first")
    await store.checkpoints.put(
        checkpoint("a", tenant_id=owner, expires_at_ms=clock.now_ms() + 1000)
    )
    clock.advance(2)

    [found] = await store.inventory.checkpoints()

    assert await store.checkpoints.drop(dataclasses.replace(found, num_bytes=1), "expire") is False
    assert await store.checkpoints.drop(found, "expire", "key-1")
    assert await store.checkpoints.drop(found, "expire", "key-1") is False
    assert await store.inventory.checkpoints() == []


async def test_files_that_are_being_written_are_told_from_those_that_are_to_go(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.doom_files(CheckpointFiles("tinker://a", "1"), 3600)
    await store.checkpoints.doom_files(CheckpointFiles("tinker://b", "1"), 0)

    assert await store.inventory.doomed_later() == {CheckpointFiles("tinker://a", "1")}


async def test_weights_that_are_in_memory_only_are_told(store: Store) -> None:
    await store.handovers.begin(model_id(), 3, "tinker://a")

    assert await store.inventory.handed_over([model_id(), model_id(1)]) == {"tinker://a"}


async def test_a_run_that_has_ended_is_forgotten_with_all_that_was_kept_of_it(
    store: Store,
) -> None:
    model = await ended_run(store)

    assert await store.inventory.drop_run(model)

    assert await store.models.get(model_id()) is None
    assert (await store.runs.list("tenant-a", 0, 10)) == ([], 0)
    client = store.queues._redis  # pyright: ignore[reportPrivateUsage]
    keys = store.queues._keys  # pyright: ignore[reportPrivateUsage]
    assert await client.exists(keys.log(model_id()), keys.failed(model_id())) == 0
    assert await store.models.of_session(SESSION_ID) == []
    assert not await store.inventory.drop_run(model)


async def test_a_run_stays_while_it_lives_has_checkpoints_or_its_session_does(
    store: Store, clock: ManualClock
) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1))
    live = await store.models.get(model_id())
    assert live is not None
    assert not await store.inventory.drop_run(live)
    epoch = await assign(store)
    for seq_id, kind in enumerate([CREATE, PASS]):
        await settle(store, seq_id, epoch, kind)
    await submit(store, submission(UNLOAD, 2))
    await settle(store, 2, epoch, UNLOAD)

    saved = checkpoint("a")
    await store.checkpoints.put(saved)
    assert not await store.inventory.drop_run(live)
    await store.checkpoints.delete(saved.path)
    await store.sessions.create(Session(SESSION_ID, "tenant-a", 0, clock.now_ms()))
    assert not await store.inventory.drop_run(live)
    await store.sessions.finish(SESSION_ID, "done")

    assert await store.inventory.drop_run(live)


async def test_runs_that_ended_long_ago_are_looked_for_page_by_page(
    store: Store, clock: ManualClock
) -> None:
    await ended_run(store)
    await submit(store, submission(CREATE, 0, owner_id=model_id(1)))
    before_ms = clock.now_ms() + 1

    ended, has_more = await store.inventory.ended_runs("tenant-a", before_ms, 0, 2)

    assert ([each.model_id for each in ended], has_more) == ([model_id()], True)
    assert await store.inventory.ended_runs("tenant-a", before_ms, 2, 2) == ([], False)
    assert await store.inventory.ended_runs("tenant-a", clock.now_ms() - 1, 0, 2) == ([], False)


async def test_processes_tell_their_settings_without_secrets(store: Store) -> None:
    for port in (1, 2):
        settings = {"redis_url": "redis://:secret@host/0", "port": port}
        await store.processes.put("worker", "worker-0", settings)
    await store.processes.put("scheduler", "a", {})

    found = await store.processes.list()

    assert [(each.kind, each.name) for each in found] == [
        ("scheduler", "a"),
        ("worker", "worker-0"),
    ]
    assert found[1].settings == {"redis_url": "redis://***@host/0", "port": 2}


async def test_processes_that_started_long_ago_are_forgotten(
    store: Store, clock: ManualClock
) -> None:
    for number in range(processes.MAX_PROCESSES + 3):
        clock.advance(1)
        if number < 3 or number > processes.MAX_PROCESSES - 1:
            await store.processes.put("worker", f"w{number}", {})
            continue
        record = processes.ProcessSettings("worker", f"w{number}", clock.now_ms(), {})
        client = store.processes._redis  # pyright: ignore[reportPrivateUsage]
        key = store.processes._keys.process_settings()  # pyright: ignore[reportPrivateUsage]
        field = processes.json.dumps(["worker", f"w{number}"])
        await client.hset(key, field, processes.codec.dump(record))

    names = {each.name for each in await store.processes.list()}

    assert len(names) == processes.MAX_PROCESSES
    assert not {"w0", "w1", "w2"} & names
