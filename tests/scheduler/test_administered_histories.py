"""What administrators do leaves counters equal to a recount, loses no pass and blocks nobody."""

from __future__ import annotations

import pytest

from core.builders import BASE_MODEL
from cyclora_core.clock import ManualClock
from cyclora_core.store import Store
from scheduler.administered_world import AdministeredWorld

_NUM_STEPS = 300


@pytest.mark.parametrize("seed", range(5))
async def test_use_is_what_is_there_whatever_is_cancelled_moved_ended_or_asked_for_twice(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    world = await AdministeredWorld.make(store, clock, seed)
    world.lose_answers(monkeypatch)

    for _ in range(_NUM_STEPS):
        await world.step()
        for client in world.clients:
            assert await world.use(client) == await world.recount(client)

    await world.drain()
    for client in world.clients:
        use = await world.use(client)
        counted = (use.operations, use.samples, use.tokens, use.adapters, use.stored_bytes)
        assert counted == (0, 0, 0, 0, 0)
    waiting = await store.cycles.gather(BASE_MODEL, 1, 1)
    assert waiting.is_empty
    assert await store.queues.waiting() == []
