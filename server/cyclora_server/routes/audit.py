"""The audit log, as the SDK's AdminClient reads it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query

from cyclora_core.accounts import AuditEntry
from cyclora_core.clock import as_datetime
from cyclora_core.store.audit import AUDIT_KEPT_S, MAX_AUDIT_ENTRIES
from cyclora_server.auth import Identity, IdentityDep, needs_key
from cyclora_server.problems import InvalidBody
from cyclora_server.services import Json, Services, ServicesDep

router = APIRouter(prefix="/api/v1", tags=["administration"], dependencies=needs_key)

_LAST_DAY = date(9999, 12, 30)
_FIRST_DAY = date(1970, 1, 1)


class EventType(StrEnum):
    """Which resource's events are asked for."""

    ALL = "all"
    CHECKPOINTS = "checkpoints"
    PROJECTS = "projects"
    TEAMS = "teams"
    """There are none: a tenant is one user."""
    ORGANIZATIONS = "organizations"
    """Tenants and their API keys."""


@router.get(
    "/audit",
    summary="Who changed what on one day, UTC: checkpoints, projects, tenants and API keys",
    description="Of the caller's tenant; of every tenant for an administrator's key. Entries are "
    f"kept for {AUDIT_KEPT_S // 86400} days, the newest {MAX_AUDIT_ENTRIES} of each tenant. The "
    "day is today unless another one is named.",
)
async def get_audit_log(
    identity: IdentityDep,
    services: ServicesDep,
    event_type: EventType = EventType.ALL,
    day: Annotated[date | None, Query()] = None,
) -> Json:
    wanted = as_datetime(services.clock.now_ms()).date() if day is None else day
    if not _FIRST_DAY <= wanted <= _LAST_DAY:
        raise InvalidBody(f"day: {wanted} is out of range; expected {_FIRST_DAY} to {_LAST_DAY}")
    start = datetime(wanted.year, wanted.month, wanted.day, tzinfo=UTC)
    from_ms, before_ms = (
        round(each.timestamp() * 1000) for each in (start, start + timedelta(days=1))
    )
    found: list[tuple[str, AuditEntry]] = []
    for tenant_id in await _tenants(services, identity):
        entries = await services.store.audit.list(tenant_id, from_ms, before_ms)
        found += [(tenant_id, each) for each in entries if _is_of(each, event_type)]
    found.sort(key=lambda row: row[1].at_ms)
    return {"entries": [_entry(*row) for row in found]}


async def _tenants(services: Services, identity: Identity) -> list[str]:
    if not identity.key.is_admin:
        return [identity.tenant_id]
    return [tenant.tenant_id for tenant in await services.store.tenants.list_all()]


def _is_of(entry: AuditEntry, event_type: EventType) -> bool:
    if event_type is EventType.ALL:
        return True
    return entry.event.startswith(f"{event_type.removesuffix('s')}_")


def _entry(tenant_id: str, entry: AuditEntry) -> dict[str, Any]:
    return {
        "timestamp": as_datetime(entry.at_ms).isoformat(),
        "event": entry.event,
        "event_details": {"tenant_id": tenant_id, **entry.details},
        "model_id": entry.details.get("model_id"),
        "tinker_path": entry.details.get("tinker_path"),
    }
