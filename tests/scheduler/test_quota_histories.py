"""Counters of use equal a recount after every step of random histories, and are 0 at the end."""

from __future__ import annotations

import pytest

from cyclora_core.clock import ManualClock
from cyclora_core.store import Store
from scheduler.quota_world import World

_NUM_STEPS = 150


@pytest.mark.parametrize("seed", range(6))
async def test_what_counts_against_quotas_is_what_is_there(
    store: Store, clock: ManualClock, seed: int
) -> None:
    world = await World.make(store, clock, seed)

    for _ in range(_NUM_STEPS):
        await world.step()
        for client in world.clients:
            assert await world.use(client) == await world.recount(client)

    assert world.num_refused > 0
    await world.drain()
    for client in world.clients:
        use = await world.use(client)
        assert use == await world.recount(client)
        assert (use.operations, use.samples, use.tokens, use.adapters) == (0, 0, 0, 0)
        assert use.tokens_today > 0


async def test_no_history_starts_more_than_its_rate(store: Store, clock: ManualClock) -> None:
    """Over a time, the tokens of a minute's bucket, of the minutes, and of the last request."""
    world = await World.make(store, clock, 99)
    [limited, _] = world.clients
    began_ms, largest = clock.now_ms(), 3 * 80

    for _ in range(2 * _NUM_STEPS):
        await world.step()
        minutes = (clock.now_ms() - began_ms) / 60_000
        used = world.metered.get(limited.tenant_id, 0)
        assert used <= 300 * (1 + minutes) + largest
