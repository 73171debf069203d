"""Checkpoints: what is in storage, whose it is and how it was made."""

from __future__ import annotations

from cyclora_core import codec
from cyclora_core.records import Checkpoint
from cyclora_core.store.connection import Connection


class Checkpoints:
    """Records of checkpoints by path; the files are in storage."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection.client
        self._keys = connection.keys

    async def put(self, checkpoint: Checkpoint) -> None:
        """Record a checkpoint whose files are complete, replacing one of the same path."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.checkpoint(checkpoint.path), codec.dump(checkpoint))
            if checkpoint.is_listed:
                row = {checkpoint.path: checkpoint.created_at_ms}
                pipe.zadd(self._keys.checkpoints_of(checkpoint.tenant_id), row)
                pipe.zadd(self._keys.checkpoints_of_model(checkpoint.model_id), row)
            else:
                pipe.sadd(self._keys.unlisted_of_model(checkpoint.model_id), checkpoint.path)
            await pipe.execute()

    async def get(self, path: str) -> Checkpoint | None:
        data = await self._redis.get(self._keys.checkpoint(path))
        return codec.load(Checkpoint, data) if data else None

    async def of_model(self, model_id: str) -> list[Checkpoint]:
        """Newest first."""
        rows = await self._redis.zrevrange(self._keys.checkpoints_of_model(model_id), 0, -1)
        return await self._load([row.decode() for row in rows])

    async def unlisted_of_model(self, model_id: str) -> list[str]:
        """Paths of the checkpoints behind a model's ephemeral sampling sessions."""
        rows = await self._redis.smembers(self._keys.unlisted_of_model(model_id))
        return sorted(row.decode() for row in rows)

    async def list(self, tenant_id: str, offset: int, limit: int) -> tuple[list[Checkpoint], int]:
        """A page, newest first, and the number of all."""
        key = self._keys.checkpoints_of(tenant_id)
        total = int(await self._redis.zcard(key))
        rows = await self._redis.zrevrange(key, offset, offset + limit - 1)
        return await self._load([row.decode() for row in rows]), total

    async def _load(self, paths: list[str]) -> list[Checkpoint]:
        if not paths:
            return []
        rows = await self._redis.mget([self._keys.checkpoint(path) for path in paths])
        return [codec.load(Checkpoint, row) for row in rows if row]

    async def delete(self, path: str) -> bool:
        """Forget a checkpoint; false when there was none."""
        checkpoint = await self.get(path)
        if checkpoint is None:
            return False
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.checkpoint(path))
            pipe.zrem(self._keys.checkpoints_of(checkpoint.tenant_id), path)
            pipe.zrem(self._keys.checkpoints_of_model(checkpoint.model_id), path)
            pipe.srem(self._keys.unlisted_of_model(checkpoint.model_id), path)
            await pipe.execute()
        return True
