"""Tenants, their books and their secrets, as the server sees them in the store."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cyclora_core.accounts import (
    TENANT_SCOPES,
    ApiKey,
    AuditEntry,
    AuditValue,
    KeyHolder,
    Quotas,
    Scope,
    Tenant,
)
from cyclora_core.errors import NotFound
from cyclora_core.store.traces import TracedOperation
from cyclora_core.usage import Metered
from server.doubles.builders import ADMIN_KEY, KEY, STRANGER, STRANGER_KEY, TENANT


class Tenants:
    def __init__(self) -> None:
        self.tenants = {name: Tenant(name, name.upper(), 1000) for name in (TENANT, STRANGER)}

    async def create(self, name: str, by: str = "", quotas: Quotas | None = None) -> Tenant:
        assert by
        tenant = Tenant(f"tenant-{name}", name, 1000, quotas=quotas or Quotas())
        self.tenants[tenant.tenant_id] = tenant
        return tenant

    async def get(self, tenant_id: str) -> Tenant | None:
        return self.tenants.get(tenant_id)

    async def list(self) -> list[Tenant]:
        return [each for each in self.tenants.values() if each.deleted_at_ms is None]

    async def update(self, tenant_id: str, by: str = "", /, **changes: Any) -> Tenant:
        assert by
        if tenant_id not in self.tenants:
            raise NotFound(f"tenant {tenant_id!r} does not exist")
        if isinstance(changes.get("quotas"), Mapping):
            quotas = dataclasses.replace(self.tenants[tenant_id].quotas, **changes["quotas"])
            changes = {**changes, "quotas": quotas}
        self.tenants[tenant_id] = dataclasses.replace(self.tenants[tenant_id], **changes)
        return self.tenants[tenant_id]

    def change(self, tenant_id: str, **changes: Any) -> None:
        self.tenants[tenant_id] = dataclasses.replace(self.tenants[tenant_id], **changes)

    async def delete(self, tenant_id: str, by: str) -> Tenant | None:
        assert by
        if tenant_id not in self.tenants:
            return None
        changes = {"is_enabled": False, "disabled_reason": "it was deleted", "deleted_at_ms": 2000}
        self.tenants[tenant_id] = dataclasses.replace(self.tenants[tenant_id], **changes)
        return self.tenants[tenant_id]

    async def list_all(self) -> builtins.list[Tenant]:
        return list(self.tenants.values())

    async def unpurged(self) -> builtins.list[Tenant]:
        deleted = [each for each in self.tenants.values() if each.deleted_at_ms is not None]
        return [each for each in deleted if not each.is_purged]

    async def purged(self, tenant_id: str) -> None:
        self.tenants[tenant_id] = dataclasses.replace(self.tenants[tenant_id], is_purged=True)


class ApiKeys:
    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self.uses: list[str] = []
        self.last_used_at_ms: int | None = None
        self.keys = {
            KEY: ApiKey("key-a", TENANT, "laptop", TENANT_SCOPES, 1000),
            STRANGER_KEY: ApiKey("key-b", STRANGER, "", TENANT_SCOPES, 1000),
            ADMIN_KEY: ApiKey("key-admin", TENANT, "", frozenset({Scope.ADMIN}), 1000),
        }

    def change(self, secret: str, **changes: Any) -> None:
        self.keys[secret] = dataclasses.replace(self.keys[secret], **changes)

    async def create(
        self,
        tenant_id: str,
        name: str,
        scopes: frozenset[Scope],
        by: str,
        *,
        project_id: str | None = None,
        expires_at_ms: int | None = None,
    ) -> tuple[str, ApiKey]:
        assert by
        if tenant_id not in self._tenants.tenants:
            raise NotFound(f"tenant {tenant_id!r} does not exist")
        secret, key_id = f"tml-{len(self.keys)}", f"key-{len(self.keys)}"
        self.keys[secret] = ApiKey(key_id, tenant_id, name, scopes, 1000, project_id, expires_at_ms)
        return secret, self.keys[secret]

    async def list(self, tenant_id: str | None) -> builtins.list[KeyHolder]:
        return [self._holder(k) for k in self.keys.values() if tenant_id in (None, k.tenant_id)]

    async def get(self, key_id: str) -> KeyHolder | None:
        found = await self.find([key_id])
        return found[0] if found else None

    async def find(self, key_ids: Sequence[str]) -> builtins.list[KeyHolder]:
        return [self._holder(key) for key in self.keys.values() if key.key_id in key_ids]

    async def of_secret(self, api_key: str) -> KeyHolder | None:
        key = self.keys.get(api_key)
        return self._holder(key) if key else None

    async def note_use(self, key_id: str) -> None:
        self.uses.append(key_id)

    async def revoke(self, key_id: str, by: str) -> ApiKey | None:
        for secret, key in self.keys.items():
            if key.key_id == key_id:
                self.change(secret, revoked_at_ms=2000)
                return key
        return None

    def _holder(self, key: ApiKey) -> KeyHolder:
        return KeyHolder(key, self._tenants.tenants[key.tenant_id], self.last_used_at_ms)


class Audit:
    def __init__(self) -> None:
        self.entries: list[tuple[str, AuditEntry]] = []

    async def list(self, tenant_id: str, from_ms: int, before_ms: int) -> list[AuditEntry]:
        found = [each for owner, each in self.entries if owner == tenant_id]
        return [each for each in found if from_ms <= each.at_ms < before_ms]

    async def add(
        self, event: str, details: Mapping[str, AuditValue], by: str, tenant_id: str = ""
    ) -> None:
        noted = {**details, "key_id": by}
        self.entries.append((tenant_id, AuditEntry(event, 1000, noted, str(len(self.entries)))))


class Metering:
    def __init__(self) -> None:
        self.metered: list[Metered] = []

    async def usage(
        self, tenant_id: str, from_hour: int, before_hour: int, now_ms: int
    ) -> list[Metered]:
        assert now_ms > 0
        if tenant_id != TENANT:
            return []
        return [each for each in self.metered if from_hour <= each.hour < before_hour]


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
