"""Tenants, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from cyclora_core.accounts import Tenant
from cyclora_core.clock import as_datetime
from cyclora_server.auth import IdentityDep, needs_admin
from cyclora_server.body import documented, json_body
from cyclora_server.services import Json, ServicesDep
from cyclora_server.wire import admin_bodies

router = APIRouter(prefix="/admin/v1/tenants", tags=["administration"], dependencies=needs_admin)


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


def _tenant(tenant: Tenant) -> dict[str, Any]:
    return {
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "created_at": as_datetime(tenant.created_at_ms).isoformat(),
    }
