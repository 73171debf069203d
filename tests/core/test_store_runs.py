"""Which training runs a list shows, in which order, and how many it says there are."""

from __future__ import annotations

import dataclasses
from typing import Any

from core.builders import BASE_MODEL, SESSION_ID, model_id, submission, submit
from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.operations import LoraConfig, OperationKind
from cyclora_core.records import Checkpoint, NewModel, Session, SubmitOutcome
from cyclora_core.store import Store
from cyclora_core.types import ModelRecord

OTHER_SESSION = "22222222-2222-3333-4444-555555555555"
COPY = ids.model_id("33333333-2222-3333-4444-555555555555", 0)


async def add_run(store: Store, run: str = model_id(), tenant_id: str = "tenant-a") -> None:
    create = submission(OperationKind.CREATE_MODEL, 0, owner_id=run, tenant_id=tenant_id)
    new_model = NewModel(ids.session_of(run), LoraConfig(8))
    await submit(store, dataclasses.replace(create, new_model=new_model))


def checkpoint(
    run: str, name: str = "final", tenant_id: str = "tenant-a", **changes: Any
) -> Checkpoint:
    path = CheckpointPath(run, CheckpointKind.TRAINING, name)
    return Checkpoint(
        path=str(path),
        tenant_id=tenant_id,
        model_id=run,
        kind=path.kind,
        name=name,
        base_model=BASE_MODEL,
        lora=LoraConfig(8),
        has_optimizer=True,
        num_bytes=10,
        created_at_ms=1,
        revision="3",
        **changes,
    )


def listed(page: tuple[list[ModelRecord], int]) -> tuple[list[str], int]:
    models, total = page
    return [model.model_id for model in models], total


async def test_pages_are_newest_first_and_count_all(store: Store, clock: ManualClock) -> None:
    for number in range(5):
        await add_run(store, model_id(number))
        clock.advance(1)
    await add_run(store, model_id(9), "tenant-b")

    first, rest = [listed(await store.runs.list("tenant-a", at, 3)) for at in (0, 3)]

    assert first == ([model_id(4), model_id(3), model_id(2)], 5)
    assert rest == ([model_id(1), model_id(0)], 5)
    assert listed(await store.runs.list("tenant-a", 9, 3)) == ([], 5)


async def test_a_project_holds_the_runs_of_its_sessions_and_the_copies_made_into_it(
    store: Store, clock: ManualClock
) -> None:
    await store.sessions.create(Session(SESSION_ID, "tenant-a", 1, 1, project_id="proj"))
    await store.sessions.create(Session(OTHER_SESSION, "tenant-a", 1, 1))
    for run in (model_id(0), ids.model_id(OTHER_SESSION, 0), model_id(1)):
        await add_run(store, run)
        clock.advance(1)
    await store.copies.record(checkpoint(COPY), "tinker://source", "proj")

    found = await store.runs.list_of_project("tenant-a", "proj", 0, 10)

    assert listed(found) == ([model_id(1), model_id(0), COPY], 3)
    assert listed(await store.runs.list_of_project("tenant-a", "proj", 1, 1)) == ([model_id(0)], 3)
    assert listed(await store.runs.list_of_project("tenant-a", "none", 0, 10)) == ([], 0)
    assert listed(await store.runs.list_of_project("tenant-b", "proj", 0, 10)) == ([], 0)


async def test_a_copy_into_a_slot_of_a_session_is_in_the_sessions_project(store: Store) -> None:
    await store.sessions.create(Session(SESSION_ID, "tenant-a", 1, 1, project_id="proj"))
    await store.copies.record(checkpoint(model_id(7)), "tinker://source", None)

    found = await store.runs.list_of_project("tenant-a", "proj", 0, 10)

    assert listed(found) == ([model_id(7)], 1)


async def test_what_others_publish_is_accessible_as_long_as_it_is_there(
    store: Store, clock: ManualClock
) -> None:
    theirs = ids.model_id(OTHER_SESSION, 0)
    await add_run(store, model_id(0))
    clock.advance(1)
    await add_run(store, theirs, "tenant-b")
    clock.advance(1)
    await add_run(store, model_id(1))
    own = [model_id(1), model_id(0)]

    async def accessible() -> list[str]:
        runs, total = listed(await store.runs.list_accessible("tenant-a", 0, 10))
        assert total == len(runs)
        return runs

    shared = checkpoint(theirs, tenant_id="tenant-b")
    await store.checkpoints.put(shared)
    await store.checkpoints.put(checkpoint(model_id(0), is_public=True))
    assert await accessible() == own
    await store.checkpoints.set_public(shared.path, True)
    assert await accessible() == [model_id(1), theirs, model_id(0)]
    assert listed(await store.runs.list_accessible("tenant-a", 1, 1)) == ([theirs], 3)
    await store.checkpoints.set_public(shared.path, False)
    assert await accessible() == own
    await store.checkpoints.set_public(shared.path, True)
    await store.checkpoints.set_expiry(shared.path, clock.now_ms() + 1000)
    clock.advance(1)
    assert await accessible() == own
    await store.checkpoints.put(checkpoint(theirs, tenant_id="tenant-b", is_public=True))
    await store.checkpoints.delete(shared.path)
    assert await accessible() == own


async def test_a_save_over_a_published_checkpoint_is_not_published(store: Store) -> None:
    theirs = ids.model_id(OTHER_SESSION, 0)
    await add_run(store, theirs, "tenant-b")
    await store.checkpoints.put(checkpoint(theirs, tenant_id="tenant-b", is_public=True))

    await store.checkpoints.put(checkpoint(theirs, tenant_id="tenant-b"))

    assert await store.checkpoints.published() == []


async def test_a_copys_run_cannot_be_taken_for_a_model(store: Store) -> None:
    await store.copies.record(checkpoint(model_id(7)), "tinker://source", None)

    create = submission(OperationKind.CREATE_MODEL, 0, owner_id=model_id(7))

    assert await submit(store, create) == [SubmitOutcome.EXPIRED]
