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
from cyclora_core.store.metering import METERED_KEPT_S, hour_of
from cyclora_core.usage import Charge, Meter, Metered

TENANT = "tenant-a"
CHARGE = Charge("test/base", SESSION_ID, "default", model_id())


async def entries(store: Store, clock: ManualClock) -> list[AuditEntry]:
    return await store.audit.list(TENANT, 0, clock.now_ms() + 1)


async def events(store: Store, clock: ManualClock) -> list[str]:
    return [each.event.removeprefix("checkpoint_") for each in await entries(store, clock)]


async def byte_hours(store: Store, clock: ManualClock, first_hour: int) -> list[float]:
    now_ms = clock.now_ms()
    found = await store.metering.stored(TENANT, first_hour, hour_of(now_ms) + 1, now_ms)
    amounts: dict[int, float] = {}
    for each in found:
        amounts[each.hour] = amounts.get(each.hour, 0) + each.amount / 3600
    return list(amounts.values())


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
        Metered(hour, Meter.CHECKPOINT, CHARGE, 1)
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


async def test_what_has_been_stored_for_longer_than_hours_are_kept_still_counts(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.put(sized("a", 1000))
    kept_hours = METERED_KEPT_S // 3600
    clock.advance((kept_hours + 100) * 3600)
    await store.checkpoints.put(sized("b", 500))

    found = await byte_hours(store, clock, 0)

    assert len(found) == kept_hours + 1
    assert set(found[:-1]) == {1000}


async def test_of_who_has_nothing_stored_any_more_nothing_is_kept(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.put(sized("a", 1000))
    assert await store.metering.stored_bytes(TENANT) == 1000

    await store.checkpoints.delete(PATH)

    client: Any = store.metering._redis  # pyright: ignore[reportPrivateUsage]
    keys = store.metering._keys  # pyright: ignore[reportPrivateUsage]
    assert await client.exists(keys.stored(TENANT), keys.stored_as(TENANT)) == 0


async def test_what_was_stored_before_it_was_charged_to_anyone_is_from_its_next_change_on(
    store: Store, clock: ManualClock
) -> None:
    """As of a store that an earlier version has written."""
    hour = at_the_full_hour(clock)
    await store.checkpoints.put(sized("a", 1000))
    client: Any = store.metering._redis  # pyright: ignore[reportPrivateUsage]
    keys = store.metering._keys  # pyright: ignore[reportPrivateUsage]
    await client.delete(keys.stored(TENANT), keys.stored_as(TENANT), keys.metered(TENANT, hour))

    await store.checkpoints.set_public(PATH, True, "key-1")
    clock.advance(3600)
    await store.checkpoints.delete(PATH)
    clock.advance(3600)

    assert await byte_hours(store, clock, hour) == [1000.0]


async def test_a_little_less_in_the_last_moment_of_an_hour_is_counted(
    store: Store, clock: ManualClock
) -> None:
    await store.checkpoints.put(checkpoint("a", num_bytes=10))
    at_the_full_hour(clock)
    clock.advance(3599.999)

    await store.checkpoints.delete(PATH)

    assert await store.checkpoints.get(PATH) is None
    assert len(await store.checkpoints.doomed_files(10)) == 1
