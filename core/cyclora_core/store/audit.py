"""Who changed what: a bounded list per tenant, written in the same step as each change."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from cyclora_core import codec
from cyclora_core.accounts import AuditEntry, AuditValue
from cyclora_core.store.connection import Connection

AUDIT_KEPT_S = 90 * 24 * 3600
"""How long an entry can be read; older ones go when the tenant's next one is written."""

MAX_AUDIT_ENTRIES = 10_000
"""Of one tenant; beyond them the oldest go."""

DEPLOYMENT = ""
"""In place of a tenant's id: what was changed for all of them, such as a worker."""


class Audit:
    """Entries by time. One that is written twice, since an answer was lost, is there once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._redis = connection.client
        self._keys = connection.keys
        self._clock = connection.clock

    def entry(self, event: str, details: Mapping[str, AuditValue]) -> AuditEntry:
        """An entry of now, to be written together with what it is about."""
        return AuditEntry(event, self._clock.now_ms(), dict(details), secrets.token_hex(8))

    async def add(
        self,
        event: str,
        details: Mapping[str, AuditValue],
        by: str = "",
        tenant_id: str = DEPLOYMENT,
    ) -> None:
        """Note a change that has no transaction of its own; ``by`` is the key_id of who asked."""
        entry = self.entry(event, {**details, "key_id": by or None})
        await self._connection.run("note", [self._keys.audit(tenant_id)], self.script_args(entry))

    def write(self, pipe: Any, tenant_id: str, entry: AuditEntry) -> None:
        """Add an entry to a transaction."""
        key = self._keys.audit(tenant_id)
        pipe.zadd(key, {codec.dump(entry): entry.at_ms})
        pipe.zremrangebyrank(key, 0, -MAX_AUDIT_ENTRIES - 1)
        pipe.zremrangebyscore(key, "-inf", entry.at_ms - AUDIT_KEPT_S * 1000)

    @staticmethod
    def script_args(entry: AuditEntry | None) -> list[str | int | bytes]:
        """The four arguments by which a script writes an entry, or "" each without one.

        The entry, its time, from when on older ones are kept, the rank up to which they go.
        """
        if entry is None:
            return ["", "", "", ""]
        kept_from_ms = entry.at_ms - AUDIT_KEPT_S * 1000
        return [codec.dump(entry), entry.at_ms, kept_from_ms, -MAX_AUDIT_ENTRIES - 1]

    async def list(self, tenant_id: str, from_ms: int, before_ms: int) -> list[AuditEntry]:
        """The tenant's entries of a time, oldest first."""
        rows = await self._redis.zrangebyscore(
            self._keys.audit(tenant_id), from_ms, f"({before_ms}"
        )
        return [codec.load(AuditEntry, row) for row in rows]
