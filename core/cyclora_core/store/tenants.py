"""Tenants and their API keys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cyclora_core import codec, credentials
from cyclora_core.accounts import TENANT_SCOPES, ApiKey, AuditValue, Quotas, Scope, Tenant
from cyclora_core.errors import NotFound, UserError
from cyclora_core.store.audit import Audit
from cyclora_core.store.connection import Connection

_FIXED = {"tenant_id", "created_at_ms"}
_CHANGEABLE = frozenset(each.name for each in dataclasses.fields(Tenant)) - _FIXED


class Tenants:
    """One isolated party each; keys are kept as hashes only."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
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

    async def update(self, tenant_id: str, by: str = "", /, **changes: Any) -> Tenant:
        """Change some fields of a tenant and leave the others as they are; returns all of it.

        Nothing that another administrator changes at the same time is lost. ``quotas`` may be
        ``Quotas``, which replace all of them, or a mapping of those that change. ``by`` is the
        key_id of who asked.

        Raises:
            NotFound: there is no such tenant, or it was deleted.
            UserError: there is no such field, it never changes, or cannot have that value.
        """
        if not changes:
            raise UserError(f"nothing to change; a tenant has {', '.join(sorted(_CHANGEABLE))}")
        details = {name: _as_detail(value) for name, value in changes.items()}
        details |= {"tenant_id": tenant_id, "key_id": by or None}
        entry = self._audit.entry("organization_update", details)
        while True:
            data = await self._redis.hget(self._keys.tenants(), tenant_id)
            tenant = codec.load(Tenant, data) if data else None
            if data is None or tenant is None or tenant.deleted_at_ms is not None:
                raise NotFound(f"tenant {tenant_id[:100]!r} does not exist")
            changed = _with(tenant, changes)
            is_done = await self._connection.run(
                "change_account",
                [self._keys.tenants(), self._keys.audit(tenant_id)],
                [tenant_id, data, codec.dump(changed), *self._audit.script_args(entry)],
            )
            if is_done:
                return changed

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


def _with(tenant: Tenant, changes: Mapping[str, Any]) -> Tenant:
    """The tenant with some of its fields changed, checked against their annotations."""
    unknown = sorted(changes.keys() - _CHANGEABLE)
    if unknown:
        raise UserError(
            f"{', '.join(unknown)} of a tenant cannot be changed; these can: "
            f"{', '.join(sorted(_CHANGEABLE))}"
        )
    fields = dataclasses.asdict(tenant)
    for name, value in changes.items():
        merged = {**fields[name], **value} if isinstance(value, Mapping) else value
        fields[name] = dataclasses.asdict(value) if isinstance(value, Quotas) else merged
    strangers = sorted(fields["quotas"].keys() - {each.name for each in dataclasses.fields(Quotas)})
    if strangers:
        raise UserError(f"there is no quota {', '.join(strangers)}")
    try:
        changed = codec.check(Tenant, fields)
    except ValidationError as error:
        found = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        raise UserError(f"a tenant cannot be changed so: {found}") from None
    if not 0 < changed.weight < math.inf:
        raise UserError(f"weight {changed.weight} is not allowed; expected a positive number")
    return changed


def _as_detail(value: Any) -> AuditValue:
    return value if isinstance(value, AuditValue) else codec.dump(value).decode()
