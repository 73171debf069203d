"""Changes of tenants by several administrators at once, against a real Valkey."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from cyclora_core.accounts import Quotas, Tenant
from cyclora_core.clock import ManualClock
from cyclora_core.errors import NotFound, UserError
from cyclora_core.store import Store


@pytest.fixture
async def tenant(store: Store) -> Tenant:
    return await store.tenants.create("lab")


async def test_a_change_leaves_the_other_fields_as_they_are(store: Store, tenant: Tenant) -> None:
    changed = await store.tenants.update(tenant.tenant_id, "key-1", name="physics", weight=2.5)

    assert (changed.name, changed.weight) == ("physics", 2.5)
    assert (changed.created_at_ms, changed.quotas) == (tenant.created_at_ms, tenant.quotas)
    assert await store.tenants.get(tenant.tenant_id) == changed


async def test_quotas_change_one_by_one_or_all_at_once(store: Store, tenant: Tenant) -> None:
    first = await store.tenants.update(tenant.tenant_id, quotas={"max_rank": 8, "max_adapters": 3})
    second = await store.tenants.update(tenant.tenant_id, quotas={"max_adapters": None})
    third = await store.tenants.update(tenant.tenant_id, quotas=Quotas(tokens_per_day=7))

    assert first.quotas == Quotas(max_rank=8, max_adapters=3)
    assert second.quotas == Quotas(max_rank=8)
    assert third.quotas == Quotas(tokens_per_day=7)


async def test_no_change_of_many_at_once_is_lost(store: Store, tenant: Tenant) -> None:
    """Each is noted once, however often it had to begin anew."""
    names = [
        "max_adapters",
        "max_rank",
        "max_queued_tokens",
        "max_concurrent_samples",
        "tokens_per_minute",
        "max_stored_bytes",
        "tokens_per_day",
        "tokens_per_month",
    ]
    await asyncio.gather(
        *(store.tenants.update(tenant.tenant_id, quotas={name: 5}) for name in names),
        store.tenants.update(tenant.tenant_id, weight=3.0),
        store.tenants.update(tenant.tenant_id, name="physics"),
    )

    found = await store.tenants.get(tenant.tenant_id)
    assert found is not None
    assert found.quotas == Quotas(**dict.fromkeys(names, 5))
    assert (found.weight, found.name) == (3.0, "physics")
    now_ms = store.clock.now_ms()
    entries = await store.audit.list(tenant.tenant_id, 0, now_ms + 1)
    assert [each.event for each in entries].count("organization_update") == len(names) + 2


async def test_a_change_is_noted_with_who_asked_and_what(
    store: Store, tenant: Tenant, clock: ManualClock
) -> None:
    clock.advance(1)
    await store.tenants.update(tenant.tenant_id, "key-1", weight=0.5, quotas={"max_rank": 8})

    entry = (await store.audit.list(tenant.tenant_id, 0, clock.now_ms() + 1))[-1]
    assert entry.event == "organization_update"
    assert entry.details["key_id"] == "key-1"
    assert entry.details["weight"] == 0.5
    assert json.loads(str(entry.details["quotas"])) == {"max_rank": 8}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tenant_id": "other"},
        {"created_at_ms": 1},
        {"label": "x"},
        {"quotas": {"max_ranks": 1}},
        {"quotas": {"max_rank": "many"}},
        {"weight": 0},
        {"weight": -1.0},
        {"weight": math.nan},
        {"weight": math.inf},
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    store: Store, tenant: Tenant, changes: dict[str, Any]
) -> None:
    with pytest.raises(UserError):
        await store.tenants.update(tenant.tenant_id, **changes)

    assert await store.tenants.get(tenant.tenant_id) == tenant


async def test_a_tenant_that_does_not_exist_cannot_be_changed(store: Store) -> None:
    with pytest.raises(NotFound, match="tenant-x"):
        await store.tenants.update("tenant-x", name="x")
