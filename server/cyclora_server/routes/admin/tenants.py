"""Tenants, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from cyclora_core.accounts import Tenant
from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound
from cyclora_server.auth import IdentityDep, needs_key
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
    return _tenant(await services.store.tenants.create(body.name, identity.key.key_id))


@router.get("", summary="All tenants")
async def list_tenants(services: ServicesDep) -> Json:
    return {"tenants": [_tenant(tenant) for tenant in await services.store.tenants.list()]}


@router.get("/{tenant_id}", summary="One tenant")
async def get_tenant(tenant_id: str, services: ServicesDep) -> Json:
    tenant = await services.store.tenants.get(tenant_id)
    if tenant is None:
        raise NotFound(f"tenant {tenant_id[:100]!r} does not exist")
    return _tenant(tenant)


@router.patch(
    "/{tenant_id}",
    summary="Change a tenant; what is left out stays as it is",
    openapi_extra=documented(admin_bodies.ChangeTenant),
)
async def update_tenant(
    tenant_id: str,
    body: Annotated[admin_bodies.ChangeTenant, Depends(json_body(admin_bodies.ChangeTenant))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    by = identity.key.key_id
    return _tenant(await services.store.tenants.update(tenant_id, by, **body.changes()))


def _tenant(tenant: Tenant) -> dict[str, Any]:
    return {
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "weight": tenant.weight,
        "created_at": as_datetime(tenant.created_at_ms).isoformat(),
    }
