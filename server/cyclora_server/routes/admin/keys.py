"""API keys of all tenants, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from cyclora_core.accounts import ApiKey
from cyclora_core.clock import as_datetime
from cyclora_core.errors import NotFound
from cyclora_server import validate
from cyclora_server.auth import IdentityDep, needs_key
from cyclora_server.body import documented, json_body
from cyclora_server.services import Json, ServicesDep
from cyclora_server.wire import admin_bodies

router = APIRouter(prefix="/admin/v1/keys", tags=["administration"], dependencies=needs_key)


@router.post(
    "",
    summary="Create an API key; it is shown this once",
    description="Without `scopes` it may do all that a tenant does: train, sample and read. With a "
    "`project_id` all its sessions are in that project, and it sees nothing of the others. It ends "
    "at `expires_at`, or `lifetime_s` seconds from now, if one of them is sent.",
    openapi_extra=documented(admin_bodies.NewKey),
)
async def create_key(
    body: Annotated[admin_bodies.NewKey, Depends(json_body(admin_bodies.NewKey))],
    identity: IdentityDep,
    services: ServicesDep,
) -> Json:
    now_ms = services.clock.now_ms()
    secret, record = await services.store.api_keys.create(
        body.tenant_id,
        body.name,
        body.scopes,
        identity.key.key_id,
        project_id=None if body.project_id is None else validate.project_id(body.project_id),
        expires_at_ms=body.expires_at_ms(now_ms),
    )
    return {"api_key": secret, **_key(record)}


@router.get("", summary="What is known of the API keys; never the keys themselves")
async def list_keys(services: ServicesDep, tenant_id: str | None = None) -> Json:
    found = await services.store.api_keys.list(tenant_id)
    return {
        "keys": [{**_key(each.key), "last_used_at": _at(each.last_used_at_ms)} for each in found]
    }


@router.delete(
    "/{key_id}",
    summary="Revoke an API key",
    description="Requests that it began and that are still held, such as polls and streams, end "
    "within a second. What it had sent before runs on, and other keys of the tenant get the "
    "results. Doing it again changes nothing.",
)
async def revoke_key(key_id: str, identity: IdentityDep, services: ServicesDep) -> Json:
    if await services.store.api_keys.revoke(key_id, identity.key.key_id) is None:
        raise NotFound(f"API key {key_id[:100]!r} does not exist")
    return {}


def _key(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "tenant_id": key.tenant_id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "project_id": key.project_id,
        "created_at": _at(key.created_at_ms),
        "expires_at": _at(key.expires_at_ms),
        "revoked_at": _at(key.revoked_at_ms),
    }


def _at(at_ms: int | None) -> str | None:
    return None if at_ms is None else as_datetime(at_ms).isoformat()
