"""Sessions whose client is gone are ended and cleaned up behind, whoever dies in between."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from cyclora_core.clock import ManualClock
from cyclora_core.errors import Unavailable
from cyclora_core.ids import CheckpointKind
from cyclora_core.operations import OperationKind
from cyclora_core.records import EXPIRED, Session
from cyclora_server.sweep import Sweeper
from server.doubles.builders import MODEL, SESSION, TENANT, checkpoint, model_record
from server.doubles.checkpoints import StorageDouble
from server.doubles.store import StoreDouble

OTHER = "00000000-0000-4000-8000-000000000002"


async def sweep_for(app: FastAPI, clock: ManualClock, seconds: float) -> None:
    """Let time pass as a server that runs sees it."""
    sweeper = Sweeper(app.state.services)
    for _ in range(round(seconds / 10) + 1):
        await sweeper.sweep()
        clock.advance(10)


async def test_a_session_of_which_nothing_is_heard_ends_with_its_models_and_unnamed_weights(
    app: FastAPI, store: StoreDouble, storage: StorageDouble, clock: ManualClock
) -> None:
    hidden = store.checkpoints.put(checkpoint("e", CheckpointKind.SAMPLER, is_listed=False))
    named = store.checkpoints.put(checkpoint("named"))

    await sweep_for(app, clock, 600)

    session = store.sessions.records[SESSION]
    assert session.finished_reason == EXPIRED
    assert "600 s" in (session.finished_detail or "")
    assert store.submitted(f"{MODEL}:1").kind is OperationKind.UNLOAD_MODEL
    assert storage.deleted == [hidden.path]
    assert list(store.checkpoints.records) == [named.path]
    assert store.sessions.to_clean_up == []


async def test_a_session_is_left_alone_before_its_time(
    app: FastAPI, store: StoreDouble, clock: ManualClock
) -> None:
    await sweep_for(app, clock, 590)

    assert store.sessions.records[SESSION].finished_reason is None


async def test_a_session_with_work_left_is_looked_at_again_later(
    app: FastAPI, store: StoreDouble, clock: ManualClock
) -> None:
    store.sessions.busy.add(SESSION)
    sweeper = Sweeper(app.state.services)
    for number in range(130):
        await sweeper.sweep()
        clock.advance(10)
        if number == 61:
            assert store.sessions.records[SESSION].finished_reason is None
            store.sessions.busy.clear()
        if number == 119:
            assert store.sessions.records[SESSION].finished_reason is None

    assert store.sessions.records[SESSION].finished_reason == EXPIRED


async def test_what_a_server_left_when_it_died_is_cleaned_up_by_another(
    app: FastAPI, store: StoreDouble
) -> None:
    await store.sessions.finish(SESSION, "success")

    await Sweeper(app.state.services).sweep()

    assert store.submitted(f"{MODEL}:1").kind is OperationKind.UNLOAD_MODEL
    assert store.sessions.to_clean_up == []


async def test_one_session_that_cannot_be_cleaned_up_does_not_hold_up_the_others(
    app: FastAPI, store: StoreDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.sessions.records[OTHER] = Session(OTHER, TENANT, 1000, 1000)
    store.models.records[MODEL] = model_record()
    other_model = f"{OTHER}:train:0"
    store.models.records[other_model] = model_record(model_id=other_model, session_id=OTHER)
    submit = store.operations.submit

    async def failing(submission: object) -> object:
        if getattr(submission, "owner_id", None) == MODEL:
            raise Unavailable("the store is away")
        return await submit(submission)  # type: ignore[arg-type]

    monkeypatch.setattr(store.operations, "submit", failing)
    for session_id in (SESSION, OTHER):
        await store.sessions.finish(session_id, "success")

    await Sweeper(app.state.services).sweep()

    assert store.submitted(f"{other_model}:1").kind is OperationKind.UNLOAD_MODEL
    assert store.sessions.to_clean_up == [SESSION]


async def test_a_deleted_tenant_is_looked_after_until_nothing_more_can_come_of_it(
    app: FastAPI, store: StoreDouble, clock: ManualClock
) -> None:
    """What it had sent before still runs, and may save a checkpoint after it was deleted."""
    store.tenants.change(TENANT, deleted_at_ms=clock.now_ms())
    store.models.records[MODEL] = model_record()
    late = store.checkpoints.put(checkpoint("late"))

    await Sweeper(app.state.services).sweep()
    assert late.path not in store.checkpoints.records
    assert store.sessions.records[SESSION].finished_reason == "interrupted"
    later = store.checkpoints.put(checkpoint("later"))
    store.models.records[MODEL] = model_record(is_ended=True)
    clock.advance(3600)
    assert [each.tenant_id for each in await store.tenants.unpurged()] == [TENANT]
    await Sweeper(app.state.services).sweep()

    assert later.path not in store.checkpoints.records
    assert await store.tenants.unpurged() == []


async def test_runs_that_ended_long_ago_without_a_checkpoint_are_forgotten(
    app: FastAPI, store: StoreDouble, clock: ManualClock
) -> None:
    now_ms = clock.now_ms()
    day_ms = 24 * 3600 * 1000
    ids = [f"{OTHER}:train:{number}" for number in range(250)]
    for number, model_id in enumerate(ids):
        store.models.records[model_id] = model_record(
            model_id=model_id,
            is_ended=number % 2 == 0,
            created_at_ms=now_ms - 91 * day_ms,
            last_request_at_ms=now_ms - (91 if number < 240 else 89) * day_ms,
        )
    kept = store.checkpoints.put(checkpoint("a", model_id=ids[4]))

    sweeper = Sweeper(app.state.services)
    for _ in range(6):
        await sweeper.sweep()

    left = set(ids) & store.models.records.keys()
    expected = {each for n, each in enumerate(ids) if n % 2 or n >= 240}
    assert left == expected | {kept.model_id}
