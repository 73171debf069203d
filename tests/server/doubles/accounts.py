"""Tenants, their books and their secrets, as the server sees them in the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cyclora_core.accounts import TENANT_SCOPES, ApiKey, AuditEntry, Scope, Tenant
from cyclora_core.errors import NotFound
from cyclora_core.store.metering import Metered, StoredHour
from cyclora_core.store.traces import TracedOperation
from server.doubles.builders import ADMIN_KEY, KEY, STRANGER, STRANGER_KEY, TENANT


class Tenants:
    def __init__(self) -> None:
        self.tenants = {name: Tenant(name, name.upper(), 1000) for name in (TENANT, STRANGER)}
        self.keys = {
            KEY: ApiKey("key-a", TENANT, "laptop", TENANT_SCOPES, 1000),
            STRANGER_KEY: ApiKey("key-b", STRANGER, "", TENANT_SCOPES, 1000),
            ADMIN_KEY: ApiKey("key-admin", TENANT, "", frozenset({Scope.ADMIN}), 1000),
        }

    async def create(self, name: str, by: str = "") -> Tenant:
        assert by
        tenant = Tenant(f"tenant-{name}", name, 1000)
        self.tenants[tenant.tenant_id] = tenant
        return tenant

    async def get(self, tenant_id: str) -> Tenant | None:
        return self.tenants.get(tenant_id)

    async def list(self) -> list[Tenant]:
        return list(self.tenants.values())

    async def update(self, tenant_id: str, by: str = "", /, **changes: Any) -> Tenant:
        assert by
        if tenant_id not in self.tenants:
            raise NotFound(f"tenant {tenant_id!r} does not exist")
        self.tenants[tenant_id] = dataclasses.replace(self.tenants[tenant_id], **changes)
        return self.tenants[tenant_id]

    async def create_key(
        self, tenant_id: str, name: str, scopes: frozenset[Scope], by: str
    ) -> tuple[str, ApiKey]:
        assert by
        if tenant_id not in self.tenants:
            raise NotFound(f"tenant {tenant_id!r} does not exist")
        secret = f"tml-{len(self.keys)}"
        self.keys[secret] = ApiKey(f"key-{len(self.keys)}", tenant_id, name, scopes, 1000)
        return secret, self.keys[secret]

    async def list_keys(self, tenant_id: str | None) -> list[ApiKey]:
        return [key for key in self.keys.values() if tenant_id in (None, key.tenant_id)]

    async def get_key(self, key_id: str) -> ApiKey | None:
        return next((key for key in self.keys.values() if key.key_id == key_id), None)

    async def revoke_key(self, key_id: str, by: str = "") -> bool:
        for secret, key in self.keys.items():
            if key.key_id == key_id:
                self.keys[secret] = dataclasses.replace(key, revoked_at_ms=2000)
                return True
        return False

    async def authenticate(self, api_key: str) -> ApiKey | None:
        key = self.keys.get(api_key)
        return key if key and key.revoked_at_ms is None else None


class Audit:
    def __init__(self) -> None:
        self.entries: list[tuple[str, AuditEntry]] = []

    async def list(self, tenant_id: str, from_ms: int, before_ms: int) -> list[AuditEntry]:
        found = [each for owner, each in self.entries if owner == tenant_id]
        return [each for each in found if from_ms <= each.at_ms < before_ms]


class Metering:
    def __init__(self) -> None:
        self.metered: list[Metered] = []
        self.stored_hours: list[StoredHour] = []

    async def used(self, tenant_id: str, from_hour: int, before_hour: int) -> list[Metered]:
        if tenant_id != TENANT:
            return []
        return [each for each in self.metered if from_hour <= each.hour < before_hour]

    async def stored(
        self, tenant_id: str, from_hour: int, before_hour: int, now_ms: int
    ) -> list[StoredHour]:
        assert now_ms > 0
        if tenant_id != TENANT:
            return []
        return [each for each in self.stored_hours if from_hour <= each.hour < before_hour]


class Traces:
    def __init__(self) -> None:
        self.operations: list[TracedOperation] = []
        self.queued: list[TracedOperation] = []

    async def settled(self, session_id: str) -> list[TracedOperation]:
        return [each for each in self.operations if each.request_id.startswith(session_id)]

    async def waiting(self, model_ids: Sequence[str], limit: int) -> list[TracedOperation]:
        assert model_ids
        return self.queued[:limit]


class Secrets:
    async def shared(self, name: str) -> bytes:
        return f"shared {name}".ljust(32, ".").encode()
