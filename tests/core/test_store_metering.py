"""What is counted by hour, against a real Valkey: once, whatever is asked for twice."""

from __future__ import annotations

import pytest

from core.builders import BASE_MODEL, SESSION_ID, add_worker, sample, submission, submit
from core.test_store_cycles import dispatch_samples, settle_sample
from core.test_store_operations import CREATE, PASS, STEP, assign, settle
from cyclora_core.clock import ManualClock
from cyclora_core.errors import ErrorCategory
from cyclora_core.operations import OperationKind
from cyclora_core.records import OperationError
from cyclora_core.store import Store
from cyclora_core.store.metering import (
    HOUR_MS,
    Meter,
    Metered,
    StoredHour,
    _integrated,  # pyright: ignore[reportPrivateUsage]
    hour_of,
)

FORWARD = OperationKind.FORWARD


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
    assert await used(store, clock) == [Metered(hour, Meter.TRAINING, BASE_MODEL, SESSION_ID, 14)]
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
        Metered(hour, Meter.PREFILL, BASE_MODEL, SESSION_ID, 4),
        Metered(hour, Meter.SAMPLED, BASE_MODEL, SESSION_ID, 3),
    ]


async def test_prompt_tokens_that_were_found_computed_are_counted_apart(
    store: Store, clock: ManualClock
) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)

    await settle_sample(store, "worker-1", num_cached_tokens=16)

    assert Metered(
        hour_of(clock.now_ms()), Meter.CACHED_PREFILL, BASE_MODEL, SESSION_ID, 16
    ) in await used(store, clock)


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


def test_bytes_are_stored_from_the_second_they_are_saved_until_they_are_deleted() -> None:
    """Against adding up second by second."""
    events = [(600, 1000), (4000, 50), (7300, -1000), (7300, 20), (15000, -70)]
    changes: dict[str, int] = {}
    for at_s, num_bytes in events:
        hour = at_s // 3600
        for field, value in (
            (f"{hour}:bytes", num_bytes),
            (f"{hour}:byte_seconds", num_bytes * (3600 - at_s % 3600)),
        ):
            changes[field] = changes.get(field, 0) + value

    def slowly(hour: int, until_s: int) -> int:
        seconds = range(hour * 3600, min(hour * 3600 + 3600, until_s))
        return sum(sum(n for at_s, n in events if at_s <= second) for second in seconds)

    for now_s in (4000, 9000, 15001, 40000):
        known = {k: v for k, v in changes.items() if int(k.partition(":")[0]) * 3600 <= now_s}
        if now_s == 4000:
            known = {
                "0:bytes": 1000,
                "0:byte_seconds": 1000 * 3000,
                "1:bytes": 50,
                "1:byte_seconds": 50 * 3200,
            }
        found = _integrated(known, 0, 20, now_s * 1000)
        expected = [(hour, slowly(hour, now_s)) for hour in range(20)]
        assert [(each.hour, each.byte_seconds) for each in found] == [
            row for row in expected if row[1] > 0
        ]


def test_what_was_saved_before_the_hours_asked_for_counts_in_them() -> None:
    changes = {"2:bytes": 10, "2:byte_seconds": 10 * 60}

    assert _integrated(changes, 5, 7, 100 * HOUR_MS) == [
        StoredHour(5, 36000),
        StoredHour(6, 36000),
    ]


@pytest.mark.parametrize("now_hour", [3, 4])
def test_nothing_is_stored_in_the_future(now_hour: int) -> None:
    changes = {"2:bytes": 10, "2:byte_seconds": 0}

    found = _integrated(changes, 4, 9, now_hour * HOUR_MS)

    assert found == []
