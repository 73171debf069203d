"""Random keys that every server of a deployment must know, and nobody else."""

from __future__ import annotations

import secrets

from cyclora_core.store.connection import Connection

_NUM_BYTES = 32


class Secrets:
    """Made by whoever asks first, and never changed."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys

    async def shared(self, name: str) -> bytes:
        """32 random bytes, the same for every process and after every restart."""
        key = self._keys.secret(name)
        found = await self._redis.get(key)
        if found is None:
            await self._redis.set(key, secrets.token_bytes(_NUM_BYTES), nx=True)
            found = await self._redis.get(key)
        return found
