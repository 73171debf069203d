"""Tenants, sessions and sampling sessions, against a real Valkey."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from core.builders import SESSION_ID, model_id, submission, submit
from core.test_store_operations import CREATE
from cyclora_core import ids
from cyclora_core.accounts import Scope
from cyclora_core.clock import ManualClock
from cyclora_core.errors import NotFound, Unavailable
from cyclora_core.operations import LoraConfig
from cyclora_core.peft import ModuleGroup, TargetModule
from cyclora_core.records import SamplingSession, Session
from cyclora_core.store import Store, patience


def session(session_id: str = SESSION_ID, at_ms: int = 1) -> Session:
    return Session(session_id, "tenant-a", at_ms, at_ms, user_metadata={"run": "7"})


async def test_a_key_authenticates_its_tenant_until_it_is_revoked(store: Store) -> None:
    tenant = await store.tenants.create("lab")
    secret, record = await store.api_keys.create(tenant.tenant_id, "laptop")

    found = await store.api_keys.of_secret(secret)
    assert found is not None
    assert (found.key, found.tenant) == (record, tenant)
    assert secret.startswith("tml-")
    assert await store.api_keys.revoke(record.key_id)
    found = await store.api_keys.of_secret(secret)
    assert found is not None
    assert not found.is_usable(record.created_at_ms)


async def test_an_unknown_key_authenticates_nobody(store: Store) -> None:
    assert await store.api_keys.of_secret("tml-wrong") is None
    assert not await store.api_keys.revoke("key-unknown")


async def test_a_key_needs_a_tenant(store: Store) -> None:
    with pytest.raises(NotFound, match="tenant-x"):
        await store.api_keys.create("tenant-x", "laptop")


async def test_a_key_is_stored_as_a_hash_only(store: Store) -> None:
    tenant = await store.tenants.create("lab")
    secret, _ = await store.api_keys.create(tenant.tenant_id, "laptop")

    client = store.api_keys._redis  # pyright: ignore[reportPrivateUsage]
    dumped: list[bytes] = []
    async for key in client.scan_iter(f"{store.api_keys._keys.prefix}:*"):  # pyright: ignore[reportPrivateUsage]
        dumped.append(await client.dump(key) or b"")

    assert dumped
    assert not any(secret.encode() in value for value in dumped)


async def test_what_happens_to_tenants_and_keys_is_in_their_audit_log(
    store: Store, clock: ManualClock
) -> None:
    tenant = await store.tenants.create("lab", "key-admin")
    secret, record = await store.api_keys.create(
        tenant.tenant_id, "laptop", frozenset({Scope.ADMIN}), "key-admin"
    )
    for _ in range(2):
        await store.api_keys.revoke(record.key_id, record.key_id)

    entries = await store.audit.list(tenant.tenant_id, 0, clock.now_ms() + 1)

    assert sorted((each.event, each.details["key_id"]) for each in entries) == [
        ("organization_create", "key-admin"),
        ("organization_key_create", "key-admin"),
        ("organization_key_revoke", record.key_id),
    ]
    assert secret not in str(entries)


async def test_a_secret_is_the_same_for_all_who_ask_and_differs_by_name(store: Store) -> None:
    first, again = await asyncio.gather(store.secrets.shared("a"), store.secrets.shared("a"))

    assert first == again
    assert len(first) == 32
    assert await store.secrets.shared("b") != first


async def test_a_repeated_idempotency_key_makes_one_session(store: Store) -> None:
    other = ids.new_session_id()
    await store.sessions.create(session(), "once")

    again = await store.sessions.create(session(other), "once")

    assert again.session_id == SESSION_ID
    assert await store.sessions.get(other) is None


async def test_a_heartbeat_moves_the_session_on(store: Store, clock: ManualClock) -> None:
    await store.sessions.create(session())
    clock.advance(12)

    await store.sessions.heartbeat(SESSION_ID)

    found = await store.sessions.get(SESSION_ID)
    assert found is not None
    assert found.last_heartbeat_at_ms == clock.now_ms()


async def test_the_first_reason_to_finish_stands(store: Store) -> None:
    await store.sessions.create(session())

    await store.sessions.finish(SESSION_ID, "success")
    await store.sessions.finish(SESSION_ID, "errored")

    found = await store.sessions.get(SESSION_ID)
    assert found is not None
    assert found.finished_reason == "success"


async def test_sessions_are_listed_newest_first_by_tenant(store: Store) -> None:
    older, newer = ids.new_session_id(), ids.new_session_id()
    await store.sessions.create(session(older, 1))
    await store.sessions.create(session(newer, 2))

    listed = await store.sessions.list("tenant-a", 0, 10)

    assert [each.session_id for each in listed] == [newer, older]
    assert await store.sessions.list("tenant-b", 0, 10) == []


async def test_creating_a_sampling_session_again_returns_the_first(store: Store) -> None:
    sampler_id = ids.sampling_session_id(SESSION_ID, 3)
    first = SamplingSession(sampler_id, "tenant-a", SESSION_ID, "test/base", None, None, 1)
    second = SamplingSession(sampler_id, "tenant-a", SESSION_ID, "other/base", None, None, 2)

    assert await store.sampling.create(first) == first
    assert await store.sampling.create(second) == first
    assert await store.sampling.of_session(SESSION_ID) == [sampler_id]
    assert [await store.sampling.join(sampler_id) for _ in range(2)] == [1, 2]


async def test_submitting_seq_id_0_makes_the_model(store: Store) -> None:
    await submit(store, submission(CREATE, 0))

    model = await store.models.get(model_id())

    assert model is not None
    assert (model.tenant_id, model.lora, model.applied_seq_id) == ("tenant-a", LoraConfig(8), -1)
    assert await store.models.list("tenant-a", 0, 10) == ([model], 1)
    assert await store.models.of_session(SESSION_ID) == [model_id()]


async def test_a_store_that_does_not_answer_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(patience, "RECONNECT_S", 0.0)

    with pytest.raises(Unavailable, match="does not answer"):
        await Store.open(f"unix://{tmp_path}/nobody.sock")


async def test_what_an_adapter_of_a_base_model_looks_like_is_kept_in_model_order(
    store: Store,
) -> None:
    modules = [
        TargetModule("model.layers.0.self_attn.q_proj", 4, 6, ModuleGroup.ATTN),
        TargetModule("lm_head", 4, 100, ModuleGroup.UNEMBED),
    ]

    await store.base_models.put_target_modules("org/tiny", modules)

    assert await store.base_models.target_modules("org/tiny") == modules
    assert await store.base_models.target_modules("org/other") == []
