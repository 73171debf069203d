"""Absolute URLs with a signature: handed out to clients, and checked when they come back."""

from __future__ import annotations

from fastapi import Request

from cyclora_core.errors import Forbidden, Gone
from cyclora_server.auth import Identity
from cyclora_server.key_watch import why_not
from cyclora_server.services import Services
from cyclora_server.signing import KEY_ID, UrlSigner


def url_expiry(services: Services) -> int:
    """When a URL that is signed now expires, in ms: whole seconds, as an Expires header has."""
    now_s = services.clock.now_ms() // 1000
    return (now_s + services.settings.download_url_ttl_s) * 1000


async def signed_url(
    request: Request, services: Services, identity: Identity, path: str, expires_at_ms: int
) -> str:
    """A URL by which ``path`` can be read without an API key until then.

    It ends earlier with the key of who asked for it: a key that leaked leaks its URLs too.
    Its base is the one that the client uses, a path prefix included.
    """
    signer = await UrlSigner.of(services.store.secrets)
    base = services.settings.public_url or str(request.base_url)
    return f"{base.rstrip('/')}{path}?{signer.sign(path, expires_at_ms, identity.key.key_id)}"


async def check_signed(request: Request, services: Services, path: str) -> str:
    """Let only those pass who have a URL of ``path`` that we signed; returns whose: a key_id.

    Raises:
        Forbidden: its signature is missing, wrong, or that of another URL or deployment.
        Gone: it was ours, and has expired, or the key that asked for it may not be used any more.
    """
    signer = await UrlSigner.of(services.store.secrets)
    now_ms = services.clock.now_ms()
    if signer.check(path, request.query_params, now_ms):
        key_id = request.query_params[KEY_ID]
        error = why_not(await services.store.api_keys.get(key_id), now_ms)
        if error is not None:
            raise Gone(f"this download URL has ended: {error}")
        return key_id
    if signer.check(path, request.query_params, 0):
        raise Gone("this download URL has expired; ask for a new one")
    raise Forbidden("the signature of this download URL is not valid; use it as it was given")
