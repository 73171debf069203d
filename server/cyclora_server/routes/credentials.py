"""The caller's own API key: what is known of it, a token in its stead, and its end."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter

from cyclora_core.errors import Forbidden
from cyclora_server.auth import IdentityDep, needs_key, new_token
from cyclora_server.services import Json, ServicesDep

router = APIRouter(prefix="/api/v1/auth", tags=["service"], dependencies=needs_key)


@router.post(
    "/token",
    summary="Exchange an API key for a token that stands for it",
    description="Every route takes the token in place of the key, in the same header. It ends with "
    "its key, and after a while by itself; that is answered with 401 and "
    '`WWW-Authenticate: Bearer error="invalid_token"`.',
)
async def exchange(identity: IdentityDep, services: ServicesDep) -> Json:
    if identity.is_token:
        # Else one that was overheard could be renewed for ever.
        raise Forbidden("a token was sent; only an API key can be exchanged")
    return {"jwt": await new_token(services, identity.key)}


@router.get("/apikey/me", summary="What is known of the API key that was sent")
async def apikey_me(identity: IdentityDep, services: ServicesDep) -> Json:
    tenant = await services.store.tenants.get(identity.tenant_id)
    # The CLI wants a number here; ours are random text, so a stable part of its hash serves.
    number = int.from_bytes(hashlib.sha256(identity.key.key_id.encode()).digest()[:6], "big")
    return {
        "key_id": number,
        "name": identity.key.name,
        "note": "",
        "details": {
            "org_details": {"name": tenant.name if tenant else identity.tenant_id},
            "user_details": {"email": ""},
        },
    }


@router.delete("/apikey/me", summary="Revoke the API key that was sent")
async def revoke_own_key(identity: IdentityDep, services: ServicesDep) -> Json:
    key_id = identity.key.key_id
    await services.store.api_keys.revoke(key_id, key_id)
    return {}
