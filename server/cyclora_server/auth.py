"""Who sends a request: the API key in its headers, looked up in the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from cyclora_core.errors import Forbidden, Unauthorized
from cyclora_core.records import ApiKey
from cyclora_server.services import ServicesDep

# Declared for the interactive documentation only; the keys are read below, where a missing one
# is our own error and not the framework's.
_api_key_header = APIKeyHeader(name="X-API-Key", auto_error=False)
_bearer = HTTPBearer(auto_error=False)

_MAX_KEY_CHARS = 512


@dataclass(frozen=True, slots=True)
class Identity:
    """The tenant on whose behalf a request acts."""

    tenant_id: str
    key: ApiKey


async def authenticate(request: Request, services: ServicesDep) -> Identity:
    """Find the tenant of the request's API key.

    Raises:
        Unauthorized: no key was sent, or it is unknown or revoked.
    """
    secret = _sent_key(request)
    if not secret:
        raise Unauthorized("no API key was sent; put it into the X-API-Key header")
    key = await services.store.tenants.authenticate(secret) if _is_plausible(secret) else None
    if key is None:
        raise Unauthorized("the API key is unknown or was revoked")
    request.state.tenant_id = key.tenant_id
    return Identity(key.tenant_id, key)


IdentityDep = Annotated[Identity, Depends(authenticate)]


async def require_admin(identity: IdentityDep) -> Identity:
    """Let only administrators' keys pass.

    Raises:
        Forbidden: the key is not an administrator's.
    """
    if not identity.key.is_admin:
        raise Forbidden("this needs an administrator's API key")
    return identity


needs_key = [Depends(_api_key_header), Depends(_bearer), Depends(authenticate)]
"""Dependencies of every router but the public one."""

needs_admin = [*needs_key, Depends(require_admin)]


def _sent_key(request: Request) -> str:
    header = request.headers.get("X-API-Key", "").strip()
    if header:
        return header
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_plausible(secret: str) -> bool:
    return len(secret) <= _MAX_KEY_CHARS
