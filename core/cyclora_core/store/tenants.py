"""Tenants and their API keys."""

from __future__ import annotations

import dataclasses
from typing import Any

from cyclora_core import codec, credentials
from cyclora_core.accounts import TENANT_SCOPES, ApiKey, Scope, Tenant
from cyclora_core.errors import NotFound
from cyclora_core.store.audit import Audit
from cyclora_core.store.connection import Connection


class Tenants:
    """One isolated party each; keys are kept as hashes only."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock
        self._audit = Audit(connection)

    async def create(self, name: str, by: str = "") -> Tenant:
        """A new tenant; ``by`` is the key_id of who asked, if it was a client."""
        tenant = Tenant(credentials.new_id("tenant"), name, self._clock.now_ms())
        details = {"tenant_id": tenant.tenant_id, "name": name, "key_id": by or None}
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.tenants(), tenant.tenant_id, codec.dump(tenant))
            entry = self._audit.entry("organization_create", details)
            self._audit.write(pipe, tenant.tenant_id, entry)
            await pipe.execute()
        return tenant

    async def get(self, tenant_id: str) -> Tenant | None:
        data = await self._redis.hget(self._keys.tenants(), tenant_id)
        return codec.load(Tenant, data) if data else None

    async def list(self) -> list[Tenant]:
        rows = await self._redis.hvals(self._keys.tenants())
        return sorted((codec.load(Tenant, row) for row in rows), key=lambda t: t.created_at_ms)

    async def create_key(
        self,
        tenant_id: str,
        name: str,
        scopes: frozenset[Scope] = TENANT_SCOPES,
        by: str = "",
    ) -> tuple[str, ApiKey]:
        """A new key and its record; the key itself is not kept and cannot be shown again.

        ``by`` is the key_id of who asked, if it was a client.

        Raises:
            NotFound: there is no such tenant.
        """
        if await self.get(tenant_id) is None:
            raise NotFound(f"tenant {tenant_id!r} does not exist")
        secret = credentials.new_api_key()
        now_ms = self._clock.now_ms()
        record = ApiKey(credentials.new_id("key"), tenant_id, name, scopes, now_ms)
        hashed = credentials.hash_api_key(secret)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.api_keys(), record.key_id, codec.dump(record))
            pipe.hset(self._keys.api_key_by_hash(), hashed, record.key_id)
            self._write_entry(pipe, "organization_key_create", record, by)
            await pipe.execute()
        return secret, record

    async def list_keys(self, tenant_id: str | None = None) -> list[ApiKey]:
        rows = await self._redis.hvals(self._keys.api_keys())
        records = (codec.load(ApiKey, row) for row in rows)
        chosen = [key for key in records if tenant_id is None or key.tenant_id == tenant_id]
        return sorted(chosen, key=lambda key: key.created_at_ms)

    async def get_key(self, key_id: str) -> ApiKey | None:
        """The record of a key, revoked or not."""
        data = await self._redis.hget(self._keys.api_keys(), key_id)
        return codec.load(ApiKey, data) if data else None

    async def revoke_key(self, key_id: str, by: str = "") -> bool:
        """Revoke with effect on the next request; false when there is no such key."""
        record = await self.get_key(key_id)
        if record is None:
            return False
        if record.revoked_at_ms is None:
            record = dataclasses.replace(record, revoked_at_ms=self._clock.now_ms())
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(self._keys.api_keys(), key_id, codec.dump(record))
                self._write_entry(pipe, "organization_key_revoke", record, by)
                await pipe.execute()
        return True

    def _write_entry(self, pipe: Any, event: str, record: ApiKey, by: str) -> None:
        details = {
            "tenant_id": record.tenant_id,
            "subject_key_id": record.key_id,
            "name": record.name,
            "scopes": " ".join(sorted(record.scopes)),
            "key_id": by or None,
        }
        self._audit.write(pipe, record.tenant_id, self._audit.entry(event, details))

    async def authenticate(self, api_key: str) -> ApiKey | None:
        """The record of a key that may be used now; None when it is unknown or revoked."""
        hashed = credentials.hash_api_key(api_key)
        key_id = await self._redis.hget(self._keys.api_key_by_hash(), hashed)
        if key_id is None:
            return None
        record = await self.get_key(key_id.decode())
        return record if record and record.revoked_at_ms is None else None

    async def usage(self, tenant_id: str) -> dict[str, int]:
        """Tokens metered so far, by kind of operation."""
        rows = await self._redis.hgetall(self._keys.usage(tenant_id))
        return {name.decode(): int(value) for name, value in rows.items()}
