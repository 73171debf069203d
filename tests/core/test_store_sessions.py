"""How sessions live and end, against a real Valkey."""

from __future__ import annotations

import pytest

from core.builders import SESSION_ID, add_worker, model_id, sample, submission, submit
from core.test_store_cycles import dispatch_samples, settle_sample
from core.test_store_operations import CREATE, PASS, assign, settle
from core.test_store_records import session
from cyclora_core import ids
from cyclora_core.clock import ManualClock
from cyclora_core.records import EXPIRED, SubmitOutcome
from cyclora_core.store import Store


async def last_sign_ms(store: Store) -> int:
    return (await store.sessions.live())[SESSION_ID]


async def expire(store: Store) -> bool:
    return await store.sessions.expire(SESSION_ID, await last_sign_ms(store), "gone")


async def test_a_session_whose_client_is_gone_ends_once(store: Store) -> None:
    await store.sessions.create(session())
    seen_ms = await last_sign_ms(store)

    outcomes = [await store.sessions.expire(SESSION_ID, seen_ms, "gone") for _ in range(2)]

    found = await store.sessions.get(SESSION_ID)
    assert outcomes == [True, False]
    assert found is not None
    assert (found.finished_reason, found.finished_detail) == (EXPIRED, "gone")
    assert await store.sessions.live() == {}
    assert not await store.sessions.finish(SESSION_ID, "success")


async def test_a_sign_of_life_after_the_last_look_keeps_a_session(
    store: Store, clock: ManualClock
) -> None:
    await store.sessions.create(session())
    seen_ms = await last_sign_ms(store)
    clock.advance(1)
    await store.sessions.heartbeat(SESSION_ID)

    assert not await store.sessions.expire(SESSION_ID, seen_ms, "gone")


@pytest.mark.parametrize("sent", [submission(CREATE, 0), sample(1)])
async def test_what_a_client_sends_is_a_sign_of_life(
    store: Store, clock: ManualClock, sent: object
) -> None:
    await store.sessions.create(session())
    clock.advance(1)

    await submit(store, sent)  # type: ignore[arg-type]

    assert await store.sessions.live() == {SESSION_ID: clock.now_ms()}


async def test_work_that_is_queued_or_runs_keeps_its_session(store: Store) -> None:
    await store.sessions.create(session())
    await submit(store, submission(CREATE, 0))
    queued = await expire(store)
    await add_worker(store)
    epoch = await assign(store)
    running = await expire(store)
    await settle(store, 0, epoch, CREATE)

    assert [queued, running, await expire(store)] == [False, False, True]


async def test_a_request_that_waits_for_an_earlier_one_keeps_its_session(store: Store) -> None:
    await store.sessions.create(session())
    await submit(store, submission(CREATE, 0))
    await add_worker(store)
    await settle(store, 0, await assign(store), CREATE)
    await submit(store, submission(PASS, 2))

    assert not await expire(store)


async def test_a_sample_keeps_its_session_until_it_is_settled(store: Store) -> None:
    await store.sessions.create(session())
    await submit(store, sample(1))
    await add_worker(store)
    await dispatch_samples(store)
    running = await expire(store)
    await settle_sample(store, "worker-1")

    assert [running, await expire(store)] == [False, True]


async def test_no_model_is_made_in_a_session_that_has_ended(store: Store) -> None:
    """Nobody would unload it: what cleans up has looked for models already."""
    await store.sessions.create(session())
    await expire(store)

    assert await submit(store, submission(CREATE, 0)) == [SubmitOutcome.ENDED]
    assert await store.models.get(model_id()) is None


async def test_a_heartbeat_that_comes_too_late_brings_nothing_back(store: Store) -> None:
    await store.sessions.create(session())
    await store.sessions.finish(SESSION_ID, "success")

    await store.sessions.heartbeat(SESSION_ID)

    assert await store.sessions.live() == {}


async def test_an_ended_session_is_to_be_cleaned_up_until_it_was(
    store: Store, clock: ManualClock
) -> None:
    await store.sessions.create(session())
    await store.sessions.finish(SESSION_ID, "errored", "out of memory")
    assert await store.sessions.ending(10, 5) == []
    clock.advance(11)
    assert await store.sessions.ending(10, 5) == [SESSION_ID]
    await store.sessions.postpone(SESSION_ID)
    assert await store.sessions.ending(10, 5) == []
    clock.advance(11)

    await store.sessions.cleaned_up(SESSION_ID)

    assert await store.sessions.ending(10, 5) == []


async def test_a_session_that_does_not_exist_is_not_ended(store: Store) -> None:
    assert not await store.sessions.finish(SESSION_ID, "success")
    assert await store.sessions.get(SESSION_ID) is None


async def test_a_project_is_assigned_together_with_its_audit_entry(
    store: Store, clock: ManualClock
) -> None:
    await store.sessions.create(session())
    found = await store.sessions.get(SESSION_ID)
    assert found is not None

    await store.sessions.assign_project(found, "paper", "key-1")

    moved = await store.sessions.get(SESSION_ID)
    assert moved is not None
    assert moved.project_id == "paper"
    [entry] = await store.audit.list("tenant-a", 0, clock.now_ms() + 1)
    assert entry.event == "project_assign_session"
    assert entry.details["key_id"] == "key-1"


async def test_pages_of_sessions_follow_one_another_without_gaps(store: Store) -> None:
    """Also among those of one millisecond."""
    made = [ids.new_session_id() for _ in range(7)]
    for number, session_id in enumerate(made):
        await store.sessions.create(session(session_id, number // 3))
    expected = [each.session_id for each in await store.sessions.list("tenant-a", 0, 10)]

    seen: list[str] = []
    position = (10, "")
    while page := await store.sessions.older_than("tenant-a", *position, 2):
        seen += [each.session_id for each in page]
        position = (page[-1].created_at_ms, page[-1].session_id)

    assert seen == expected
