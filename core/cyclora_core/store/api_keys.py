"""API keys: kept as hashes, with what each may do and until when."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Sequence

from cyclora_core import codec, credentials
from cyclora_core.accounts import TENANT_SCOPES, ApiKey, AuditEntry, KeyHolder, Scope, Tenant
from cyclora_core.errors import NotFound, UserError
from cyclora_core.store import accounts
from cyclora_core.store.audit import Audit
from cyclora_core.store.connection import Connection

USE_NOTED_S = 60
"""Seconds after which the use of a key is noted again: a list is not worth more writes."""


_AT_ONCE = 1000
"""Keys looked up in one step: Lua unpacks no more than some thousands of arguments."""


class ApiKeys:
    """Keys of all tenants. Nothing is cached: what is revoked here is revoked everywhere."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock
        self._audit = Audit(connection)

    async def create(
        self,
        tenant_id: str,
        name: str,
        scopes: frozenset[Scope] = TENANT_SCOPES,
        by: str = "",
        *,
        project_id: str | None = None,
        expires_at_ms: int | None = None,
    ) -> tuple[str, ApiKey]:
        """A new key and its record; the key itself is not kept and cannot be shown again.

        ``by`` is the key_id of who asked, if it was a client.

        Raises:
            NotFound: there is no such tenant.
            UserError: it would have expired already, or is a project's and an administrator's.
        """
        data = await self._redis.hget(self._keys.tenants(), tenant_id)
        if data is None or codec.load(Tenant, data).deleted_at_ms is not None:
            raise NotFound(f"tenant {tenant_id[:100]!r} does not exist")
        if project_id is not None and Scope.ADMIN in scopes:
            raise UserError("a key with the scope admin is for all tenants; it has no project")
        secret = credentials.new_api_key()
        record = ApiKey(
            credentials.new_id("key"),
            tenant_id,
            name,
            scopes,
            self._clock.now_ms(),
            project_id,
            expires_at_ms,
        )
        if record.has_expired(record.created_at_ms):
            raise UserError("expires_at is in the past; the key could never be used")
        hashed = credentials.hash_api_key(secret)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.api_keys(), record.key_id, codec.dump(record))
            pipe.hset(self._keys.api_key_by_hash(), hashed, record.key_id)
            self._audit.write(pipe, tenant_id, self._entry("create", record, by))
            await pipe.execute()
        return secret, record

    async def list(self, tenant_id: str | None = None) -> list[KeyHolder]:
        """Keys of one tenant or of all, usable or not, oldest first."""
        rows = await self._redis.hvals(self._keys.api_keys())
        records = [codec.load(ApiKey, row) for row in rows]
        chosen = [key.key_id for key in records if tenant_id is None or key.tenant_id == tenant_id]
        found = await self.find(chosen)
        return sorted(found, key=lambda each: each.key.created_at_ms)

    async def get(self, key_id: str) -> KeyHolder | None:
        """A key by its id, whether it may be used or not."""
        found = await self.find([key_id])
        return found[0] if found else None

    async def of_secret(self, api_key: str) -> KeyHolder | None:
        """What is known of a key that was sent, whether it may be used or not."""
        found = await self._find(credentials.hash_api_key(api_key), [])
        return found[0] if found else None

    async def find(self, key_ids: Sequence[str]) -> builtins.list[KeyHolder]:
        """Those keys that exist."""
        found: builtins.list[KeyHolder] = []
        for first in range(0, len(key_ids), _AT_ONCE):
            found += await self._find("", key_ids[first : first + _AT_ONCE])
        return found

    async def _find(self, hashed: str, key_ids: Sequence[str]) -> builtins.list[KeyHolder]:
        keys = self._keys
        rows = await self._connection.run(
            "find_keys",
            [keys.api_key_by_hash(), keys.api_keys(), keys.tenants(), keys.api_keys_used()],
            [hashed, *key_ids],
        )
        return [
            KeyHolder(codec.load(ApiKey, key), codec.load(Tenant, tenant), int(used or 0) or None)
            for key, tenant, used in zip(rows[::3], rows[1::3], rows[2::3], strict=True)
            if tenant
        ]

    async def note_use(self, key_id: str) -> None:
        """Remember that a key was used now."""
        await self._redis.hset(self._keys.api_keys_used(), key_id, self._clock.now_ms())

    async def revoke(self, key_id: str, by: str = "") -> ApiKey | None:
        """Revoke a key with effect on all that begins from now on; None if there is none."""

        def revoke(key: ApiKey) -> ApiKey:
            if key.revoked_at_ms is not None:
                return key
            return dataclasses.replace(key, revoked_at_ms=self._clock.now_ms())

        return await accounts.change(
            self._connection,
            ApiKey,
            self._keys.api_keys(),
            key_id,
            revoke,
            lambda key: (key.tenant_id, self._entry("revoke", key, by)),
        )

    def _entry(self, action: str, record: ApiKey, by: str) -> AuditEntry:
        details = {
            "tenant_id": record.tenant_id,
            "subject_key_id": record.key_id,
            "name": record.name,
            "scopes": " ".join(sorted(record.scopes)),
            "project_id": record.project_id,
            "key_id": by or None,
        }
        return self._audit.entry(f"organization_key_{action}", details)
