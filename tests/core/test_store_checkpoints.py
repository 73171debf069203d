"""Checkpoints' records, against a real Valkey: none is lost, none outlives its time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from core.builders import model_id
from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import LoraConfig
from cyclora_core.records import Checkpoint
from cyclora_core.store import Store
from cyclora_core.store.checkpoints import CheckpointFiles
from cyclora_core.store.connection import Connection


def checkpoint(name: str, at_ms: int = 1, **changes: Any) -> Checkpoint:
    path = CheckpointPath(model_id(), CheckpointKind.TRAINING, name)
    record = Checkpoint(
        path=str(path),
        tenant_id="tenant-a",
        model_id=model_id(),
        kind=path.kind,
        name=name,
        base_model="test/base",
        lora=LoraConfig(8),
        has_optimizer=True,
        num_bytes=10,
        created_at_ms=at_ms,
        revision="3",
    )
    return dataclasses.replace(record, **changes)


PATH = checkpoint("a").path
FILES = CheckpointFiles(PATH, "3")


def in_an_hour(clock: ManualClock) -> int:
    return clock.now_ms() + 3_600_000


async def test_unlisted_checkpoints_are_found_by_path_only(store: Store) -> None:
    await store.checkpoints.put(checkpoint("a", 1))
    await store.checkpoints.put(checkpoint("b", 2))
    await store.checkpoints.put(checkpoint("hidden", 3, is_listed=False))

    listed, total = await store.checkpoints.list("tenant-a", 0, 10)

    assert ([each.name for each in listed], total) == (["b", "a"], 2)
    assert await store.checkpoints.of_model(model_id()) == listed
    hidden = checkpoint("hidden", 3).path
    assert await store.checkpoints.get(hidden) is not None
    assert await store.checkpoints.unlisted_of_model(model_id()) == [hidden]
    await store.checkpoints.delete(hidden)
    assert await store.checkpoints.unlisted_of_model(model_id()) == []


async def test_a_deleted_checkpoint_is_gone_from_every_list(store: Store) -> None:
    await store.checkpoints.put(checkpoint("a", 1))

    assert await store.checkpoints.delete(checkpoint("a", 1).path)

    assert await store.checkpoints.list("tenant-a", 0, 10) == ([], 0)
    assert not await store.checkpoints.delete(checkpoint("a", 1).path)


async def test_from_the_moment_it_expires_a_checkpoint_is_nowhere(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.put(checkpoint("a", 1, expires_at_ms=in_an_hour(clock)))
    await store.checkpoints.put(checkpoint("b", 2))
    clock.advance(3599.999)
    assert await store.checkpoints.get(PATH) is not None
    clock.advance(0.001)

    assert await store.checkpoints.get(PATH) is None
    assert [each.name for each in await store.checkpoints.of_model(model_id())] == ["b"]
    listed, total = await store.checkpoints.list("tenant-a", 0, 10)
    assert ([each.name for each in listed], total) == (["b"], 1)
    assert not await store.checkpoints.set_expiry(PATH, None)
    assert not await store.checkpoints.set_public(PATH, True)


async def test_the_files_of_what_expired_are_remembered_until_they_are_deleted(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.put(checkpoint("a", expires_at_ms=in_an_hour(clock)))
    assert await store.checkpoints.drop_expired() == 0
    clock.advance(3600)

    assert await store.checkpoints.drop_expired() == 1

    assert await store.checkpoints.drop_expired() == 0
    assert await store.checkpoints.doomed_files(10) == [FILES]
    await store.checkpoints.files_deleted(FILES)
    assert await store.checkpoints.doomed_files(10) == []


async def test_a_renewed_checkpoint_does_not_expire(store: Store, clock: ManualClock) -> None:
    await store.checkpoints.put(checkpoint("a", expires_at_ms=in_an_hour(clock)))
    clock.advance(3599)
    assert await store.checkpoints.set_expiry(PATH, in_an_hour(clock))
    clock.advance(3599)

    assert await store.checkpoints.drop_expired() == 0
    assert await store.checkpoints.set_expiry(PATH, None)
    clock.advance(10**9)
    assert await store.checkpoints.drop_expired() == 0
    assert await store.checkpoints.get(PATH) is not None


async def test_a_renewal_between_looking_and_dropping_wins(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sweeper's clock it has expired; by the clock of the server that renews it, not yet."""
    await store.checkpoints.put(checkpoint("a", expires_at_ms=in_an_hour(clock)))
    clock.advance(3600)
    run = Connection.run

    async def renewed_first(self: Connection, script: str, *rest: Any) -> Any:
        if script == "drop_checkpoint":
            clock.jump_wall(-10)
            assert await store.checkpoints.set_expiry(PATH, in_an_hour(clock))
            clock.jump_wall(10)
        return await run(self, script, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "run", renewed_first)
        assert await store.checkpoints.drop_expired() == 0

    assert await store.checkpoints.get(PATH) is not None
    assert await store.checkpoints.doomed_files(10) == []


