"""When new work is refused, decided from numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from cyclora_core.errors import Overloaded, Unavailable
from cyclora_core.store.memory import MemoryReading
from cyclora_server.capacity import Capacity, Resource, find_shortage, footprint
from cyclora_server.settings import Settings

MIB = 1024**2
GIB = 1024**3
SETTINGS = Settings(max_store_memory_fraction=0.8, min_free_disk_bytes=GIB)


class Meter:
    """What a store and a disk say of themselves."""

    def __init__(self, used_bytes: int = 0, limit_bytes: int = 1000 * MIB) -> None:
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes
        self.free_disk_bytes = 100 * GIB
        self.while_reading: Callable[[], object] = lambda: None
        self.is_away = False

    async def read(self) -> MemoryReading:
        if self.is_away:
            raise Unavailable("the store does not answer")
        used_bytes = self.used_bytes
        self.while_reading()
        return MemoryReading(used_bytes, self.limit_bytes)

    def capacity(self, settings: Settings = SETTINGS) -> Capacity:
        return Capacity(settings, self, lambda: self.free_disk_bytes)


def shortage_at(used_bytes: int, free_disk_bytes: int = GIB, **options: Any) -> Resource | None:
    reading = MemoryReading(used_bytes, 1000 * MIB)
    shortage = find_shortage(reading, free_disk_bytes, SETTINGS, **options)
    return shortage.resource if shortage else None


def test_there_is_room_up_to_the_limits_themselves() -> None:
    assert shortage_at(800 * MIB, GIB) is None


def test_one_byte_beyond_either_limit_is_a_shortage() -> None:
    assert shortage_at(800 * MIB + 1) is Resource.STORE_MEMORY
    assert shortage_at(800 * MIB, GIB - 1) is Resource.DISK


def test_what_is_asked_for_counts() -> None:
    assert shortage_at(700 * MIB, new_bytes=100 * MIB) is None
    assert shortage_at(700 * MIB, new_bytes=101 * MIB) is Resource.STORE_MEMORY


def test_what_others_wait_for_may_use_half_of_what_is_kept_free_and_no_more() -> None:
    assert shortage_at(900 * MIB, 0, is_awaited=True) is None
    assert shortage_at(901 * MIB, 0, is_awaited=True) is Resource.STORE_MEMORY


def test_a_minimum_of_zero_bytes_never_looks_at_the_disk() -> None:
    settings = Settings(min_free_disk_bytes=0)

    assert find_shortage(MemoryReading(0, GIB), 0, settings) is None


def test_the_message_says_what_is_low_how_low_and_what_would_be_accepted() -> None:
    memory = find_shortage(MemoryReading(3900 * MIB, 4 * GIB), 0, SETTINGS)
    disk = find_shortage(MemoryReading(0, GIB), 300 * MIB, SETTINGS)

    assert memory is not None
    assert disk is not None
    assert "memory would be 95% full" in memory.message
    assert "3.8 GiB of 4.0 GiB" in memory.message
    assert "up to 80%" in memory.message
    assert "disk for checkpoints has 300.0 MiB left" in disk.message
    assert "from 1.0 GiB on" in disk.message


@given(
    used=st.integers(0, 2 * GIB),
    more=st.integers(0, GIB),
    free=st.integers(0, 4 * GIB),
    less=st.integers(0, GIB),
)
def test_less_room_never_lets_in_what_more_room_refused(
    used: int, more: int, free: int, less: int
) -> None:
    refused = find_shortage(MemoryReading(used, GIB), free, SETTINGS)
    if refused is not None:
        assert find_shortage(MemoryReading(used + more, GIB), free - less, SETTINGS) is not None


async def test_what_was_let_in_since_the_last_look_counts() -> None:
    """A second is long enough to fill a small store."""
    meter = Meter()
    capacity = meter.capacity()
    await capacity.measure()
    for _ in range(800 * MIB // footprint(50 * MIB)):
        with capacity.admitted(50 * MIB):
            pass

    with pytest.raises(Overloaded), capacity.admitted(50 * MIB):
        pass


async def test_requests_on_their_way_count_together() -> None:
    capacity = Meter().capacity()
    await capacity.measure()

    with capacity.admitted(300 * MIB), pytest.raises(Overloaded), capacity.admitted(300 * MIB):
        pass


async def test_a_new_look_replaces_what_was_counted_before_it_and_not_what_came_during_it() -> None:
    meter = Meter()
    capacity = meter.capacity()
    await capacity.measure()

    def let_in(num_bytes: int) -> None:
        with capacity.admitted(num_bytes):
            pass

    let_in(400 * MIB)
    meter.while_reading = lambda: let_in(100 * MIB)
    meter.used_bytes = 400 * MIB
    await capacity.measure()

    let_in(100 * MIB)
    with pytest.raises(Overloaded):
        let_in(100 * MIB)


async def test_before_the_first_look_everything_is_let_in() -> None:
    meter = Meter()
    meter.is_away = True
    capacity = meter.capacity()
    with capture_logs():
        await capacity.measure()

    capacity.check()
    assert capacity.describe()["store_used_bytes"] is None


async def test_a_failed_look_leaves_the_last_one_standing() -> None:
    meter = Meter(used_bytes=900 * MIB)
    capacity = meter.capacity()
    await capacity.measure()
    meter.is_away = True
    with capture_logs() as logs:
        await capacity.measure()

    with pytest.raises(Overloaded):
        capacity.check()
    assert [line["log_level"] for line in logs] == ["error"]


async def test_each_change_is_logged_once() -> None:
    meter = Meter()
    capacity = meter.capacity()
    with capture_logs() as logs:
        for used_bytes, free_disk_bytes in [
            (0, GIB),
            (900 * MIB, GIB),
            (950 * MIB, GIB),
            (0, 0),
            (0, GIB),
            (0, GIB),
        ]:
            meter.used_bytes, meter.free_disk_bytes = used_bytes, free_disk_bytes
            await capacity.measure()

    assert [(line["log_level"], line.get("resource")) for line in logs] == [
        ("warning", "store memory"),
        ("warning", "disk"),
        ("info", None),
    ]
