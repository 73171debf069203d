"""How a record of a tenant or of an API key changes, with its entry in the audit log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cyclora_core import codec
from cyclora_core.accounts import AuditEntry
from cyclora_core.store.audit import Audit
from cyclora_core.store.connection import Connection

T = TypeVar("T")


async def change(
    connection: Connection,
    kind: type[T],
    records_key: str,
    record_id: str,
    how: Callable[[T], T],
    noted: Callable[[T], tuple[str, AuditEntry]],
) -> T | None:
    """Apply ``how`` to a record; None when there is none.

    Nothing that somebody else changes at the same time is lost: ``how`` is then asked again.
    Nothing is written, or noted, of a change that changes nothing. ``noted`` gives the tenant in
    whose log it goes, and the entry.
    """
    note: tuple[str, AuditEntry] | None = None
    while True:
        data = await connection.client.hget(records_key, record_id)
        if data is None:
            return None
        record = codec.load(kind, data)
        changed = how(record)
        if changed == record:
            return record
        # One for all attempts: the answer to the first may have been lost.
        tenant_id, entry = note = note or noted(record)
        is_done = await connection.run(
            "change_account",
            [records_key, connection.keys.audit(tenant_id)],
            [record_id, data, codec.dump(changed), *Audit.script_args(entry)],
        )
        if is_done:
            return changed
