"""Administration: tenants, API keys, and what the cluster consists of."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound
from cyclora_core.records import ApiKey, Tenant
from cyclora_server.auth import IdentityDep, needs_admin
from cyclora_server.body import documented, json_body
from cyclora_server.services import Json, ServicesDep
from cyclora_server.wire import bodies

router = APIRouter(prefix="/admin/v1", tags=["administration"], dependencies=needs_admin)


@router.post("/tenants", summary="Create a tenant", openapi_extra=documented(bodies.NewTenant))
async def create_tenant(
    body: Annotated[bodies.NewTenant, Depends(json_body(bodies.NewTenant))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    return _tenant(await services.store.tenants.create(body.name, identity.key.key_id))


@router.get("/tenants", summary="All tenants")
async def list_tenants(services: ServicesDep) -> Json:
    return {"tenants": [_tenant(tenant) for tenant in await services.store.tenants.list()]}


@router.post(
    "/keys",
    summary="Create an API key; it is shown this once",
    openapi_extra=documented(bodies.NewKey),
)
async def create_key(
    body: Annotated[bodies.NewKey, Depends(json_body(bodies.NewKey))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    secret, record = await services.store.tenants.create_key(
        body.tenant_id, body.name, body.is_admin, identity.key.key_id
    )
    return {"api_key": secret, **_key(record)}


@router.get("/keys", summary="What is known of the API keys; never the keys themselves")
async def list_keys(services: ServicesDep, tenant_id: str | None = None) -> Json:
    return {"keys": [_key(key) for key in await services.store.tenants.list_keys(tenant_id)]}


@router.delete("/keys/{key_id}", summary="Revoke an API key with effect on the next request")
async def revoke_key(key_id: str, identity: IdentityDep, services: ServicesDep) -> Json:
    if not await services.store.tenants.revoke_key(key_id, identity.key.key_id):
        raise NotFound(f"API key {key_id[:100]!r} does not exist")
    return {}


@router.get("/workers", summary="Workers and the cycles they execute")
async def list_workers(services: ServicesDep) -> Json:
    workers: list[dict[str, Any]] = [
        {
            "worker_id": worker.worker_id,
            "base_model": worker.base_model,
            "registered_at": as_datetime(worker.registered_at_ms).isoformat(),
            "is_alive": worker.is_alive,
            "cycle_id": worker.cycle_id,
            "info": dict(worker.info),
        }
        for worker in await services.store.workers.list()
    ]
    return {"workers": workers}


@router.get("/capacity", summary="Room for new work, and why it is refused if it is")
async def get_capacity(services: ServicesDep) -> Json:
    return services.capacity.describe()


@router.get("/base_models", summary="Base models as their workers describe them")
async def list_base_models(services: ServicesDep) -> Json:
    return {"base_models": [base.to_json() for base in await services.store.base_models.list()]}


def _tenant(tenant: Tenant) -> dict[str, Any]:
    return {
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "created_at": as_datetime(tenant.created_at_ms).isoformat(),
    }


def _key(key: ApiKey) -> dict[str, Any]:
    revoked_at_ms = key.revoked_at_ms
    return {
        "key_id": key.key_id,
        "tenant_id": key.tenant_id,
        "name": key.name,
        "is_admin": key.is_admin,
        "created_at": as_datetime(key.created_at_ms).isoformat(),
        "revoked_at": None if revoked_at_ms is None else as_datetime(revoked_at_ms).isoformat(),
    }
