"""Who sends a request: the API key in its headers, or a token that stands for one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from cyclora_core.accounts import ApiKey, KeyHolder
from cyclora_core.errors import Unauthorized
from cyclora_core.logs import name_in_log
from cyclora_core.store.api_keys import USE_NOTED_S
from cyclora_server import scopes, tokens
from cyclora_server.key_watch import Hold, why_not
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

    The key is looked up with every request, so that what happens to it is known at once.

    Raises:
        Unauthorized: no key was sent, or it is unknown, revoked or expired.
        InvalidToken: the token is not ours, has expired, or its key has ended.
        Forbidden: the tenant is disabled, or the key may not call this route.
    """
    secret = _sent_key(request)
    if not secret:
        raise Unauthorized("no API key was sent; put it into the X-API-Key header")
    is_token = secret.startswith(tokens.PREFIX)
    lookup = _holder_of_token if is_token else _holder_of_key
    holder = await lookup(services, secret) if _is_plausible(secret) else None
    now_ms = services.clock.now_ms()
    error = why_not(holder, now_ms, is_token=is_token)
    if error is not None:
        raise error
    assert holder is not None, "else there would be an error"
    key = holder.key
    name_in_log(tenant_id=key.tenant_id)
    request.state.tenant_id = key.tenant_id
    _note_use(services, holder, now_ms)
    rule = scopes.rule_of(request.method, request.scope["route"].path)
    scopes.check(rule, key.scopes, key.project_id)
    return Identity(key.tenant_id, key, is_token)


async def _holder_of_key(services: Services, secret: str) -> KeyHolder | None:
    return await services.store.api_keys.of_secret(secret)


async def _holder_of_token(services: Services, token: str) -> KeyHolder | None:
    signer = await TokenSigner.of(services.store.secrets)
    key_id = signer.key_id(token, services.clock.now_ms())
    return await services.store.api_keys.get(key_id) if key_id else None


def _note_use(services: Services, holder: KeyHolder, now_ms: int) -> None:
    """Remember when a key was used, once a minute and without having the request wait for it."""
    last_ms = holder.last_used_at_ms
    if last_ms is None or now_ms - last_ms >= USE_NOTED_S * 1000:
        services.background.start(services.store.api_keys.note_use(holder.key.key_id))


async def new_token(services: Services, key: ApiKey) -> str:
    """A token that stands for an API key as long as the settings say."""
    signer = await TokenSigner.of(services.store.secrets)
    now_ms, lifetime_s = services.clock.now_ms(), services.settings.token_lifetime_s
    return signer.sign(key, user_urn(key.tenant_id), now_ms, lifetime_s)


IdentityDep = Annotated[Identity, Depends(authenticate)]


@asynccontextmanager
async def held(services: Services, identity: Identity) -> AsyncGenerator[Hold, None]:
    """Wait on behalf of a request, no longer than its key may be used.

    Raises:
        Unauthorized, Forbidden: it may not be used any more.
    """
    with services.key_watch.holding(identity.key.key_id, is_token=identity.is_token) as hold:
        async with hold.waiting():
            yield hold


def user_urn(tenant_id: str) -> str:
    """Who owns what a tenant makes; a tenant is one user, however many keys it has."""
    return f"tml:organization_user:{tenant_id}"


needs_key = [Depends(_api_key_header), Depends(_bearer), Depends(authenticate)]
"""Dependencies of every router but the public ones; ``scopes`` says which keys open which route."""


def _sent_key(request: Request) -> str:
    header = request.headers.get("X-API-Key", "").strip()
    if header:
        return header
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_plausible(secret: str) -> bool:
    return len(secret) <= _MAX_KEY_CHARS
