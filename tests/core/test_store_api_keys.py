"""API keys against a real Valkey: what each may do, until when, and who sees it."""

from __future__ import annotations

import asyncio

import pytest

from cyclora_core.accounts import KeyHolder, Scope, Tenant
from cyclora_core.clock import ManualClock
from cyclora_core.errors import NotFound, UserError
from cyclora_core.store import Store


@pytest.fixture
async def tenant(store: Store) -> Tenant:
    return await store.tenants.create("lab")


async def found(store: Store, secret: str) -> KeyHolder:
    holder = await store.api_keys.of_secret(secret)
    assert holder is not None
    return holder


async def test_a_key_is_found_by_secret_and_by_id_with_its_tenant(
    store: Store, tenant: Tenant
) -> None:
    secret, record = await store.api_keys.create(
        tenant.tenant_id, "ci", frozenset({Scope.TRAIN}), project_id="alpha"
    )

    holder = await found(store, secret)
    assert (holder.key, holder.tenant) == (record, tenant)
    assert holder == await store.api_keys.get(record.key_id)
    assert (record.project_id, record.scopes) == ("alpha", {Scope.TRAIN})


async def test_many_are_found_at_once_and_unknown_ones_left_out(
    store: Store, tenant: Tenant
) -> None:
    ids = [(await store.api_keys.create(tenant.tenant_id, str(i)))[1].key_id for i in range(3)]

    holders = await store.api_keys.find([*ids, "key-unknown"])

    assert [each.key.key_id for each in holders] == ids
    assert await store.api_keys.find([]) == []
    assert await store.api_keys.of_secret("") is None


async def test_more_keys_are_asked_for_than_one_step_takes(store: Store, tenant: Tenant) -> None:
    """A process may hold requests of so many; their revocation must not go unseen."""
    _, key = await store.api_keys.create(tenant.tenant_id, "laptop")
    others = [f"key-{number}" for number in range(10_000)]

    assert [each.key for each in await store.api_keys.find([*others, key.key_id])] == [key]


async def test_a_key_ends_by_itself(store: Store, tenant: Tenant, clock: ManualClock) -> None:
    secret, _ = await store.api_keys.create(
        tenant.tenant_id, "ci", expires_at_ms=clock.now_ms() + 1000
    )

    clock.advance(0.999)
    assert (await found(store, secret)).is_usable(clock.now_ms())
    clock.advance(0.001)
    assert not (await found(store, secret)).is_usable(clock.now_ms())


async def test_a_key_of_a_disabled_tenant_rests_until_it_is_enabled(
    store: Store, tenant: Tenant, clock: ManualClock
) -> None:
    secret, _ = await store.api_keys.create(tenant.tenant_id, "ci")
    usable: list[bool] = []
    for is_enabled in (False, True):
        await store.tenants.update(tenant.tenant_id, is_enabled=is_enabled)
        usable.append((await found(store, secret)).is_usable(clock.now_ms()))

    assert usable == [False, True]


async def test_a_deleted_tenant_gets_no_keys_and_opens_nothing(
    store: Store, tenant: Tenant, clock: ManualClock
) -> None:
    secret, _ = await store.api_keys.create(tenant.tenant_id, "ci")
    await store.tenants.delete(tenant.tenant_id)

    assert not (await found(store, secret)).is_usable(clock.now_ms())
    with pytest.raises(NotFound):
        await store.api_keys.create(tenant.tenant_id, "late")


async def test_a_key_that_could_never_be_used_is_refused(
    store: Store, tenant: Tenant, clock: ManualClock
) -> None:
    with pytest.raises(UserError, match="past"):
        await store.api_keys.create(tenant.tenant_id, "", expires_at_ms=clock.now_ms())


async def test_an_administrators_key_has_no_project(store: Store, tenant: Tenant) -> None:
    with pytest.raises(UserError, match="admin"):
        await store.api_keys.create(
            tenant.tenant_id, "", frozenset({Scope.ADMIN}), project_id="alpha"
        )


async def test_two_who_revoke_at_once_leave_one_entry_and_one_time(
    store: Store, tenant: Tenant, clock: ManualClock
) -> None:
    _, record = await store.api_keys.create(tenant.tenant_id, "ci")

    first, second = await asyncio.gather(
        store.api_keys.revoke(record.key_id, "key-1"), store.api_keys.revoke(record.key_id, "key-2")
    )

    assert first == second
    entries = await store.audit.list(tenant.tenant_id, 0, clock.now_ms() + 1)
    assert [each.event for each in entries].count("organization_key_revoke") == 1


async def test_a_list_tells_when_a_key_was_used_last(
    store: Store, tenant: Tenant, clock: ManualClock
) -> None:
    other = await store.tenants.create("other")
    _, used = await store.api_keys.create(tenant.tenant_id, "used")
    clock.advance(1)
    await store.api_keys.create(tenant.tenant_id, "unused")
    await store.api_keys.create(other.tenant_id, "other")

    await store.api_keys.note_use(used.key_id)

    listed = await store.api_keys.list(tenant.tenant_id)
    assert [each.key.name for each in listed] == ["used", "unused"]
    assert [each.last_used_at_ms for each in listed] == [clock.now_ms(), None]
    assert len(await store.api_keys.list()) == 3
