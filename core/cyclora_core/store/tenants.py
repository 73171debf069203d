"""Tenants: who works here, and what they may use."""

from __future__ import annotations

import builtins
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from cyclora_core import codec, credentials
from cyclora_core.accounts import AuditValue, Quotas, Tenant
from cyclora_core.errors import NotFound, UserError
from cyclora_core.store import accounts
from cyclora_core.store.audit import Audit
from cyclora_core.store.connection import Connection

_FIXED = {"tenant_id", "created_at_ms", "deleted_at_ms", "is_purged"}
_CHANGEABLE = frozenset(each.name for each in dataclasses.fields(Tenant)) - _FIXED


class Tenants:
    """One isolated party each."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock
        self._audit = Audit(connection)

    async def create(self, name: str, by: str = "", quotas: Quotas | None = None) -> Tenant:
        """A new tenant; ``by`` is the key_id of who asked, if it was a client."""
        tenant_id, now_ms = credentials.new_id("tenant"), self._clock.now_ms()
        tenant = Tenant(tenant_id, name, now_ms, quotas=quotas or Quotas())
        details = {"tenant_id": tenant.tenant_id, "name": name, "key_id": by or None}
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.tenants(), tenant.tenant_id, codec.dump(tenant))
            entry = self._audit.entry("organization_create", details)
            self._audit.write(pipe, tenant.tenant_id, entry)
            await pipe.execute()
        return tenant

    async def get(self, tenant_id: str) -> Tenant | None:
        """A tenant, deleted or not."""
        data = await self._redis.hget(self._keys.tenants(), tenant_id)
        return codec.load(Tenant, data) if data else None

    async def list(self) -> list[Tenant]:
        """Those that were not deleted, oldest first."""
        return [tenant for tenant in await self.list_all() if tenant.deleted_at_ms is None]

    async def list_all(self) -> builtins.list[Tenant]:
        """Those that were deleted too, oldest first."""
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
        noted = {name: _as_detail(value) for name, value in changes.items()}
        changed = await self._change(
            tenant_id, lambda tenant: _with(tenant, changes), "update", by, noted
        )
        if changed is None:
            raise NotFound(f"tenant {tenant_id[:100]!r} does not exist")
        return changed

    async def delete(self, tenant_id: str, by: str = "") -> Tenant | None:
        """Take a tenant out of all lists and close it to its keys; None if there is none.

        What it has is deleted by whoever calls this; ``unpurged`` finds the tenant until ``purged``
        was told. Its books stay.
        """

        def delete(tenant: Tenant) -> Tenant:
            if tenant.deleted_at_ms is not None:
                return tenant
            return dataclasses.replace(
                tenant,
                is_enabled=False,
                disabled_reason="it was deleted",
                deleted_at_ms=self._clock.now_ms(),
            )

        return await self._change(tenant_id, delete, "delete", by, {})

    async def unpurged(self) -> builtins.list[Tenant]:
        """Deleted tenants of which something may be left."""
        found = await self.list_all()
        return [each for each in found if each.deleted_at_ms is not None and not each.is_purged]

    async def purged(self, tenant_id: str) -> None:
        """Nothing is left of what a deleted tenant had."""
        await self._change(
            tenant_id, lambda tenant: dataclasses.replace(tenant, is_purged=True), "purge", "", {}
        )

    async def _change(
        self,
        tenant_id: str,
        how: Callable[[Tenant], Tenant],
        action: str,
        by: str,
        noted: Mapping[str, AuditValue],
    ) -> Tenant | None:
        details = {**noted, "tenant_id": tenant_id, "key_id": by or None}
        entry = self._audit.entry(f"organization_{action}", details)
        return await accounts.change(
            self._connection,
            Tenant,
            self._keys.tenants(),
            tenant_id,
            how,
            lambda _: (tenant_id, entry),
        )

    async def usage(self, tenant_id: str) -> dict[str, int]:
        """Tokens metered so far, by kind of operation."""
        rows = await self._redis.hgetall(self._keys.usage(tenant_id))
        return {name.decode(): int(value) for name, value in rows.items()}


def _with(tenant: Tenant, changes: Mapping[str, Any]) -> Tenant:
    """The tenant with some of its fields changed, checked against their annotations."""
    if tenant.deleted_at_ms is not None:
        raise NotFound(f"tenant {tenant.tenant_id!r} does not exist")
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
