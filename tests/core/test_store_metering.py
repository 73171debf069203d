"""What is counted by hour, against a real Valkey: once, whatever is asked for twice."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from core.builders import (
    BASE_MODEL,
    SESSION_ID,
    add_worker,
    model_id,
    sample,
    submission,
    submit,
)
from core.test_store_cycles import dispatch_samples, settle_sample
from core.test_store_operations import CREATE, PASS, STEP, assign, settle
from cyclora_core.clock import ManualClock
from cyclora_core.errors import ErrorCategory
from cyclora_core.operations import OperationKind
from cyclora_core.records import OperationError, Session
from cyclora_core.store import Store
from cyclora_core.store.metering import HOUR_MS, hour_of, integrated
from cyclora_core.usage import Charge, Meter, Metered

FORWARD = OperationKind.FORWARD
RUN = Charge(BASE_MODEL, SESSION_ID, "default", model_id())
BASE = Charge(BASE_MODEL, SESSION_ID, "default")


async def used(store: Store, clock: ManualClock) -> list[Metered]:
    hour = hour_of(clock.now_ms())
    return await store.metering.used("tenant-a", hour, hour + 1)


async def test_passes_are_counted_once_with_their_session_and_base_model(
    store: Store, clock: ManualClock
) -> None:
    await add_worker(store)
    kinds = [CREATE, PASS, FORWARD, STEP]
    await submit(store, *(submission(kind, seq_id) for seq_id, kind in enumerate(kinds)))
    epoch = await assign(store)
    for seq_id, kind in enumerate(kinds):
        for _ in range(2):
            await settle(store, seq_id, epoch, kind)

    hour = hour_of(clock.now_ms())
    assert await used(store, clock) == [Metered(hour, Meter.TRAINING, RUN, 14)]
    assert await store.metering.used("tenant-b", hour, hour + 1) == []


async def test_what_failed_is_not_counted(store: Store, clock: ManualClock) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1))
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)

    await settle(store, 1, epoch, error=OperationError("no", ErrorCategory.USER))

    assert await used(store, clock) == []


async def test_samples_are_counted_once_in_and_out(store: Store, clock: ManualClock) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)

    for _ in range(2):
        await settle_sample(store, "worker-1")

    hour = hour_of(clock.now_ms())
    assert await used(store, clock) == [
        Metered(hour, Meter.PREFILL, BASE, 4),
        Metered(hour, Meter.SAMPLED, BASE, 3),
    ]


async def test_prompt_tokens_that_were_found_computed_are_counted_apart(
    store: Store, clock: ManualClock
) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)

    await settle_sample(store, "worker-1", num_cached_tokens=16)

    hour = hour_of(clock.now_ms())
    assert Metered(hour, Meter.CACHED_PREFILL, BASE, 16) in await used(store, clock)


async def test_every_hour_is_counted_by_itself(store: Store, clock: ManualClock) -> None:
    await add_worker(store)
    await submit(store, submission(CREATE, 0), submission(PASS, 1), submission(PASS, 2))
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    hour = hour_of(clock.now_ms())
    await settle(store, 1, epoch)
    clock.advance(3600)
    await settle(store, 2, epoch)

    found = await store.metering.used("tenant-a", hour, hour + 2)

    assert [(each.hour - hour, each.amount) for each in found] == [(0, 7), (1, 7)]


async def test_whom_something_is_charged_to_is_told_when_it_is_sent_and_counted(
    store: Store, clock: ManualClock
) -> None:
    """A session that moves later changes nothing that was counted."""
    await add_worker(store)
    session = Session(SESSION_ID, "tenant-a", 0, 0, project_id="paper")
    await store.sessions.create(session)
    passes = [submission(PASS, 1, key_id="key-1"), submission(PASS, 2, key_id="key-2")]
    await submit(store, submission(CREATE, 0), *passes)
    epoch = await assign(store)
    await settle(store, 0, epoch, CREATE)
    await settle(store, 1, epoch)
    await store.sessions.assign_project(session, "other", "key-1")
    await settle(store, 2, epoch)

    found = {each.charge: each.amount for each in await used(store, clock)}

    assert found == {
        Charge(BASE_MODEL, SESSION_ID, "paper", model_id(), "key-1"): 7,
        Charge(BASE_MODEL, SESSION_ID, "other", model_id(), "key-2"): 7,
    }


async def test_a_sample_is_charged_to_the_run_whose_weights_drew_it(
    store: Store, clock: ManualClock
) -> None:
    await add_worker(store)
    path = f"tinker://{model_id(4)}/sampler_weights/a"
    await submit(store, dataclasses.replace(sample(1), weights_path=path, key_id="key-1"))
    await dispatch_samples(store)

    await settle_sample(store, "worker-1")

    charges = {each.charge for each in await used(store, clock)}
    assert charges == {Charge(BASE_MODEL, SESSION_ID, "default", model_id(4), "key-1")}


async def test_a_request_without_a_session_is_charged_to_the_project_of_its_key(
    store: Store, clock: ManualClock
) -> None:
    await add_worker(store)
    await submit(store, dataclasses.replace(sample(1), project_id="paper"))
    await dispatch_samples(store)

    await settle_sample(store, "worker-1")

    assert {each.charge.project_id for each in await used(store, clock)} == {"paper"}


@pytest.mark.parametrize(("project_id", "expected"), [("paper", "paper"), (None, "default")])
async def test_a_session_of_an_earlier_version_has_its_project_in_its_record(
    store: Store, clock: ManualClock, project_id: str | None, expected: str
) -> None:
    await store.sessions.create(Session(SESSION_ID, "tenant-a", 0, 0, project_id=project_id))
    client: Any = store.metering._redis  # pyright: ignore[reportPrivateUsage]
    key = store.metering._keys.session(SESSION_ID)  # pyright: ignore[reportPrivateUsage]
    await client.hdel(key, "project_id")
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)

    await settle_sample(store, "worker-1")

    assert {each.charge.project_id for each in await used(store, clock)} == {expected}


async def test_what_earlier_versions_have_counted_is_still_told(
    store: Store, clock: ManualClock
) -> None:
    hour = hour_of(clock.now_ms())
    client: Any = store.metering._redis  # pyright: ignore[reportPrivateUsage]
    key = store.metering._keys.metered("tenant-a", hour)  # pyright: ignore[reportPrivateUsage]
    await client.hset(key, json.dumps(["training", BASE_MODEL, SESSION_ID]), 5)

    assert await used(store, clock) == [
        Metered(hour, Meter.TRAINING, Charge(BASE_MODEL, SESSION_ID), 5)
    ]


def test_bytes_are_stored_from_the_second_they_are_saved_until_they_are_deleted() -> None:
    """Against adding up second by second."""
    events = [(600, 1000), (4000, 50), (7300, -1000), (7300, 20), (15000, -70)]

    def slowly(hour: int, until_s: int) -> int:
        seconds = range(hour * 3600, min(hour * 3600 + 3600, until_s))
        return sum(sum(n for at_s, n in events if at_s <= second) for second in seconds)

    for now_s in (4000, 9000, 15001, 40000):
        done = [(at_s, n) for at_s, n in events if at_s <= now_s]
        hours = changes(done)
        stored_now = {BASE: sum(n for _, n in done)}
        found = integrated(stored_now, hours, 0, 20, now_s * 1000)
        expected = [(hour, slowly(hour, now_s)) for hour in range(20)]
        assert [(each.hour, each.amount) for each in found] == [row for row in expected if row[1]]


def changes(events: list[tuple[int, int]]) -> dict[int, dict[str, dict[Charge, int]]]:
    """What is kept of bytes that come and go at seconds since the epoch."""
    hours: dict[int, dict[str, dict[Charge, int]]] = {}
    for at_s, num_bytes in events:
        names = hours.setdefault(at_s // 3600, {})
        left_s = 3600 - at_s % 3600
        for name, value in (
            ("stored_bytes", num_bytes),
            ("stored_byte_seconds", num_bytes * left_s),
        ):
            amounts = names.setdefault(name, {})
            amounts[BASE] = amounts.get(BASE, 0) + value
    return hours


def test_what_was_saved_before_the_hours_asked_for_counts_in_them() -> None:
    assert integrated({BASE: 10}, {}, 5, 7, 100 * HOUR_MS) == [
        Metered(5, Meter.STORED, BASE, 36000),
        Metered(6, Meter.STORED, BASE, 36000),
    ]


def test_what_another_clock_has_counted_ahead_of_ours_is_not_counted_yet() -> None:
    hours = changes([(5 * 3600, 10)])

    assert integrated({BASE: 10}, hours, 0, 9, 4 * HOUR_MS) == []


@pytest.mark.parametrize("now_hour", [3, 4])
def test_nothing_is_stored_in_the_future(now_hour: int) -> None:
    assert integrated({BASE: 10}, {}, 5, 9, now_hour * HOUR_MS) == []
