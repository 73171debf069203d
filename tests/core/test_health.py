"""Health tells what is so: a process that hangs is not alive, one that cannot work not ready."""

from __future__ import annotations

import asyncio

from cyclora_core.clock import ManualClock
from cyclora_core.health import MAX_SILENCE_S, Health
from cyclora_core.metrics import Instruments


def new_health(clock: ManualClock) -> Health:
    return Health(clock, Instruments("test"))


def test_a_loop_that_stands_still_is_not_alive_and_not_ready(clock: ManualClock) -> None:
    health = new_health(clock)
    health.is_serving = True
    health.beat()
    clock.advance(MAX_SILENCE_S)
    assert (health.not_alive(), health.not_ready()) == ([], [])

    clock.advance(0.1)
    assert (health.not_alive(), health.not_ready()) == (["loop"], ["loop"])

    health.beat()
    assert health.not_alive() == []


async def test_an_event_loop_beats_by_itself(clock: ManualClock) -> None:
    health = new_health(clock)
    health.beat()
    clock.advance(2 * MAX_SILENCE_S)
    assert health.not_alive() == ["loop"]

    beating = asyncio.create_task(health.keep_beating())
    await asyncio.sleep(0)

    assert health.not_alive() == []
    beating.cancel()


def test_a_process_that_has_not_started_or_is_stopping_is_alive_but_not_ready(
    clock: ManualClock,
) -> None:
    health = new_health(clock)
    assert (health.not_alive(), health.not_ready()) == ([], ["serving"])

    health.is_serving = True
    assert health.not_ready() == []


def test_a_process_that_loads_for_long_is_alive(clock: ManualClock) -> None:
    """Started anew, it would load anew."""
    health = new_health(clock)
    clock.advance(3600.0)

    assert health.not_alive() == []


def test_all_that_is_missing_is_named(clock: ManualClock) -> None:
    health = new_health(clock)
    health.is_serving = True
    is_there = {"store": True}
    health.ready_if("store", lambda: is_there["store"])
    health.live_if("engine", lambda: False)
    is_there["store"] = False

    assert health.not_alive() == ["engine"]
    assert health.not_ready() == ["engine", "store"]


def test_health_is_exported_as_metrics(clock: ManualClock) -> None:
    instruments = Instruments("test")
    health = Health(clock, instruments)

    assert instruments.registry.get_sample_value("cyclora_is_alive") == 1.0
    assert instruments.registry.get_sample_value("cyclora_is_ready") == 0.0
    health.is_serving = True
    assert instruments.registry.get_sample_value("cyclora_is_ready") == 1.0
