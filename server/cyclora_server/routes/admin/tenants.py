"""Tenants, for administrators."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from cyclora_core.accounts import Tenant
from cyclora_core.clock import as_datetime
from cyclora_core.errors import UserError
from cyclora_server import access, projects, tenant_end
from cyclora_server.auth import Identity, IdentityDep, needs_key
from cyclora_server.body import documented, json_body
from cyclora_server.services import Json, ServicesDep
from cyclora_server.wire import admin_bodies

router = APIRouter(prefix="/admin/v1/tenants", tags=["administration"], dependencies=needs_key)


@router.post("", summary="Create a tenant", openapi_extra=documented(admin_bodies.NewTenant))
async def create_tenant(
    body: Annotated[admin_bodies.NewTenant, Depends(json_body(admin_bodies.NewTenant))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    quotas, by = services.settings.new_tenant_quotas, identity.key.key_id
    return _tenant(await services.store.tenants.create(body.name, by, quotas))


@router.get("", summary="All tenants")
async def list_tenants(services: ServicesDep) -> Json:
    return {"tenants": [_tenant(tenant) for tenant in await services.store.tenants.list()]}


@router.get("/{tenant_id}", summary="One tenant")
async def get_tenant(tenant_id: str, services: ServicesDep) -> Json:
    return _tenant(await access.existing_tenant(services, tenant_id))


@router.patch(
    "/{tenant_id}",
    summary="Change a tenant; what is left out stays as it is",
    description="While `is_enabled` is false its keys are answered with 403 and the "
    "`disabled_reason`, within a second also where a request is held. What was sent before still "
    "runs, and its results wait; but its sessions end when nothing was heard of them for a while.",
    openapi_extra=documented(admin_bodies.ChangeTenant),
)
async def update_tenant(
    tenant_id: str,
    body: Annotated[admin_bodies.ChangeTenant, Depends(json_body(admin_bodies.ChangeTenant))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    changes = body.changes()
    if changes.get("is_enabled") is False:
        _check_other(identity, tenant_id)
    by = identity.key.key_id
    return _tenant(await services.store.tenants.update(tenant_id, by, **changes))


@router.delete(
    "/{tenant_id}",
    summary="Delete a tenant with all that it has; its usage and audit log stay",
    description="Refused while it has live sessions, unless `force` is true. Its keys end at once. "
    "What it had sent before still runs; then its models end, and its checkpoints and their files "
    "are deleted, the last of them in the background.",
)
async def delete_tenant(
    tenant_id: str,
    identity: IdentityDep,
    services: ServicesDep,
    force: Annotated[bool, Query()] = False,
) -> Json:
    await access.existing_tenant(services, tenant_id)
    by = identity.key.key_id
    _check_other(identity, tenant_id)
    live = await tenant_end.live_sessions(services, tenant_id)
    if live and not force:
        raise UserError(
            f"tenant {tenant_id!r} has {len(live)} live sessions; end them, disable the tenant and "
            "wait, or send force=true"
        )
    await services.store.tenants.delete(tenant_id, by)
    is_purged = await tenant_end.clean_up(services, tenant_id, by)
    return {"is_purged": is_purged, "num_sessions_ended": len(live)}


@router.get(
    "/{tenant_id}/projects",
    summary="A tenant's projects, and what is in each",
    description="A project is made by its use. Looks at everything that the tenant has.",
)
async def list_projects(tenant_id: str, services: ServicesDep) -> Json:
    await access.existing_tenant(services, tenant_id)
    found = await projects.summaries(services, tenant_id)
    return {"projects": [dataclasses.asdict(each) for each in found]}


def _check_other(identity: Identity, tenant_id: str) -> None:
    """Refuse what would lock out whoever asks for it, with nobody left to take it back."""
    if tenant_id == identity.tenant_id:
        raise UserError("this is the tenant of the API key that was sent; use another one's")


def _tenant(tenant: Tenant) -> dict[str, Any]:
    return {
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "weight": tenant.weight,
        "created_at": as_datetime(tenant.created_at_ms).isoformat(),
        "is_enabled": tenant.is_enabled,
        "disabled_reason": tenant.disabled_reason,
    }
