"""Waits that end on time, and lose no wake-up."""

from __future__ import annotations

import asyncio

import pytest

from cyclora_core.store import Store
from cyclora_scheduler.wake_ups import WakeUps

LONGEST_S = 0.5
FOR_EVER_S = 3600.0


class StoreDouble:
    """Answers a wait when it is told to, and never sooner."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []
        self.answers: list[asyncio.Future[None]] = []

    async def wait(self, wait_s: float) -> None:
        self.asked_s.append(wait_s)
        self.answers.append(asyncio.get_running_loop().create_future())
        await self.answers[-1]


async def test_a_short_wait_ends_on_time_though_the_store_does_not_answer() -> None:
    double = StoreDouble()
    wake_ups = WakeUps(double.wait, LONGEST_S)

    await wake_ups.wait(0.001)

    assert not double.answers[0].done()
    double.answers[0].set_result(None)
    await wake_ups.end()


async def test_many_short_waits_are_one_long_wait_at_the_store() -> None:
    double = StoreDouble()
    wake_ups = WakeUps(double.wait, LONGEST_S)

    for _ in range(5):
        await wake_ups.wait(0.001)

    assert double.asked_s == [LONGEST_S]
    double.answers[0].set_result(None)
    await wake_ups.end()


async def test_a_wake_up_between_two_waits_ends_the_next_one_and_no_other() -> None:
    double = StoreDouble()
    wake_ups = WakeUps(double.wait, LONGEST_S)
    await wake_ups.wait(0.001)

    double.answers[0].set_result(None)
    await wake_ups.wait(FOR_EVER_S)
    await wake_ups.wait(0.001)

    assert [answer.done() for answer in double.answers] == [True, False]
    double.answers[1].set_result(None)
    await wake_ups.end()


async def test_what_the_store_refuses_reaches_whoever_waits() -> None:
    double = StoreDouble()
    wake_ups = WakeUps(double.wait, LONGEST_S)
    await wake_ups.wait(0.001)
    double.answers[0].set_exception(OSError("away"))

    with pytest.raises(OSError, match="away"):
        await wake_ups.wait(FOR_EVER_S)


async def test_a_wait_shorter_than_the_stores_clock_is_no_longer_than_asked(store: Store) -> None:
    """An idle store ends waits ten times a second, whatever it was asked."""
    wake_ups = WakeUps(store.cycles.wait_for_work, LONGEST_S)
    began_s = asyncio.get_running_loop().time()

    for _ in range(20):
        await wake_ups.wait(0.001)

    assert asyncio.get_running_loop().time() - began_s < 20 * 0.1
    await wake_ups.end()
