"""Tokens that stand for an API key for an hour: what the SDK exchanges its key for.

Signed with a key that all servers share through the store, so any of them takes what another one
made. A token holds no right of its own: the API key it names is looked up with every request, so
that revoking the key revokes its tokens.
"""

from __future__ import annotations

import jwt

from cyclora_core.accounts import ApiKey
from cyclora_server.ports import SecretsPort

_SECRET_NAME = "token_key"
_ALGORITHM = "HS256"
_ISSUER = "cyclora"
PREFIX = "eyJ"
"""How every token begins, and no API key: ``{"`` in base64."""


class TokenSigner:
    """Makes tokens and reads them back."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    async def of(cls, secrets: SecretsPort) -> TokenSigner:
        """The signer of a deployment; its key is made by whoever needs it first."""
        return cls(await secrets.shared(_SECRET_NAME))

    def sign(self, key: ApiKey, user_urn: str, now_ms: int, lifetime_s: int) -> str:
        """A token that stands for an API key from now on for ``lifetime_s``."""
        now_s = now_ms // 1000
        claims = {
            "iss": _ISSUER,
            "sub": user_urn,
            "org_id": key.tenant_id,
            # Tenants have no address; the SDK reads an empty one as none.
            "email": "",
            "key_id": key.key_id,
            "iat": now_s,
            "exp": now_s + lifetime_s,
        }
        return jwt.encode(claims, self._key, _ALGORITHM)

    def key_id(self, token: str, now_ms: int) -> str | None:
        """The API key that a token stands for; None when it is not ours, or has expired."""
        try:
            claims = jwt.decode(
                token,
                self._key,
                [_ALGORITHM],
                issuer=_ISSUER,
                # Expiry is judged by the clock we were given, below.
                options={"require": ["exp", "key_id"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError:
            return None
        exp, key_id = claims["exp"], claims["key_id"]
        if not isinstance(exp, int) or not isinstance(key_id, str):
            return None
        return key_id if now_ms < exp * 1000 else None
