"""URLs that carry their own right to be read, until a moment that they name.

Clients fetch files with bare GETs: no API key travels with them. So the server signs the path
together with its expiry, and whoever holds such a URL may read that one path until then. All
servers of a deployment share the key, so each can check what another has signed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from urllib.parse import urlencode

from cyclora_server.ports import SecretsPort

_SECRET_NAME = "url_key"
_EXPIRES = "expires"
_SIGNATURE = "signature"
KEY_ID = "key_id"
_EXPIRES_RE = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)


class UrlSigner:
    """Signs paths of this server and checks what it, or another server, has signed.

    ::

        signature = HMAC-SHA256(key, path + newline + expires_at_ms + newline + key_id)

    The path is as the application sees it, decoded and without a proxy's prefix.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    async def of(cls, secrets: SecretsPort) -> UrlSigner:
        """The signer of a deployment; its key is made by whoever needs it first."""
        return cls(await secrets.shared(_SECRET_NAME))

    def sign(self, path: str, expires_at_ms: int, key_id: str) -> str:
        """The query string with which ``path`` may be read until ``expires_at_ms``.

        ``key_id`` names the API key that asked for it, for whoever asks what became of that one.
        """
        expires = str(expires_at_ms)
        signature = self._signature(path, expires, key_id)
        return urlencode({_EXPIRES: expires, KEY_ID: key_id, _SIGNATURE: signature})

    def check(self, path: str, query: Mapping[str, str], now_ms: int) -> bool:
        """Whether the query lets its bearer read ``path`` now."""
        expires, signature = query.get(_EXPIRES, ""), query.get(_SIGNATURE, "")
        if not _EXPIRES_RE.fullmatch(expires):
            return False
        expected = self._signature(path, expires, query.get(KEY_ID, ""))
        # In constant time, and as bytes: text that is not ASCII would be an error of ours.
        is_ours = hmac.compare_digest(expected.encode(), signature.encode(errors="replace"))
        return is_ours and now_ms < int(expires)

    def _signature(self, path: str, expires: str, key_id: str) -> str:
        message = f"{path}\n{expires}\n{key_id}".encode(errors="surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()