async def test_a_change_does_not_undo_a_save_that_came_in_between(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.checkpoints.put(checkpoint("a"))
    run = Connection.run
    is_first = True

    async def replaced_first(self: Connection, script: str, *rest: Any) -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            await store.checkpoints.put(checkpoint("a", 2, revision="7"))
        return await run(self, script, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "run", replaced_first)
        assert await store.checkpoints.set_public(PATH, True)

    found = await store.checkpoints.get(PATH)
    assert found is not None
    assert (found.revision, found.is_public, found.created_at_ms) == ("7", True, 2)


async def test_a_save_under_the_name_of_a_doomed_checkpoint_is_not_doomed(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.put(checkpoint("a", expires_at_ms=in_an_hour(clock)))
    clock.advance(3600)
    await store.checkpoints.drop_expired()

    await store.checkpoints.put(checkpoint("a"))

    assert await store.checkpoints.doomed_files(10) == []
    assert await store.checkpoints.drop_expired() == 0


async def test_files_that_never_got_a_record_are_doomed_after_their_time(
    store: Store, clock: ManualClock
) -> None:
    recorded = CheckpointFiles(checkpoint("b").path, "3")
    await store.checkpoints.doom_files(FILES, 60.0)
    await store.checkpoints.doom_files(recorded, 60.0)
    await store.checkpoints.put(checkpoint("b"))
    assert await store.checkpoints.doomed_files(10) == []

    clock.advance(60)

    assert await store.checkpoints.doomed_files(10) == [FILES]


async def test_one_sweep_drops_a_bounded_number(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cyclora_core.store.checkpoints.MAX_DROPPED_AT_ONCE", 2)
    for name in "abc":
        await store.checkpoints.put(checkpoint(name, expires_at_ms=clock.now_ms()))

    assert [await store.checkpoints.drop_expired() for _ in range(3)] == [2, 1, 0]


async def test_a_copy_is_recorded_with_its_run_and_only_once(
    store: Store, clock: ManualClock
) -> None:
    files = CheckpointFiles(PATH, "3")
    await store.checkpoints.doom_files(files, 60.0)
    copy = checkpoint("a", expires_at_ms=in_an_hour(clock))

    assert await store.copies.record(copy, "tinker://source", "proj")
    await store.checkpoints.delete(PATH)
    assert not await store.copies.record(copy, "tinker://source", "proj")

    assert await store.checkpoints.get(PATH) is None
    run = await store.models.get(model_id())
    assert run is not None
    assert (run.is_ended, run.copied_from, run.project_id) == (True, "tinker://source", "proj")


async def test_a_recorded_copy_is_listed_and_expires_like_a_save(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.doom_files(FILES, 60.0)
    copy = checkpoint("a", expires_at_ms=in_an_hour(clock))
    await store.copies.record(copy, "tinker://source", None)
    clock.advance(60)
    assert await store.checkpoints.doomed_files(10) == []
    assert await store.checkpoints.list("tenant-a", 0, 10) == ([copy], 1)
    clock.advance(3540)

    assert await store.checkpoints.drop_expired() == 1
    assert await store.checkpoints.doomed_files(10) == [FILES]


async def test_a_list_without_external_checkpoints_counts_and_pages_without_them(
    store: Store,
) -> None:
    for at_ms, name in enumerate(("a", "b", "c", "d")):
        path = CheckpointPath(model_id(), CheckpointKind.EXTERNAL, name)
        kind = {"path": str(path), "kind": path.kind} if name in "bd" else {}
        await store.checkpoints.put(checkpoint(name, at_ms, **kind))

    every, total = await store.checkpoints.list("tenant-a", 0, 10)
    second, others = await store.checkpoints.list("tenant-a", 1, 1, with_external=False)

    assert ([each.name for each in every], total) == (["d", "c", "b", "a"], 4)
    assert ([each.name for each in second], others) == (["a"], 2)


async def test_a_list_counts_nothing_that_has_expired_however_much_that_is(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cyclora_core.store.checkpoints.MAX_DROPPED_AT_ONCE", 2)
    for name in "abcde":
        await store.checkpoints.put(checkpoint(name, expires_at_ms=clock.now_ms()))
    kept = checkpoint("kept")
    await store.checkpoints.put(kept)

    assert await store.checkpoints.list("tenant-a", 0, 10) == ([kept], 1)


async def test_the_checkpoints_of_several_runs_come_in_the_order_asked_for(store: Store) -> None:
    for at_ms, name in enumerate(("old", "new")):
        await store.checkpoints.put(checkpoint(name, at_ms))

    none, found = await store.checkpoints.of_models([model_id(5), model_id()])

    assert none == []
    assert [each.name for each in found] == ["new", "old"]


async def test_a_save_that_was_overtaken_changes_nothing(store: Store) -> None:
    """A worker that slept in the midst of it wakes up when its successor has saved again."""
    assert await store.checkpoints.put(checkpoint("a", revision="10"))
    assert not await store.checkpoints.put(checkpoint("a", revision="9", num_bytes=77))

    found = await store.checkpoints.get(PATH)
    assert found is not None
    assert (found.revision, found.num_bytes) == ("10", 10)
    assert await store.checkpoints.put(checkpoint("a", revision="11"))
