"""Quotas of all tenants, for administrators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from cyclora_server import access, quotas
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.body import documented, json_body
from cyclora_server.services import Json, ServicesDep
from cyclora_server.wire import admin_bodies

router = APIRouter(
    prefix="/admin/v1/tenants/{tenant_id}/quotas",
    tags=["administration"],
    dependencies=needs_key,
)


@router.get("", summary="What a tenant may use, and how much of it it does")
async def get_tenant_quotas(tenant_id: str, services: ServicesDep) -> Json:
    await access.existing_tenant(services, tenant_id)
    return await quotas.described(services, tenant_id)


@router.put(
    "",
    summary="Set quotas of a tenant, with effect on its next request",
    description="What is left out stays as it is; null takes a bound away. Work that was accepted "
    "before is not touched.",
    openapi_extra=documented(admin_bodies.SetQuotas),
)
async def set_tenant_quotas(
    tenant_id: str,
    body: Annotated[admin_bodies.SetQuotas, Depends(json_body(admin_bodies.SetQuotas))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    await access.existing_tenant(services, tenant_id)
    changes = body.model_dump(exclude_unset=True)
    if changes:
        await services.store.tenants.update(tenant_id, identity.key.key_id, quotas=changes)
    return await quotas.described(services, tenant_id)
