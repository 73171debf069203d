"""Who sends a request: the API key in its headers, or a token that stands for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from cyclora_core.accounts import ApiKey
from cyclora_core.errors import Forbidden, Unauthorized
from cyclora_server import tokens
from cyclora_server.problems import InvalidToken
from cyclora_server.services import Services, ServicesDep
from cyclora_server.tokens import TokenSigner

# Declared for the interactive documentation only; the keys are read below, where a missing one
# is our own error and not the framework's.
_api_key_header = APIKeyHeader(name="X-API-Key", auto_error=False)
_bearer = HTTPBearer(auto_error=False)

_MAX_KEY_CHARS = 2048


@dataclass(frozen=True, slots=True)
class Identity:
    """The tenant on whose behalf a request acts."""

    tenant_id: str
    key: ApiKey
    is_token: bool = False
    """Whether a token was sent that stands for the key, rather than the key itself."""


async def authenticate(request: Request, services: ServicesDep) -> Identity:
    """Find the tenant of the request's API key, or of the key that its token stands for.

    Raises:
        Unauthorized: no key was sent, or it is unknown or revoked.
        InvalidToken: the token is not ours, has expired, or its key was revoked.
    """
    secret = _sent_key(request)
    if not secret:
        raise Unauthorized("no API key was sent; put it into the X-API-Key header")
    is_token = secret.startswith(tokens.PREFIX)
    if is_token:
        key = await _key_of_token(services, secret) if _is_plausible(secret) else None
        if key is None:
            raise InvalidToken("the token has expired, or its API key was revoked")
    else:
        key = await services.store.tenants.authenticate(secret) if _is_plausible(secret) else None
        if key is None:
            raise Unauthorized("the API key is unknown or was revoked")
    request.state.tenant_id = key.tenant_id
    return Identity(key.tenant_id, key, is_token)


async def _key_of_token(services: Services, token: str) -> ApiKey | None:
    signer = await TokenSigner.of(services.store.secrets)
    key_id = signer.key_id(token, services.clock.now_ms())
    key = await services.store.tenants.get_key(key_id) if key_id else None
    return key if key and key.revoked_at_ms is None else None


async def new_token(services: Services, key: ApiKey) -> str:
    """A token that stands for an API key as long as the settings say."""
    signer = await TokenSigner.of(services.store.secrets)
    now_ms, lifetime_s = services.clock.now_ms(), services.settings.token_lifetime_s
    return signer.sign(key, user_urn(key.tenant_id), now_ms, lifetime_s)


IdentityDep = Annotated[Identity, Depends(authenticate)]


async def require_admin(identity: IdentityDep) -> Identity:
    """Let only administrators' keys pass.

    Raises:
        Forbidden: the key is not an administrator's.
    """
    if not identity.key.is_admin:
        raise Forbidden("this needs an administrator's API key")
    return identity


def user_urn(tenant_id: str) -> str:
    """Who owns what a tenant makes; a tenant is one user, however many keys it has."""
    return f"tml:organization_user:{tenant_id}"


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
