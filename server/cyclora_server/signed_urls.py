"""Absolute URLs with a signature: handed out to clients, and checked when they come back."""

from __future__ import annotations

from fastapi import Request

from cyclora_core.errors import Forbidden, Gone
from cyclora_server.services import Services
from cyclora_server.signing import UrlSigner


def url_expiry(services: Services) -> int:
    """When a URL that is signed now expires, in ms: whole seconds, as an Expires header has."""
    now_s = services.clock.now_ms() // 1000
    return (now_s + services.settings.download_url_ttl_s) * 1000


async def signed_url(request: Request, services: Services, path: str, expires_at_ms: int) -> str:
    """A URL by which ``path`` can be read without an API key until then.

    Its base is the one that the client uses, a path prefix included.
    """
    signer = await UrlSigner.of(services.store.secrets)
    base = services.settings.public_url or str(request.base_url)
    return f"{base.rstrip('/')}{path}?{signer.sign(path, expires_at_ms)}"


async def check_signed(request: Request, services: Services, path: str) -> None:
    """Let only those pass who have a URL of ``path`` that we signed.

    Raises:
        Forbidden: its signature is missing, wrong, or that of another URL or deployment.
        Gone: it was ours, and has expired.
    """
    signer = await UrlSigner.of(services.store.secrets)
    if signer.check(path, request.query_params, services.clock.now_ms()):
        return
    if signer.check(path, request.query_params, 0):
        raise Gone("this download URL has expired; ask for a new one")
    raise Forbidden("the signature of this download URL is not valid; use it as it was given")
