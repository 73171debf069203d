"""API keys of all tenants, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from cyclora_core.accounts import ApiKey
from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound
from cyclora_server.auth import IdentityDep, needs_admin
from cyclora_server.body import documented, json_body
from cyclora_server.services import Json, ServicesDep
from cyclora_server.wire import admin_bodies

router = APIRouter(prefix="/admin/v1/keys", tags=["administration"], dependencies=needs_admin)


@router.post(
    "",
    summary="Create an API key; it is shown this once",
    openapi_extra=documented(admin_bodies.NewKey),
)
async def create_key(
    body: Annotated[admin_bodies.NewKey, Depends(json_body(admin_bodies.NewKey))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    secret, record = await services.store.tenants.create_key(
        body.tenant_id, body.name, body.scopes, identity.key.key_id
    )
    return {"api_key": secret, **_key(record)}


@router.get("", summary="What is known of the API keys; never the keys themselves")
async def list_keys(services: ServicesDep, tenant_id: str | None = None) -> Json:
    return {"keys": [_key(key) for key in await services.store.tenants.list_keys(tenant_id)]}


@router.delete("/{key_id}", summary="Revoke an API key with effect on the next request")
async def revoke_key(key_id: str, identity: IdentityDep, services: ServicesDep) -> Json:
    if not await services.store.tenants.revoke_key(key_id, identity.key.key_id):
        raise NotFound(f"API key {key_id[:100]!r} does not exist")
    return {}


def _key(key: ApiKey) -> dict[str, Any]:
    revoked_at_ms = key.revoked_at_ms
    return {
        "key_id": key.key_id,
        "tenant_id": key.tenant_id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created_at": as_datetime(key.created_at_ms).isoformat(),
        "revoked_at": None if revoked_at_ms is None else as_datetime(revoked_at_ms).isoformat(),
    }
