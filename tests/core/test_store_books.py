"""What changes of checkpoints leave behind, against a real Valkey: each once, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from core.builders import SESSION_ID, model_id
from core.test_store_checkpoints import PATH, checkpoint
from cyclora_core.accounts import AuditEntry
from cyclora_core.clock import ManualClock
from cyclora_core.records import Checkpoint
from cyclora_core.store import Store, audit
from cyclora_core.store.metering import (
    METERED_KEPT_S,
    Meter,
    Metered,
    byte_seconds_field,
    bytes_field,
    hour_of,
    ms_left,
)

TENANT = "tenant-a"


async def entries(store: Store, clock: ManualClock) -> list[AuditEntry]:
    return await store.audit.list(TENANT, 0, clock.now_ms() + 1)


async def events(store: Store, clock: ManualClock) -> list[str]:
    return [each.event.removeprefix("checkpoint_") for each in await entries(store, clock)]


async def byte_hours(store: Store, clock: ManualClock, first_hour: int) -> list[float]:
    now_ms = clock.now_ms()
    found = await store.metering.stored(TENANT, first_hour, hour_of(now_ms) + 1, now_ms)
    return [each.byte_seconds / 3600 for each in found]


def at_the_full_hour(clock: ManualClock) -> int:
    clock.advance(3600 - clock.now_ms() / 1000 % 3600)
    return hour_of(clock.now_ms())


async def test_every_change_is_noted_with_who_asked_for_it(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.put(checkpoint("a", request_id="r"))
    clock.advance(1)
    await store.checkpoints.set_expiry(PATH, clock.now_ms() + 10_000, "key-1")
    clock.advance(1)
    await store.checkpoints.set_public(PATH, True, "key-2")
    clock.advance(1)
    await store.checkpoints.set_public(PATH, False, "key-3")
    clock.advance(1)
    await store.checkpoints.delete(PATH, "key-4")

    found = await entries(store, clock)

    names = ["create", "set_ttl", "publish", "unpublish", "delete"]
    assert [each.event for each in found] == [f"checkpoint_{name}" for name in names]
    assert {each.details["tinker_path"] for each in found} == {PATH}
    assert [each.details.get("key_id") for each in found] == [
        None,
        "key-1",
        "key-2",
        "key-3",
        "key-4",
    ]
    assert found[0].details["request_id"] == "r"


async def test_what_expires_is_noted_too(store: Store, clock: ManualClock) -> None:
    await store.checkpoints.put(checkpoint("a", expires_at_ms=clock.now_ms() + 1000))
    clock.advance(1)

    await store.checkpoints.drop_expired()

    assert await events(store, clock) == ["create", "expire"]


async def test_what_is_asked_for_twice_is_noted_and_counted_once(
    store: Store, clock: ManualClock
) -> None:
    """An answer may be lost: the same step is then done again."""
    for _ in range(2):
        await store.checkpoints.put(checkpoint("a"))
    for _ in range(2):
        clock.advance(1)
        await store.checkpoints.set_public(PATH, True, "key-1")

    hour = hour_of(clock.now_ms())
    assert await events(store, clock) == ["create", "publish"]
    assert await store.metering.used(TENANT, hour, hour + 1) == [
        Metered(hour, Meter.CHECKPOINT, "test/base", SESSION_ID, 1)
    ]


async def test_a_copy_is_noted_counted_and_stored(store: Store, clock: ManualClock) -> None:
    hour = at_the_full_hour(clock)
    copy = dataclasses.replace(checkpoint("a"), model_id=model_id(7))
    for _ in range(2):
        await store.copies.record(copy, "tinker://source", None, "key-1")
    clock.advance(3600)

    [entry] = await entries(store, clock)
    [counted] = await store.metering.used(TENANT, hour, hour + 1)

    assert entry.event == "checkpoint_copy"
    assert entry.details["source_path"] == "tinker://source"
    assert (counted.meter, counted.amount) == (Meter.CHECKPOINT, 1)
    assert await byte_hours(store, clock, hour) == [10.0]


async def test_unnamed_weights_are_nobodys_business(store: Store, clock: ManualClock) -> None:
    hour = at_the_full_hour(clock)
    hidden = checkpoint("e", is_listed=False)
    await store.checkpoints.put(hidden)
    clock.advance(3600)
    await store.checkpoints.delete(hidden.path)

    assert await entries(store, clock) == []
    assert await store.metering.used(TENANT, hour, hour + 2) == []
    assert await byte_hours(store, clock, hour) == []


def sized(name: str, num_bytes: int, revision: str = "3") -> Checkpoint:
    return checkpoint(name, num_bytes=num_bytes, revision=revision)


async def test_what_is_stored_is_counted_from_save_to_deletion(
    store: Store, clock: ManualClock
) -> None:
    hour = at_the_full_hour(clock)
    clock.advance(1800)
    await store.checkpoints.put(sized("a", 100))  # half of hour 0
    clock.advance(1800 + 900)
    await store.checkpoints.put(sized("a", 300, "4"))  # overwritten after a quarter of hour 1
    clock.advance(2700 + 3600 + 1800)
    await store.checkpoints.delete(PATH)  # in the middle of hour 3
    clock.advance(7200)

    assert await byte_hours(store, clock, hour) == [
        50.0,
        100 * 0.25 + 300 * 0.75,
        300.0,
        150.0,
    ]


async def test_the_present_hour_counts_as_far_as_it_has_come(
    store: Store, clock: ManualClock
) -> None:
    hour = at_the_full_hour(clock)
    await store.checkpoints.put(sized("a", 100))
    clock.advance(900)

    assert await byte_hours(store, clock, hour) == [25.0]


async def test_terabytes_are_counted_without_an_overflow(store: Store, clock: ManualClock) -> None:
    hour = at_the_full_hour(clock)
    for number in range(3):
        await store.checkpoints.put(sized(f"a{number}", 10**14))
    clock.advance(3600)

    assert await byte_hours(store, clock, hour) == [pytest.approx(3e14)]


async def test_the_log_is_bounded_by_number_and_by_age(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_AUDIT_ENTRIES", 3)
    for number in range(5):
        clock.advance(1)
        await store.checkpoints.put(checkpoint(f"a{number}"))
    kept = [str(each.details["tinker_path"])[-2:] for each in await entries(store, clock)]
    clock.advance(audit.AUDIT_KEPT_S - 1.5)
    await store.checkpoints.put(checkpoint("late"))

    assert kept == ["a2", "a3", "a4"]
    assert len(await entries(store, clock)) == 3
    clock.advance(2)
    await store.checkpoints.put(checkpoint("later"))
    assert await events(store, clock) == ["create", "create"]


async def test_a_log_holds_nothing_of_other_tenants(store: Store, clock: ManualClock) -> None:
    await store.checkpoints.put(checkpoint("a"))

    assert await store.audit.list("tenant-b", 0, clock.now_ms() + 1) == []


async def test_hours_that_nobody_can_ask_for_are_summed_up(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.put(checkpoint("a", num_bytes=1000))
    kept_hours = METERED_KEPT_S // 3600
    clock.advance((kept_hours + 100) * 3600)
    now_hour = hour_of(clock.now_ms())
    key = store.metering._keys.stored(TENANT)  # pyright: ignore[reportPrivateUsage]
    client: Any = store.metering._redis  # pyright: ignore[reportPrivateUsage]
    hours = [now_hour - kept_hours - 150 - number for number in range(10_000)]
    await client.hset(key, mapping={bytes_field(hour): 1 for hour in hours})

    await store.checkpoints.put(checkpoint("b", num_bytes=500))

    assert await client.hgetall(key) == {
        b"0:bytes": b"11000",
        bytes_field(now_hour).encode(): b"500",
        byte_seconds_field(now_hour).encode(): b"%d" % (500 * ms_left(clock.now_ms()) // 1000),
    }
    assert len(await byte_hours(store, clock, 0)) == kept_hours + 1
    assert (await byte_hours(store, clock, 0))[0] == 11_000


async def test_a_little_less_in_the_last_moment_of_an_hour_is_counted(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.put(checkpoint("a", num_bytes=10))
    at_the_full_hour(clock)
    clock.advance(3599.999)

    await store.checkpoints.delete(PATH)

    assert await store.checkpoints.get(PATH) is None
    assert len(await store.checkpoints.doomed_files(10)) == 1
