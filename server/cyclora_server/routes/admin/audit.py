"""The audit log of all tenants and of the deployment, for administrators."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from cyclora_core.accounts import AuditEntry
from cyclora_core.clock import as_datetime
from cyclora_core.store.audit import AUDIT_KEPT_S, DEPLOYMENT, MAX_AUDIT_ENTRIES
from cyclora_server.auth import needs_key
from cyclora_server.services import Json, Services, ServicesDep

router = APIRouter(prefix="/admin/v1/audit", tags=["administration"], dependencies=needs_key)


@router.get(
    "",
    summary="Who changed what, newest first",
    description="Of all tenants, deleted ones too, and of what belongs to none, whose `tenant_id` "
    "is null; or of the one tenant named. `event` leaves entries whose event is that or begins "
    "with it and an underscore: `organization` has tenants and their keys. `from` and `before` are "
    f"times with their zone. Entries are kept for {AUDIT_KEPT_S // 86400} days, the newest "
    f"{MAX_AUDIT_ENTRIES} of each tenant.",
)
async def list_entries(
    services: ServicesDep,
    tenant_id: Annotated[str | None, Query(max_length=100)] = None,
    event: Annotated[str | None, Query(min_length=1, max_length=100)] = None,
    from_: Annotated[AwareDatetime | None, Query(alias="from")] = None,
    before: Annotated[AwareDatetime | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
) -> Json:
    from_ms = 0 if from_ is None else round(from_.timestamp() * 1000)
    before_ms = sys.maxsize // 1000 if before is None else round(before.timestamp() * 1000)
    found: list[tuple[str, AuditEntry]] = []
    for each in [tenant_id] if tenant_id is not None else await _tenant_ids(services):
        entries = await services.store.audit.list(each, from_ms, before_ms)
        found += [(each, entry) for entry in entries if event is None or _is_of(entry, event)]
    found.sort(key=lambda row: row[1].at_ms, reverse=True)
    return {"entries": [_entry(*row) for row in found[:limit]]}


async def _tenant_ids(services: Services) -> list[str]:
    return [DEPLOYMENT, *(each.tenant_id for each in await services.store.tenants.list_all())]


def _is_of(entry: AuditEntry, event: str) -> bool:
    return entry.event == event or entry.event.startswith(f"{event}_")


def _entry(tenant_id: str, entry: AuditEntry) -> dict[str, Any]:
    return {
        "at": as_datetime(entry.at_ms).isoformat(),
        "tenant_id": tenant_id or None,
        "event": entry.event,
        "key_id": entry.details.get("key_id"),
        "details": {
            name: value
            for name, value in entry.details.items()
            if name not in ("tenant_id", "key_id")
        },
    }
